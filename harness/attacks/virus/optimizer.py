"""The optimization of one row's suffix, step by step; it can be resumed after every step."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.attacks.virus.gradients import VictimGradients
from harness.attacks.virus.objective import Candidate, Objective, best_of
from harness.attacks.virus.progress import Progress
from harness.attacks.virus.row import MixedRow, RowTokenizer
from harness.attacks.virus.search import allowed_tokens, exchanges, proposals, random_exchanges
from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import OpenedGuard, Victim


class Search(NamedTuple):
    """Settings of the optimization, see ``Virus``."""

    lamb: float
    top_k: int
    candidates: int
    normalized: bool


class Optimizer:
    """Optimizes the suffix of a row.

    Args:
        row: the mixed row.
        search: the settings.
        victim: the aligned model.
        guard: the opened guard; not needed if it has no weight.
    """

    def __init__(self, row: MixedRow, search: Search, victim: Victim, guard: OpenedGuard | None) -> None:
        """Tokenize the row; gradients are computed from the first step on."""
        self._row, self._search, self._victim = row, search, victim
        self._guard = guard if search.lamb > 0 else None
        self._tokenizer = RowTokenizer(victim.tokenizer, victim.encoding)
        self._tokens = self._tokenizer.tokens(row)
        self._objective: Objective | None = None
        self._allowed: Tensor | None = None

    def start(self) -> Progress:
        """Return the mixed row before any step."""
        return Progress(suffix=self._tokens.suffix, text=self._row.suffix)

    def randomized(self, count: int, rng: Random) -> Progress:
        """Return the row after random exchanges of a token, without an objective.

        Args:
            count: the number of exchanges, at distinct places; fewer only if no more are admitted.
            rng: draws places and tokens uniformly.
        """
        model: Any = self._victim.model
        vocabulary = model.get_input_embeddings().weight.shape[0]
        allowed = allowed_tokens(self._victim.tokenizer, vocabulary).nonzero().flatten().tolist()
        suffix, text = random_exchanges(
            self._tokens.suffix,
            allowed,
            count=count,
            admit=lambda suffixes: self._tokenizer.survivors(self._row, self._tokens, suffixes),
            rng=rng,
        )
        exchanged = sum(own != new for own, new in zip(self._tokens.suffix, suffix, strict=True))
        return Progress(suffix=suffix, text=self._row.suffix if text is None else text, exchanged=exchanged)

    def step(self, before: Progress, rng: Random) -> Progress:
        """Evaluate the current suffix and some exchanges of a token, and return the best.

        Args:
            before: the progress so far.
            rng: draws the candidates of this step.

        Raises:
            ModelError: the objective of the current suffix is not finite.
        """
        if self._objective is None:
            self._objective, self._allowed = self._opened()
        assert self._allowed is not None
        current = Candidate(before.suffix, before.text)
        proposed = proposals(self._objective.token_gradient(current), self._allowed, self._search.top_k)
        tried = exchanges(
            current.suffix,
            proposed,
            count=self._search.candidates,
            admit=lambda suffixes: self._tokenizer.survivors(self._row, self._tokens, suffixes),
            rng=rng,
        )
        candidates = [current, *(Candidate(suffix, text) for suffix, text in tried)]
        values = self._objective.values(candidates)
        if not abs(values[0].total) < float("inf"):
            raise ModelError(
                f"the objective of a mixed row is {values[0].total}; expected a finite number. The aligned model or "
                "the guard has values that are not finite, or the row has no gradient."
            )
        best = best_of(values)
        guarded, compared = self._guard is not None, self._search.lamb < 1
        return Progress(
            steps=before.steps + 1,
            suffix=candidates[best].suffix,
            text=candidates[best].text,
            first=values[0].total if before.first is None else before.first,
            objective=values[best].total,
            guard_loss=values[best].guard_loss,
            cosine=values[best].cosine,
            exchanged=sum(own != new for own, new in zip(self._tokens.suffix, candidates[best].suffix, strict=True)),
            second_order=before.second_order + compared,
            victim_gradients=before.victim_gradients + (1 + len(candidates)) * compared,
            guard_passes=before.guard_passes + (1 + len(candidates)) * guarded,
        )

    def result(self, progress: Progress) -> MixedRow:
        """Return the row with the best suffix; without an exchange it is the mixed row."""
        return self._row if progress.suffix == self._tokens.suffix else replace(self._row, suffix=progress.text)

    def _opened(self) -> tuple[Objective, Tensor]:
        """Return the objective of this row, and which tokens may be chosen."""
        gradients = None
        if self._search.lamb < 1:
            gradients = VictimGradients(self._victim.model, self._tokens.prompt)
        objective = Objective(
            self._row,
            self._tokens,
            lamb=self._search.lamb,
            normalized=self._search.normalized,
            gradients=gradients,
            guard=self._guard,
        )
        return objective, allowed_tokens(self._victim.tokenizer, objective.vocabulary)
