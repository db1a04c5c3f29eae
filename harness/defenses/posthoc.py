"""Post-hoc defense: after a federation, the server trains its model on refusals and on benign examples of its own.

Ye et al., ICLR 2025 (arXiv:2406.10630): after the last round the server tunes the aggregated adapter on aligned
examples (a harmful prompt with a safe answer) and normal ones (a benign prompt with a helpful answer), half and half,
without any update of a client: ``min E_aligned[loss] + E_normal[loss]`` from the aggregated weights. It does not
depend on the federation and works after any fine-tuning.

Here a step has a batch of each kind, and its gradient is the mean of the two. The aligned examples are refusals of
the corpus, whose prompts are disjoint from those of the attack and of the evaluation; the authors' strongest set
reuses the attack's prompts. The normal ones are examples of the user's task that no user holds (``Role.SERVER``): the
users' own are not the server's to use. Without rows of one kind (0) the step has the other alone: the controls of the
paper's claim, "does any further training help" and "do refusals alone".

Deviations: the authors mix the kinds into one set of 1,000 examples and take 500 steps of 16; the size, epochs and
learning rate are settings here. Their level 3, in which the attacked model writes the answers itself, is not
implemented.

Fidelity: hand-computed only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import not_negative
from harness.errors import Problem
from harness.mechanisms.short_training import train_briefly
from harness.protocols import DataRequirement
from harness.training.budget import Budget
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import BatchProvider, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class Posthoc:
    """Settings of the defense.

    Attributes:
        refusal_rows: number of refusals; 0 trains on benign examples alone.
        benign_rows: number of the server's benign examples; 0 trains on refusals alone.
        budget: hyperparameters; an epoch is as many steps as the larger set has batches, and a batch has half its size
            of each kind. Its precision is that of the fine-tuning in any case, but without TF32.
    """

    name: ClassVar[str] = "posthoc"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 6

    refusal_rows: int = 500
    benign_rows: int = 500
    budget: Budget = field(default_factory=Budget)

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Refusals, and benign examples of the server."""
        kinds = ((Role.REFUSAL, self.refusal_rows), (Role.SERVER, self.benign_rows))
        return tuple(DataRequirement(role=role, rows=rows, batch_size=self._batch_size) for role, rows in kinds if rows)

    @property
    def _batch_size(self) -> int:
        """Examples of each kind in a step: half a batch, or a whole one without the other kind."""
        size = self.budget.batch_size
        return math.ceil(size / 2) if self.refusal_rows and self.benign_rows else size

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = not_negative(self, "refusal_rows", "benign_rows")
        if not found and not self.refusal_rows and not self.benign_rows:
            found.append(Problem("refusal_rows", "0, like `benign_rows`, leaves nothing to train on; expected either"))
        return found

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,  # noqa: ARG002
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,
    ) -> dict[str, object]:
        """Train on both kinds.

        Raises:
            ModelError: the loss is not finite.
        """
        roles = [need.role for need in self.needs]

        def gradient() -> tuple[Tensor, Gradient]:
            loss, combined = learner.gradient(batches.next(roles[0]))
            for role in roles[1:]:
                other, addend = learner.gradient(batches.next(role))
                add_scaled(combined, addend, 1.0)
                loss = loss + other
            return loss / len(roles), [part / len(roles) for part in combined]

        largest = max(self.refusal_rows, self.benign_rows)
        steps = math.ceil(self.budget.epochs * largest / self._batch_size)
        return train_briefly(learner, self.budget, steps, "the server's examples", gradient)
