"""Noise of a given length: its norm is exact, its direction is Gaussian and drawn from the seed."""

import pytest
import torch
from quadratic import TinyLearner
from torch import nn

from harness.corpora.batches import RoleBatches
from harness.defenses.random_perturbation import RandomPerturbation


class Many(nn.Module):
    """Two tensors of unequal size, so that one norm for each would show."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.full((4000,), 5.0))
        self.second = nn.Parameter(torch.full((1000,), 5.0))


def noise(rho, seed):
    model = Many()
    RandomPerturbation(rho=rho).repair(
        TinyLearner(model, {}), start=[], method_outputs={}, batches=RoleBatches({}, pad_id=0, seed=seed)
    )
    return torch.cat([model.first, model.second]).detach().double() - 5


def test_noise_has_the_given_length_over_all_trainables_together():
    added = noise(2.0, seed=0)

    assert added.norm().item() == pytest.approx(2.0, rel=1e-4)
    assert added[:4000].norm().item() == pytest.approx(2.0 * 0.8**0.5, rel=0.03)


def test_noise_is_gaussian():
    standard = noise(2.0, seed=0) / 2 * 5000**0.5

    assert abs(standard.mean().item()) < 0.05
    assert standard.pow(4).mean().item() == pytest.approx(3, rel=0.1)


def test_noise_depends_on_the_seed_alone():
    assert torch.equal(noise(1.0, seed=3), noise(1.0, seed=3))
    assert not torch.equal(noise(1.0, seed=3), noise(1.0, seed=4))


def test_noise_of_no_length_is_refused():
    assert list(map(str, RandomPerturbation(rho=0).problems())) == ["`rho`: 0 is not positive; expected a number > 0"]
