"""What every estimator of gradients must keep to, and the methods that run on it. Found by walking the packages."""

import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass, replace
from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from test_train_methods import METHODS, Killed, Tracker, build, run, stepped, weights_of

import harness.estimators
from harness.config.shipped import CONF
from harness.engine.identity import payload_of
from harness.engine.seeding import derive
from harness.errors import ModelError
from harness.estimators.mezo import MeZO
from harness.estimators.tezo import TeZO
from harness.protocols import AsksForGradients
from harness.training.budget import Budget, Optimizer


def discovered():
    found = {}
    for module in pkgutil.walk_packages(harness.estimators.__path__, "harness.estimators."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and is_dataclass(cls) and hasattr(cls, "keeps_moments"):
                found[cls.name] = cls
    return found


EPSILON = 2.0
"""A long step, so that the rounding of the two losses counts little against their difference."""
SHORTENED = {"lozo": {"redraw_every": 2}, "subzero": {"rank": 2, "redraw_every": 2}, "tezo": {"rank": 2}}
ESTIMATORS = {
    **{name: cls(epsilon=EPSILON, **SHORTENED.get(name, {})) for name, cls in discovered().items()},
    "tezo without moments": TeZO(epsilon=EPSILON, rank=2, form="sgd"),
    "tezo with a mean": TeZO(epsilon=EPSILON, rank=2, form="momentum"),
}
BUDGET = Budget(epochs=2, batch_size=4, learning_rate=1e-3, max_grad_norm=None, optimizer=Optimizer.SGD)
DECLARED = [name for name, method in METHODS.items() if method and isinstance(method(), AsksForGradients)]


TYPICAL = {"mezo", "tezo", "lisa in both phases", "vlguard joint"}
"""An estimator without a state and one with, a method with a state and one with two gradients in a step."""


def mostly_slow(names):
    """Return the parameters of a check that takes about a second each: all but the typical are left to `test-all`."""
    return [name if name in TYPICAL else pytest.param(name, marks=pytest.mark.slow) for name in names]


def estimated(estimator, work, *, model, name="plain", **options):
    return run(name, work, model=model, update=estimator, **{"budget": BUDGET} | options)


def test_discovery_finds_the_estimators_that_ship_and_each_has_an_option():
    targets = {path.stem: OmegaConf.load(path)["finetune"]["update"] for path in (CONF / "update").glob("*.yaml")}

    assert {"mezo", "tezo", "lozo", "subzero"} <= set(discovered())
    assert targets.pop("none") is None
    assert {name: update["_target_"] for name, update in targets.items()} == {
        name: f"{cls.__module__}.{cls.__name__}" for name, cls in discovered().items()
    }


@pytest.mark.parametrize("name", discovered())
def test_estimator_defaults_are_in_range_hashable_and_have_an_identity(name):
    settings = discovered()[name]()

    assert settings.problems() == []
    assert hash(settings) == hash(discovered()[name]())
    assert payload_of(settings)["name"] == name


@pytest.mark.parametrize("name", mostly_slow(ESTIMATORS))
def test_estimated_run_killed_and_resumed_ends_bitwise_where_an_uninterrupted_run_ends(name, tmp_path):
    whole, resumed = build(), build()
    expected = estimated(ESTIMATORS[name], tmp_path / "whole", model=whole)
    cut_short = {"checkpoint_every_steps": 1, "tracker": Tracker(kill_at=4)}
    with pytest.raises(Killed):
        estimated(ESTIMATORS[name], tmp_path / "killed", model=build(), **cut_short)

    report = estimated(ESTIMATORS[name], tmp_path / "killed", model=resumed)

    assert all(torch.equal(weights_of(resumed)[weight], tensor) for weight, tensor in weights_of(whole).items())
    assert any(not torch.equal(weights_of(build())[weight], tensor) for weight, tensor in weights_of(whole).items())
    assert report == expected
    assert report.update["forward_passes"] == 2 * 6


def assert_same_estimates(ours, theirs):
    """Check that two runs of ``stepped`` computed the same, up to the rounding of two losses and their difference."""
    for found, expected in zip(ours[0], theirs[0], strict=True):
        assert float((found - expected).norm()) <= 1e-3 * float(expected.norm())
    for found, expected in zip(ours[1], theirs[1], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@cache
def whole_estimates(name):
    """Return what one process estimates on whole batches."""
    return stepped("plain", None, update=ESTIMATORS[name])


@pytest.mark.parametrize("rows_at_once", [1, 3])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_computes_the_same_however_its_batches_are_cut(name, rows_at_once):
    assert_same_estimates(stepped("plain", rows_at_once, update=ESTIMATORS[name]), whole_estimates(name))


def test_run_is_replayed_from_its_seed_and_the_scalars_that_it_logged(tmp_path):
    model, replayed = build(), build()
    report = estimated(ESTIMATORS["mezo"], tmp_path, model=model)

    weights = [parameter for parameter in replayed.parameters() if parameter.requires_grad]
    perturbation = ESTIMATORS["mezo"].start(weights, derive(3, "update"))
    optimizer = torch.optim.SGD(weights, lr=BUDGET.learning_rate, weight_decay=BUDGET.weight_decay)
    assert [row["step"] for row in report.history] == [1, 2, 3, 4, 5, 6]
    for step, row in enumerate(report.history):
        for weight, part in zip(weights, perturbation.direction(step), strict=True):
            weight.grad = part * torch.tensor(row["kappa"], dtype=torch.float32)
        optimizer.step()

    assert all(torch.equal(weights_of(replayed)[name], tensor) for name, tensor in weights_of(model).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer", "estimator_numbers", "optimizer_numbers"),
    # Twelve factors of LoRA, 2 x 16 or 16 x 2, which are 32 numbers each; AdamW also counts its steps.
    [
        ("mezo", Optimizer.SGD, 0, 0),
        ("mezo", Optimizer.ADAMW, 0, 12 * (2 * 32 + 1)),
        ("tezo", Optimizer.SGD, 12 * (2 * (2 + 16) + 2 * 2), 0),
        ("lozo", Optimizer.SGD, 6 * 2 * (2 + 16), 0),
        # As 4 x 8 matrices.
        ("subzero", Optimizer.SGD, 12 * 2 * (4 + 8), 0),
    ],
)
def test_bytes_kept_between_steps_are_facts(name, optimizer, estimator_numbers, optimizer_numbers, tmp_path):
    report = estimated(ESTIMATORS[name], tmp_path, model=build(), budget=replace(BUDGET, optimizer=optimizer))

    assert report.update == {
        "forward_passes": 12,
        "trainable_bytes": 4 * 12 * 32,
        "estimator_bytes": 4 * estimator_numbers,
        "optimizer_bytes": 4 * optimizer_numbers,
    }


@pytest.mark.parametrize("name", mostly_slow(DECLARED))
def test_method_that_asks_for_gradients_runs_on_estimates_in_the_passes_that_it_states(name, tmp_path):
    model = build()
    before = weights_of(model)

    report = estimated(MeZO(epsilon=EPSILON), tmp_path, model=model, name=name)

    # Six steps; after its share of them, half, `fewer_steps` takes the loss alone.
    passes = 3 * 2 + 3 if name == "fewer_steps" else 6 * 2 * METHODS[name]().gradients_per_step
    assert report.update["forward_passes"] == passes
    assert any(not torch.equal(before[weight], tensor) for weight, tensor in weights_of(model).items())


def test_methods_of_the_finetune_slot_that_ask_for_gradients_are_known():
    assert {"lisa in both phases", "vlguard", "vlguard joint", "sppft", "swat", "asft", "fewer_steps"} <= set(DECLARED)


@pytest.mark.parametrize("name", ["ewc", "kl", "ldifs", "panacea", "safegrad"])
def test_method_that_asks_for_more_is_refused(name, tmp_path):
    with pytest.raises(ModelError, match=f"`{name}` cannot run on the estimated gradients of `mezo`"):
        estimated(MeZO(), tmp_path, model=build(), name=name)


def test_dropout_is_refused(tmp_path):
    with pytest.raises(ModelError, match="dropout is active"):
        estimated(MeZO(), tmp_path, model=build(dropout=0.1))
