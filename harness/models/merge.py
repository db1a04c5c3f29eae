"""Merging adapters into the base's weights, and undoing it exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.errors import ModelError
from harness.models import adapter
from harness.models.head import ADVICE, HEAD
from harness.models.quantized import is_quantized

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

_WRAPPED = "base_model.model."


class Merged(NamedTuple):
    """State to undo a merge, and its rounding error.

    Attributes:
        originals: copies of the changed matrices, by parameter name.
        lost: norm of the rounding error relative to the norm of the added update; about 1e-4 or less in float32.
    """

    originals: dict[str, torch.Tensor]
    lost: float


@torch.no_grad()
def merge(model: PreTrainedModel, folder: Path) -> Merged:
    """Put a stored adapter into the model's weights, in place, computed in float32; see ``harness.models.adapter``.

    The sum is cast back to the dtype of the matrix. In float32 the output of a merged layer differs from the adapter's
    by about 1e-7 relative. In bfloat16 the rounding step is relative to ``W``, not to the update, and a small update
    is largely lost: 12 to 91 % of it for entries of ``B`` between 3e-2 and 1e-3. To preserve it, load the base in
    float32.

    Raises:
        ModelError: the folder contains no readable adapter, its shape does not fit the model, it adapts a tied head, or
            the base is quantized to 4 bits. The model is then unchanged.
    """
    if is_quantized(model):
        raise ModelError(
            f"the adapter in {folder} cannot be merged into a 4-bit base: the sum would have to be quantized again. "
            "Set `finetune.adapter=single`, or `model.source.quantized=null`"
        )
    lora, factors = adapter.read(folder)
    pairs, magnitudes = {}, {}
    for name, first in factors.items():
        parameter = name.removeprefix(_WRAPPED).split(".lora_")[0] + ".weight"
        if ".lora_A." in name:
            pairs[parameter] = (first, factors[name.replace(".lora_A.", ".lora_B.")])
        elif ".lora_magnitude_vector." in name:
            magnitudes[parameter] = first
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for name, (first, second) in pairs.items():
        if name == f"{HEAD}.weight" and name not in shapes:
            raise ModelError(str(ADVICE))
        if shapes.get(name) != (second.shape[0], first.shape[1]):
            raise ModelError(
                f"the adapter in {folder} does not fit the model: it changes `{name}` of shape "
                f"{(second.shape[0], first.shape[1])}, which here is {shapes.get(name, 'absent')}; expected an "
                "adapter trained on the same base model. Check `model` in the configuration."
            )
    originals: dict[str, torch.Tensor] = {}
    added, error = 0.0, 0.0
    for name, (first, second) in pairs.items():
        matrix = model.get_parameter(name)
        originals[name] = matrix.detach().clone()
        delta = (second.to(matrix.device) @ first.to(matrix.device)).mul_(lora.scale)
        exact = matrix.float() + delta
        if name in magnitudes:
            exact *= (magnitudes[name].to(matrix.device) / exact.norm(dim=1))[:, None]
            delta = exact - matrix.float()
        matrix.copy_(exact)
        added += float(delta.square().sum())
        error += float((matrix.float() - originals[name].float() - delta).square().sum())
    return Merged(originals, math.sqrt(error / added) if added else 0.0)


@torch.no_grad()
def restore(model: PreTrainedModel, merged: Merged) -> None:
    """Undo a merge exactly; undo several merges in reverse order."""
    for name, original in merged.originals.items():
        model.get_parameter(name).copy_(original)
