"""DeRTa (decoupled refusal training): alignment that teaches to refuse at every position of a harmful answer.

Youliang Yuan, Wenxiang Jiao, Wenxuan Wang, Jen-tse Huang, Jiahao Xu, Tian Liang, Pinjia He, Zhaopeng Tu: "Refuse
Whenever You Feel Unsafe: Improving Safety in LLMs via Decoupled Refusal Training", ACL 2025 (arXiv 2407.09121).

A prompt ``x`` with harmful answer ``h`` and refusal ``r`` gives two examples, both trained by plain cross-entropy:

1. maximum likelihood with a harmful prefix: ``r`` after ``x`` and the first ``k`` tokens of ``h``, only ``r``
   supervised. ``k`` is 0 for every third prompt, otherwise uniform in 1 to ``|h| - 2``;
2. reinforced transition optimization: ``x`` and the whole of ``h``, where the target at every position of the answer is
   the token that begins a refusal.

Harmless prompts with helpful answers are trained on too.

Deviations from the authors' code: they count ``k`` in words and tokenize the refusal on its own; here tokens are
counted. Their target token is the literal id of "Sorry" in Llama 3, with which their refusals begin; here it is the
first token of the prompt's own refusal. They train a base model on 3,000 examples of each kind and 60,000 helpful ones;
here all are mixed into the refusals of the alignment, in the numbers of the settings. As in their code, an answer of
fewer than three tokens gives no example of the first kind.

Fidelity: hand-computed only. The composition is that of the authors' code (its data script, commit d4e90e1); the
composed rows and their loss are checked against a computation by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.engine.checks import counts
from harness.errors import Problem
from harness.mechanisms.late_refusal import refusal_after
from harness.protocols import AnswerPair, DataRequirement
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from random import Random

    from harness.protocols import BatchProvider, Learner

_PLAIN_EVERY = 3
"""Of every so many prompts, one has its refusal directly after the prompt."""


@final
@dataclass(frozen=True, kw_only=True)
class DeRTa:
    """Settings of DeRTa.

    Attributes:
        pairs: number of harmful prompts with both answers; 3,000 in the authors' code; None uses all of the corpus.
        benign_rows: number of harmless examples; None uses all of the corpus, 0 uses none.
    """

    name: ClassVar[str] = "derta"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    pairs: int | None = None
    benign_rows: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful prompts with both answers, and harmless examples."""
        harmful = DataRequirement(role=Role.HARMFUL, rows=self.pairs, batch_size=None, paired=True)
        if self.benign_rows == 0:
            return (harmful,)
        return (harmful, DataRequirement(role=Role.BENIGN, rows=self.benign_rows, batch_size=None))

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*counts(self, "pairs"), *(counts(self, "benign_rows") if self.benign_rows != 0 else ())]

    def compose(self, pairs: Sequence[AnswerPair], rng: Random) -> list[Encoded]:
        """Return for each pair its refusal after part of the harmful answer, and the transition to it everywhere."""
        composed = []
        for place, pair in enumerate(pairs):
            deepest = len(pair.harmful) - 2
            if deepest >= 1:
                depth = rng.randint(1, deepest)
                composed.append(refusal_after(pair, depth if place % _PLAIN_EVERY else 0))
            composed.append(transition(pair))
        return composed

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)


def transition(pair: AnswerPair) -> Encoded:
    """Return the harmful answer with the first token of the refusal as the target of every position.

    The last position, where the answer would end, is one of them; what is written there is not an input of any other.
    """
    answer = [*pair.harmful, pair.refusal[-1]]
    return Encoded(pair.prompt + answer, [IGNORED] * len(pair.prompt) + [pair.refusal[0]] * len(answer))
