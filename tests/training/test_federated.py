"""Rounds of a federation: one client is a central run, interruption changes no bit, products are averaged as such."""

import pytest
import torch
from golden_runs import Recorder, build, golden, rows_of, trainables

from harness.aggregators.mean import Mean
from harness.aggregators.median import Median
from harness.corpora.shards import Shards
from harness.defenses.ml_lr import MLLR
from harness.engine.seeding import derive
from harness.errors import DataError, ModelError, Stopped
from harness.protocols import Product
from harness.training.budget import Budget, Scheduler
from harness.training.federated import Turn, train_rounds, train_turn
from harness.training.product_mean import mean_product
from harness.training.rounds import Rounds
from harness.training.server import Server, flat
from harness.training.trainer import train

ROWS = rows_of(golden("sft")[1], "alignment", 2)[:8]
BUDGET = Budget(epochs=3, batch_size=3, learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.5)
ROUNDS = Rounds(per_round=2, rounds=4, local_steps=2, aggregate=Mean())
SHARDS = Shards([0, 1, 2, 3] * 2, 4, frozenset({3}))
PAD = 0


def federated(work, *, model=None, rounds=ROUNDS, shards=SHARDS, rows=ROWS, budget=BUDGET, method=None, **options):
    model = build() if model is None else model
    options.setdefault("tracker", Recorder())
    report = train_rounds(
        model,
        method=method,
        rows=rows,
        shards=shards,
        rounds=rounds,
        budget=budget,
        seed=5,
        pad_id=PAD,
        work=work,
        **options,
    )
    return model, report


def test_one_client_that_keeps_its_optimizer_is_a_central_run_bit_for_bit(tmp_path):
    rounds = Rounds(per_round=1, rounds=3, local_steps=3, aggregate=Mean(), optimizer="kept")
    central = build()
    start = {name: value.clone() for name, value in trainables(central).items()}

    model, report = federated(tmp_path / "a", rounds=rounds, shards=Shards([0] * 8, 1, frozenset()))
    seed = derive(5, "client", "0")
    plain = train(
        central, method=None, rows=ROWS, budget=BUDGET, seed=seed, pad_id=PAD, work=tmp_path / "b", tracker=Recorder()
    )

    assert plain.steps == report.steps == 9
    assert any(not torch.equal(start[name], value) for name, value in trainables(model).items())
    assert all(torch.equal(value, trainables(model)[name]) for name, value in trainables(central).items())
    losses = [row["loss"] for row in plain.history]
    assert [row["loss"] for row in report.history] == pytest.approx([sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)])


def test_fresh_optimizer_forgets_what_it_knew(tmp_path):
    whole = Shards([0] * 8, 1, frozenset())
    fresh, kept = (
        federated(
            tmp_path / optimizer,
            rounds=Rounds(per_round=1, rounds=3, local_steps=3, aggregate=Mean(), optimizer=optimizer),
            shards=whole,
        )[0]
        for optimizer in ("fresh", "kept")
    )

    assert any(not torch.equal(value, trainables(kept)[name]) for name, value in trainables(fresh).items())


@pytest.mark.parametrize("optimizer", ["fresh", "kept"])
def test_run_that_is_killed_in_a_round_resumes_after_the_last_finished_one(tmp_path, optimizer):
    rounds = Rounds(per_round=2, rounds=4, local_steps=2, aggregate=Median(), optimizer=optimizer)
    whole, expected = federated(tmp_path / "whole", rounds=rounds, model=dropping())
    work, begun = tmp_path / "killed", []

    class Killed(Exception):
        pass

    class Dying:
        """Dies in the first step of the third round."""

        name, version, needs = "dying", 1, ()

        def start(self, learner, batches, total_steps):
            begun.append(1)
            raise Killed

    def seen(metrics, *, step):
        begun.append(step)

    tracker = Recorder()
    tracker.log = seen
    polls = iter([False, True])
    with pytest.raises(Stopped, match="after round 2 of 4"):
        federated(work, rounds=rounds, model=dropping(), tracker=tracker, stop=lambda: next(polls))
    with pytest.raises(Killed):
        federated(work, rounds=rounds, model=dropping(), method=Dying())
    torch.manual_seed(99)
    model, report = federated(work, rounds=rounds, model=dropping(), tracker=tracker)

    assert begun == [2, 4, 1, 6, 8], "no finished round is trained again"
    assert all(torch.equal(value, trainables(model)[name]) for name, value in trainables(whole).items())
    assert report.history == expected.history
    assert report.rounds == expected.rounds


