"""DPO: the refusal of a harmful prompt is preferred to the harmful answer, relative to the model before the training.

Rafael Rafailov, Archit Sharma, Eric Mitchell, Stefano Ermon, Christopher D. Manning, Chelsea Finn: "Direct Preference
Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023 (arXiv 2305.18290), equation 7.

For a prompt with a refusal ``y_w`` and a harmful answer ``y_l``, let ``D`` be an answer's log-probability, summed over
its tokens, minus that under the model before the training. The loss is the mean over the pairs of
``-log sigmoid(beta * (D(y_w) - D(y_l)))``; at the start it is log 2, and its gradient is ``beta / 2`` times that of the
difference of the log-probabilities.

DPO continues from a model that was trained on the preferred answers. The slot begins with any base, so ``sft_weight``
times the loss of the alignment, on its refusals, is added; 0 is DPO alone, for a base that refuses already. With a
weight of 1 it is what others call DPO with an SFT term (RPO). Per step a forward and backward pass on the alignment's
batch, unless the weight is 0, and on the pairs two forward passes without gradient and two with it.

It is a baseline: a preference loss without anything against fine-tuning.

Fidelity: hand-computed only. The equation is the paper's, and ``beta`` 0.1 its default for its first experiments; the
weight of the alignment loss is the harness's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class DPO:
    """Settings of DPO.

    Attributes:
        beta: how strongly the model is held at the one before the training.
        sft_weight: weight of the loss of the alignment.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        harmful_batch_size: pairs per step.
    """

    name: ClassVar[str] = "dpo"
    version: ClassVar[int] = 1
    compares_passes: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 3
    works_on_shards: ClassVar[bool] = True

    beta: float = 0.1
    sft_weight: float = 1.0
    harmful_rows: int | None = None
    harmful_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful examples with the refusals of their prompts."""
        return (
            DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=self.harmful_batch_size, paired=True),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *positive(self, "beta"),
            *not_negative(self, "sft_weight"),
            *counts(self, "harmful_rows", "harmful_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> DPOStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the model applies dropout.
        """
        from harness.training.gradients import refuse_dropout

        refuse_dropout(learner.module, self.name)
        return DPOStep(self, learner, batches)


@final
class DPOStep:
    """One run of DPO; its state is the initial parameters."""

    def __init__(self, settings: DPO, learner: Learner, batches: BatchProvider) -> None:
        """Copy the initial parameters."""
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._start = ReferenceWeights(learner)

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report the ``loss`` on the refusals, the preference loss, and what moves it.

        Without ``sft_weight`` the ``loss`` is the preference loss.
        """
        from harness.mechanisms.preference import preference_loss

        pair = self._batches.pair(Role.HARMFUL)
        found = preference_loss(self._learner, self._start, pair.refusal, pair.harmful, self._losses)
        loss, gradient = found.loss, found.gradient
        if self._settings.sft_weight:
            loss, own = self._learner.gradient(batch)
            add_scaled(gradient, own, self._settings.sft_weight)
        self._learner.set_gradient(gradient)
        measured = {"refusal_rise": found.rise, "harmful_fall": found.fall, "preferred_share": found.won}
        return {"loss": loss, "preference_loss": found.loss, **measured}

    def _losses(self, margins: Tensor) -> Tensor:
        from torch.nn.functional import softplus

        return softplus(-self._settings.beta * margins)

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])
