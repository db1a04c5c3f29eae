"""Deep augmentation: alignment that also trains on refusals which begin after some tokens of the harmful answer.

Xiangyu Qi, Ashwinee Panda, Kaifeng Lyu, Xiao Ma, Subhrajit Roy, Ahmad Beirami, Prateek Mittal, Peter Henderson: "Safety
Alignment Should Be Made More Than Just a Few Tokens Deep", ICLR 2025 (arXiv 2406.05946), the part on data augmentation.

For a prompt ``x`` with harmful answer ``h`` and refusal ``r``: with probability ``share`` the model is trained on ``r``
after ``x`` and the first ``k`` tokens of ``h``, with ``k`` uniform in 1 to ``min(most, |h|)``; otherwise on ``r`` after
``x``. Only ``r`` is supervised. Harmless prompts with helpful answers are trained on too, so that the model does not
learn to refuse everything. Training is plain: the loss is the mean over all supervised tokens of a batch, whatever
their kind, as in the authors' code.

Deviations from the authors' code: they fine-tune all weights of a chat model that is already aligned, on 256 triplets
with 4 safety examples to 16 harmless ones in a batch; here both are mixed into the refusals of the alignment, in the
numbers of the settings. ``k`` is drawn once per example instead of in every epoch. Their harmless examples are prompts
of Alpaca answered by the model itself; here they have the answers of the corpus.

Fidelity: hand-computed only. The composition is that of the authors' code (commit fb1749e); the composed rows are
checked against rows written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.engine.checks import counts, shares
from harness.errors import Problem
from harness.mechanisms.late_refusal import refusal_after
from harness.protocols import AnswerPair, DataRequirement
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from random import Random

    from harness.protocols import BatchProvider, Learner


@final
@dataclass(frozen=True, kw_only=True)
class DeepAugmentation:
    """Settings of deep augmentation.

    Attributes:
        share: probability that a refusal begins after some tokens of the harmful answer.
        most: largest number of these tokens.
        triplets: number of harmful prompts with both answers; 256 in the authors' code; None uses all of the corpus.
        benign_rows: number of harmless examples; None uses all of the corpus, 0 uses none.
    """

    name: ClassVar[str] = "deep_augmentation"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    share: float = 0.5
    most: int = 100
    triplets: int | None = None
    benign_rows: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful prompts with both answers, and harmless examples."""
        harmful = DataRequirement(role=Role.HARMFUL, rows=self.triplets, batch_size=None, paired=True)
        if self.benign_rows == 0:
            return (harmful,)
        return (harmful, DataRequirement(role=Role.BENIGN, rows=self.benign_rows, batch_size=None))

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*shares(self, "share"), *counts(self, "most", "triplets")]
        return [*found, *(counts(self, "benign_rows") if self.benign_rows != 0 else ())]

    def compose(self, pairs: Sequence[AnswerPair], rng: Random) -> list[Encoded]:
        """Return one example for each pair: its refusal, after none or some tokens of the harmful answer."""
        return [refusal_after(pair, self._depth(pair, rng)) for pair in pairs]

    def _depth(self, pair: AnswerPair, rng: Random) -> int:
        longest = min(self.most, len(pair.harmful))
        return rng.randint(1, longest) if rng.random() < self.share and longest else 0

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)
