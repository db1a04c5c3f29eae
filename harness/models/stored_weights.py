"""Stored weights: what a training of a model's own weights leaves, as the difference from its base.

A folder of safetensors files, sharded, with an index as the Hub's models have it. Values have the number format of the
base. For each weight the smallest of three forms is stored, all of them exact:

- nothing, if it equals the base's;
- otherwise the new values of the entries that changed, and one bit an entry that says which these are: ``NAME:mask``,
  packed eight to a byte, most significant bit first, and ``NAME:values``;
- the whole weight, ``NAME``, where that is not larger.

With ``b`` bytes an entry, the second form is the smaller one while fewer than ``1 - 1 / (8 b)`` of the entries changed:
15 in 16 in bfloat16, 31 in 32 in float32. The base is that of the artifact's ancestors: a model that was trained in two
stages is stored as its difference from the base, not from the first stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 * 10**9
"""A file is written from memory, so a file is what is held twice."""
_MASK, _VALUES = ":mask", ":values"


def write(weights: Mapping[str, Tensor], base: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Write a model's weights as their difference from a base; return facts.

    Facts: ``bytes``, of the files' tensors; ``whole_bytes``, of all weights of the model; ``changed``, the share of
    entries that differ from the base; ``lost``, the norm of the error of rounding to the base's number format relative
    to the norm of the trained change, 0 in float32.

    Args:
        weights: those of the trained model by parameter name.
        base: those of the base, on the CPU.
        folder: where to write.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save

    stored: dict[str, Tensor] = {}
    entries = changed = 0
    error = moved = 0.0
    for name, weight in weights.items():
        old, exact = base[name], weight.detach().cpu()
        new = exact.to(old.dtype)
        differs = new != old
        count = int(differs.sum())
        entries, changed = entries + new.numel(), changed + count
        error += float((new.double() - exact.double()).square().sum())
        moved += float((exact.double() - old.double()).square().sum())
        if not count:
            continue
        if -(-new.numel() // 8) + count * new.element_size() < new.numel() * new.element_size():
            stored |= {name + _MASK: _packed(differs), name + _VALUES: new[differs]}
        else:
            stored[name] = new.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    plan = split_torch_state_dict_into_shards(stored, max_shard_size=SHARD_BYTES)
    for file, names in plan.filename_to_tensors.items():
        # Written as bytes: `save_file` creates a file that only its owner can read, and a store is shared.
        (folder / file).write_bytes(save({name: stored[name] for name in names}, metadata={"format": "pt"}))
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    index = {"metadata": {"total_size": size}, "weight_map": plan.tensor_to_filename if stored else {}}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    whole = sum(base[name].numel() * base[name].element_size() for name in weights)
    return {
        "bytes": size,
        "whole_bytes": whole,
        "changed": changed / entries,
        "lost": (error / moved) ** 0.5 if moved else 0.0,
    }


def apply(model: Module, folder: Path) -> None:
    """Put stored weights into their base, in place.

    Raises:
        ModelError: the folder contains no readable weights, or they do not fit the model.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    own = dict(model.named_parameters())
    try:
        names: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        with torch.no_grad():
            for file in sorted(set(names.values())):
                with safe_open(folder / file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118
                        stem = name.removesuffix(_VALUES)
                        if not name.endswith(_MASK):
                            mask = None if stem == name else _tensor(folder, names, stem + _MASK)
                            _put(own[stem], tensors.get_tensor(name), mask)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} contains no weights that fit the model ({type(error).__name__}: {error}); expected those that a "
            "training of the same base wrote. Remove the artifact so that its stage runs again, and check `model` in "
            "the configuration."
        ) from error


def _tensor(folder: Path, names: Mapping[str, str], name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(folder / names[name], framework="pt") as tensors:
        found: Tensor = tensors.get_tensor(name)
    return found


def _put(parameter: Tensor, values: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        if values.shape != parameter.shape:
            raise ValueError(f"a weight of shape {tuple(values.shape)} for one of shape {tuple(parameter.shape)}")
        parameter.copy_(values)
    else:
        chosen = _unpacked(mask, parameter.numel()).view(parameter.shape).to(parameter.device)
        parameter[chosen] = values.to(parameter)


def _packed(mask: Tensor) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.packbits(mask.flatten().numpy()))


def _unpacked(packed: Tensor, entries: int) -> Tensor:
    import numpy as np
    import torch

    if len(packed) != -(-entries // 8):
        raise ValueError(f"a mask of {len(packed)} bytes for {entries} entries")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=entries)).bool()
