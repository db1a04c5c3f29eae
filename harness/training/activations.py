"""Vaccine's perturbation: attention outputs shifted along the gradient that hurts most.

Tiansheng Huang, Sihao Hu, Ling Liu: "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", NeurIPS 2024 (arXiv 2402.01109). With ``e_l`` the output of attention block ``l``:

1. ``G_l = df / de_l`` on the batch;
2. ``delta_l = rho * G_l / (||G|| + 1e-7)`` with one norm over all layers, rows and positions of the global batch;
3. the update is the gradient of ``f`` with ``e_l + delta_l`` in place of ``e_l``, ``delta`` held constant.

Deviations from the authors' code: attention blocks are found by where they sit in the decoder, not by a list of
classes; tensor hooks replace the deprecated module backward hooks; the norm covers all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from harness.errors import ModelError
from harness.protocols import Learner
from harness.training.attenuation import EPSILON
from harness.training.decoder import layers
from harness.training.processes import add_up

ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
"""What decoders call the attention block of a layer."""


class Perturbed(NamedTuple):
    """The gradient under the perturbation.

    Attributes:
        gradient: of the loss with shifted attention outputs, with respect to the trainables.
        metrics: ``loss`` without the shift; ``perturbed_loss`` with it; ``activation_gradient_norm`` ||G||.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


class Perturbation:
    """Takes gradients under Vaccine's perturbation.

    Args:
        learner: the model.
        rho: length of the perturbation over the whole global batch.

    Raises:
        ModelError: the attention blocks of the model cannot be found.
    """

    def __init__(self, learner: Learner, rho: float) -> None:
        """Find the attention blocks."""
        self._learner = learner
        self._rho = rho
        self._blocks = attention_blocks(learner.module)

    def gradient(self, batch: Mapping[str, Tensor]) -> Perturbed:
        """Take both passes on one batch; no hook remains."""
        collected: dict[int, Tensor] = {}

        def watch(place: int, output: Tensor) -> Tensor:
            if output.requires_grad:
                output.register_hook(lambda grad: collected.__setitem__(place, grad))  # type: ignore[no-untyped-call]
            return output

        with _outputs(self._blocks, watch):
            loss = self._learner.gradient(batch)[0]
        if not collected:
            raise ModelError(
                "no gradient reached an attention output; expected at least one trainable parameter at or below an "
                "attention block, for example an adapter on its projections"
            )
        norm = _norm(collected.values())
        # Out of place: autograd may have handed the same tensor to a residual connection.
        for place, part in collected.items():
            collected[place] = part * (self._rho / (norm + EPSILON))

        def shift(place: int, output: Tensor) -> Tensor:
            return output + collected[place] if place in collected else output

        with _outputs(self._blocks, shift):
            perturbed_loss, gradient = self._learner.gradient(batch)
        return Perturbed(gradient, {"loss": loss, "perturbed_loss": perturbed_loss, "activation_gradient_norm": norm})


def attention_blocks(model: Module) -> list[Module]:
    """Return the attention block of every layer of a decoder, in order.

    Raises:
        ModelError: the model has no list of layers, or a layer does not have exactly one attention block.
    """
    blocks = []
    decoder = type(model.get_decoder()).__name__  # type: ignore[operator]
    for place, layer in enumerate(layers(model)):
        children = dict(layer.named_children())
        matches = [name for name in ATTENTION_NAMES if name in children]
        if len(matches) != 1:
            found = ", ".join(f"{name} ({type(child).__name__})" for name, child in children.items())
            raise ModelError(
                f"layer {place} of {decoder} has {len(matches)} attention blocks; expected exactly one "
                f"of {', '.join(ATTENTION_NAMES)}. Found: {found}"
            )
        blocks.append(children[matches[0]])
    return blocks


@contextmanager
def _outputs(blocks: Sequence[Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Pass the output ``[batch, time, hidden]`` of each block through a function while the context lasts."""

    def hook_of(place: int) -> Callable[[Module, Any, Any], Any]:
        def hook(module: Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return change(place, output)
            if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
                return (change(place, output[0]), *output[1:])
            raise ModelError(
                f"{type(module).__name__} returned {type(output).__name__}; expected a tensor or a tuple that starts "
                "with the attention output"
            )

        return hook

    handles = []
    try:
        for place, block in enumerate(blocks):
            handles.append(block.register_forward_hook(hook_of(place)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norm(parts: Any) -> Tensor:
    """Return the L2 norm over tensors of which every process holds its own rows."""
    squares = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]).square().sum()
    add_up(squares)
    return squares.sqrt()
