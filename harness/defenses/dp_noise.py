"""DP noise: gradients are clipped row by row, or as a batch, and Gaussian noise is added to their mean.

Fed-CDP (Wei et al., arXiv:2107.08600; the clipping of DP-SGD, Abadi et al., arXiv:1607.00133) with the row as the
unit: ``(sum_u clip_C(g_u) + N(0, sigma^2 C^2 I)) / n`` over the ``n`` rows of a step. With ``unit: batch`` the
gradient of the whole batch is clipped and noise of the deviation ``sigma C`` added: no guarantee for a row, and at
the same ``sigma`` its noise is ``n`` times that of ``unit: row``. Compare the two at equal noise per entry. With the
client of a federation as the unit, noise belongs to the server: ``federation/aggregate=dp_noise``.

What differs from plain fine-tuning without clipping and noise: the gradient of a batch is a mean over its tokens, the
one here a mean over rows, so that rows with short answers count more. The two agree if all answers are of one length.
A row costs a backward pass of its own. The fine-tuning's own clipping (``finetune.budget.max_grad_norm``) acts on the
result, and Adam divides it by its running size, so that clipping changes the ratios between rows more than the step.

Deviations from the authors' code: ``clip_scope: tensor``, its form, clips each tensor to ``C`` by itself; the default
clips the whole gradient. Its noise is multiplied by 0 in two of three files. No privacy budget is stated: it would
need rows drawn independently and an accountant.

Fidelity: hand-computed only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.engine.checks import not_negative, positive
from harness.errors import Problem
from harness.mechanisms.clipped_noise import Schedule, Scope, clipped, noise_like, scheduled, unreachable

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, DataRequirement, Gradient, Learner, Metrics

TOKENS = ("input_ids", "attention_mask", "labels")
"""The parts of a batch that have a row's tokens."""


@final
@dataclass(frozen=True, kw_only=True)
class DPNoise:
    """Settings of the method.

    Attributes:
        unit: whose gradient is clipped: of a ``row`` or of the ``batch``.
        clip: largest L2 norm ``C``.
        clip_scope: of the whole gradient (``global``), or of each ``tensor``.
        sigma: noise multiplier.
        sigma_end: noise multiplier at the end of the run.
        clip_end: largest norm at the end of the run.
        schedule: how both change over the steps; in a federation, over those of a client in a round.
    """

    name: ClassVar[str] = "dp_noise"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 4
    unit: Literal["row", "batch"] = "row"
    clip: float = 1.0
    clip_scope: Scope = "global"
    sigma: float = 0.01
    sigma_end: float = 0.01
    clip_end: float = 1.0
    schedule: Schedule = "constant"

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*positive(self, "clip", "clip_end"), *not_negative(self, "sigma", "sigma_end")]
        return found or [
            *unreachable(self.schedule, "sigma_end", self.sigma, self.sigma_end),
            *unreachable(self.schedule, "clip_end", self.clip, self.clip_end),
        ]

    def disguised(self, gradient: Gradient, seed: int) -> Gradient:
        """Return a row's gradient, clipped and with the noise of a step of this row alone."""
        kept = clipped(gradient, self.clip, self.clip_scope)
        return [part + noise for part, noise in zip(kept, noise_like(kept, self.sigma * self.clip, seed), strict=True)]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> DPNoiseStep:
        """Start a run."""
        return DPNoiseStep(self, learner, batches, total_steps)


@final
class DPNoiseStep:
    """One run; the noise of a step follows from its number, so there is no state."""

    def __init__(self, settings: DPNoise, learner: Learner, batches: BatchProvider, total_steps: int) -> None:
        """Store the parts."""
        self._settings, self._learner, self._batches = settings, learner, batches
        self._total_steps = total_steps

    def backward(self, batch: Batch) -> Metrics:
        """Write the clipped gradient with noise; report loss, mean norm of a unit before and after clipping, and noise.

        ``loss`` is a mean over units, ``noise`` the standard deviation of an entry.
        """
        import torch

        settings, step = self._settings, self._learner.steps_taken
        done = step / self._total_steps
        limit = scheduled(settings.schedule, settings.clip, settings.clip_end, done)
        sigma = scheduled(settings.schedule, settings.sigma, settings.sigma_end, done)
        units = [batch] if settings.unit == "batch" else rows_of(batch)
        losses, before, after = [], [], []
        total: Gradient = []
        for unit in units:
            loss, gradient = self._learner.gradient(unit)
            kept = clipped(gradient, limit, settings.clip_scope)
            total = [one + other for one, other in zip(total, kept, strict=True)] if total else kept
            losses.append(loss)
            before.append(self._learner.norm(gradient))
            after.append(self._learner.norm(kept))
        deviation = sigma * limit
        if deviation:
            noise = noise_like(total, deviation, self._batches.derive("dp_noise", str(step)))
            total = [one + other for one, other in zip(total, noise, strict=True)]
        self._learner.set_gradient([part / len(units) for part in total])
        return {
            "loss": torch.stack(losses).mean(),
            "unit_norm": torch.stack(before).mean(),
            "clipped_norm": torch.stack(after).mean(),
            "noise": deviation / len(units),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: there is no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    """Return the rows of a global batch as global batches of one, in order; a collective call.

    A process that does not hold the row has one without a supervised position in its place. Rows without any do not
    count: such a row stands for an empty share.

    Args:
        batch: this process's share.
    """
    import torch

    from harness.corpora.encode import IGNORED
    from harness.training.distributed import all_gather, rank

    lengths = batch["attention_mask"].sum(dim=1).tolist()
    supervised = (batch["labels"] != IGNORED).any(dim=1).tolist()
    own = [
        {name: batch[name][row : row + 1, :length] for name in TOKENS}
        for row, length in enumerate(lengths)
        if supervised[row]
    ]
    blank = {name: batch[name][:1, :1] for name in TOKENS}
    blank["labels"] = torch.full_like(blank["labels"], IGNORED)
    counts = all_gather(len(own))
    return [
        own[place] if owner == rank() else blank
        for place in range(max(counts))
        for owner, count in enumerate(counts)
        if place < count
    ]