@pytest.mark.parametrize("settings", [{}, {"optimizer": "kept"}, {"average": "product"}])
def test_clients_that_train_apart_from_each_other_come_to_the_same_bits(tmp_path, settings):
    rounds = Rounds(per_round=3, rounds=3, local_steps=2, aggregate=Mean(), **settings)
    expected, report = federated(tmp_path / "whole", rounds=rounds, model=dropping(), mixed=ROWS[:1])
    start, moments, history, records = None, {}, [], []

    for number in range(3):
        sent = []
        for client in reversed(rounds.drawn(4, number, 5)):
            torch.manual_seed(client)
            (played,) = (
                train_turn(
                    dropping(),
                    turn=Turn(number, (client,), start, {c: m for c, m in moments.items() if c == client}),
                    method=None,
                    rows=ROWS,
                    mixed=ROWS[:1],
                    shards=SHARDS,
                    rounds=rounds,
                    budget=BUDGET,
                    seed=5,
                    pad_id=PAD,
                    work=tmp_path / f"{number}-{client}",
                    tracker=Recorder(),
                ).played,
            )
            sent += played.sent
            moments[client] = played.sent[0].moments
        names = [name for name, _ in played.parameters]
        server = Server(names, Shards([], 4, SHARDS.malicious), played.sizes, rounds, BUDGET, 5)
        result = server.combine(played.start, sorted(sent, key=lambda each: each.client), number)
        start = flat(result.values)
        history.append(result.entry)
        records.append(result.record)

    assert torch.equal(start, flat(list(trainables(expected).values())))
    assert history == report.history
    assert records == report.rounds


def test_epochs_are_examples_seen_over_examples_held(tmp_path):
    # Three honest clients hold two rows and one mixed in, the malicious one two; two batches of three are two epochs.
    everyone = Rounds(per_round=4, rounds=2, local_steps=2, aggregate=Mean())

    _, report = federated(tmp_path, rounds=everyone, mixed=ROWS[:1])

    assert [entry["epoch"] for entry in report.history] == [2, 4]


def dropping():
    """Return the model with dropout in its adapter."""
    model = build()
    for name, _ in model.named_modules():
        if name.endswith("lora_dropout.default"):
            parent = model.get_submodule(name.rpartition(".")[0])
            parent["default"] = torch.nn.Dropout(0.3)
    return model


def test_other_seeds_draw_other_clients_and_attackers_are_their_rounded_share():
    draws = [[ROUNDS.drawn(10, number, seed) for number in range(4)] for seed in (0, 1)]

    assert draws[0] == [ROUNDS.drawn(10, number, 0) for number in range(4)] != draws[1]
    assert all(drawn == sorted(set(drawn)) and len(drawn) == 2 for run in draws for drawn in run)
    assert [ROUNDS.attackers(10, malicious) for malicious in (0, 2, 3, 8)] == [0, 0, 1, 2]


def test_schedule_is_over_rounds():
    budget = Budget(learning_rate=4.0, scheduler=Scheduler.COSINE)

    assert [ROUNDS.learning_rate(budget, number) for number in range(4)] == pytest.approx([4, 3.414214, 2, 0.585786])
    linear = Budget(learning_rate=4.0, scheduler=Scheduler.LINEAR, warmup_ratio=0.5)
    assert [ROUNDS.learning_rate(linear, number) for number in range(4)] == [0, 2, 4, 2]
    assert ROUNDS.learning_rate(Budget(learning_rate=4.0), 3) == 4


