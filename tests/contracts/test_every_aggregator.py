"""What every aggregator must keep to. Aggregators are found by walking ``harness/aggregators``."""

import importlib
import inspect
import pkgutil
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from omegaconf import OmegaConf

import harness.aggregators
from harness.config.shipped import CONF
from harness.engine.identity import payload_of
from harness.protocols import Submission


def discovered():
    found = {}
    for module in pkgutil.walk_packages(harness.aggregators.__path__, "harness.aggregators."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and is_dataclass(cls) and hasattr(cls, "aggregate"):
                found[cls.name] = cls
    return found


AGGREGATORS = discovered()
OPTIONS = sorted(path.stem for path in (CONF / "federation" / "aggregate").glob("*.yaml"))


def sent(count=5, *, attackers=1, size=40):
    rng = torch.Generator().manual_seed(4)
    start = torch.randn(size, generator=rng)
    values = start + torch.randn(count, size, generator=rng)
    return Submission(values=values, start=start, rows=(7,) * count, attackers=attackers, round=1, rounds=4, seed=3)


def test_discovery_finds_the_aggregators_that_ship_and_each_has_an_option():
    assert {"mean", "median", "trimmed_mean", "multi_krum", "dnc", "foolsgold", "residual"} <= set(AGGREGATORS)
    assert set(AGGREGATORS) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_file_of_an_aggregator_sets_every_setting_to_its_default(name):
    stated = OmegaConf.to_container(OmegaConf.load(CONF / "federation" / "aggregate" / f"{name}.yaml"))
    cls = AGGREGATORS[name]

    assert stated.pop("_target_") == f"{cls.__module__}.{cls.__qualname__}"
    assert cls(**stated) == cls()
    assert set(stated) == {item.name for item in fields(cls)}
    assert payload_of(cls())["name"] == name


@pytest.mark.parametrize("name", AGGREGATORS)
def test_result_is_finite_repeatable_and_leaves_what_was_sent(name):
    given = sent()
    before = given.values.clone(), given.start.clone()

    torch.manual_seed(1)
    result = AGGREGATORS[name]().aggregate(given)
    torch.manual_seed(2)
    again = AGGREGATORS[name]().aggregate(given)

    assert result.values.shape == given.start.shape
    assert result.values.dtype == result.weights.dtype == torch.float32
    assert bool(result.values.isfinite().all())
    assert torch.equal(result.values, again.values)
    assert torch.equal(given.values, before[0])
    assert torch.equal(given.start, before[1])
    assert bool((result.weights >= 0).all())
    assert float(result.weights.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregator_that_weighs_clients_returns_their_mean_by_its_weights(name):
    cls, given = AGGREGATORS[name], sent()

    result = cls().aggregate(given)

    if cls.weighs_clients:
        assert torch.allclose(result.weights @ given.values, result.values, atol=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregator_does_with_as_few_clients_as_it_states(name):
    method = AGGREGATORS[name]()

    for attackers in range(method.fewest + 1):
        result = method.aggregate(sent(method.fewest, attackers=attackers))
        assert bool(result.values.isfinite().all())


@pytest.mark.parametrize("name", AGGREGATORS)
def test_order_of_the_clients_does_not_matter(name):
    given = sent()
    turned = replace(given, values=given.values.flip(0))

    one, other = (AGGREGATORS[name]().aggregate(each) for each in (given, turned))

    assert torch.allclose(one.values, other.values, atol=1e-5)
    assert torch.allclose(one.weights, other.weights.flip(0), atol=1e-5)
