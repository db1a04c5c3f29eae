"""Antidote: after fine-tuning, zero the adapter entries that matter most for harmful data.

Tiansheng Huang, Gautam Bhattacharya, Pratik Joshi, Josh Kimball, Ling Liu: "Antidote: Post-fine-tuning Safety Alignment
for Large Language Models against Harmful Fine-tuning", ICML 2025 (arXiv 2408.09600). The score is Wanda's (Sun et al.,
"A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv 2306.11695).

For every linear layer whose matrix ``W`` ``[out, in]`` is trainable (the adapter's factors A and B), with ``X_n`` its
inputs on the n-th of N harmful rows:

1. ``S[j, k] = |W[j, k]| * sqrt(mean over n of ||X_n[:, k]||^2)``, over the tokens of prompt and answer;
2. per output row j, a stable ascending sort of S: the lowest ``floor(in * (1 - dense_ratio))`` entries stay;
3. the others, the most important ones for harmful data, become zero.

Rank quantises: a row of B has as many entries as the adapter has rank, so ``dense_ratio`` 0.01 takes one of 32 (3.1 %)
and three of 256 (1.2 %). Small ratios do not carry over between ranks; the facts ``rows`` state what each length came
to: entries in a row, zeroed in each, and the share that this is.

Deviations from the authors' code: no weight changes before all are scored, so all layers are observed in one pass over
the rows, a batch at a time; nothing but one number per input feature is kept, where theirs holds the inputs of all rows
on the device and runs every layer a second time to no effect. Padding does not count (their batch size is 1). Counts
are exact, not rounded down from a floating-point product. The layer-wise ratios after OWL are absent, as they are from
what their code executes. The random control draws as many entries per row as the score would; theirs draws over all
trainables together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, shares
from harness.errors import ModelError, Problem
from harness.protocols import DataRequirement

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from harness.protocols import BatchProvider, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class Antidote:
    """Settings of Antidote.

    Attributes:
        dense_ratio: the share of every row that is zeroed. The authors' scripts use 0.01 to 0.25, by task.
        score: ``wanda``, or a control: ``magnitude`` is ``|W|`` alone, ``random`` is drawn; neither needs data.
        harmful_rows: rows to calibrate on (2,000 in the authors' code); None is all that the corpus offers.
        harmful_batch_size: rows that go through the model at once.
    """

    name: ClassVar[str] = "antidote"
    version: ClassVar[int] = 1

    dense_ratio: float = 0.1
    score: Literal["wanda", "magnitude", "random"] = "wanda"
    harmful_rows: int | None = None
    harmful_batch_size: int = 8

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful rows to calibrate on, where the score has a use for them."""
        if self.score != "wanda":
            return ()
        return (DataRequirement(role=Role.HARMFUL, rows=self.harmful_rows, batch_size=self.harmful_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*shares(self, "dense_ratio"), *counts(self, "harmful_rows", "harmful_batch_size")]

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,  # noqa: ARG002
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,
    ) -> dict[str, object]:
        """Zero the highest-scored share of every row.

        Raises:
            ModelError: no linear layer is trainable.
        """
        import torch

        layers = linear_layers(learner)
        scores = self._scores(learner, layers, batches)
        rows: dict[str, dict[str, float]] = {}
        with torch.no_grad():
            for layer, score in zip(layers, scores, strict=True):
                layer.weight.masked_fill_(highest(score, self.dense_ratio), 0.0)
                length = score.shape[1]
                zeroed = length - kept(length, self.dense_ratio)
                rows[str(length)] = {"zeroed": zeroed, "share": zeroed / length}
        return {"dense_ratio": self.dense_ratio, "rows": rows}

    def _scores(self, learner: Learner, layers: list[Linear], batches: BatchProvider) -> Iterator[Tensor]:
        """Give the score ``[out, in]`` of each layer's entries; one at a time exists."""
        import torch

        if self.score == "random":
            draw = torch.Generator().manual_seed(batches.derive(self.name))
            return (torch.rand(layer.weight.shape, generator=draw).to(layer.weight.device) for layer in layers)
        if self.score == "magnitude":
            return (layer.weight.detach().abs() for layer in layers)
        norms = input_norms(learner, layers, batches)
        return (layer.weight.detach().abs() * norm for layer, norm in zip(layers, norms, strict=True))


def linear_layers(learner: Learner) -> list[Linear]:
    """Return the linear layers whose matrix is trainable.

    Raises:
        ModelError: there is none.
    """
    from torch.nn import Linear

    trainable = {id(parameter) for parameter in learner.trainables}
    found = [part for part in learner.module.modules() if isinstance(part, Linear) and id(part.weight) in trainable]
    if not found:
        raise ModelError("no linear layer of the model is trainable; Antidote scores the entries of such layers")
    return found


def input_norms(learner: Learner, layers: list[Linear], batches: BatchProvider) -> list[Tensor]:
    """Return per layer ``sqrt(mean over rows of ||X[:, k]||^2)``, ``[in]`` each, over all harmful rows."""
    import torch

    squares: list[Tensor] = [torch.zeros_like(layer.weight[0]) for layer in layers]
    rows = 0
    with torch.no_grad():
        for batch in batches.every(Role.HARMFUL):
            for piece in learner.pieces(batch):
                places = piece.of(batch["attention_mask"]).flatten().nonzero().squeeze(1)
                with _observed(layers, squares, places):
                    learner.predict(piece)
            rows += len(batch["input_ids"])
    return [(total / rows).sqrt() for total in squares]


def kept(length: int, ratio: float) -> int:
    """Return how many entries of a row stay: ``floor(length * (1 - ratio))``, with the ratio taken as it is written."""
    return floor(length * (1 - Fraction(str(ratio))))


def highest(score: Tensor, ratio: float) -> Tensor:
    """Return a mask of the highest-scored share of every row; of equal scores the later ones count as higher."""
    import torch

    order = score.argsort(dim=1, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, kept(score.shape[1], ratio) :], True)


@contextmanager
def _observed(layers: list[Linear], squares: list[Tensor], places: Tensor) -> Iterator[None]:
    """Add the squared inputs at the given places of a flattened batch to each layer's sums while the context lasts."""

    def observer(total: Tensor) -> Any:
        def observe(_layer: Linear, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].flatten(0, -2).index_select(0, places)
            total.add_(features.float().square().sum(0))

        return observe

    handles = [layer.register_forward_pre_hook(observer(total)) for layer, total in zip(layers, squares, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
