"""Copies from the host to a device that do not wait for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device


def on_device(tensor: Tensor, target: device) -> Tensor:
    """Return a tensor on a device; one that is there already is returned itself.

    A copy out of pageable memory makes the host wait until the device has finished all earlier work. Out of pinned
    memory it is queued behind that work like a kernel.
    """
    import torch

    if target.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=True)
