"""Rotary position embeddings in a few kernels, for passes that run kernel by kernel or are captured so.

Rotating queries and keys (Su et al. 2021, arXiv 2104.09864, eq. 34, with halves in place of neighbours) takes
transformers ten kernels, and autograd sixteen for the way back. Here both are rotated together, in four each way: the
backward pass rotates by the opposite angle.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module

from harness.models.norms import ROUNDINGS

Rotation = Callable[..., tuple[Tensor, Tensor]]

_NAME = "apply_rotary_pos_emb"
_TAKES = ["q", "k", "cos", "sin", "unsqueeze_dim"]
_SIZE = (2, 3, 5, 8)
"""Rows, heads, positions and width of the random queries on which a family's function is compared with ours."""


@contextmanager
def fused_rotary(model: Module) -> Iterator[int]:
    """Rotate a model's queries and keys in a few kernels while the context lasts.

    Only where the function of the model's family computes the same on random vectors, to rounding. Others stay as they
    are. Other models of the family in this process are rotated so too.

    Args:
        model: a causal language model.

    Yields:
        The number of modules of transformers (of families) that it holds for.
    """
    modules = {type(part).__module__: sys.modules.get(type(part).__module__) for part in model.modules()}
    plain = {module: getattr(module, _NAME) for module in modules.values() if module and _fits(module)}
    for module, rotation in plain.items():
        setattr(module, _NAME, _Fused(rotation))
    try:
        yield len(plain)
    finally:
        for module, rotation in plain.items():
            setattr(module, _NAME, rotation)


def _fits(module: ModuleType) -> bool:
    """Return whether a module has a function that ours can stand for, in every number format that passes have."""
    rotation = getattr(module, _NAME, None)
    if rotation is None or list(inspect.signature(rotation).parameters) != _TAKES:
        return False
    return all(_agrees(rotation, *dtypes) for dtypes in product((torch.float32, torch.bfloat16), repeat=2))


def _agrees(rotation: Rotation, dtype: torch.dtype, of_angles: torch.dtype) -> bool:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(_SIZE, generator=draw).to(dtype) for _ in range(2))
    rows, _, time, width = _SIZE
    cos, sin = (torch.randn(rows, time, width, generator=draw).to(of_angles) for _ in range(2))
    try:
        theirs = rotation(query, key[:, :1], cos, sin)
    except RuntimeError:
        # Some families have angles of half the width.
        return False
    ours = _Fused(rotation)(query, key[:, :1], cos, sin)
    rounding = ROUNDINGS * torch.finfo(max(dtype, of_angles, key=lambda each: torch.finfo(each).eps)).eps
    return all(
        one.dtype == other.dtype and torch.allclose(one, other, rtol=rounding, atol=rounding)
        for one, other in zip(ours, theirs, strict=True)
    )


class _Fused:
    """Rotates queries and keys together, as ``apply_rotary_pos_emb`` of transformers does.

    Args:
        plain: the function of a family.
    """

    def __init__(self, plain: Rotation) -> None:
        self._plain = plain

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        """Return the rotated queries and keys.

        Args:
            q: ``[rows, heads, time, width]``.
            k: the same with its own number of heads.
            cos: ``[rows, time, width]``.
            sin: of the same shape.
            unsqueeze_dim: where the heads are; other places than 1 are left to the family's function, and so are
                angles of another width, since some families rotate a part of each vector.
        """
        if unsqueeze_dim != 1 or len({each.shape[-1] for each in (q, k, cos, sin)}) > 1:
            return self._plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        # Side by side as projections leave them, so that attention finds the order in memory that it would find.
        both = torch.cat((q.transpose(1, 2), k.transpose(1, 2)), dim=2)
        turned: Tensor = _Rotate.apply(both, cos.unsqueeze(2), sin.unsqueeze(2))  # type: ignore[no-untyped-call]
        query, key = torch.split(turned, [q.shape[1], k.shape[1]], dim=2)
        return query.transpose(1, 2), key.transpose(1, 2)


class _Rotate(torch.autograd.Function):
    """``(x_1 cos_1 - x_2 sin_1, x_2 cos_2 + x_1 sin_2)`` of the halves of each vector."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate ``[rows, time, heads, width]`` by angles ``[rows, time, 1, width]``."""
        ctx.save_for_backward(cos, sin)
        ctx.dtype = vectors.dtype
        first, second = sin.chunk(2, dim=-1)
        return _turned(vectors, cos, (-1, first), (1, second))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sent: Tensor) -> tuple[Tensor, None, None]:
        """Rotate back: apply the transposed matrix."""
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _turned(sent, cos, (1, second), (-1, first)).to(ctx.dtype), None, None


def _turned(vectors: Tensor, cos: Tensor, onto_first: tuple[int, Tensor], onto_second: tuple[int, Tensor]) -> Tensor:
    """Return ``vectors * cos``, plus for each half a sign times the other half times a factor."""
    found = vectors * cos
    halves, others = found.chunk(2, dim=-1), reversed(vectors.chunk(2, dim=-1))
    for half, other, (sign, factor) in zip(halves, others, (onto_first, onto_second), strict=True):
        half.addcmul_(other, factor, value=sign)
    return found
