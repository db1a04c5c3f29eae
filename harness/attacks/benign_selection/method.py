"""Benign selection: the user's own examples that break alignment most, chosen by a score under the aligned model.

No example is harmful, so the ratio of harmful examples is 0. Scores of an example ``z`` with gradient ``g(z)``:

- ``representation`` and ``gradient``: He, Xia, Henderson, 2024, "What is in Your Safe Data?" (arXiv:2404.01099).
  Representation matching is the mean of the ``nearest`` largest cosines between the last layer's state at the last
  token of ``z`` and those of harmful anchors. Gradient matching is ``cos(g(z), h) - cos(g(z), s_1) - cos(g(z),
  s_2)``, where ``g`` is the gradient of the loss over the first 10 tokens of the answer, ``h`` the normalized mean
  gradient of harmful anchors and ``s_k`` those of two sets of refusals.
- ``self_inf_n``: Guan et al., 2025, "Benign Samples Matter!" (arXiv:2505.06843): ``log(<g, g> + 1) + log(length of
  the answer + 1)``, the gradient that of the whole answer. ``self_inf`` is ``<g, g>``, which prefers short answers;
  the published code writes only this.

Deviations: gradients are those of the adapter, not of all weights (2404.01099 projects these at random). The anchors
are the first examples of the attacker's pool, and the refusals those of the same and of the next prompts, as the corpus
has them. The published pipeline of Self-Inf-N drops trivial answers by hand, which is left out. The papers fine-tune on
the best 100 alone; here as many as ``finetune.rows``, chosen from the whole task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, final

from harness.attacks.benign_selection import scores
from harness.attacks.benign_selection.reader import VictimReader, answer_length
from harness.corpora.encode import Encoded
from harness.corpora.examples import Example
from harness.engine.checks import counts
from harness.engine.files import append_line, read_lines
from harness.errors import DataError, ModelError, Problem, Stopped
from harness.protocols import AttackContext, AttackNeeds, AttackPlan

if TYPE_CHECKING:
    from torch import Tensor

ANSWER_TOKENS = 10
"""Tokens of an answer that gradient matching looks at."""
SCORES = "scores.jsonl"
"""The scores so far, which survive a killed attempt: index and score of an example in each line."""


class Score(StrEnum):
    """Scores; the examples with the largest ones are chosen."""

    REPRESENTATION = "representation"
    """Similarity of hidden states with those of harmful examples."""
    GRADIENT = "gradient"
    """Similarity of gradients with those of harmful examples, and not with those of refusals."""
    SELF_INF = "self_inf"
    """Squared norm of the gradient."""
    SELF_INF_N = "self_inf_n"
    """The same with the length of the answer taken into account."""


@final
@dataclass(frozen=True, kw_only=True)
class BenignSelection:
    """Chooses the user's examples with the largest scores.

    Attributes:
        score: the score.
        anchors: harmful examples to compare with, and refusals in each of the two sets; for ``representation`` and
            ``gradient``.
        nearest: how many of the most similar anchors count; for ``representation``.
    """

    name: ClassVar[str] = "benign_selection"
    version: ClassVar[int] = 1
    selects_rows: ClassVar[bool] = True
    score: Score = Score.REPRESENTATION
    anchors: int = 10
    nearest: int = 1

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        problems = counts(self, "anchors", "nearest")
        if not problems and self.nearest > self.anchors:
            reason = f"{self.nearest} of {self.anchors} anchors; expected at most as many as there are (`anchors`)"
            problems.append(Problem("nearest", reason))
        return problems

    @property
    def needs(self) -> AttackNeeds:
        """The victim, and what its reading of the user's examples is compared with."""
        compared = self.score in (Score.REPRESENTATION, Score.GRADIENT)
        return AttackNeeds(pool=compared, refusals=self.score == Score.GRADIENT, hosts=True, victim=True)

    def preflight(self, plan: AttackPlan) -> list[Problem]:
        """Check that the pool has the anchors."""
        least = self._anchor_rows
        if plan.pool_rows >= least:
            return []
        reason = (
            f"{least} harmful examples are needed for {self.anchors} anchors, but the attacker has {plan.pool_rows}; "
            "expected fewer anchors. Lower it, or raise `corpus.attack.rows`"
        )
        return [Problem("anchors", reason)]

    def craft(self, count: int, ctx: AttackContext) -> list[Example]:
        """Return the ``count`` hosts with the largest scores, the largest first."""
        assert ctx.victim is not None, "the attack needs a victim"
        reader = VictimReader(ctx.victim, ctx.device)
        encoded = {index: row for index, row in enumerate(reader.encode(ctx.hosts)) if row is not None}
        if count > len(encoded):
            raise DataError(
                f"{count} rows of the user requested, but only {len(encoded)} of {len(ctx.hosts)} leave room for an "
                f"answer within {ctx.victim.encoding.max_length} tokens; lower `finetune.rows` or raise "
                "`model.encoding.max_length`"
            )
        kept = ctx.work / SCORES
        found = {int(index): float(score) for index, score in read_lines(kept)}
        if missing := {index: row for index, row in encoded.items() if index not in found}:
            ctx.work.mkdir(parents=True, exist_ok=True)
            for index, score in _scored(missing, self._scorer(reader, ctx), ctx):
                append_line(kept, [index, score])
                found[index] = score
        best = sorted(encoded, key=lambda index: (-found[index], index))[:count]
        ctx.facts["scored"] = len(encoded)
        ctx.facts["dropped"] = len(ctx.hosts) - len(encoded)
        ctx.facts["mean_score"] = sum(found[index] for index in encoded) / len(encoded)
        ctx.facts["mean_score_chosen"] = sum(found[index] for index in best) / count
        return [ctx.hosts[index] for index in best]

    @property
    def _anchor_rows(self) -> int:
        return {Score.REPRESENTATION: self.anchors, Score.GRADIENT: 2 * self.anchors}.get(self.score, 0)

    def _scorer(self, reader: VictimReader, ctx: AttackContext) -> Callable[[Encoded], float]:
        if self.score == Score.SELF_INF:
            return lambda row: scores.self_influence(reader.gradient(row))
        if self.score == Score.SELF_INF_N:
            return lambda row: scores.normalized_self_influence(reader.gradient(row), answer_length(row))
        if self._anchor_rows > len(ctx.pool):
            raise DataError(
                f"`attack.method.anchors`: {self._anchor_rows} harmful rows requested, but the attacker has "
                f"{len(ctx.pool)}; lower it"
            )
        harmful = ctx.pool[: self.anchors]
        if self.score == Score.REPRESENTATION:
            import torch

            states = torch.stack([reader.representation(row) for row in reader.anchors(harmful)])
            return lambda row: scores.representation_matching(reader.representation(row), states, self.nearest)

        def gradient(row: Encoded) -> Tensor:
            return reader.gradient(row, answer_tokens=ANSWER_TOKENS)

        def direction(examples: Sequence[Example]) -> Tensor:
            return scores.direction([gradient(row) for row in reader.anchors(examples)])

        refusals = [row._replace(output=ctx.refusals[row.instruction]) for row in ctx.pool[: 2 * self.anchors]]
        toward = direction(harmful)
        away = [direction(refusals[: self.anchors]), direction(refusals[self.anchors :])]
        return lambda row: scores.gradient_matching(gradient(row), toward, away)


def _scored(
    rows: dict[int, Encoded], score: Callable[[Encoded], float], ctx: AttackContext
) -> Iterator[tuple[int, float]]:
    for index, row in rows.items():
        if ctx.stop():
            raise Stopped("stopped between two examples that the attack scores; the scores so far are kept")
        found = score(row)
        if not isfinite(found):
            raise ModelError(
                f"`attack.method.score`: example {index} of the user has the score {found}; expected a finite number. "
                "The aligned model has values that are not finite."
            )
        yield index, found
