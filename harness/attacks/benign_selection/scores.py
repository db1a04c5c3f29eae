"""Scores of examples, from their representations and gradients; see ``method`` for the sources.

A gradient is one flat vector over the victim's trainable parameters, a representation one vector of its last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def direction(gradients: Sequence[Tensor]) -> Tensor:
    """Return the mean of vectors, scaled to length 1."""
    import torch

    return torch.nn.functional.normalize(torch.stack(list(gradients)).mean(0), dim=0)


def representation_matching(own: Tensor, anchors: Tensor, nearest: int) -> float:
    """Return the mean of the largest cosines with the anchors.

    Args:
        own: ``[width]``.
        anchors: ``[anchors, width]``.
        nearest: how many of the anchors count.
    """
    import torch

    cosines = torch.nn.functional.cosine_similarity(own.unsqueeze(0), anchors, dim=1)
    return float(cosines.topk(min(nearest, len(anchors))).values.mean())


def gradient_matching(own: Tensor, harmful: Tensor, safe: Sequence[Tensor]) -> float:
    """Return ``cos(g, harmful) - sum_k cos(g, safe_k)``.

    Args:
        own: the gradient of an example.
        harmful: the direction of harmful answers.
        safe: directions of refusals.
    """
    import torch

    cosine = torch.nn.functional.cosine_similarity
    return float(cosine(own, harmful, dim=0)) - sum(float(cosine(own, each, dim=0)) for each in safe)


def self_influence(own: Tensor) -> float:
    """Return ``<g, g>``."""
    return float(own @ own)


def normalized_self_influence(own: Tensor, answer_length: int) -> float:
    """Return ``log(<g, g> + 1) + log(length of the answer + 1)``, natural logarithms, the length in tokens."""
    return log(self_influence(own) + 1) + log(answer_length + 1)
