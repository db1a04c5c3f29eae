"""The state of a run whose weights are sharded, in checkpoints: every process writes the shards that it holds.

``separated`` moves the sharded tensors of a state to a file of each process and leaves their names; ``joined`` puts
them back, for any number of processes: a tensor is divided along its first dimension, so the parts of all files in the
order of the processes are the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter

from harness.training.distributed import rank

_FILE = "shards-{:05d}.safetensors"
_FILES = "shards-*.safetensors"
_NAME = "sharded tensor"


def separated(state: Any, folder: Path) -> Any:
    """Write the sharded tensors of a state, each process its own part; return the state with names in their place.

    Args:
        state: dicts, lists and tuples of tensors and plain values, of the same structure on every process.
        folder: an existing folder, of this state only; nothing is written if no tensor is sharded.
    """
    parts: dict[str, Tensor] = {}

    def take(value: Any, path: str) -> Any:
        if not isinstance(value, DTensor):
            return value
        assert value.placements == (Shard(0),)
        parts[path] = value.to_local().detach().cpu().contiguous()
        return {_NAME: path}

    left = _replaced(state, take)
    if parts:
        save_file(parts, folder / _FILE.format(rank()))
    return left


def joined(state: Any, folder: Path, mesh: DeviceMesh | None) -> Any:
    """Return a state as it was before ``separated``, sharded over the processes of now.

    Args:
        state: what ``separated`` returned.
        folder: what it wrote to.
        mesh: the processes; None if nothing is sharded.
    """
    with ExitStack() as files:
        parts = [files.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob(_FILES))]

        def put(value: Any, _path: str) -> Any:
            if not (isinstance(value, Mapping) and _NAME in value):
                return value
            # One whole tensor at a time; each process reads it and keeps its part.
            full = torch.cat([part.get_tensor(value[_NAME]) for part in parts])
            assert mesh is not None
            return distribute_tensor(full.to(mesh.device_type), mesh, [Shard(0)], src_data_rank=None)

        return _replaced(state, put)


def _replaced(value: Any, by: Callable[[Any, str], Any], path: str = "") -> Any:
    """Return a nested state with every part of it replaced by what a function makes of it and of its path."""
    replaced = by(value, path)
    if replaced is not value:
        return replaced
    if isinstance(value, Mapping):
        return {key: _replaced(each, by, f"{path}/{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [_replaced(each, by, f"{path}/{place}") for place, each in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def mesh_of(weights: Sequence[Tensor]) -> DeviceMesh | None:
    """Return the processes over which weights are sharded, or None."""
    first = weights[0]
    return first.device_mesh if isinstance(first, DTensor) else None


class ShardedWeights:
    """Sharded weights as a part of a checkpoint; ``Trainer`` would save those of the first process only."""

    def __init__(self, weights: Sequence[Parameter]) -> None:
        """Store the weights, which are restored in place."""
        self._weights = weights

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""
        return {"values": [weight.detach() for weight in self._weights]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for weight, value in zip(self._weights, state["values"], strict=True):
            weight.copy_(value)


class ShardedMoments:
    """What an optimizer keeps of each sharded weight, as a part of a checkpoint.

    ``Trainer`` saves and restores the rest of the optimizer, and ``accelerate`` takes it apart and puts it together
    again when it wraps it; both leave the moments as they are. Moments that are restored before the optimizer exists
    wait until the first of these.
    """

    def __init__(self) -> None:
        """Start without an optimizer."""
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[int, Any] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the moments of an optimizer apart from its ``state_dict``."""
        self._optimizer = optimizer
        optimizer.register_state_dict_post_hook(lambda _, state: state | {"state": {}})
        optimizer.register_load_state_dict_pre_hook(lambda _, state: state | {"state": self._current()})

    def state_dict(self) -> dict[str, Any]:
        """Return the moments by the place of the weight among those of the optimizer."""
        assert self._optimizer is not None
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        state = self._optimizer.state
        return {"moments": {place: dict(state[each]) for place, each in enumerate(weights) if each in state}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what ``state_dict`` returned for the optimizer to come."""
        self._restored = dict(state["moments"])

    def _current(self) -> dict[int, Any]:
        restored, self._restored = self._restored, {}
        return restored or dict(self.state_dict()["moments"])
