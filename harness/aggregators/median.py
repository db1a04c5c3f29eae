"""Median: coordinate by coordinate, the middle one of the clients' values.

Yin et al., 2018 (arXiv:1803.01498). With an even number of clients the lower of the two middle values, as in the code
of the federated instruction tuning study (Ye et al., ICLR 2025, arXiv:2406.10630), is taken.

Fidelity: hand-computed only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.protocols import Aggregate, Submission


@final
@dataclass(frozen=True, kw_only=True)
class Median:
    """The lower median of every coordinate."""

    name: ClassVar[str] = "median"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def aggregate(self, sent: Submission) -> Aggregate:
        """Return the medians; a client's weight is the share of coordinates that are its own."""
        import torch

        values, clients = sent.values.median(dim=0)
        chosen = torch.bincount(clients, minlength=len(sent.values))
        return Aggregate(values, chosen / chosen.sum())
