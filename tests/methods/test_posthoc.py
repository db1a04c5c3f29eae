"""Post-hoc training by hand: w = (3, 4), loss w1 - 2 w2 on refusals and w1 + 4 w2 on benign rows, learning rate 0.1.

Their mean has the gradient (1, 1), so Adam takes 0.1 from both weights in each step. On refusals alone it is (1, -2),
on benign rows alone (1, 4)."""

import pytest
from composed import compose
from quadratic import ModelRef, TinyLearner

from harness.config.build import cells_of
from harness.corpora.examples import Role
from harness.corpora.remaining import Remaining
from harness.defenses.posthoc import Posthoc
from harness.errors import ConfigError, DataError
from harness.tasks.tiny import Tiny
from harness.training.budget import Budget

LOSSES = {
    "refusal": lambda w: (w.first - 2 * w.second).sum(),
    "server": lambda w: (w.first + 4 * w.second).sum(),
}


class Batches:
    def __init__(self):
        self.roles = []

    def next(self, role):
        self.roles.append(role)
        return {"kind": role.value}


def repaired(**rows):
    weights, batches = ModelRef(3.0, 4.0), Batches()
    budget = Budget(epochs=1, batch_size=4, learning_rate=0.1, weight_decay=0.0, max_grad_norm=None)
    method = Posthoc(**rows, budget=budget)
    facts = method.repair(TinyLearner(weights, LOSSES), start=[], method_outputs={}, batches=batches)
    return [weights.first.item(), weights.second.item()], facts, batches.roles


@pytest.mark.parametrize(
    ("rows", "weights", "losses", "roles"),
    [
        ((2, 4), [2.8, 3.8], (7.0, 6.8), [Role.REFUSAL, Role.SERVER] * 2),
        ((8, 0), [2.8, 4.2], (-5.0, -5.3), [Role.REFUSAL] * 2),
        ((0, 8), [2.8, 3.8], (19.0, 18.5), [Role.SERVER] * 2),
    ],
)
def test_step_takes_a_batch_of_each_kind_that_there_is(rows, weights, losses, roles):
    found, facts, drawn = repaired(refusal_rows=rows[0], benign_rows=rows[1])

    assert found == pytest.approx(weights, abs=1e-5)
    assert facts == pytest.approx({"steps": 2, "first_loss": losses[0], "last_loss": losses[1]}, abs=1e-5)
    assert drawn == roles


def test_batch_of_each_kind_has_half_the_size_or_all_of_it():
    budget = Budget(batch_size=10)

    assert [need.batch_size for need in Posthoc(budget=budget).needs] == [5, 5]
    assert [(need.role, need.batch_size) for need in Posthoc(benign_rows=0, budget=budget).needs] == [
        (Role.REFUSAL, 10)
    ]


def cell_of(*overrides):
    (cell,) = cells_of(compose(["defense/repair=posthoc", *overrides]))
    return cell


def test_server_has_rows_of_the_task_that_no_user_holds(tmp_path):
    stages = cell_of("attack_ratio=p10", "federation=tiny").stages
    server, task = stages["repair"].server, Tiny().train.examples()

    rows = server.examples()
    many = cell_of("attack_ratio=p10", "defense.repair.benign_rows=200").stages["repair"].server.examples()

    assert len(rows) == len(set(rows)) == 100
    assert set(rows) < set(many) < set(task)
    held = cell_of("attack_ratio=p10", "finetune.rows=600").stages["poison"]
    assert held.preflight() == []
    ordered = Remaining(task=Tiny().train, rows=1000, taken=0, compat="exact", seed=0).examples()
    assert ordered[-100:] == rows
    assert server.taken == 540


@pytest.mark.parametrize(
    ("overrides", "taken"),
    [(["attack_ratio=p00"], 600), (["attack_ratio=p10"], 540), (["attack_ratio=p10", "attack=label_flip"], 600)],
)
def test_rows_that_an_attack_rewrites_are_the_users_too(overrides, taken):
    assert cell_of(*overrides).stages["repair"].server.taken == taken


def test_too_few_rows_are_reported_before_anything_runs():
    repair = cell_of("attack_ratio=p00", "defense.repair.benign_rows=401").stages["repair"]

    (problem,) = repair.preflight()

    assert "users hold 600 of the 1000 rows of the task; expected at most 400" in str(problem)
    with pytest.raises(DataError):
        repair.server.examples()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["defense.repair.benign_rows=0", "defense.repair.refusal_rows=0"], "leaves nothing to train on"),
        (["attack=benign_selection"], "`benign_selection` may choose any of them"),
    ],
)
def test_what_it_cannot_train_on_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        cell_of(*overrides)


def test_repair_without_benign_rows_has_no_server():
    assert cell_of("attack=benign_selection", "defense.repair.benign_rows=0").stages["repair"].server is None
