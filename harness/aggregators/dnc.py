"""DnC (divide and conquer): clients that stick out along the main direction of the updates are left out.

Shejwalkar and Houmansadr, 2021 (NDSS, "Manipulating the Byzantine"), in one pass as in the federated instruction tuning
study (Ye et al., ICLR 2025, arXiv:2406.10630): of up to ``coordinates`` random coordinates of the updates, centred over
the clients, take the first right singular vector; the ``f`` clients with the largest squared projection on it are left
out, where ``f`` is the number of clients taken to be malicious, and the others averaged.

Deviation: the original repeats this with other coordinates, leaves out a multiple of ``f`` and keeps the clients that
every repetition keeps.

Fidelity: equations second-hand (a summary of the study's code); hand-computed numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.engine.checks import counts
from harness.errors import Problem
from harness.protocols import Aggregate, Submission


@final
@dataclass(frozen=True, kw_only=True)
class DnC:
    """The unweighted mean of the clients that do not stick out.

    Attributes:
        coordinates: how many coordinates the direction is computed from.
    """

    name: ClassVar[str] = "dnc"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = True
    fewest: ClassVar[int] = 2
    coordinates: int = 10_000

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "coordinates")

    def aggregate(self, sent: Submission) -> Aggregate:
        """Average the clients that are kept, at least one."""
        import torch

        updates = sent.updates
        count, size = updates.shape
        if size > self.coordinates:
            rng = torch.Generator().manual_seed(sent.seed)
            updates = updates[:, torch.randperm(size, generator=rng)[: self.coordinates].to(updates.device)]
        centred = (updates - updates.mean(dim=0)).double()
        # The scores of the projection follow from the small matrix of inner products.
        lengths, vectors = torch.linalg.eigh(centred @ centred.T)
        scores = lengths[-1].clamp(min=0) * vectors[:, -1].square()
        kept = scores.argsort(stable=True)[: max(count - sent.attackers, 1)].sort().values
        weights = sent.values.new_zeros(count)
        weights[kept] = 1 / len(kept)
        return Aggregate(sent.values[kept].mean(dim=0), weights)
