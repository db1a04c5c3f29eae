"""Handover: what a method of the fine-tuning leaves for a method of the repair, stored beside the adapter.

One safetensors file per name, in the folder ``handover`` of the artifact; its tensors are named as the trainables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch.nn import Module

    from harness.protocols import Gradient

FOLDER = "handover"


def write(left: Mapping[str, Gradient], model: Module, artifact: Path) -> None:
    """Write what was left, one tensor per trainable of the model; nothing left writes nothing."""
    from safetensors.torch import save

    names = _trainables(model)
    for name, tensors in left.items():
        (artifact / FOLDER).mkdir(exist_ok=True)
        stored = {place: tensor.detach().cpu().contiguous() for place, tensor in zip(names, tensors, strict=True)}
        # Written as bytes because the library's own file is readable by its owner only, and a store is shared.
        (artifact / FOLDER / f"{name}.safetensors").write_bytes(save(stored))


def read(artifact: Path, model: Module, device: str) -> dict[str, Gradient]:
    """Return what was left, by name, in the order of the model's trainables.

    Raises:
        ModelError: it does not fit the model.
    """
    from safetensors.torch import load_file

    names = _trainables(model)
    left = {}
    for path in sorted((artifact / FOLDER).glob("*.safetensors")):
        stored = load_file(path, device=device)
        if set(stored) != set(names):
            raise ModelError(
                f"`{path}` has tensors for {len(stored)} trainables; expected the {len(names)} of the model. Remove "
                "the artifact so that its stage runs again"
            )
        left[path.stem] = [stored[name] for name in names]
    return left


def _trainables(model: Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
