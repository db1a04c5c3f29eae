"""Mean: federated averaging.

McMahan et al., 2017 (arXiv:1602.05629), FedAvg: ``theta^{t+1} = sum_k p_k theta_k^t`` over the clients of a round, with
``p_k = N_k / sum N`` and ``N_k`` the number of training rows of client ``k``.

Fidelity: hand-computed only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.protocols import Aggregate, Submission


@final
@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of the clients' parameters, weighted by their numbers of rows."""

    name: ClassVar[str] = "mean"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = True
    fewest: ClassVar[int] = 1

    def aggregate(self, sent: Submission) -> Aggregate:
        """Average the parameters; those of a single client stay as they are, bit for bit."""
        rows = sent.values.new_tensor(sent.rows)
        weights = rows / rows.sum()
        return Aggregate(weights @ sent.values, weights)
