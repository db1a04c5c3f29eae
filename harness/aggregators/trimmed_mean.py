"""Trimmed mean: coordinate by coordinate, the mean without the smallest and the largest values.

Yin et al., 2018 (arXiv:1803.01498). With three clients and one value cut at each end it is the median.

Fidelity: hand-computed only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.engine.checks import not_negative
from harness.errors import Problem
from harness.protocols import Aggregate, Submission


@final
@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """The unweighted mean of what is left of every coordinate.

    Attributes:
        trim: how many values are cut at each end.
    """

    name: ClassVar[str] = "trimmed_mean"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = False
    trim: int = 1

    @property
    def fewest(self) -> int:
        """One client more than are cut."""
        return 2 * self.trim + 1

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return not_negative(self, "trim")

    def aggregate(self, sent: Submission) -> Aggregate:
        """Return the means; a client's weight is its share of the values that are kept."""
        import torch

        count = len(sent.values)
        values, clients = sent.values.sort(dim=0, stable=True)
        kept = torch.bincount(clients[self.trim : count - self.trim].flatten(), minlength=count)
        return Aggregate(values[self.trim : count - self.trim].mean(dim=0), kept / kept.sum())
