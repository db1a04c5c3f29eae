"""Multi-Krum: the client that is closest to the others, averaged with those that it is closest to.

Blanchard et al., 2017 (NeurIPS, "Machine Learning with Adversaries"), in the form of the federated instruction tuning
study (Ye et al., ICLR 2025, arXiv:2406.10630), which calls it Krum. Of ``n`` clients, ``f`` of which are taken to be
malicious, each is scored by the sum of its distances to the ``n - f - 1`` nearest others; the result is the mean of the
client with the smallest score and these nearest ones.

Blanchard et al. sum squared distances to ``n - f - 2`` others and average the clients with the best scores. Here the
distances are not squared and the nearest ones of the winner are averaged. If all clients but one or none are malicious,
the winner stands alone, and is the first client, since all scores are 0.

Fidelity: equations second-hand (a summary of the study's code); hand-computed numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.protocols import Aggregate, Submission


@final
@dataclass(frozen=True, kw_only=True)
class MultiKrum:
    """The unweighted mean of the winner and its nearest neighbours."""

    name: ClassVar[str] = "multi_krum"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = True
    fewest: ClassVar[int] = 2

    def aggregate(self, sent: Submission) -> Aggregate:
        """Average the chosen clients; the first of several with the same score wins."""
        import torch

        count = len(sent.values)
        neighbours = max(count - sent.attackers - 1, 0)
        distances = torch.cdist(sent.values[None], sent.values[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
        distances.fill_diagonal_(float("inf"))
        nearest, order = distances.sort(dim=1, stable=True)
        winner = int(nearest[:, :neighbours].sum(dim=1).argmin())
        chosen = [winner, *order[winner, :neighbours].tolist()]
        weights = sent.values.new_zeros(count)
        weights[chosen] = 1 / len(chosen)
        return Aggregate(sent.values[sorted(chosen)].mean(dim=0), weights)
