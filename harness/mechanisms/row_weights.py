"""Row weights: a learned weight for each of the stage's own examples, as in SEAL and in the Bayesian Data Scheduler.

With one logit for each of N examples the weights are ``p = N * softmax(logits)``, 1 at the start. An update takes a
step of AdamW on the mean of ``p_i * loss_i`` over the examples of a batch, with the losses as constants: weight moves
from examples with a high loss to those with a low one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from torch import Tensor, device

_START = 0.1
"""The initial logits in the authors' code; the weights do not depend on it."""
_BETAS = (0.9, 0.95)
"""AdamW's decay rates in the authors' code."""


@final
class RowWeights:
    """The weights and their optimizer; replicated on every process."""

    def __init__(self, count: int, learning_rate: float, device: device) -> None:
        """Start with equal weights.

        Args:
            count: the number of examples.
            learning_rate: of the logits.
            device: where the weights are.
        """
        import torch

        self._logits = torch.nn.Parameter(torch.full((count,), _START, device=device))
        self._optimizer = torch.optim.AdamW([self._logits], lr=learning_rate, betas=_BETAS, weight_decay=0.0)

    @property
    def logits(self) -> Tensor:
        """The logits, ``[examples]``."""
        return self._logits.detach()

    @property
    def values(self) -> Tensor:
        """The weights, ``[examples]``; their mean is 1."""
        return self._weights().detach()

    def update(self, losses: Tensor, present: Tensor) -> None:
        """Take a step.

        Args:
            losses: the loss of each example of the batch, 0 for the others, ``[examples]``.
            present: 1 for each example of the batch, 0 for the others, ``[examples]``.
        """
        import torch

        mean = (self._weights() * losses).sum() / present.sum()
        (self._logits.grad,) = torch.autograd.grad(mean, [self._logits])
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _weights(self) -> Tensor:
        return len(self._logits) * self._logits.softmax(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """Return the logits and the moments of the optimizer."""
        return {"logits": self.logits.clone(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        import torch

        with torch.no_grad():
            self._logits.copy_(state["logits"])
        self._optimizer.load_state_dict(state["optimizer"])
