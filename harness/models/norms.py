"""RMS norms as one kernel each, for passes that run kernel by kernel or are captured so.

transformers writes ``weight * x / sqrt(mean(x^2) + eps)`` (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4) as six
operations, eight in bfloat16, and its backward pass takes a dozen. PyTorch has one kernel for each. Next to the
products of a small model that is a quarter of all launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import rms_norm

from harness.models.compiled import forward_of

PROBES = 4
"""Random vectors on which a norm is compared with PyTorch's."""
ROUNDINGS = 8
"""Differences that are taken for rounding, in units of the dtype's precision: sums may be taken in another order."""


@contextmanager
def fused_norms(model: Module) -> Iterator[int]:
    """Compute a model's RMS norms by PyTorch's kernel while the context lasts.

    Only where the model's own module computes the same function, to rounding: in float32 to about 1e-7, in bfloat16 to
    one rounding, since PyTorch multiplies with the weight before it rounds. Others (Gemma adds one to its weights)
    stay as they are.

    Args:
        model: a model on its device.

    Yields:
        The number of norms that it holds for.
    """
    with ExitStack() as stack:
        fused = 0
        for norm in model.modules():
            epsilon = getattr(norm, "variance_epsilon", None)
            if isinstance(epsilon, float) and isinstance(getattr(norm, "weight", None), Tensor):
                forward = _Fused(norm, epsilon)
                if forward.agrees():
                    stack.enter_context(forward_of(norm, forward))
                    fused += 1
        yield fused


class _Fused:
    """The forward function of a norm in one kernel.

    Args:
        norm: a norm with a weight of one dimension.
        epsilon: what it adds to the mean square.
    """

    def __init__(self, norm: Module, epsilon: float) -> None:
        self._norm: Any = norm
        self._epsilon = epsilon
        self._plain: Callable[[Tensor], Tensor] = norm.forward

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the normed hidden states, of their shape and dtype; the last dimension is that of the weight."""
        weight: Tensor = self._norm.weight
        if hidden_states.dtype != weight.dtype:
            return self._plain(hidden_states)
        # Autocast would return float32, where the modules of transformers keep the dtype of their input.
        with torch.autocast(hidden_states.device.type, enabled=False):
            return rms_norm(hidden_states, weight.shape, weight, self._epsilon)

    @torch.no_grad()
    def agrees(self) -> bool:
        """Return whether the module computes the same on random vectors, to rounding."""
        weight: Tensor = self._norm.weight
        draw = torch.Generator().manual_seed(0)
        probes = torch.randn(PROBES, *weight.shape, generator=draw).to(weight)
        ours, theirs = self(probes), self._plain(probes)
        rounding = ROUNDINGS * torch.finfo(weight.dtype).eps
        return ours.dtype == theirs.dtype and torch.allclose(ours, theirs, rtol=rounding, atol=rounding)
