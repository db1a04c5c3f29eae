import math
from dataclasses import replace

import pytest
import torch
from golden_runs import BUDGET, Recorder, build, golden, rows_of, run, trainables
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.corpora.batches import collate
from harness.errors import DataError, ModelError
from harness.training.budget import Budget, Precision, Scheduler
from harness.training.learner import CausalLearner
from harness.training.trainer import train

ROWS = rows_of(golden("sft")[1], "alignment", 8)


def plain(tmp_path, *, model=None, rows=ROWS, budget=BUDGET, **options):
    options.setdefault("tracker", Recorder())
    model = build() if model is None else model
    return train(model, method=None, rows=rows, budget=budget, seed=0, pad_id=0, work=tmp_path, **options)


def gradients_of(action):
    seen = []

    def keep(optimizer, *_):
        seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_pre_hook(keep)
    try:
        action()
    finally:
        hook.remove()
    return seen


class CountingStep:
    """A step whose gradient is known: the number of the call, everywhere."""

    def __init__(self, learner):
        self.learner = learner
        self.calls = 0
        self.rows = []

    def backward(self, batch):
        self.calls += 1
        self.rows.append(len(batch["labels"]))
        self.learner.set_gradient([torch.full_like(p, float(self.calls)) for p in self.learner.trainables])
        return {"loss": float(self.calls)}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Counting:
    name, version, needs = "counting", 1, ()

    def start(self, learner, batches, total_steps):
        self.total_steps = total_steps
        self.step = CountingStep(learner)
        return self.step


def counted(tmp_path, rows, budget, **options):
    method = Counting()
    tracker = Recorder()
    report = []

    def action():
        report.append(
            train(
                build(),
                method=method,
                rows=rows,
                budget=budget,
                seed=0,
                pad_id=0,
                work=tmp_path,
                tracker=tracker,
                **options,
            )
        )

    firsts = [float(gradient[0].flatten()[0]) for gradient in gradients_of(action)]
    return firsts, report[0], method, tracker


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_method_sees_the_batch_of_the_whole_step_and_the_optimizer_its_gradient(micro_batch_size, tmp_path):
    firsts, report, method, _ = counted(
        tmp_path, ROWS[:11], replace(BUDGET, epochs=2, batch_size=8), micro_batch_size=micro_batch_size
    )

    assert method.step.rows == [8, 3, 8, 3]
    assert firsts == [1, 2, 3, 4]
    assert report.steps == method.total_steps == 4
    assert report.rows_at_once == micro_batch_size


