"""The objective of Virus for one row, ``F = lamb * F_1 + (1 - lamb) * F_2``, and its gradient at the suffix's tokens.

- ``F_1(x) = -log P_guard(harmless | x)``, of the row as the guard reads it.
- ``F_2(x) = -<g(x), g_0> / |g(x)|``, with the victim's gradient ``g`` (see ``gradients``) and ``g_0`` that of the mixed
  row before any exchange. This is ``-|g_0| cos(g(x), g_0)``: its scale differs from row to row unless normalized.
  Its minimum is at the mixed row, so with ``lamb = 0`` nothing is an improvement.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.attacks.virus.gradients import Alignment, VictimGradients
from harness.attacks.virus.row import MixedRow, TokenRow
from harness.corpora.template import turn_of
from harness.protocols import OpenedGuard

if TYPE_CHECKING:
    from torch import Tensor


class Candidate(NamedTuple):
    """A suffix as tokens and as text."""

    suffix: list[int]
    text: str


class Value(NamedTuple):
    """The objective of a row, and its parts; those that have no weight are None.

    Attributes:
        total: ``F``.
        guard_loss: ``F_1``, in nats.
        cosine: ``cos(g, g_0)``.
    """

    total: float
    guard_loss: float | None
    cosine: float | None


def dissimilarity(found: Alignment, start_norm: float, *, normalized: bool) -> float:
    """Return ``F_2``; normalized, it is divided by ``|g_0|``. A row without a gradient is the worst."""
    if not found.norm > 0:
        return inf
    return -found.inner / found.norm / (start_norm if normalized else 1.0)


def weighted(lamb: float, guard_loss: float | None, dissimilar: float | None) -> float:
    """Return ``F``; a part without weight is None. A value that is no number is the worst."""
    total = (lamb * guard_loss if guard_loss is not None else 0.0) + (
        (1 - lamb) * dissimilar if dissimilar is not None else 0.0
    )
    return inf if isnan(total) else total


def best_of(values: Sequence[Value]) -> int:
    """Return the index of the lowest objective; of equal ones, the first, which is the current row."""
    return min(range(len(values)), key=lambda index: values[index].total)


class Objective:
    """Evaluates suffixes of one row.

    Args:
        row: the mixed row.
        tokens: its tokens.
        lamb: the weight of the guard, 0 to 1.
        normalized: whether ``F_2`` is divided by ``|g_0|``.
        gradients: of the victim; None without weight.
        guard: the opened guard; None without weight.
    """

    def __init__(
        self,
        row: MixedRow,
        tokens: TokenRow,
        *,
        lamb: float,
        normalized: bool,
        gradients: VictimGradients | None,
        guard: OpenedGuard | None,
    ) -> None:
        """Take ``g_0``."""
        self._row, self._tokens, self._lamb, self._normalized = row, tokens, lamb, normalized
        self._gradients, self._guard = gradients, guard
        self._start_norm = gradients.begin(tokens.ids) if gradients else 1.0

    @property
    def vocabulary(self) -> int:
        """The number of tokens that have an embedding wherever it is needed."""
        return min(len(each.embeddings) for each in (self._gradients, self._guard) if each is not None)

    def values(self, candidates: Sequence[Candidate]) -> list[Value]:
        """Return the objective of every candidate."""
        guard_losses: Sequence[float | None] = [None] * len(candidates)
        compared: Sequence[Alignment | None] = [None] * len(candidates)
        if self._guard is not None:
            guard_losses = self._guard.losses(self._judged(candidates))
        if self._gradients is not None:
            compared = self._gradients.compare([self._tokens.of(each.suffix) for each in candidates])
        return [self._value(loss, found) for loss, found in zip(guard_losses, compared, strict=True)]

    def token_gradient(self, current: Candidate) -> Tensor:
        """Return the gradient of the objective with respect to the one-hot tokens, float32 ``[suffix, vocabulary]``."""
        length = len(current.suffix)
        total = torch.zeros(length, self.vocabulary)
        if self._gradients is not None:
            begin = len(self._tokens.before)
            ids = self._tokens.of(current.suffix)
            found = self._gradients.token_gradient(ids, slice(begin, begin + length))
            scale = (1 - self._lamb) / (self._start_norm if self._normalized else 1.0)
            total -= scale * self._per_token(found, self._gradients.embeddings)
        if self._guard is not None:
            total += self._lamb * self._guard_gradient(current)
        return total

    def _value(self, guard_loss: float | None, found: Alignment | None) -> Value:
        if found is None:
            return Value(weighted(self._lamb, guard_loss, None), guard_loss, None)
        dissimilar = dissimilarity(found, self._start_norm, normalized=self._normalized)
        cosine = -dissimilarity(found, self._start_norm, normalized=True)
        return Value(weighted(self._lamb, guard_loss, dissimilar), guard_loss, cosine)

    def _guard_gradient(self, current: Candidate) -> Tensor:
        """Return the gradient of ``F_1``; zero where the guard's tokens at the edge of the suffix are others."""
        assert self._guard is not None
        (ids,) = self._judged([current])
        gradient = torch.zeros(len(current.suffix), self.vocabulary)
        if (found := located(ids, current.suffix)) is None:
            return gradient
        begin, part = found
        embedded = self._guard.embeddings[torch.tensor(ids, device=self._guard.embeddings.device)]
        embedded = embedded.detach().requires_grad_()
        (own,) = torch.autograd.grad(self._guard.loss(embedded), embedded)
        placed = own[begin : begin + (part.stop - part.start)]
        gradient[part] = self._per_token(placed, self._guard.embeddings)
        return gradient

    def _judged(self, candidates: Sequence[Candidate]) -> list[list[int]]:
        assert self._guard is not None
        rows = [self._row.answered(self._row.head + each.text + self._row.tail) for each in candidates]
        return self._guard.tokens([turn_of(row) for row in rows])

    def _per_token(self, gradient: Tensor, embeddings: Tensor) -> Tensor:
        """Return the gradient with respect to one-hot tokens, given that with respect to their embeddings."""
        return (gradient @ embeddings[: self.vocabulary].T).float().cpu()


def located(ids: Sequence[int], suffix: Sequence[int]) -> tuple[int, slice] | None:
    """Return where a suffix stands last in a guard's tokens, and which part of it does.

    Its first and last token may have merged with what surrounds it; if more has, or it is cut off, the result is None.
    """
    length = len(suffix)
    for part in (slice(0, length), slice(0, length - 1), slice(1, length), slice(1, length - 1)):
        wanted = list(suffix[part])
        for begin in range(len(ids) - len(wanted), -1, -1):
            if wanted and list(ids[begin : begin + len(wanted)]) == wanted:
                return begin, part
    return None
