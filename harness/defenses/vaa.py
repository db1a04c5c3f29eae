"""VAA: alignment that balances examples which harmful fine-tuning undoes easily with the others, by their losses.

Liang Chen, Xueting Han, Li Shen, Jing Bai, Kam-Fai Wong: "Vulnerability-Aware Alignment: Mitigating Uneven Forgetting
in Harmful Fine-Tuning", ICML 2025 (arXiv 2506.03850).

There are two groups of refusals, the vulnerable ones and the others, with the probabilities p and 1 - p; p starts at
1/2. Each step draws a group. With the probability ``lamb`` times the share of the steps taken so far, its loss is taken
at ``w + rho * g / (||g|| + 1e-7)``, where ``g`` is its gradient at the weights ``w``, and otherwise at ``w``. If the
group is the vulnerable one and its loss is l, p becomes ``p e / (p e + 1 - p)`` with ``e = exp(p_learning_rate * l /
p)``; for the other group its own probability does. Then p is cut off at 0.1 and 0.9.

A proxy finds the groups before the first step: the model is aligned plainly for ``proxy_epochs`` on the refusals, then
fine-tuned for ``proxy_steps`` on harmful answers. The refusals whose loss has risen most, a ``vulnerable_share``, are
vulnerable. Afterwards the model is restored.

Per step one forward and backward pass, or two where the weights are perturbed; the proxy before.

Deviations from the authors' code: a step uses the examples of its group in the stage's batch (theirs draws a batch of
the group), or all if there are none of it, which leaves p as it is; examples that do not fill a batch of the proxy are
not vulnerable; and the groups follow from losses and a share (theirs were found once, by judging answers after
fine-tuning, and are shipped as a file). The budget of the proxy is the alignment's.

Fidelity: hand-computed only. The steps, the probabilities and the defaults are those of the authors' code
(ChanLiang/VAA e23c303, ``DROSamplingTrainer``, and its script); the proxy and its defaults are the harness's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

from harness.corpora.encode import IGNORED, PLACES
from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative, positive, shares
from harness.errors import Problem
from harness.protocols import DataRequirement
from harness.training.budget import Budget
from harness.training.gradients import EPSILON

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics, Piece

LEAST, MOST = 0.1, 0.9
"""Limits of the probability of a group."""


@final
@dataclass(frozen=True, kw_only=True)
class VAA:
    """Settings of VAA.

    Attributes:
        rho: L2 norm of the perturbation of the weights.
        lamb: probability of a perturbation at the end of the training; it rises from 0 in proportion to the steps.
        p_learning_rate: how fast the probabilities of the groups follow their losses.
        vulnerable_share: fraction of the refusals that the proxy calls vulnerable.
        proxy_epochs: passes over the refusals in the alignment of the proxy.
        proxy_steps: steps of its harmful fine-tuning.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        harmful_batch_size: harmful examples per step of the proxy.
        budget: optimizer, schedule and batch size of the proxy; as shipped, those of the alignment.
    """

    name: ClassVar[str] = "vaa"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 3
    works_on_shards: ClassVar[bool] = True
    compares_passes: ClassVar[bool] = True

    rho: float = 0.4
    lamb: float = 1.0
    p_learning_rate: float = 0.007
    vulnerable_share: float = 0.5
    proxy_epochs: int = 1
    proxy_steps: int = 20
    harmful_rows: int | None = None
    harmful_batch_size: int = 10
    budget: Budget = field(default_factory=Budget)

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful examples, and the stage's own."""
        return (
            DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=self.harmful_batch_size),
            DataRequirement(role=Role.REFUSAL, rows=None, batch_size=self.budget.batch_size, own=True),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [
            *positive(self, "rho"),
            *not_negative(self, "p_learning_rate"),
            *shares(self, "lamb", "vulnerable_share"),
            *counts(self, "proxy_epochs", "proxy_steps", "harmful_rows", "harmful_batch_size"),
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> VAAStep:
        """Start a run.

        Raises:
            ModelError: the model applies dropout.
        """
        from harness.training.gradients import refuse_dropout

        refuse_dropout(learner.module, self.name)
        return VAAStep(self, learner, batches, total_steps)


class Drawn(NamedTuple):
    """The examples of a step.

    Attributes:
        weights: 1 for each example of this process's share that is used, 0 for the others, ``[rows]``.
        tokens: number of their supervised tokens over all processes.
        present: whether the drawn group has an example in the batch.
    """

    weights: Tensor
    tokens: Tensor
    present: Tensor


@final
class VAAStep:
    """One run of VAA; its state are the groups and the probability of the vulnerable one."""

    def __init__(self, settings: VAA, learner: Learner, batches: BatchProvider, total_steps: int) -> None:
        """Start with equal probabilities; the groups are found in the first step, unless they are restored."""
        import torch

        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._total_steps = total_steps
        self._p = torch.full((), 0.5, device=learner.trainables[0].device)
        self._vulnerable: Tensor | None = None

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the drawn group; report its unperturbed ``loss``, p, and whether it was perturbed."""
        import torch

        if self._vulnerable is None:
            self._vulnerable = self._found()
        taken = self._learner.steps_taken
        rng = Random(self._batches.derive(VAA.name, str(taken)))
        chosen = torch.full_like(self._p, rng.random()) < self._p
        drawn = self._drawn(batch, chosen, self._vulnerable)
        loss, gradient = self._gradient(batch, drawn)
        perturbed = rng.random() < self._settings.lamb * taken / self._total_steps
        final_loss = loss
        if perturbed:
            norm = self._learner.norm(gradient)
            with self._learner.perturbed(gradient, self._settings.rho / (norm + EPSILON)):
                final_loss, gradient = self._gradient(batch, drawn)
        updated = probability(self._p, final_loss, chosen, self._settings.p_learning_rate)
        self._p = torch.where(drawn.present, updated, self._p)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "vulnerable_probability": self._p, "perturbed": float(perturbed)}

    def _drawn(self, batch: Batch, chosen: Tensor, vulnerable: Tensor) -> Drawn:
        """Return the examples of the drawn group in a batch; all if there are none."""
        import torch

        from harness.corpora.transfer import on_device
        from harness.training.distributed import all_reduce_sum

        device = vulnerable.device
        lengths = on_device((batch["labels"][:, 1:] != IGNORED).sum(dim=1).float(), device)
        own = (vulnerable[on_device(batch[PLACES], device)] == chosen).float()
        tokens, everything = (lengths * own).sum(), lengths.sum()
        all_reduce_sum(tokens, everything)
        present = tokens > 0
        weights = torch.where(present, own, torch.ones_like(own))
        return Drawn(weights, torch.where(present, tokens, everything), present)

    def _gradient(self, batch: Batch, drawn: Drawn) -> tuple[Tensor, Gradient]:
        """Return the mean loss over the tokens of the drawn examples, and its gradient."""
        import torch
        from torch.nn.functional import cross_entropy

        from harness.corpora.transfer import on_device

        def share(piece: Piece) -> tuple[Tensor]:
            prediction = self._learner.predict(piece)
            losses = cross_entropy(prediction.logits.float(), prediction.targets, reduction="none")
            rows = torch.stack([part.sum() for part in torch.split(losses, list(piece.counts))])
            # An empty micro-batch is a filler, whose loss is zero.
            own = on_device(torch.tensor(piece.rows, dtype=torch.int64), rows.device)
            weights = drawn.weights.index_select(0, own) if piece.rows else torch.zeros_like(rows)
            return ((weights * rows).sum() / drawn.tokens,)

        (loss,), gradient = self._learner.accumulate(self._learner.pieces(batch), share)
        return loss, gradient

    def _found(self) -> Tensor:
        """Return which of the stage's own examples are vulnerable, ``[examples]``; the weights are as before."""
        import torch

        from harness.mechanisms.short_training import ShortTraining, restore

        learner, settings = self._learner, self._settings
        start = [parameter.detach().clone() for parameter in learner.trainables]
        examples = learner.example_count
        passes = max(examples // settings.budget.batch_size, 1)
        training = ShortTraining(learner, settings.budget, settings.proxy_epochs * passes)
        for _ in range(settings.proxy_epochs * passes):
            training.step(learner.gradient(self._batches.next(Role.REFUSAL))[1])
        training.check("defense.align")
        owned = [self._batches.next(Role.REFUSAL) for _ in range(passes)]
        before = [self._losses(batch) for batch in owned]
        attack = ShortTraining(learner, settings.budget, settings.proxy_steps)
        for _ in range(settings.proxy_steps):
            attack.step(learner.gradient(self._batches.next(Role.HARMFUL))[1])
        attack.check("defense.align")
        rise = torch.stack([self._losses(batch) - first for batch, first in zip(owned, before, strict=True)]).sum(dim=0)
        restore(learner, start)
        number = math.ceil(Fraction(str(settings.vulnerable_share)) * examples)
        return torch.zeros_like(rise, dtype=torch.bool).index_fill(0, rise.topk(number).indices, True)

    def _losses(self, batch: Batch) -> Tensor:
        """Return the loss of each of the stage's own examples, ``[examples]``; 0 for those that are not in a batch."""
        import torch

        from harness.mechanisms.row_losses import row_losses
        from harness.training.distributed import all_reduce_sum

        found = torch.zeros(self._learner.example_count, device=self._p.device)
        places = batch[PLACES].tolist()
        with torch.no_grad():
            for piece in self._learner.pieces(batch):
                losses = row_losses(self._learner.predict(piece), piece)
                if piece.rows:
                    found[[places[row] for row in piece.rows]] = losses
        all_reduce_sum(found)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the groups and the probability."""
        return {"vulnerable": self._vulnerable, "p": self._p}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._p = state["p"].to(self._p.device)
        vulnerable = state["vulnerable"]
        self._vulnerable = None if vulnerable is None else vulnerable.to(self._p.device)


def probability(p: Tensor, loss: Tensor, vulnerable: Tensor, rate: float) -> Tensor:
    """Return the probability of the vulnerable group after a step.

    Args:
        p: before the step.
        loss: of the group that was drawn.
        vulnerable: whether that was the vulnerable one.
        rate: the learning rate.
    """
    import torch

    up = p * torch.exp(rate * loss / p)
    other = (1 - p) * torch.exp(rate * loss / (1 - p))
    return torch.where(vulnerable, up / (up + 1 - p), p / (p + other)).clamp(LEAST, MOST)
