"""Safe Delta: after fine-tuning, only those entries of the user's change are kept that cost little safety.

Ning Lu, Shengcai Liu, Jiahao Wu, Weiyu Chen, Zhirui Zhang, Yew-Soon Ong, Qi Wang, Ke Tang: "Safe Delta: Consistently
Preserving Safety when Fine-Tuning LLMs on Diverse Datasets", ICML 2025 (arXiv 2505.12038). The estimates are those of
the Optimal Brain Surgeon in the form of SparseGPT.

For each adapted layer, with ``X`` its inputs in the aligned model on safety rows, ``H = 2 X X^T`` plus 1 % of its mean
diagonal, ``R`` the upper Cholesky factor of ``H^-1`` and ``d`` the diagonal of ``R``, in blocks of ``block`` columns:

1. the cost of giving an entry its fine-tuned value is ``c = (W_ft - W)^2 / d^2``, with ``W`` the matrix so far, which
   is ``W_al`` in the first block;
2. entries are taken in the order of ascending ``1 / d^2``, without the last 15 %, as long as the sum of their costs is
   at most ``mean(1 / d^2) * (s / 2) * rows / 4096``; all others keep the value of ``W``;
3. the change is compensated in later columns, four columns at a time: with ``e = (W - W_new) / d``, the columns after
   these four become ``W - e R``.

A factor of ``H`` changes nothing. The result is a full matrix, so the adapter gets the rank of the matrices; vLLM
generates with it merged. One forward pass per safety row; ``H`` takes ``in x in`` numbers for each layer.

Entries of one column have the same ``1 / d^2``, so the order of a column's rows decides which are taken: here it is
their index, in the authors' code that of an unstable sort. The divisors 2 and 4096 belong to the width of Llama 2 7B.

Deviations from the authors' code (commit c30ff4a): the inputs of all layers are collected in one pass instead of layer
by layer, which is the same, since theirs are those of the aligned model too; the safety rows are refusals of the corpus
in its own template instead of safe answers in three; with fewer than seven entries in a block none is left out, where
theirs leaves out all of them.

Fidelity: hand-computed only. The steps are those of the authors' code, as is ``s``; a selection and a compensation are
computed by hand in the tests, no vectors of their implementation were available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, not_negative
from harness.errors import Problem
from harness.mechanisms.input_curvature import input_products, inverse_root
from harness.mechanisms.weight_change import adapted_layers, put, total, whole
from harness.protocols import DataRequirement

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import BatchProvider, Gradient, Learner

LEFT_OUT = 0.15
"""Share of a block's entries that are never taken."""
TOGETHER = 4
"""Columns whose changes are compensated together."""
WIDTH = 4096
"""Number of rows for which the budget was defined."""


@final
@dataclass(frozen=True, kw_only=True)
class SafeDelta:
    """Settings of Safe Delta.

    Attributes:
        s: budget of the safety cost; 0 is the aligned model.
        block: columns that share a budget.
        safety_rows: number of refusals.
        safety_batch_size: refusals per forward pass.
    """

    name: ClassVar[str] = "safe_delta"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True

    s: float = 0.1
    block: int = 2048
    safety_rows: int = 128
    safety_batch_size: int = 8

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The refusals."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.safety_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*not_negative(self, "s"), *counts(self, "block", "safety_rows", "safety_batch_size")]

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,
        method_outputs: Mapping[str, Gradient],  # noqa: ARG002
        batches: BatchProvider,
    ) -> dict[str, object]:
        """Select the entries; report the share that has its fine-tuned value.

        Raises:
            ModelError: what is trained is not plain LoRA.
        """
        layers = adapted_layers(learner, start)
        inputs = [learner.module.get_submodule(layer.name) for layer in layers]
        with learner.with_weights(start):
            curvatures = input_products(learner, inputs, batches.every(Role.REFUSAL))
        results, taken, entries = {}, 0, 0
        for layer, curvature in zip(layers, curvatures, strict=True):
            change = layer.user_change
            selection = selected(change.b @ change.a, curvature, s=self.s, block=self.block)
            part = whole(selection.change)
            results[layer.name] = part if layer.held is None else total(part, layer.held)
            taken += selection.taken
            entries += selection.change.numel()
        put(learner, results)
        return {"s": self.s, "taken_share": taken / entries}


@dataclass(frozen=True)
class Selection:
    """The change of a matrix that is left, ``[out, in]``, and the number of entries with their fine-tuned value."""

    change: Tensor
    taken: int


def selected(change: Tensor, curvature: Tensor, *, s: float, block: int) -> Selection:
    """Return what Safe Delta leaves of a change.

    Args:
        change: fine-tuned minus aligned matrix, ``[out, in]``.
        curvature: ``X X^T`` of the layer's inputs, up to a factor, ``[in, in]``.
        s: the budget.
        block: columns that share it.
    """
    import torch

    root = inverse_root(curvature).to(change.dtype)
    rows, columns = change.shape
    left = torch.zeros_like(change)
    taken = 0
    for first in range(0, columns, block):
        last = min(first + block, columns)
        own = slice(first, last)
        diagonal = root.diagonal()[own]
        weight = (1 / diagonal**2).expand(rows, -1)
        costs = ((change[:, own] - left[:, own]) ** 2 * weight).flatten()
        count = costs.numel()
        order = weight.flatten().argsort(stable=True)[: count - int(LEFT_OUT * count)]
        budget = weight.mean() * (s / 2) * rows / WIDTH
        mask = torch.zeros(count, dtype=torch.bool, device=change.device)
        mask[order] = costs[order].cumsum(0) <= budget
        mask = mask.view(rows, -1)
        taken += int(mask.sum())
        for start in range(first, last, TOGETHER):
            end = min(start + TOGETHER, last)
            before = left[:, start:end].clone()
            chosen = mask[:, start - first : end - first]
            left[:, start:end] = before.where(~chosen, change[:, start:end])
            error = (before - left[:, start:end]) / root.diagonal()[start:end]
            left[:, end:] -= error @ root[start:end, end:]
    return Selection(left, taken)
