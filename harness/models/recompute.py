"""Layers whose activations are not kept for the backward pass but computed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch.nn import Module
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(layers: Iterable[Module]) -> Iterator[None]:
    """Keep only what enters these layers while the context lasts; a backward pass inside it runs them once more.

    Hooks inside of the layers run again too. Gradients are the same, bit for bit.
    """
    # An attribute of the instance lies over the method of its class; some libraries have put one there already.
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
