"""Method outputs: tensors that a fine-tuning method produces for a repair method, stored next to the adapter.

One safetensors file per output, in the folder ``handover`` of the artifact, with one tensor per trainable parameter,
under the parameter's name.
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


def write(outputs: Mapping[str, Gradient], model: Module, artifact: Path) -> None:
    """Write the outputs, each one tensor per trainable parameter of the model; without outputs, write nothing."""
    from safetensors.torch import save

    names = _trainables(model)
    for output, tensors in outputs.items():
        (artifact / FOLDER).mkdir(exist_ok=True)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in zip(names, tensors, strict=True)}
        # Written as bytes: `save_file` creates a file that only its owner can read, and a store is shared.
        (artifact / FOLDER / f"{output}.safetensors").write_bytes(save(stored))


def read(artifact: Path, model: Module, device: str) -> dict[str, Gradient]:
    """Return the outputs by name, each in the order of the model's trainable parameters.

    Raises:
        ModelError: the tensors do not match the model's trainable parameters.
    """
    from safetensors.torch import load_file

    names = _trainables(model)
    outputs = {}
    for path in sorted((artifact / FOLDER).glob("*.safetensors")):
        stored = load_file(path, device=device)
        if set(stored) != set(names):
            raise ModelError(
                f"`{path}` has tensors for {len(stored)} trainable parameters; expected the {len(names)} of the model. "
                "Remove the artifact so that its stage runs again"
            )
        outputs[path.stem] = [stored[name] for name in names]
    return outputs


def _trainables(model: Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
