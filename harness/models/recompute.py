"""Activation checkpointing of selected layers: activations are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch.nn import Module
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(layers: Iterable[Module]) -> Iterator[None]:
    """Within the context, store only the inputs of these layers; a backward pass inside it recomputes the rest.

    Hooks inside the layers run again too. Gradients are bit-identical.
    """
    # The instance attribute `forward` shadows the class's method; some libraries have already set one.
    found = [(layer, layer.__dict__.get("forward")) for layer in layers]
    for layer, _ in found:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, own in found:
            if own is None:
                del layer.forward
            else:
                layer.forward = own
