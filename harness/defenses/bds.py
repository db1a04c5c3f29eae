"""BDS (Bayesian data scheduler): the user's examples are weighted by how well they go with refusals, while training.

Zixuan Hu, Li Shen, Zhenyi Wang, Yongxian Wei, Dacheng Tao: "Adaptive Defense against Harmful Fine-Tuning for Large
Language Models via Bayesian Data Scheduler", NeurIPS 2025 (arXiv 2510.27172).

With one logit for each of the user's N examples, ``p = N * softmax(logits)`` and ``l_i`` the mean loss over the tokens
of example i. In every step:

1. the gradient passed to the optimizer is that of ``f + mean of p_i * l_i`` over the batch, with ``f`` the mean loss of
   the refusals of a batch, each averaged over its own tokens, and ``p`` taken as constant;
2. AdamW takes a step on the logits, on ``mean of p_i * l_i`` with the losses taken as constants.

So weight moves from examples with a high loss to those with a low one, under a model that also trains on refusals. A
forward and backward pass on the user's batch and one on the refusals per step; the state has the size of the user's
data. The manifest of the fine-tuning has the final mean weight of each kind of example (``row_weights``): whether the
poison was found, which is not yet whether the model is safe.

Deviations from the authors' code: of its modes, this is the joint one with weights, refusals and without priors. It
trains on 1,000 user's and 1,000 safe examples for 20 epochs; numbers and budget are settings here.

Fidelity: hand-computed only. Equations and defaults are those of the authors' code (commit 3af7684); loss, gradient and
the step of the logits are computed by hand in the tests, no vectors of the authors' trainer were available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, positive
from harness.errors import Problem
from harness.mechanisms.row_losses import mean_row_loss, weighted_row_losses
from harness.mechanisms.row_weights import RowWeights
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class BDS:
    """Settings of BDS.

    Attributes:
        weight_learning_rate: learning rate of the logits.
        safety_rows: number of refusals available to the defender; None uses all of the corpus.
        safety_batch_size: refusals per step, over all processes.
    """

    name: ClassVar[str] = "bds"
    version: ClassVar[int] = 1
    beyond_gradients: ClassVar[str] = "gives every row a weight that lasts from epoch to epoch"
    weight_copies: ClassVar[int] = 1
    works_on_shards: ClassVar[bool] = True

    weight_learning_rate: float = 5e-3
    safety_rows: int | None = None
    safety_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's refusals."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.safety_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*positive(self, "weight_learning_rate"), *counts(self, "safety_rows", "safety_batch_size")]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> BDSStep:  # noqa: ARG002
        """Start a run."""
        return BDSStep(self, learner, batches)


@final
class BDSStep:
    """One run of BDS; its state are the weights."""

    def __init__(self, settings: BDS, learner: Learner, batches: BatchProvider) -> None:
        """Start with equal weights."""
        self._learner = learner
        self._batches = batches
        self._weights = RowWeights(learner.example_count, settings.weight_learning_rate, learner.trainables[0].device)

    def backward(self, batch: Batch) -> Metrics:
        """Write the joint gradient and update the weights; report the user's unweighted ``loss`` and the others."""
        safety_loss, safety_gradient = mean_row_loss(self._learner, self._batches.next(Role.REFUSAL))
        weights = self._weights.values
        found = weighted_row_losses(self._learner, batch, weights)
        add_scaled(found.gradient, safety_gradient, 1.0)
        self._learner.set_gradient(found.gradient)
        self._weights.update(found.losses, found.present)
        return {
            "loss": found.losses.sum() / found.present.sum(),
            "weighted_loss": found.mean,
            "safety_loss": safety_loss,
            "largest_weight": weights.max(),
        }

    def row_weights(self) -> list[float]:
        """Return the weight of each example."""
        found: list[float] = self._weights.values.tolist()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the weights."""
        return {"weights": self._weights.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._weights.load_state_dict(state["weights"])
