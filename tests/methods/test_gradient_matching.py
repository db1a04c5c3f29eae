"""Candidate rows ranked by their gradients, by hand."""

import pytest
import torch

from harness.defenses.dp_noise import DPNoise
from harness.mechanisms.gradient_matching import match

CANDIDATES = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])


@pytest.mark.parametrize("true", range(3))
def test_true_row_without_noise_ranks_first_with_cosine_one(true):
    rank, cosine = match(3 * CANDIDATES[true], CANDIDATES, true)

    assert rank == 1
    assert cosine == pytest.approx(1)


def test_rank_counts_candidates_that_are_closer_or_as_close():
    # Cosines of (2, 1) with (1, 0), (1, 1) and (0, 2): 2, 3 / sqrt 2 and 1, each divided by sqrt 5.
    observed = torch.tensor([2.0, 1.0])

    assert match(observed, CANDIDATES, 0) == (2, pytest.approx(2 / 5**0.5))
    assert match(observed, CANDIDATES, 2).rank == 3
    assert match(torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 0).rank == 2


def test_noise_brings_recognition_down_to_chance():
    candidates = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))

    def recognized(sigma):
        method = DPNoise(clip=1.0, clip_end=1.0, sigma=sigma, sigma_end=sigma)
        sent = [method.disguised([row], seed)[0] for seed, row in enumerate(candidates)]
        return sum(match(each, candidates, place).rank == 1 for place, each in enumerate(sent)) / 50

    assert recognized(0.0) == 1
    assert recognized(100.0) < 0.15
