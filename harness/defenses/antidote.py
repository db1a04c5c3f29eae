"""Antidote: after fine-tuning, zero the adapter entries with the highest importance on harmful data.

Tiansheng Huang, Gautam Bhattacharya, Pratik Joshi, Josh Kimball, Ling Liu: "Antidote: Post-fine-tuning Safety Alignment
for Large Language Models against Harmful Fine-tuning", ICML 2025 (arXiv 2408.09600). The score is Wanda's (Sun et al.,
"A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv 2306.11695).

For every linear layer whose matrix ``W`` ``[out, in]`` is trainable (the adapter's factors A and B), with ``X_n`` its
inputs on the n-th of N harmful examples:

1. ``S[j, k] = |W[j, k]| * sqrt(mean over n of ||X_n[:, k]||^2)``, over the tokens of prompt and answer;
2. per matrix row j, a stable ascending sort of S: the lowest ``floor(in * (1 - dense_ratio))`` entries are kept;
3. the others, the most important ones for harmful data, are set to zero.

The adapter's rank quantizes the ratio: a row of B has ``rank`` entries, so that ``dense_ratio`` 0.01 zeroes one of 32
(3.1 %) or three of 256 (1.2 %), and small ratios are not comparable between ranks. The fact ``rows`` records, for each
row length, the number of zeroed entries per row and their fraction.

Deviations from the authors' code: all scores are computed before any weight changes, so one batched pass over the
examples covers all layers, and only one number per input feature is stored; theirs keeps the inputs of all examples on
the device and runs every layer a second time without effect. Padding is excluded (their batch size is 1). Counts are
exact instead of rounded down from a floating-point product. Layer-wise ratios after OWL are not implemented; their code
does not execute them either. The random control selects as many entries per row as the score would; theirs selects over
all trainable parameters together.

Fidelity: hand-computed only. The numbers are computed by hand in the tests; no vectors of the authors' trainer were
available.
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
        dense_ratio: the fraction of every matrix row that is zeroed. The authors' scripts use 0.01 to 0.25, by task.
        score: ``wanda``, or a control that needs no data: ``magnitude`` is ``|W|``, ``random`` is a random score.
        harmful_rows: number of calibration examples (2,000 in the authors' code); None uses all of the corpus.
        harmful_batch_size: examples per forward pass.
    """

    name: ClassVar[str] = "antidote"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True

    dense_ratio: float = 0.1
    score: Literal["wanda", "magnitude", "random"] = "wanda"
    harmful_rows: int | None = None
    harmful_batch_size: int = 8

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful calibration examples, if the score needs them."""
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
        """Zero the highest-scored entries of every matrix row.

        Raises:
            ModelError: no linear layer is trainable, or something else is.
        """
        import torch

        layers = linear_layers(learner)
        scores = self._scores(learner, layers, batches)
        rows: dict[str, dict[str, float]] = {}
        with torch.no_grad():
            for layer, score in zip(layers, scores, strict=True):
                layer.weight.masked_fill_(highest(score, self.dense_ratio), 0.0)
                length = score.shape[1]
                zeroed = length - kept_entries(length, self.dense_ratio)
                rows[str(length)] = {"zeroed": zeroed, "share": zeroed / length}
        return {"dense_ratio": self.dense_ratio, "rows": rows}

    def _scores(self, learner: Learner, layers: list[Linear], batches: BatchProvider) -> Iterator[Tensor]:
        """Yield the score of each layer's entries, ``[out, in]``, one layer at a time to save memory."""
        import torch

        if self.score == "random":
            rng = torch.Generator().manual_seed(batches.derive(self.name))
            return (torch.rand(layer.weight.shape, generator=rng).to(layer.weight.device) for layer in layers)
        if self.score == "magnitude":
            return (layer.weight.detach().abs() for layer in layers)
        norms = input_norms(learner, layers, batches)
        return (layer.weight.detach().abs() * norm for layer, norm in zip(layers, norms, strict=True))


def linear_layers(learner: Learner) -> list[Linear]:
    """Return the linear layers whose matrix is trainable.

    Raises:
        ModelError: there is none, or another parameter is trainable too, such as a magnitude of DoRA.
    """
    from torch.nn import Linear

    trainable = {id(parameter) for parameter in learner.trainables}
    found = [part for part in learner.module.modules() if isinstance(part, Linear) and id(part.weight) in trainable]
    if not found:
        raise ModelError(
            "no linear layer of the model is trainable; Antidote zeroes entries of trainable linear layers"
        )
    if others := len(trainable - {id(part.weight) for part in found}):
        raise ModelError(
            f"{others} of {len(trainable)} trainable parameters are no matrix of a linear layer; Antidote scores "
            "nothing else, so the adapter has to be plain LoRA (`adapter.variant=null`)"
        )
    return found


def input_norms(learner: Learner, layers: list[Linear], batches: BatchProvider) -> list[Tensor]:
    """Return ``sqrt(mean over examples of ||X[:, k]||^2)`` for each layer, ``[in]``, over all harmful examples."""
    import torch

    squares: list[Tensor] = [torch.zeros_like(layer.weight[0]) for layer in layers]
    rows = 0
    with torch.no_grad():
        for batch in batches.every(Role.HARMFUL):
            for piece in learner.pieces(batch):
                with _accumulating(layers, squares, piece.where(batch["attention_mask"])):
                    learner.predict(piece)
            rows += len(batch["input_ids"])
    return [(total / rows).sqrt() for total in squares]


def kept_entries(length: int, ratio: float) -> int:
    """Return the number of entries kept per row, ``floor(length * (1 - ratio))``, exact in the ratio's decimals."""
    return floor(length * (1 - Fraction(str(ratio))))


def highest(score: Tensor, ratio: float) -> Tensor:
    """Return a mask of the highest-scored entries of every row; among equal scores, later ones count as higher."""
    import torch

    order = score.argsort(dim=1, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, kept_entries(score.shape[1], ratio) :], True)


@contextmanager
def _accumulating(layers: list[Linear], squares: list[Tensor], positions: Tensor) -> Iterator[None]:
    """Within the context, add each layer's squared inputs at ``positions`` of the flattened batch to its sums."""

    def hook_of(total: Tensor) -> Any:
        def hook(_layer: Linear, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].flatten(0, -2).index_select(0, positions)
            total.add_(features.float().square().sum(0))

        return hook

    handles = [layer.register_forward_pre_hook(hook_of(total)) for layer, total in zip(layers, squares, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
