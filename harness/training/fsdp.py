"""FSDP2 for the frozen parameters of an adapter model: each process keeps a shard of every layer.

Only the base is sharded: it is large and has no gradients to reduce. Adapters are small and replicated; the learner
sums their gradients over the processes, as without sharding. Parameters are all-gathered in their own dtype, so results
do not change.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch.nn import Module

from harness.errors import ModelError
from harness.models.decoder import layers
from harness.training.distributed import world_size


def shard_frozen(model: Module, device: torch.device) -> None:
    """Shard the frozen parameters of an adapter model over all processes, in place and irreversibly.

    The model may be on the CPU: layers move to the device one at a time to be sharded, so the whole model never has to
    fit there. The process group must be initialized.

    Args:
        model: a model with an adapter attached.
        device: where the shards and the trainable parameters are placed.

    Raises:
        ModelError: the installed torch is too old, the model has no adapter, or its layers cannot be found.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ModelError(
            f"torch {torch.__version__} cannot shard frozen parameters; expected 2.7 or newer. "
            "Upgrade torch, or run with `sharding: ddp`."
        ) from None
    if not isinstance(model, PeftModel):
        raise ModelError(
            "the model's own weights are trained, and only frozen weights can be sharded; expected an adapter in "
            "`align.adapter` and `finetune.fresh`, or `sharding: ddp` in the cluster's resources"
        )
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    options: Any = {"mesh": init_device_mesh(device.type, (world_size(),)), "ignored_params": trained}
    base: Any = model.get_base_model()
    for layer in layers(base):
        fully_shard(layer, **options)
    # Parameters outside the layers: embeddings, head and the final norm.
    fully_shard(base, **options)
    # Otherwise `accelerate` wraps the model in DDP, which rejects sharded parameters and has nothing to reduce here.
    model._is_accelerate_prepared = True
