"""FSDP2: each process keeps a shard of every layer, of the frozen base of an adapter or of all of a model's weights.

Under an adapter only the base is sharded: it is large and has no gradients to reduce. Adapters are small and
replicated; the learner sums their gradients over the processes, as without sharding. Parameters are all-gathered in
their own dtype, so results do not change.

Where a model's own weights are trained, they, their gradients and the state of the optimizer are sharded. Gradients are
summed over the processes, not averaged, because losses are already divided by the counts of the global batch. Results
differ from those of whole weights by rounding: norms are sums over shards.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import Module

from harness.errors import ModelError
from harness.models.decoder import final_norm, layers
from harness.training.distributed import rank, whole, world_size


def shard(model: Module, device: torch.device) -> None:
    """Shard a model over all processes, in place and irreversibly: under an adapter its base, otherwise all weights.

    The model may be on the CPU: layers move to the device one at a time to be sharded, so the whole model never has to
    fit there. The process group must be initialized.

    Args:
        model: a causal language model, with an adapter attached or with trainable weights.
        device: where the shards and the trainable parameters are placed.

    Raises:
        ModelError: the installed torch is too old, or the model's layers or final norm cannot be found.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard
    except ImportError:
        raise ModelError(
            f"torch {torch.__version__} cannot shard a model; expected 2.7 or newer. "
            "Upgrade torch, or run with `sharding: ddp`."
        ) from None
    options: Any = {"mesh": init_device_mesh(device.type, (world_size(),))}
    if isinstance(model, PeftModel):
        base: Any = model.get_base_model()
        options["ignored_params"] = trained = {each for each in model.parameters() if each.requires_grad}
        for parameter in trained:
            parameter.data = parameter.data.to(device)
    else:
        base = model
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise ModelError(
                f"torch {torch.__version__} cannot sum the gradients of sharded weights with every backend; expected a "
                "newer one. Upgrade torch, or run with `sharding: ddp`."
            )
        # Otherwise what is outside of the layers stays gathered after a forward pass until there is a backward pass,
        # and a second forward pass would not see weights that have changed in between.
        options["reshard_after_forward"] = True
        # Weights are gathered again when a gradient reaches the output of their part. A loss on hidden states reaches
        # the output of the norm, and not that of the whole model.
        fully_shard(final_norm(base), **options)
    for layer in layers(base):
        fully_shard(layer, **options)
    # Parameters outside the layers: embeddings, head, and under an adapter the final norm.
    fully_shard(base, **options)
    # Under an adapter nothing that is sharded has a gradient.
    for part in base.modules() if base is model else ():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            # Otherwise the factor, although it is 1, asks for an operation that Gloo does not have.
            part.set_force_sum_reduction_for_comms(True)


def gathered(model: Module) -> dict[str, Tensor]:
    """Return all weights of a sharded model by name, on the CPU of rank 0; empty on the other ranks.

    A collective call: one weight at a time is whole on every device.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        full = whole(parameter.detach())
        if rank() == 0:
            found[name] = full.cpu()
    return found
