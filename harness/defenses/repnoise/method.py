"""RepNoise: alignment that removes information about harmful answers from the representations.

Domenic Rosati, Jan Wehner, Kai Williams, Łukasz Bartoszcze, David Atanasov, Robie Gonzales, Subhabrata Majumdar,
Carsten Maple, Hassan Sajjad, Frank Rudzicz: "Representation Noising: A Defence Mechanism Against Harmful Finetuning",
NeurIPS 2024 (arXiv 2405.14577).

With ``f`` the alignment loss, ``H_l`` the feed-forward outputs of the layers on a harmful batch, ``Z_l`` standard
normals and ``J`` the harmful loss averaged over the hidden states (each projected by the head), the objective is
``min f + beta * mean_l MMD^2(H_l, Z_l) - alpha * log(1 + J)``, both terms at the positions where the harmful answer
differs from the refusal of the same prompt; see ``harness.defenses.repnoise.loss``. Two forward and backward passes per
step, plus a projection through the head for each layer.

Pairs are sampled in addition to the stage's own batch; the refusal of a pair only determines the differing positions.

Deviations from the authors' code: the alignment loss is the usual one, over the answer (theirs is over all tokens that
differ from the harmful example); the harmful losses are means over the selected positions only (theirs multiplies the
logits by the mask, so that every other position adds a constant); the last hidden state counts once and is normalized
once (theirs normalizes it twice and adds the model's loss to it); ``losses: published`` reproduces these three. Padding
is never compared, and examples are not truncated to each other's length. The ports in the Booster family compare the
harmful batch with an alignment batch of unrelated prompts, so that nearly every position counts, prompts included;
``pairing: random`` reproduces that.

Fidelity: hand-computed only with the defaults. With ``pairing: random`` and ``losses: published``, and padding and the
generator of the noise as in the authors' trainer, gradients agree with its vectors to 1e-5
(tests/training/test_golden.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative
from harness.errors import Problem
from harness.protocols import DataRequirement
from harness.training.gradients import add_scaled

if TYPE_CHECKING:
    from torch import Tensor

    from harness.defenses.repnoise.loss import HarmfulLoss
    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class RepNoise:
    """Settings of RepNoise.

    Attributes:
        alpha: weight of the ascent term. 1 in the original; Booster's scripts use 0.1, Panacea's 0.02.
        beta: weight of the noise term. 0.001 in the original and in Booster's scripts; Panacea's use 0.1.
        pairing: ``prompt`` compares a harmful answer with the refusal of its own prompt; ``random`` with an example of
            the alignment batch, as the published ports do.
        losses: ``published`` computes the alignment and harmful losses as the authors' code does, which requires
            ``pairing: random``; None as in the equations above.
        harmful_rows: number of harmful examples available to the defender; None uses all of the corpus.
        harmful_batch_size: harmful examples per step. With ``random``, those in excess of the alignment batch are
            unused.
    """

    name: ClassVar[str] = "repnoise"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 1

    alpha: float = 0.1
    beta: float = 0.001
    pairing: Literal["prompt", "random"] = "prompt"
    losses: Literal["published"] | None = None
    harmful_rows: int | None = None
    harmful_batch_size: int = 10

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's harmful examples, with the refusals of their prompts unless the pairing is random."""
        return (
            DataRequirement(
                role=Role.HARMFUL,
                rows=self.harmful_rows,
                batch_size=self.harmful_batch_size,
                paired=self.pairing == "prompt",
            ),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*not_negative(self, "alpha", "beta"), *counts(self, "harmful_rows", "harmful_batch_size")]
        if self.losses == "published" and self.pairing != "random":
            text = f"`published` requires `pairing: random`; `pairing` is `{self.pairing}`. Set one of the two"
            found.append(Problem("losses", text))
        return found

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> RepNoiseStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the layers, their feed-forward blocks or the final norm cannot be found.
        """
        from harness.defenses.repnoise.loss import HarmfulLoss

        published = self.losses == "published"
        harmful_loss = HarmfulLoss(learner, alpha=self.alpha, beta=self.beta, published=published)
        return RepNoiseStep(self, learner, batches, harmful_loss)


@final
class RepNoiseStep:
    """One run of RepNoise; its state is the number of noise samples so far."""

    def __init__(self, settings: RepNoise, learner: Learner, batches: BatchProvider, harmful_loss: HarmfulLoss) -> None:
        """Store the parts."""
        self._settings = settings
        self._learner = learner
        self._batches = batches
        self._harmful_loss = harmful_loss
        self._noise_count = 0

    def backward(self, batch: Batch) -> Metrics:
        """Write the combined gradient; report ``loss`` (f), its gradient's norm and the harmful loss."""
        harmful, positions = self._harmful(batch)
        seed = self._batches.derive(RepNoise.name, str(self._noise_count))
        harmful_term = self._harmful_loss.gradient(harmful, positions, seed=seed)
        self._noise_count += 1
        loss, gradient = self._alignment(batch, harmful)
        metrics = {"loss": loss, "loss_gradient_norm": self._learner.norm(gradient), **harmful_term.metrics}
        add_scaled(gradient, harmful_term.gradient, 1.0)
        self._learner.set_gradient(gradient)
        return metrics

    def _alignment(self, batch: Batch, harmful: Batch) -> tuple[Tensor | float, Gradient]:
        """Return the alignment loss and its gradient."""
        from harness.defenses.repnoise.loss import differing_loss

        if self._settings.losses is None:
            return self._learner.gradient(batch)
        found = differing_loss(self._learner, batch, harmful)
        return found.metrics["loss"], found.gradient

    def _harmful(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Return the next harmful batch and the mask of its differing positions."""
        from harness.defenses.repnoise.loss import differing_positions

        if self._settings.pairing == "random":
            harmful = self._batches.next(Role.HARMFUL)
            return harmful, differing_positions(harmful, batch)
        pair = self._batches.pair(Role.HARMFUL)
        return pair.harmful, differing_positions(pair.harmful, pair.refusal)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of noise samples so far."""
        return {"drawn": self._noise_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the number of noise samples."""
        self._noise_count = int(state["drawn"])