@pytest.mark.slow
def test_training_in_pieces_ends_where_training_on_whole_batches_ends(tmp_path):
    whole, cut = build(), build()

    report = run("booster_vaccine", tmp_path / "whole", model=whole)
    pieces = run("booster_vaccine", tmp_path / "cut", model=cut, micro_batch_size=3)

    for place, weight in trainables(whole).items():
        assert float((trainables(cut)[place] - weight).norm() / weight.norm()) < 1e-5
    for ours, theirs in zip(pieces.history, report.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_history_averages_metrics_over_each_interval(tmp_path):
    rows = ROWS[:1] * 250

    _, report, _, tracker = counted(tmp_path, rows, Budget(epochs=1, batch_size=1))

    assert [row["step"] for row in report.history] == [*range(2, 251, 2)]
    assert [row["loss"] for row in report.history] == [step - 0.5 for step in range(2, 251, 2)]
    assert report.metrics == report.history[-1]
    assert tracker.rows == report.history


@pytest.mark.slow
def test_history_of_an_uneven_number_of_steps_ends_with_the_last_step(tmp_path):
    _, report, *_ = counted(tmp_path, ROWS[:1] * 201, Budget(epochs=1, batch_size=1))

    assert [row["step"] for row in report.history][-2:] == [200, 201]
    assert report.metrics["loss"] == 201


@pytest.mark.slow
def test_history_tells_norm_clip_factor_and_learning_rate(tmp_path):
    clipped = plain(tmp_path / "1", budget=replace(BUDGET, max_grad_norm=0.01))
    free = plain(tmp_path / "2", budget=replace(BUDGET, max_grad_norm=None))
    loose = plain(tmp_path / "3", budget=replace(BUDGET, max_grad_norm=1e6))

    norm = free.history[0]["grad_norm"]
    assert clipped.history[0]["grad_norm"] == norm
    assert clipped.history[0]["clip_factor"] == pytest.approx(0.01 / norm, rel=1e-4)
    assert {row["clip_factor"] for row in (*free.history, *loose.history)} == {1.0}
    assert {row["learning_rate"] for row in free.history} == {5e-4}


def test_clipping_acts_on_the_combined_gradient(tmp_path):
    budget = replace(BUDGET, max_grad_norm=0.01)

    (first, *_) = gradients_of(lambda: run("booster", tmp_path, budget=budget, micro_batch_size=2))

    assert float(torch.cat([part.flatten() for part in first]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_warmup_raises_the_learning_rate_over_its_share_of_the_steps(tmp_path):
    budget = replace(BUDGET, scheduler=Scheduler.CONSTANT_WITH_WARMUP, warmup_ratio=0.5, learning_rate=4e-4)

    report = plain(tmp_path, budget=budget)

    rates = [row["learning_rate"] for row in report.history]
    assert rates == pytest.approx([0, 1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4, 4e-4])


def test_epochs_visit_every_row_once_in_different_orders(tmp_path):
    rows = [row._replace(input_ids=[place + 1, *row.input_ids[1:]]) for place, row in enumerate(ROWS[:10])]
    firsts = []

    class Watching(Counting):
        def start(self, learner, batches, total_steps):
            step = CountingStep(learner)
            plain_backward = step.backward

            def backward(batch):
                firsts.extend(batch["input_ids"][:, 0].tolist())
                return plain_backward(batch)

            step.backward = backward
            return step

    train(
        build(),
        method=Watching(),
        rows=rows,
        budget=Budget(epochs=2, batch_size=4),
        seed=0,
        pad_id=0,
        work=tmp_path,
        tracker=Recorder(),
    )

    assert sorted(firsts[:10]) == sorted(firsts[10:]) == list(range(1, 11))
    assert firsts[:10] != firsts[10:]


def test_training_moves_the_weights_to_a_lower_loss_and_gives_the_model_back_as_found(tmp_path):
    model = build().eval()
    batch = collate(ROWS, 0)
    before = CausalLearner(model).gradient(batch)[0]
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    use_cache = model.config.use_cache

    plain(tmp_path, model=model, budget=replace(BUDGET, epochs=3, learning_rate=1e-2))

    assert CausalLearner(model).gradient(batch)[0] < before - 0.1
    assert not model.training
    assert model.config.use_cache == use_cache
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_training_twice_gives_equal_weights_and_another_seed_gives_others(tmp_path):
    weights = []
    for place, seed in enumerate((0, 0, 1)):
        model = build()
        train(
            model,
            method=None,
            rows=ROWS,
            budget=BUDGET,
            seed=seed,
            pad_id=0,
            work=tmp_path / str(place),
            tracker=Recorder(),
        )
        weights.append(trainables(model))

    first, second, other = weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_prints_nothing(tmp_path, capfd):
    plain(tmp_path)

    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_training_in_bfloat16_keeps_float32_weights_close_to_those_of_float32(tmp_path):
    exact, rough = build(), build()

    plain(tmp_path / "1", model=exact)
    plain(tmp_path / "2", model=rough, budget=replace(BUDGET, precision=Precision.BFLOAT16))

    assert {tensor.dtype for tensor in trainables(rough).values()} == {torch.float32}
    for name, weight in trainables(exact).items():
        assert not torch.equal(weight, trainables(rough)[name])
        torch.testing.assert_close(trainables(rough)[name], weight, rtol=0, atol=2 * 8 * BUDGET.learning_rate)


def test_training_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="no examples to train on"):
        plain(tmp_path, rows=[])


def test_training_that_diverges_is_stopped_and_named(tmp_path):
    class ExplodingStep(CountingStep):
        def backward(self, batch):
            return {**super().backward(batch), "harmful_loss": math.inf}

    class Exploding(Counting):
        def start(self, learner, batches, total_steps):
            return ExplodingStep(learner)

    with pytest.raises(ModelError, match="diverged before step 1: harmful_loss not finite"):
        train(
            build(), method=Exploding(), rows=ROWS, budget=BUDGET, seed=0, pad_id=0, work=tmp_path, tracker=Recorder()
        )


def test_gradients_are_cleared_between_steps_and_the_models_own_way_is_left(tmp_path):
    class LookingStep(CountingStep):
        def backward(self, batch):
            self.seen = getattr(self, "seen", [])
            self.seen.append(all(weight.grad is None for weight in self.learner.trainables))
            return super().backward(batch)

    class Looking(Counting):
        def start(self, learner, batches, total_steps):
            self.step = LookingStep(learner)
            return self.step

    model, method = build(), Looking()
    train(model, method=method, rows=ROWS, budget=BUDGET, seed=0, pad_id=0, work=tmp_path, tracker=Recorder())

    assert len(method.step.seen) > 1
    assert all(method.step.seen)
    assert "zero_grad" not in model.__dict__


def test_step_that_writes_no_gradient_is_refused(tmp_path):
    class IdleStep(CountingStep):
        def backward(self, batch):
            return {"loss": 1.0}

    class Idle(Counting):
        def start(self, learner, batches, total_steps):
            return IdleStep(learner)

    with pytest.raises(RuntimeError, match=r"IdleStep.backward` wrote no gradient; expected it to call"):
        train(build(), method=Idle(), rows=ROWS, budget=BUDGET, seed=0, pad_id=0, work=tmp_path, tracker=Recorder())


def test_booster_leaves_weights_bitwise_unchanged_until_the_optimizer_steps(tmp_path):
    model = build("booster")
    before, seen = trainables(model), []
    hook = register_optimizer_step_pre_hook(lambda *_: seen.append(trainables(model)))

    try:
        run("booster", tmp_path, model=model)
    finally:
        hook.remove()

    assert all(torch.equal(seen[0][name], before[name]) for name in before)
