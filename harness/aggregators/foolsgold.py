"""FoolsGold: clients whose updates resemble each other lose weight.

Fung et al., 2020 (RAID, arXiv:1808.04866), without history, as in the federated instruction tuning study (Ye et al.,
ICLR 2025, arXiv:2406.10630). With ``c_ij`` the cosine of the updates of clients ``i`` and ``j`` and ``m_i = max_j
c_ij`` over the others, a client is pardoned for resembling one that is more suspicious: ``c_ij *= m_i / m_j`` if
``m_i < m_j``. Its weight is ``w_i = 1 - max_j c_ij``, cut to [0, 1] and divided by the largest one; then ``ln(w / (1
- w)) + 0.5``, cut to [0, 1], where a weight of 1 counts as 0.99. The result is ``start + sum_i w_i update_i / n``
with ``n`` the number of clients that have a weight.

Deviations: the original sums a client's updates over all rounds and normalises the weights; the study does neither. If
no client has a weight, the server keeps its parameters. Honest clients with data of one distribution resemble each
other, and are punished for it.

Fidelity: equations second-hand (a summary of the study's code); hand-computed numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.protocols import Aggregate, Submission

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class FoolsGold:
    """The sum of the updates by their weights, divided by the number of clients that have one."""

    name: ClassVar[str] = "foolsgold"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = False
    fewest: ClassVar[int] = 2

    def aggregate(self, sent: Submission) -> Aggregate:
        """Weigh the clients."""
        weights = weights_of(sent.updates)
        heard = int((weights > 0).sum())
        if not heard:
            return Aggregate(sent.start.clone(), weights)
        return Aggregate(sent.start + weights @ sent.updates / heard, weights / weights.sum())


def weights_of(updates: Tensor) -> Tensor:
    """Return the weight of each client, 0 to 1.

    Args:
        updates: what each client changed, ``[clients, parameters]``.
    """
    import torch

    directions = torch.nn.functional.normalize(updates.double(), dim=1)
    cosines = directions @ directions.T
    cosines.fill_diagonal_(0.0)
    highest = cosines.max(dim=1).values
    ratio = highest[:, None] / torch.where(highest == 0, 1.0, highest)[None, :]
    pardoned = torch.where(highest[:, None] < highest[None, :], cosines * ratio, cosines)
    weights = (1 - pardoned.max(dim=1).values).clamp(0, 1)
    if bool((weights == 0).all()):
        return weights.to(updates.dtype)
    weights = weights / weights.max()
    return torch.logit(weights.clamp(max=0.99)).add(0.5).clamp(0, 1).to(updates.dtype)
