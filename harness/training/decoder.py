"""Where the layers of a decoder are, found by how it is built and not by a list of classes."""

from __future__ import annotations

from torch.nn import Module, ModuleList

from harness.errors import ModelError


def layers(model: Module) -> ModuleList:
    """Return the layers of a causal language model's decoder, in order.

    Raises:
        ModelError: the model has no list of layers, or more than one.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    stacks = [child for child in decoder.children() if isinstance(child, ModuleList) and len(child)]
    if len(stacks) != 1:
        found = ", ".join(f"{name} ({type(child).__name__})" for name, child in decoder.named_children())
        raise ModelError(f"{type(decoder).__name__} has {len(stacks)} lists of layers; expected one. Found: {found}")
    return stacks[0]
