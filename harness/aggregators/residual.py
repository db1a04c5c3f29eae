"""Residual-based reweighting: clients far from a robust line through each coordinate lose weight.

Fu et al., 2019 (arXiv:1912.11464), as in the federated instruction tuning study (Ye et al., ICLR 2025,
arXiv:2406.10630). Per coordinate, the ``n`` clients' values are regressed on their ranks by the repeated median,
which gives a line and residuals ``r_i``. With ``tau = 1.4826 (1 + 5 / (n - 1)) median |r|``, where the smallest
residual is left out of the median, and the leverage ``h_i`` of the ranks, the confidence of a value is ``min(1, lamb
sqrt(2 / n) sqrt(1 - h_i) / |r_i / tau|)``. A value with a confidence below ``threshold`` is replaced by the line. A
client's weight is the sum over the coordinates of its confidence times the standard deviation of the confidences at
the coordinate; the weights are divided by the largest one, squared and normalised.

Deviation: coordinates are weighed together and not in shards of 2,000 per tensor, which gives the same sums.

Fidelity: read in a public re-implementation of the authors' code; hand-computed numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.engine.checks import positive
from harness.errors import Problem
from harness.protocols import Aggregate, Submission

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 1 << 16
"""Coordinates that are regressed at once, to bound memory."""


@final
@dataclass(frozen=True, kw_only=True)
class Residual:
    """The weighted mean of the values, those without confidence replaced.

    Attributes:
        lamb: how far from the line a value keeps its confidence, in robust standard deviations times ``sqrt(n / 2)``.
        threshold: confidence below which a value is replaced by the line.
    """

    name: ClassVar[str] = "residual"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = False
    fewest: ClassVar[int] = 3
    lamb: float = 2.0
    threshold: float = 0.05

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return positive(self, "lamb", "threshold")

    def aggregate(self, sent: Submission) -> Aggregate:
        """Weigh the clients; equal confidence everywhere is equal weight."""
        import torch

        totals = torch.zeros(len(sent.values), dtype=torch.float64, device=sent.values.device)
        restricted = []
        for part in torch.split(sent.values, AT_ONCE, dim=1):
            line, confidence = self.confidence(part.T.double())
            totals += (confidence * confidence.std(dim=1, keepdim=True)).sum(dim=0)
            restricted.append(torch.where(confidence >= self.threshold, part.T, line.to(part.dtype)).T)
        if not bool((totals > 0).any()):
            totals += 1
        weights = (totals / totals.max()).square()
        weights = (weights / weights.sum()).to(sent.values.dtype)
        return Aggregate(weights @ torch.cat(restricted, dim=1), weights)

    def confidence(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the line at each client's rank and the confidence of each value, both ``[coordinates, clients]``."""
        import torch

        count = values.shape[1]
        ranks = values.argsort(dim=1, stable=True).argsort(dim=1).to(values.dtype)
        ordered = values.sort(dim=1).values
        slope = _repeated_median(ordered)
        middle = (count - 1) / 2
        line = _median(ordered)[:, None] + slope[:, None] * (ranks - middle)
        away = (values - line).abs()
        spread = 1.4826 * (1 + 5 / (count - 1)) * _median(away.sort(dim=1).values[:, 1:]) + 1e-7
        leverage = 1 / count + (ranks - middle).square() / sum((rank - middle) ** 2 for rank in range(count))
        limit = self.lamb * math.sqrt(2 / count) * (1 - leverage).clamp(min=0).sqrt()
        return line, torch.clamp(limit * spread[:, None] / away, max=1.0)


def _repeated_median(ordered: Tensor) -> Tensor:
    """Return the median over clients of the median slope to the others; values are in order, ranks their positions."""
    import torch

    count = ordered.shape[1]
    positions = torch.arange(count, dtype=ordered.dtype, device=ordered.device)
    rise = ordered[:, :, None] - ordered[:, None, :]
    slopes = rise / (positions[:, None] - positions[None, :]).fill_diagonal_(1.0)
    apart = ~torch.eye(count, dtype=torch.bool, device=ordered.device)
    others = slopes[:, apart].view(len(ordered), count, count - 1)
    return _median(_median(others.sort(dim=2).values).sort(dim=1).values)


def _median(ordered: Tensor) -> Tensor:
    """Return the median of the last dimension, which is in order; of an even number, the mean of the middle two."""
    count = ordered.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2
