"""IRR: after fine-tuning, entries of the user's change that oppose safety are removed, and the others compensate.

Di Wu, Xin Lu, Yanyan Zhao, Bing Qin: "Separate the Wheat from the Chaff: A Post-Hoc Approach to Safety Re-Alignment for
Fine-Tuned Language Models" (arXiv 2412.11041): identify, remove, recalibrate. For each adapted layer, with ``D`` the
user's change of its matrix, ``V`` the safety vector (the aligned matrix minus one that harmful fine-tuning made of it),
``H = 2 X X^T`` of the layer's inputs on examples of the user's task plus 1 % of its mean diagonal, and ``R`` the upper
Cholesky factor of ``H^-1``, in blocks of ``block`` columns:

1. an entry of ``D`` opposes safety if its sign is not that of ``V``, a zero included;
2. column by column, these entries become zero; with ``e = (D - D_new) / R[j, j]`` the later columns become
   ``D - e R[j, :]``, which keeps the layer's outputs on the task as they were, as far as possible.

Which entries of a block oppose safety is decided when the block begins, so compensation inside it can make opposing
entries that stay. The layers of the decoder are repaired in order, each with the inputs that the repaired ones before
it give. The result is a full matrix, so the adapter gets the rank of the matrices; vLLM generates with it merged. One
forward pass per layer and batch of task examples.

The unsafe adapter is trained on the defender's harmful examples from the aligned model, as the user's was and with the
same budget and protocol (stage ``unsafe`` of the cell; cells with one alignment share it). The task's examples are some
that no user holds.

Of the opposing entries the authors can keep a share with the lowest Fisher information on safe answers. Their scripts
keep none (``sparsity 0``), so that the information plays no part; here it is not computed.

Deviations from the authors' code (commit cbecff1): inputs at padding are left out, where theirs pad to 512 tokens and
count them; every adapted layer is repaired, where theirs adapt and repair ``q_proj`` and ``v_proj``.

Fidelity: hand-computed only. Signs, order, compensation and damping are those of the authors' code, as are the
defaults; a repair is computed by hand in the tests, no vectors of their implementation were available. The rows and
the budget of the unsafe adapter are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts
from harness.errors import ModelError, Problem
from harness.mechanisms.input_curvature import input_products, inverse_root
from harness.mechanisms.weight_change import AdaptedLayer, adapted_layers, put, scaled, total, whole
from harness.protocols import DataRequirement, Product

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from harness.protocols import BatchProvider, Gradient, Learner


@final
@dataclass(frozen=True, kw_only=True)
class IRR:
    """Settings of IRR.

    Attributes:
        task_rows: number of examples of the user's task.
        task_batch_size: of these, examples per forward pass.
        block: columns in which opposing entries are identified together.
        unsafe_rows: number of harmful examples that the unsafe adapter is trained on (1,000 in the authors' code); None
            uses all of the corpus.
    """

    name: ClassVar[str] = "irr"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True

    task_rows: int = 10
    task_batch_size: int = 10
    block: int = 128
    unsafe_rows: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Examples of the user's task; the unsafe adapter's data is that of its stage."""
        return (DataRequirement(role=Role.SERVER, rows=self.task_rows, batch_size=self.task_batch_size),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "task_rows", "task_batch_size", "block", "unsafe_rows")

    def repair(
        self,
        learner: Learner,
        *,
        start: Gradient,
        method_outputs: Mapping[str, Gradient],
        batches: BatchProvider,
    ) -> dict[str, object]:
        """Remove and compensate, layer by layer; report the share of entries that were removed.

        Raises:
            ModelError: what is trained is not plain LoRA, or there is no unsafe adapter.
        """
        if "unsafe" not in method_outputs:
            raise ModelError("`irr` has no unsafe adapter; expected the stage `unsafe` as a parent of the repair")
        layers = adapted_layers(learner, start)
        unsafe = {id(weight): value for weight, value in zip(learner.trainables, method_outputs["unsafe"], strict=True)}
        # Taken before anything is repaired: the first repair gives all adapters another rank.
        changes = {layer.name: layer.user_change for layer in layers}
        vectors = {
            layer.name: safety_vector(layer, Product(unsafe[id(layer.b)], unsafe[id(layer.a)])) for layer in layers
        }
        held = {layer.name: layer.held for layer in layers}
        removed, entries = 0, 0
        for names in _by_depth(learner.module, [layer.name for layer in layers]):
            modules = [learner.module.get_submodule(name) for name in names]
            curvatures = input_products(learner, modules, batches.every(Role.SERVER))
            results = {}
            for name, curvature in zip(names, curvatures, strict=True):
                change, vector, before = changes[name], vectors[name], held[name]
                kept, count = recalibrated(change.b @ change.a, vector.b @ vector.a, curvature, block=self.block)
                results[name] = whole(kept) if before is None else total(whole(kept), before)
                removed += count
                entries += kept.numel()
            put(learner, results)
        return {"removed_share": removed / entries}


def safety_vector(layer: AdaptedLayer, unsafe: Product) -> Product:
    """Return the aligned matrix minus that of the unsafe adapter, whose factors are given without the scale."""
    ended = scaled(unsafe, -layer.scale)
    return ended if layer.held is None else total(layer.held, ended)


def recalibrated(change: Tensor, safety: Tensor, curvature: Tensor, *, block: int) -> tuple[Tensor, int]:
    """Return what is left of a change, ``[out, in]``, and the number of entries that were removed.

    Args:
        change: fine-tuned minus aligned matrix, ``[out, in]``.
        safety: the safety vector, ``[out, in]``.
        curvature: ``X X^T`` of the layer's inputs, up to a factor, ``[in, in]``.
        block: columns in which opposing entries are identified together.
    """
    import torch

    root = inverse_root(curvature).to(change.dtype)
    # A feature that is always zero on the task has no curvature, and its column is removed.
    left = change * (curvature.diagonal() != 0)
    removed = 0
    for first in range(0, change.shape[1], block):
        last = min(first + block, change.shape[1])
        opposing = left[:, first:last].sign() != safety[:, first:last].sign()
        removed += int(opposing.sum())
        errors = torch.zeros_like(opposing, dtype=left.dtype)
        for column in range(first, last):
            errors[:, column - first] = left[:, column] * opposing[:, column - first] / root[column, column]
            left[:, column].masked_fill_(opposing[:, column - first], 0)
            left[:, column + 1 : last] -= errors[:, column - first, None] * root[column, column + 1 : last]
        left[:, last:] -= errors @ root[first:last, last:]
    return left, removed


def _by_depth(model: Module, names: list[str]) -> list[list[str]]:
    """Return names of modules by the layer of the decoder that they are in, from the first to the last."""
    from harness.models.decoder import layers

    depth = {id(part): place for place, layer in enumerate(layers(model)) for part in layer.modules()}
    found: dict[int, list[str]] = defaultdict(list)
    for name in names:
        found[depth[id(model.get_submodule(name))]].append(name)
    return [found[place] for place in sorted(found)]
