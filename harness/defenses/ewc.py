"""EWC: fine-tuning with a quadratic penalty, weighted by the Fisher information of the alignment data.

James Kirkpatrick et al.: "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (arXiv 1612.00796), as a
baseline of harmful fine-tuning in Huang et al., "Vaccine", NeurIPS 2024 (arXiv 2402.01109).

With ``w_0`` the initial weights, ``F`` the diagonal of the empirical Fisher information of the alignment data at
``w_0`` and ``g`` the user's loss, the gradient is that of ``g(w) + lamb * sum F * (w - w_0)^2`` (the paper's factor 1/2
is included in ``lamb``). ``F`` is the mean over examples of the squared gradient of each example's loss, computed
before the first step. One forward and backward pass per step, plus the pass for ``F``.

Deviations from the authors' code (Vaccine's ``FITrainer``): theirs sums, instead of averaging, the squares of *batch*
gradients, in which the gradients of examples cancel; ``fisher: batches`` reproduces that, and the published ``lamb`` of
1e9 belongs to it. The gradient of the last Fisher batch does not leak into the first step. ``F`` is computed on
alignment data (the Booster repository uses 100 harmful examples, which protects the wrong directions) and over all
trainable parameters. The authors' ``EWC`` continues the aligned adapter, their ``EWC2`` trains a new one; here that is
``finetune.adapter``.

Fidelity: hand-computed only. The numbers are computed by hand in the tests; no vectors of the authors' trainer were
available.
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
from harness.training.gradients import inner_product

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class EWC:
    """Settings of EWC.

    Attributes:
        lamb: weight of the penalty. 1e9 in the authors' scripts, with ``fisher: batches``.
        fisher: ``rows`` averages squared gradients of single examples, ``batches`` sums those of whole batches.
        fisher_rows: number of alignment examples for the Fisher information; 2,000 in the authors' code, which is all
            of them there. If the alignment used fewer, they are repeated.
        fisher_batch_size: examples per batch, and per gradient with ``batches``.
    """

    name: ClassVar[str] = "ewc"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 3
    works_on_shards: ClassVar[bool] = True

    lamb: float = 1e9
    fisher: Literal["rows", "batches"] = "rows"
    fisher_rows: int = 2000
    fisher_batch_size: int = 5

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The training examples of the alignment."""
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
        """Start a run."""
        return EWCStep(self, learner, batches)


@final
class EWCStep:
    """One run of EWC; its state is the initial parameters and the Fisher information."""

    def __init__(self, settings: EWC, learner: Learner, batches: BatchProvider) -> None:
        """Copy the initial parameters; the Fisher information is computed in the first step, unless it is restored."""
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._start = ReferenceWeights(learner)
        self._fisher: Gradient = []

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the penalized loss; report the user's ``loss``, the penalty and the drift."""
        if not self._fisher:
            self._fisher = self._fisher_information()
        loss, gradient = self._learner.gradient(batch)
        offset = self._start.offset()
        drift = self._learner.norm(offset)
        penalty = loss.new_zeros(())
        for part, importance, distance in zip(gradient, self._fisher, offset, strict=True):
            pull = importance * distance
            part.add_(pull, alpha=2 * self._settings.lamb)
            penalty += inner_product([pull], [distance])
        self._learner.set_gradient(gradient)
        return {"loss": loss, "penalty": self._settings.lamb * penalty, "drift": drift}

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters and the Fisher information."""
        return {"start": self._start.state_dict(), "fisher": self._fisher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start.load_state_dict(state["start"])
        devices = [weight.device for weight in self._learner.trainables]
        self._fisher = [part.to(device) for part, device in zip(state["fisher"], devices, strict=False)]

    def _fisher_information(self) -> Gradient:
        """Return the diagonal of the empirical Fisher information, one tensor per trainable parameter."""
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
    """Yield the examples of a global batch one at a time; processes that do not hold it yield an unsupervised filler.

    Args:
        drawn: this process's share: every n-th example for n processes.
        rows: number of examples of the global batch.
    """
    import torch

    from harness.training.distributed import rank, world_size

    processes, own = world_size(), rank()
    for row in range(rows):
        index, holder = row // processes, row % processes
        if holder == own:
            yield {name: tensor[index : index + 1] for name, tensor in drawn.items()}
        else:
            first = {name: tensor[:1] for name, tensor in drawn.items()}
            yield {**first, "labels": torch.full_like(first["labels"], IGNORED)}
