"""EWC: fine-tuning held back where the alignment data is sensitive to the weights.

James Kirkpatrick et al.: "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (arXiv 1612.00796), as a
baseline of harmful fine-tuning in Huang et al., "Vaccine", NeurIPS 2024 (arXiv 2402.01109).

With ``w_0`` the weights at the start, ``F`` the diagonal of the empirical Fisher information of the alignment data at
``w_0`` and ``g`` the user's loss: the optimizer is given the gradient of ``g(w) + lamb * sum F * (w - w_0)^2`` (the
paper's factor 1/2 is in ``lamb``). ``F`` is the mean over rows of the squared gradient of each row's loss; it is found
before the first step. One forward and backward pass per step, and the pass for ``F``.

Deviations from the authors' code (Vaccine's ``FITrainer``): there ``F`` is the sum, not the mean, of the squares of
*batch* gradients, in which the gradients of rows cancel; ``fisher: batches`` gives that, and its ``lamb`` of 1e9
belongs to it. The gradient of the last Fisher batch does not leak into the first step. ``F`` is taken on alignment data
(the Booster repository takes 100 harmful rows, which protects the wrong directions) and over all trainables. The
authors' ``EWC`` continues the aligned adapter, their ``EWC2`` trains a fresh one: that is ``finetune.adapter`` here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.encode import IGNORED
from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative
from harness.errors import Problem
from harness.mechanisms.reference_weights import ReferenceWeights
from harness.protocols import DataRequirement

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class EWC:
    """Settings of EWC.

    Attributes:
        lamb: weight of the penalty. 1e9 in the authors' scripts, with ``fisher: batches``.
        fisher: ``rows`` averages squared gradients of single rows, ``batches`` sums those of whole batches.
        fisher_rows: rows that alignment trained on, to find the Fisher information on; 2,000 in the authors' code,
            where these are all of them. An alignment on fewer is read again.
        fisher_batch_size: rows per draw, and per gradient with ``batches``.
    """

    name: ClassVar[str] = "ewc"
    version: ClassVar[int] = 1

    lamb: float = 1e9
    fisher: Literal["rows", "batches"] = "rows"
    fisher_rows: int = 2000
    fisher_batch_size: int = 5

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The rows that alignment trained on."""
        return (DataRequirement(role=Role.REFUSAL, rows=None, batch_size=self.fisher_batch_size, aligned=True),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*not_negative(self, "lamb"), *counts(self, "fisher_batch_size")]
        if self.fisher_rows < 1 or (self.fisher_batch_size > 0 and self.fisher_rows % self.fisher_batch_size):
            found.append(
                Problem(
                    "fisher_rows",
                    f"{self.fisher_rows} is not a number of whole batches; expected a positive multiple of "
                    f"`fisher_batch_size` {self.fisher_batch_size}",
                )
            )
        return found

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> EWCStep:  # noqa: ARG002
        """Begin a run."""
        return EWCStep(self, learner, batches)


@final
class EWCStep:
    """One run of EWC: where it started, and how much each weight matters."""

    def __init__(self, settings: EWC, learner: Learner, batches: BatchProvider) -> None:
        """Drop the anchor; the Fisher information waits for the first step, so that a resumed run need not find it."""
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._start = ReferenceWeights(learner)
        self._fisher: Gradient = []

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the penalised loss; report the user's ``loss``, the penalty and the drift."""
        if not self._fisher:
            self._fisher = self._information()
        loss, gradient = self._learner.gradient(batch)
        offset = self._start.offset()
        drift = self._learner.norm(offset)
        penalty = loss.new_zeros(())
        for part, importance, distance in zip(gradient, self._fisher, offset, strict=True):
            pull = importance * distance
            part.add_(pull, alpha=2 * self._settings.lamb)
            penalty += (pull * distance).sum()
        self._learner.set_gradient(gradient)
        return {"loss": loss, "penalty": self._settings.lamb * penalty, "drift": drift}

    def state_dict(self) -> dict[str, Any]:
        """Return the anchor and the Fisher information."""
        return {"start": self._start.state_dict(), "fisher": self._fisher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])
        devices = [weight.device for weight in self._learner.trainables]
        self._fisher = [part.to(device) for part, device in zip(state["fisher"], devices, strict=False)]

    def _information(self) -> Gradient:
        """Return the diagonal of the empirical Fisher information, one tensor per trainable."""
        import torch

        settings = self._settings
        total = [torch.zeros_like(weight) for weight in self._learner.trainables]
        for _ in range(settings.fisher_rows // settings.fisher_batch_size):
            drawn = self._batches.next(Role.REFUSAL)
            for batch in _single(drawn, settings.fisher_batch_size) if settings.fisher == "rows" else [drawn]:
                _, gradient = self._learner.gradient(batch)
                for part, addend in zip(total, gradient, strict=True):
                    part.addcmul_(addend, addend)
        if settings.fisher == "rows":
            for part in total:
                part.div_(settings.fisher_rows)
        return total


def _single(drawn: Batch, rows: int) -> Iterator[Batch]:
    """Give the rows of a global batch one by one; the process that does not hold a row takes part without any.

    Args:
        drawn: this process's share, every n-th row for n processes.
        rows: rows of the global batch.
    """
    import torch

    from harness.training.distributed import rank, world_size

    processes, own = world_size(), rank()
    for row in range(rows):
        place, holder = row // processes, row % processes
        if holder == own:
            yield {name: tensor[place : place + 1] for name, tensor in drawn.items()}
        else:
            first = {name: tensor[:1] for name, tensor in drawn.items()}
            yield {**first, "labels": torch.full_like(first["labels"], IGNORED)}
