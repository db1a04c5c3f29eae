"""Gradient matching: which of some candidate rows is it whose gradient was observed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Match(NamedTuple):
    """The place of the true row among the candidates.

    Attributes:
        rank: 1 plus the number of candidates whose gradient is closer to the observed one, or as close.
        cosine: between the observed gradient and that of the true row.
    """

    rank: int
    cosine: float


def match(observed: Tensor, candidates: Tensor, true: int) -> Match:
    """Rank the candidates by the cosine between their gradients and an observed one.

    Args:
        observed: what was seen of a gradient, ``[parameters]``.
        candidates: the gradients of the candidates, ``[candidates, parameters]``.
        true: the index of the row that was trained on.
    """
    from torch.nn.functional import cosine_similarity

    cosines = cosine_similarity(candidates.double(), observed.double()[None], dim=1)
    others = [float(cosine) for place, cosine in enumerate(cosines) if place != true]
    own = float(cosines[true])
    return Match(rank=1 + sum(other >= own for other in others), cosine=own)
