"""Gradients of Booster and Vaccine from plain eager passes, in the order of operations of the authors' trainers.

``model(**batch).loss.backward()`` under autocast, logits of every position, gradients copied out of ``.grad``; weights
are moved in place and moved back by adding; Vaccine's shift is written into the data of the attention outputs. The
benchmarks measure the harness next to them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from harness.defenses.booster import Booster
from harness.defenses.vaccine import Vaccine
from harness.models.decoder import attention_blocks
from harness.training.budget import Precision

EPSILON = 1e-7
Batch = Mapping[str, Tensor]


def loss_of(model: Module, batch: Batch, precision: Precision) -> Tensor:
    """Return the library's own loss of a batch, in the number format of a training."""
    device = batch["input_ids"].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision is Precision.BFLOAT16):
        loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def _gradient(model: Module, batch: Batch, precision: Precision) -> list[Tensor]:
    model.zero_grad()
    loss_of(model, batch, precision).backward()
    return [parameter.grad.detach().clone() for parameter in model.parameters() if parameter.grad is not None]


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part.float()) for part in tensors]))


def booster_gradient(method: Booster, model: Module, own: Batch, harmful: Batch, precision: Precision) -> list[Tensor]:
    """Return ``g_f + lamb (g_h - g_p)``, with ``g_p`` at ``w - alpha g_h / ||g_h||``."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = _gradient(model, harmful, precision)
    scale = method.alpha / (_norm(before) + EPSILON)
    with torch.no_grad():
        for weight, part in zip(weights, before, strict=True):
            weight.sub_(part * scale)
    after = _gradient(model, harmful, precision)
    with torch.no_grad():
        for weight, part in zip(weights, before, strict=True):
            weight.add_(part * scale)
    plain = _gradient(model, own, precision)
    return [f + method.lamb * (h - p) for f, h, p in zip(plain, before, after, strict=True)]


def vaccine_gradient(method: Vaccine, model: Module, own: Batch, _harmful: Batch, precision: Precision) -> list[Tensor]:
    """Return the gradient of the loss with attention outputs shifted by ``rho G_l / ||G||``."""
    blocks = attention_blocks(model)
    kept: dict[Module, Tensor] = {}

    def keep(module: Module, _inputs: Any, output: Any) -> None:
        output[0].register_hook(lambda gradient: kept.__setitem__(module, gradient.detach()))

    def shift(module: Module, _inputs: Any, output: Any) -> Any:
        output[0].data = output[0].data + kept[module]
        return output

    _with_hooks([block.register_forward_hook(keep) for block in blocks], lambda: _gradient(model, own, precision))
    norm = _norm(list(kept.values()))
    for module, part in kept.items():
        kept[module] = method.rho * part / (norm + EPSILON)
    handles = [block.register_forward_hook(shift) for block in blocks]
    return _with_hooks(handles, lambda: _gradient(model, own, precision))


def _with_hooks(handles: list[Any], action: Callable[[], list[Tensor]]) -> list[Tensor]:
    try:
        return action()
    finally:
        for handle in handles:
            handle.remove()
