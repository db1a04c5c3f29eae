"""How gradients are obtained, as a choice: no key without an estimator, an axis with one, and refusals with reasons."""

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.errors import ConfigError
from harness.training.budget import Optimizer

NAMES = ("mezo", "tezo", "lozo", "subzero")
AFTER = {"finetune", "harm_answers", "harm", "task_answers", "accuracy", "over_refusal_answers", "over_refusal"}

REFUSED = {
    "update=mezo finetune.budget.max_grad_norm=1": r"`finetune\.budget\.max_grad_norm`: 1 would scale every estimate",
    "update=mezo align.adapter.dropout=0.1": r"`finetune\.update`: `mezo` compares two .*passes.* has dropout 0\.1",
    "update=mezo defense=ldifs": r"`defense\.finetune`: `ldifs` asks the model for more than gradients of plain losses",
    "update=lozo defense=ewc": r"`defense\.finetune`: `ewc` asks the model for more",
    "update=tezo finetune.budget.optimizer=adamw": r"`finetune\.budget\.optimizer`: `tezo` keeps moments",
    "update=tezo defense=vlguard_joint": r"`defense\.finetune`: `vlguard` asks for 2 gradients per step",
    "update=mezo +finetune.budget.adam_beta1=0.5": r"`finetune\.budget\.adam_beta1`: 0\.5 has no effect with .* `sgd`",
}
NAMED = {name: f"update={name} finetune.budget.epochs=7 finetune.update.epsilon=0.5" for name in NAMES}
JOINT = "update=mezo finetune.budget.optimizer=adamw defense=vlguard_joint"


def cell_of(line=""):
    (cell,) = cells_of(compose(line.split()))
    return cell


def test_cell_with_computed_gradients_is_the_one_that_it_was_before_there_was_a_choice():
    chosen, spelled_out, silent = cell_of("update=none"), cell_of("+finetune.budget.optimizer=adamw"), cell_of()

    assert chosen.identity == silent.identity
    assert spelled_out.keys == silent.keys
    assert "update" not in silent.swept
    assert "finetune.update" not in silent.stages["finetune"].recorded_settings()


def test_estimator_changes_the_keys_of_the_fine_tuning_and_of_what_depends_on_it_only():
    plain, estimated = cell_of().keys, cell_of("update=mezo").keys

    assert {part for part in plain if plain[part] != estimated[part]} == AFTER


@pytest.mark.parametrize("name", NAMES)
def test_estimator_is_an_axis_of_the_sweep_and_sets_what_it_needs_of_the_budget(name):
    cell = cell_of(NAMED[name])

    tuned = cell.stages["finetune"]
    assert cell.swept["update"] == name
    assert (tuned.update.name, tuned.update.epsilon) == (name, 0.5)
    assert (tuned.budget.optimizer, tuned.budget.max_grad_norm, tuned.budget.epochs) == (Optimizer.SGD, None, 7)
    assert cell.stages["align"].budget.optimizer is None


def test_safe_adapter_of_a_repair_is_trained_as_the_users_is():
    cell = cell_of("update=mezo defense=safemerge")

    assert cell.stages["safe"].update == cell.stages["finetune"].update


@pytest.mark.parametrize("line", REFUSED)
def test_what_estimates_cannot_do_is_refused_with_its_reason(line):
    with pytest.raises(ConfigError, match=REFUSED[line]):
        cell_of(line)


def test_method_that_asks_for_one_gradient_composes_with_an_estimator_that_keeps_moments():
    assert cell_of("update=tezo defense=lisa").stages["finetune"].method.name == "lisa"


def test_mezo_with_adamw_and_joint_safety_batches_compose():
    cell = cell_of(JOINT)

    assert cell.stages["finetune"].budget.optimizer is None
