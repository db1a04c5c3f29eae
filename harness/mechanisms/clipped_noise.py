"""Clipping and Gaussian noise of gradients or updates, and how both change over a run.

For units ``u`` (rows, a batch, or clients) with gradients ``g_u``, Fed-CDP and Fed-SDP (Wei et al., arXiv:2107.08600)
compute ``(sum_u clip_C(g_u) + N(0, sigma^2 C^2)) / n`` with ``clip_C(g) = g min(1, C / |g|)``.

The schedules run from ``first`` at ``t = 0`` to ``last`` at ``t = T``; those of the authors' code have the constants 15
and 4.85.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from harness.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

Schedule = Literal["constant", "linear", "staircase", "exponential", "cosine"]
Scope = Literal["global", "tensor"]
STAIRS = 10
"""Steps of a staircase."""


def scheduled(schedule: Schedule, first: float, last: float, done: float) -> float:
    """Return a value that changes over a run.

    Args:
        schedule: how it changes; ``staircase`` is ``linear`` in ten steps.
        first: the value at the beginning.
        last: the value at the end; not used by ``constant``, and positive for ``exponential``.
        done: the share of the run that is over, 0 to 1.
    """
    if schedule == "constant" or first == last:
        return first
    if schedule == "exponential":
        return first * math.exp(done * math.log(last / first))
    if schedule == "cosine":
        return first * math.cos(done * math.acos(last / first))
    share = math.floor(STAIRS * done) / STAIRS if schedule == "staircase" else done
    return first + (last - first) * share


def unreachable(schedule: Schedule, name: str, first: float, last: float) -> list[Problem]:
    """Return why a schedule does not lead from one value to another.

    Args:
        schedule: of the value.
        name: of the setting with the value at the end.
        first: the value at the beginning.
        last: the value at the end.
    """
    if schedule == "constant" and first != last:
        return [Problem(name, f"{last} is never reached with the schedule `constant`; expected {first}")]
    if schedule == "exponential" and first != last and min(first, last) <= 0:
        return [Problem(name, f"`exponential` does not lead from {first} to {last}; expected numbers > 0")]
    if schedule == "cosine" and (first <= 0 or last > first) and first != last:
        return [Problem(name, f"`cosine` does not lead from {first} to {last}; expected a smaller number")]
    return []


def clipped(tensors: Sequence[Tensor], limit: float, scope: Scope) -> list[Tensor]:
    """Return tensors scaled to a norm of at most ``limit``: all together, or each by itself.

    By tensor, the norm of all ``L`` of them is at most ``limit sqrt(L)``.
    """
    import torch

    norms = [tensor.norm() for tensor in tensors]
    if scope == "global":
        norms = [torch.stack(norms).norm()] * len(norms)
    return [
        tensor * (limit / norm.clamp(min=1e-12)).clamp(max=1.0) for tensor, norm in zip(tensors, norms, strict=True)
    ]


def noise_like(tensors: Sequence[Tensor], deviation: float, seed: int) -> list[Tensor]:
    """Return Gaussian noise in the shapes of tensors, the same on every device and process.

    Args:
        tensors: give shapes, devices and dtypes.
        deviation: standard deviation of each entry.
        seed: of the noise.
    """
    import torch

    from harness.corpora.transfer import on_device

    rng = torch.Generator().manual_seed(seed)
    drawn = [deviation * torch.randn(tensor.shape, generator=rng) for tensor in tensors]
    return [on_device(noise.to(tensor.dtype), tensor.device) for noise, tensor in zip(drawn, tensors, strict=True)]