def test_records_name_the_clients_of_each_round(tmp_path):
    _, report = federated(tmp_path)

    assert [record["clients"] for record in report.rounds] == [ROUNDS.drawn(4, number, 5) for number in range(4)]
    for record in report.rounds:
        assert record["malicious"] == [client for client in record["clients"] if client == 3]
        assert record["weights"] == [0.5, 0.5]
        assert all(norm > 0 for norm in record["norms"])
        assert record["cosines"][0][0] == pytest.approx(1)
        assert record["cosines"][0][1] == record["cosines"][1][0] < 1
    bad = [bool(record["malicious"]) for record in report.rounds]
    assert ["malicious_loss" in row for row in report.history] == bad
    assert any(bad)


class Counted:
    """Plain training that counts by whom it is used."""

    name, version, needs = "counted", 1, ()

    def __init__(self):
        self.rows = []

    def start(self, learner, batches, total_steps):
        counted = self

        class Step:
            def backward(self, batch):
                counted.rows.append((total_steps, len(batch["labels"])))
                loss, gradient = learner.gradient(batch)
                learner.set_gradient(gradient)
                return {"loss": loss}

        return Step()


def test_method_is_run_by_honest_clients_only_and_with_its_own_rows(tmp_path):
    everyone = Rounds(per_round=4, rounds=1, local_steps=2, aggregate=Mean())
    method = Counted()

    federated(tmp_path, rounds=everyone, method=method, mixed=ROWS[:1])

    # Three honest clients with two rows of their own and one of the method's fill one batch of three in each step.
    assert method.rows == [(2, 3)] * 6


def test_client_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="1 of 4 clients have no row"):
        federated(tmp_path, shards=Shards([0, 1, 2, 0] * 2, 4, frozenset()))


def test_mean_of_products_is_not_the_product_of_means():
    # (B, A) = (1, 1) and (3, -1): the factors' means are 2 and 0, the products' mean is -1.
    products = [
        Product(torch.tensor([[1.0]]), torch.tensor([[1.0]])),
        Product(torch.tensor([[3.0]]), torch.tensor([[-1.0]])),
    ]

    (b, a), lost, whole = mean_product(products, torch.tensor([0.5, 0.5]), rank=1)

    assert (b @ a).item() == pytest.approx(-1)
    assert abs(b.item()) == pytest.approx(1), "the factors share the singular value"
    assert (lost, whole) == pytest.approx((0, 1))


def test_mean_product_of_lower_rank_states_what_it_lost():
    # The mean of diag(4, 0) and diag(0, 2) is diag(2, 1): of rank 1 there is diag(2, 0), without 1 of 2^2 + 1^2.
    products = [
        Product(torch.tensor([[4.0], [0.0]]), torch.tensor([[1.0, 0.0]])),
        Product(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0, 1.0]])),
    ]

    one, two = (mean_product(products, torch.tensor([0.5, 0.5]), rank=rank) for rank in (1, 3))

    assert (one.product.b @ one.product.a).flatten().tolist() == pytest.approx([2, 0, 0, 0], abs=1e-6)
    assert (one.lost, one.whole) == pytest.approx((1, 5))
    assert (two.product.b @ two.product.a).flatten().tolist() == pytest.approx([2, 0, 0, 1], abs=1e-6)
    assert two.lost == 0


def test_products_are_averaged_as_products_and_factors_each_by_itself(tmp_path):
    factors, by_factors = federated(tmp_path / "f")
    products, by_products = federated(
        tmp_path / "p", rounds=Rounds(per_round=2, rounds=1, local_steps=2, aggregate=Mean(), average="product")
    )

    assert "lost" not in by_factors.rounds[0]
    assert 0 <= by_products.rounds[0]["lost"] < 1
    assert any(not torch.equal(value, trainables(products)[name]) for name, value in trainables(factors).items())


def test_method_that_decides_more_than_gradients_is_refused(tmp_path):
    with pytest.raises(ModelError, match="`ml_lr` decides more than the gradients of a training"):
        federated(tmp_path, method=MLLR(modules=("q_proj",)))
