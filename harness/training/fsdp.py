"""What is not trained, cut among the processes: each keeps a shard of every layer and gathers the layer when it runs.

Fully sharded data parallelism (FSDP2) of the base alone. The base is what is large and has no gradients to exchange;
the adapters are small, stay whole in every process, and their gradients are added up by the learner as without shards.
Values are gathered as they are, so nothing is rounded differently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from harness.errors import ModelError
from harness.models.decoder import layers
from harness.training.distributed import world_size


def shard_frozen(model: Module, device: torch.device) -> None:
    """Shard the frozen parameters of an adapter model over all processes, in place and for good.

    The model may be on the CPU: one layer at a time visits the device to be cut, so it need never fit there in full.

    Args:
        model: with an adapter attached; its process group is there.
        device: where the shards and the trainables go.

    Raises:
        ModelError: the installed torch cannot do this, or the model's layers cannot be found.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ModelError(
            f"torch {torch.__version__} cannot shard a frozen base; expected 2.7 or newer. "
            "Upgrade torch, or run with `sharding: ddp`."
        ) from None
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    options: Any = {"mesh": init_device_mesh(device.type, (world_size(),)), "ignored_params": trained}
    base: Any = model.get_base_model()  # type: ignore[operator]
    for layer in layers(base):
        fully_shard(layer, **options)
    # What is outside the layers: embeddings, head and the last norm.
    fully_shard(base, **options)
    # Otherwise `accelerate` wraps the model in DDP, which refuses shards and would have nothing to do.
    model._is_accelerate_prepared = True  # type: ignore[assignment]
