"""The modules of a decoder that methods hook into, located by position and name instead of by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module, ModuleList

from harness.errors import ModelError

ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
"""Names of a layer's attention block."""
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
"""Names of a layer's feed-forward block."""
OUTPUT_NAMES = ("o_proj", "out_proj", "dense", "c_proj")
"""Names of the projection behind an attention block's heads."""
NORM_NAMES = ("norm", "final_layer_norm", "ln_f", "final_layernorm")
"""Names of the norm in front of the language-model head."""


def layers(model: Module) -> list[Module]:
    """Return the layers of a decoder, in order.

    Raises:
        ModelError: the model has no list of layers, or several.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    stacks = [child for child in decoder.children() if isinstance(child, ModuleList) and len(child)]
    if len(stacks) != 1:
        found = ", ".join(f"{name} ({type(child).__name__})" for name, child in decoder.named_children())
        raise ModelError(f"{type(decoder).__name__} has {len(stacks)} lists of layers; expected one. Found: {found}")
    return list(stacks[0])


def attention_blocks(model: Module) -> list[Module]:
    """Return the attention block of every layer of a decoder, in order.

    Raises:
        ModelError: the model has no list of layers, or a layer does not have exactly one attention block.
    """
    return _blocks(model, ATTENTION_NAMES, "attention blocks")


def output_projections(model: Module) -> list[Module]:
    """Return the projection behind the attention heads of every layer of a decoder, in order; it reads all of them.

    Raises:
        ModelError: the model has no list of layers, or an attention block does not have exactly one.
    """
    return [
        _child(block, OUTPUT_NAMES, f"the attention block of layer {index}", "output projections")
        for index, block in enumerate(attention_blocks(model))
    ]


def mlp_blocks(model: Module) -> list[Module]:
    """Return the feed-forward block of every layer of a decoder, in order.

    Raises:
        ModelError: the model has no list of layers, or a layer does not have exactly one feed-forward block.
    """
    return _blocks(model, MLP_NAMES, "feed-forward blocks")


def final_norm(model: Module) -> Module:
    """Return the norm between a decoder's last layer and the language-model head.

    Raises:
        ModelError: the decoder does not have exactly one.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    return _child(decoder, NORM_NAMES, type(decoder).__name__, "final norms")


@contextmanager
def outputs(blocks: Mapping[int, Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within the context, replace the output ``[batch, time, hidden]`` of each block by a function of it.

    Args:
        blocks: the blocks by index.
        change: maps a block's index and output to the new output.

    Raises:
        ModelError: a block returns neither a tensor nor a tuple that starts with one.
    """

    def hook_of(index: int) -> Callable[[Module, Any, Any], Any]:
        def hook(module: Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return change(index, output)
            if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
                return (change(index, output[0]), *output[1:])
            raise ModelError(
                f"{type(module).__name__} returned {type(output).__name__}; expected a tensor or a tuple that starts "
                "with the block's output"
            )

        return hook

    with ExitStack() as stack:
        for index, block in blocks.items():
            stack.callback(block.register_forward_hook(hook_of(index)).remove)
        yield


@contextmanager
def kept_outputs(blocks: Mapping[int, Module]) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that a forward pass fills with the output ``[batch, time, hidden]`` of each block, by index."""
    kept: dict[int, Tensor] = {}

    def keep(index: int, output: Tensor) -> Tensor:
        kept[index] = output
        return output

    with outputs(blocks, keep):
        yield kept


@contextmanager
def kept_input(layer: Module) -> Iterator[list[Tensor]]:
    """Yield a list to which a forward pass appends the layer's input, ``[batch, time, hidden]``."""
    kept: list[Tensor] = []

    def keep(_module: Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept.append(inputs[0] if inputs else named["hidden_states"])

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        handle.remove()


def _blocks(model: Module, names: tuple[str, ...], kind: str) -> list[Module]:
    decoder = type(model.get_decoder()).__name__  # type: ignore[operator]
    return [_child(layer, names, f"layer {index} of {decoder}", kind) for index, layer in enumerate(layers(model))]


def _child(parent: Module, names: tuple[str, ...], where: str, kind: str) -> Module:
    children = dict(parent.named_children())
    matches = [name for name in names if name in children]
    if len(matches) != 1:
        found = ", ".join(f"{name} ({type(child).__name__})" for name, child in children.items())
        raise ModelError(
            f"{where} has {len(matches)} {kind}; expected exactly one of {', '.join(names)}. Found: {found}"
        )
    return children[matches[0]]
