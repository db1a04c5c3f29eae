"""Clipping and noise by hand: g1 = (3, 4) and g2 = (-0.8, 0.6), clipped to a norm of 1.

By row: (0.6, 0.8) and (-0.8, 0.6), mean (-0.1, 0.7). By batch: mean (1.1, 2.3) of norm 2.54951, so (0.43146, 0.90213).
"""

import math

import pytest
import torch
from quadratic import ModelRef, TinyLearner

from harness.aggregators.dp_noise import DPNoise as ServerNoise
from harness.corpora.encode import IGNORED
from harness.defenses.dp_noise import DPNoise
from harness.engine.build import build
from harness.engine.seeding import derive
from harness.errors import ConfigError
from harness.mechanisms.clipped_noise import clipped, noise_like, scheduled
from harness.protocols import Submission

FIRST, SECOND = (3.0, 4.0), (-0.8, 0.6)


class RowLearner(TinyLearner):
    """The loss of a row is linear in the weights, with the gradient that its second token names."""

    steps_taken = 0

    def __init__(self, weights=None):
        super().__init__(weights or ModelRef(0.0, 0.0), {})
        self.gradients = {1: FIRST, 2: SECOND}

    def gradient(self, batch):
        kinds = [self.gradients[int(row[1])] for row in batch["input_ids"]]
        mean = torch.tensor(kinds).mean(dim=0)
        return mean.sum(), [mean[:1].clone(), mean[1:].clone()]


class Batches:
    def derive(self, *names):
        return derive(0, *names)


BATCH = {
    "input_ids": torch.tensor([[5, 1, 7], [5, 2, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "labels": torch.tensor([[IGNORED, 1, 7], [IGNORED, 2, IGNORED]]),
}


def stepped(steps_taken=0, total=4, batch=BATCH, **settings):
    learner = RowLearner()
    learner.steps_taken = steps_taken
    settings = {
        "sigma": 0.0,
        "sigma_end": settings.get("sigma", 0.0),
        "clip_end": settings.get("clip", 1.0),
        **settings,
    }
    metrics = DPNoise(**settings).start(learner, Batches(), total).backward(batch)
    return torch.cat([weight.grad for weight in learner.trainables]), metrics


@pytest.mark.parametrize(
    ("unit", "expected", "norms"),
    [("row", (-0.1, 0.7), (3.0, 1.0)), ("batch", (0.43146, 0.90213), (2.54951, 1.0))],
)
def test_gradient_is_clipped_by_unit(unit, expected, norms):
    gradient, metrics = stepped(unit=unit)

    assert gradient.tolist() == pytest.approx(expected, abs=1e-5)
    assert [float(metrics[name]) for name in ("unit_norm", "clipped_norm")] == pytest.approx(norms, abs=1e-5)
    assert metrics["noise"] == 0


def test_gradient_within_the_limit_is_the_mean_over_rows():
    gradient, _ = stepped(clip=100.0)

    assert gradient.tolist() == pytest.approx((1.1, 2.3))


def test_row_without_a_supervised_token_is_no_row():
    labels = BATCH["labels"].clone()
    labels[1] = IGNORED

    gradient, _ = stepped(batch={**BATCH, "labels": labels})

    assert gradient.tolist() == pytest.approx((0.6, 0.8))


def test_each_tensor_by_itself_is_clipped_to_the_limit():
    tensors = [torch.tensor([3.0]), torch.tensor([4.0])]

    assert torch.cat(clipped(tensors, 1.0, "tensor")).tolist() == [1, 1]
    assert torch.cat(clipped(tensors, 1.0, "global")).tolist() == pytest.approx([0.6, 0.8])
    assert torch.cat(clipped([torch.zeros(2)], 1.0, "global")).tolist() == [0, 0]


def test_noise_has_the_stated_deviation_and_its_seed_repeats():
    (noise,) = noise_like([torch.zeros(20_000)], 0.5, seed=3)

    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(noise.mean())) < 0.02
    assert torch.equal(noise, noise_like([torch.zeros(20_000)], 0.5, seed=3)[0])


@pytest.mark.parametrize(("unit", "deviation"), [("row", 0.25), ("batch", 0.5)])
def test_noise_of_an_entry_is_divided_by_the_units(unit, deviation):
    quiet, _ = stepped(unit=unit)
    noisy, metrics = stepped(unit=unit, sigma=0.5)
    again, _ = stepped(unit=unit, sigma=0.5)
    other, _ = stepped(unit=unit, sigma=0.5, steps_taken=1)

    assert metrics["noise"] == deviation
    units = {"row": 2, "batch": 1}[unit]
    drawn = noise_like([torch.zeros(1), torch.zeros(1)], 0.5, Batches().derive("dp_noise", "0"))
    assert ((noisy - quiet) * units).tolist() == pytest.approx(torch.cat(drawn).tolist(), abs=1e-6)
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)


@pytest.mark.parametrize(
    ("schedule", "half", "end"),
    [
        ("constant", 15, 15),
        ("linear", 9.925, 4.85),
        ("staircase", 9.925, 4.85),
        ("exponential", 8.5294, 4.85),
        ("cosine", 12.2016, 4.85),
    ],
)
def test_schedule_begins_and_ends_where_it_says(schedule, half, end):
    last = 15 if schedule == "constant" else 4.85
    values = [scheduled(schedule, 15, last, done) for done in (0, 0.5, 1)]

    assert values == pytest.approx([15, half, end], abs=1e-3)


def test_staircase_has_ten_steps():
    assert len({scheduled("staircase", 15, 4.85, step / 1000) for step in range(1000)}) == 10


def test_settings_that_no_schedule_reaches_are_refused():
    with pytest.raises(ConfigError, match=r"`sigma_end`: 1.0 is never reached.*`constant`"):
        build(DPNoise, {"sigma_end": 1.0})
    with pytest.raises(ConfigError, match=r"`clip_end`.*expected a smaller number"):
        build(ServerNoise, {"clip_end": 2.0, "schedule": "cosine"})
    with pytest.raises(ConfigError, match=r"`sigma_end`.*expected numbers > 0"):
        build(DPNoise, {"sigma_end": 0.0, "schedule": "exponential"})


def test_server_clips_what_each_client_changed_and_divides_by_the_clients():
    # Updates (3, 4) and (-0.8, 0.6) from (1, 1): clipped to (0.6, 0.8) and (-0.8, 0.6), the mean is (-0.1, 0.7).
    start = torch.ones(2)
    sent = Submission(
        values=start + torch.tensor([FIRST, SECOND]), start=start, rows=(1, 9), attackers=0, round=0, rounds=2, seed=1
    )

    quiet = ServerNoise(sigma=0.0, sigma_end=0.0).aggregate(sent)
    noisy = ServerNoise(sigma=0.5, sigma_end=0.5).aggregate(sent)

    assert quiet.values.tolist() == pytest.approx((0.9, 1.7))
    assert quiet.weights.tolist() == [0.5, 0.5]
    (noise,) = noise_like([start], 0.5, seed=1)
    assert (noisy.values - quiet.values).tolist() == pytest.approx((noise / 2).tolist(), abs=1e-6)
    assert not math.isclose(float(noise[0]), 0)
