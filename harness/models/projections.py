"""The products of adapted layers in few kernels, for passes that run kernel by kernel or are captured so.

A layer with an adapter, ``y = W x + s B A x``, takes five kernels, and autograd seven for the way back. Queries, keys
and values of an attention block take 38, with those that sum the gradients of the tensor that all three read. Layers
that read the same tensor are computed together here, with the matrices ``W`` and the factors ``A`` one below the other:
six kernels, and ten for the way back.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Identity, Linear, Module, Parameter
from torch.nn.functional import linear

from harness.models.compiled import forward_of, hooks_inside

log = logging.getLogger(__name__)

_ADAPTER = "default"


@contextmanager
def fused_projections(model: Module) -> Iterator[int]:
    """Compute a model's adapted layers in few kernels while the context lasts; those that read one tensor together.

    Layers keep their own function if it does more (dropout, DoRA, quantized bases), and passes take it wherever hooks
    inside of a layer or another state of its adapter ask for more.

    Args:
        model: a causal language model on its device, with or without an adapter.

    Yields:
        The number of groups of layers that are computed together.
    """
    with ExitStack() as stack:
        groups = _read_together(model, [part for part in model.modules() if _is_plain(part)])
        for layers in groups:
            bases = [layer.base_layer for layer in layers]
            weight = stack.enter_context(_one_below_the_other([base.weight for base in bases]))
            biased = bases[0].bias is not None
            bias = stack.enter_context(_one_below_the_other([base.bias for base in bases])) if biased else None
            group = _Group(layers, weight, bias)
            for place, layer in enumerate(layers):
                stack.enter_context(forward_of(layer, partial(group, place)))
        if groups and not _runs(model):
            stack.close()
            groups = []
        yield len(groups)


def _is_plain(part: Any) -> bool:
    """Return whether a module is a linear layer with one plain adapter and without dropout."""
    from peft.tuners.lora import Linear as Adapted

    if type(part) is not Adapted or type(part.base_layer) is not Linear or list(part.lora_A) != [_ADAPTER]:
        return False
    first, second = part.lora_A[_ADAPTER], part.lora_B[_ADAPTER]
    dropout = part.lora_dropout[_ADAPTER]
    return (
        not part.lora_variant
        and (isinstance(dropout, Identity) or getattr(dropout, "p", 0.0) == 0)
        and (first.bias, second.bias) == (None, None)
    )


def _read_together(model: Any, layers: Sequence[Module]) -> list[list[Any]]:
    """Return the layers by the tensor that they read in a pass over one token, in the order of that pass."""
    if not layers:
        return []
    read: defaultdict[int, list[Any]] = defaultdict(list)
    kept: list[Any] = []

    def note(layer: Module, inputs: tuple[Any, ...]) -> None:
        kept.append(inputs)  # Or another tensor could have its identity later.
        read[id(inputs[0])].append(layer)

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            _take_one_token(model)
    finally:
        for handle in handles:
            handle.remove()
    return [group for group in read.values() if _are_packable([layer.base_layer for layer in group])]


def _take_one_token(model: Any) -> None:
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.get_decoder()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)


def _are_packable(bases: Sequence[Linear]) -> bool:
    """Return whether matrices can be parts of one tensor: of one kind, and none of them part of another already."""
    weights = [base.weight for base in bases]
    kinds = {(base.weight.dtype, base.weight.device, base.bias is None) for base in bases}
    whole = all(each.untyped_storage().nbytes() == each.numel() * each.element_size() for each in weights)
    return len(kinds) == 1 and whole and len({id(each) for each in weights}) == len(weights)


def _runs(model: Module) -> bool:
    """Return whether a pass accepts outputs that are parts of one tensor: they cannot be changed in place."""
    try:
        with torch.enable_grad():
            _take_one_token(model)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.info("adapted layers are not computed together: %s", str(error).splitlines()[0])
        return False
    return True


@contextmanager
def _one_below_the_other(parameters: Sequence[Parameter]) -> Iterator[Tensor]:
    """Let parameters be parts of one tensor while the context lasts, which changes as they do."""
    if len(parameters) == 1:
        yield parameters[0].data
        return
    whole = torch.cat([parameter.data for parameter in parameters])
    parts = torch.split(whole, [len(parameter) for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    try:
        yield whole
    finally:
        for parameter in parameters:
            parameter.data = parameter.data.clone()


class _Group:
    """The forward functions of layers that read the same tensor: the first one called computes all of them.

    Args:
        layers: adapted layers, in the order in which they are called.
        weight: their matrices, one below the other, ``[outs, in]``.
        bias: their biases, ``[outs]``; None if they have none.
    """

    def __init__(self, layers: Sequence[Any], weight: Tensor, bias: Tensor | None) -> None:
        self._layers = layers
        self._plain = [layer.forward for layer in layers]
        self._weight, self._bias = weight, bias
        self._outs = [layer.base_layer.out_features for layer in layers]
        self._frozen = [(each, each.data_ptr()) for layer in layers for each in layer.base_layer.parameters()]
        self._hooks = [hooks for layer in layers for hooks in hooks_inside(layer)]
        self._state: Any = None
        self._found: dict[int, Tensor] = {}

    def __call__(self, place: int, x: Tensor, *args: Any, **named: Any) -> Any:
        """Return the output of the layer at a place, ``[rows, time, out]``, for an input ``[rows, time, in]``."""
        dtype = None if args or named or x.is_inference() else self._dtype(x)
        if dtype is None:
            self._state, self._found = None, {}
            return self._plain[place](x, *args, **named)
        # The tensor itself is kept with what was computed: another one could have its identity later.
        state = x, x._version, torch.is_grad_enabled(), dtype
        if place not in self._found or self._state[0] is not x or self._state[1:] != state[1:]:
            self._state, self._found = state, dict(enumerate(self._computed(x, dtype)))
        found = self._found.pop(place)
        if not self._found:
            self._state = None
        return found

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        """Return in which number format the products are taken; None if the layers' own functions must be called."""
        usual = not any(self._hooks) and all(
            list(layer.lora_A) == layer.active_adapters == [_ADAPTER] and not (layer.disable_adapters or layer.merged)
            for layer in self._layers
        )
        if not usual or any(each.requires_grad or each.data_ptr() != at for each, at in self._frozen):
            return None
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        factors = {layer.lora_A[_ADAPTER].weight.dtype for layer in self._layers}
        return x.dtype if {x.dtype, self._weight.dtype, *factors} == {x.dtype} else None

    def _computed(self, x: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
        factors = [layer.lora_A[_ADAPTER].weight for layer in self._layers]
        factors += [layer.lora_B[_ADAPTER].weight for layer in self._layers]
        scales = [layer.scaling[_ADAPTER] for layer in self._layers]
        inputs = x.flatten(0, -2).to(dtype)
        found = _Products.apply(inputs, (self._weight, self._bias), scales, *factors)  # type: ignore[no-untyped-call]
        return torch.split(found.view(*x.shape[:-1], sum(self._outs)), self._outs, dim=-1)


class _Products(torch.autograd.Function):
    """``W x + b + s B A x`` of several layers, side by side in the last dimension."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, frozen: tuple[Tensor, Tensor | None], scales: Sequence[float], *factors: Tensor
    ) -> Tensor:
        """Return ``[tokens, outs]``.

        Args:
            ctx: keeps what the backward pass needs.
            x: the input, ``[tokens, in]``; all products are taken in its number format.
            frozen: ``W``, ``[outs, in]``, and ``b``, ``[outs]`` or None.
            scales: ``s`` of each layer.
            factors: the ``A`` of all layers, ``[rank, in]``, then their ``B``, ``[out, rank]``.
        """
        count, (weight, bias) = len(scales), frozen
        weight, first = weight.to(x.dtype), torch.cat(factors[:count]).to(x.dtype)
        seconds = [factor.to(x.dtype) for factor in factors[count:]]
        found, low = linear(x, weight, None if bias is None else bias.to(x.dtype)), linear(x, first)
        for part, own, second, scale in zip(*_parts(seconds, found, low), seconds, scales, strict=True):
            part.addmm_(own, second.T, alpha=scale)
        ctx.save_for_backward(x, low, weight, first, *seconds)
        ctx.scales, ctx.of_factors = scales, factors[0].dtype
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sent: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, if something below needs it, and of the factors."""
        x, low, weight, first, *seconds = ctx.saved_tensors
        back, of_seconds = torch.empty_like(low), []
        through = _parts(seconds, sent, back)[1]
        for part, own, onto, second, scale in zip(
            *_parts(seconds, sent, low), through, seconds, ctx.scales, strict=True
        ):
            torch.addmm(onto, part, second, beta=0, alpha=scale, out=onto)
            of_seconds.append(torch.addmm(second, part.T, own, beta=0, alpha=scale).to(ctx.of_factors))
        of_firsts = torch.split((back.T @ x).to(ctx.of_factors), [second.shape[1] for second in seconds])
        of_x = (sent @ weight).addmm_(back, first) if ctx.needs_input_grad[0] else None
        return (of_x, None, None, *of_firsts, *of_seconds)


def _parts(seconds: Sequence[Tensor], outputs: Tensor, low: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the layers' parts of ``[tokens, outs]`` and ``[tokens, ranks]``, given their factors ``B``."""
    outs, ranks = ([second.shape[side] for second in seconds] for side in (0, 1))
    return torch.split(outputs, outs, dim=-1), torch.split(low, ranks, dim=-1)
