"""What a pass of a small model launches: `python tests/benchmarks/launches.py`, on a CPU, no weights.

Counts the operations of the decoder's forward and backward pass that would each launch a kernel on a GPU (views and
allocations do not), by precision and dtype of the base: as the modules of the model launch them, with norms in one
kernel each, and with rotary embeddings and adapted layers in few as well. A CPU has no kernel for norms, so an
operation that stands for it is counted. Prints one JSON object.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from random_models import SHAPES, Bench
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.models import norms
from harness.models.attention import causal_attention
from harness.models.projections import fused_projections
from harness.models.rotary import fused_rotary
from harness.training.budget import Precision

NO_KERNEL = {
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "empty",
    "empty_like",
    "expand",
    "permute",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
}
"""Operations that compute nothing."""
ROWS, LENGTH = 10, 8


class Launches(TorchDispatchMode):
    """Counts operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.partition(".")[0]
        if name not in NO_KERNEL:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@torch.library.custom_op("launches::norm", mutates_args=())
def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Stand for PyTorch's kernel."""
    return torch.nn.functional.rms_norm(hidden, weight.shape, weight, epsilon)


@torch.library.custom_op("launches::norm_backward", mutates_args=())
def norm_backward(sent: Tensor) -> Tensor:
    """Stand for its backward pass; the value does not matter here."""
    return sent.clone()


norm.register_autograd(lambda context, sent: (norm_backward(sent), None, None), setup_context=lambda *_, **__: None)


def one_kernel(hidden: Tensor, shape: Sequence[int], weight: Tensor, epsilon: float) -> Tensor:
    return norm(hidden, weight, epsilon)


FUSED: dict[str, Sequence[Callable[[Any], AbstractContextManager[Any]]]] = {
    "plain": (),
    "norms": (norms.fused_norms,),
    "all": (norms.fused_norms, fused_rotary, fused_projections),
}
"""What runs in few kernels."""


def launches(model: Any, precision: Precision, fused: Sequence[Callable[[Any], Any]]) -> dict[str, Any]:
    """Count the operations of one pass."""
    decoder, ids = model.get_decoder(), torch.ones(ROWS, LENGTH, dtype=torch.long)
    trained = [weight for weight in decoder.parameters() if weight.requires_grad]
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is Precision.BFLOAT16, cache_enabled=False)
    with ExitStack() as stack:
        for switch in (causal_attention, *fused):
            stack.enter_context(switch(model))
        stack.enter_context(autocast)
        with Launches() as forward:
            hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
        sent = torch.ones_like(hidden)
        with Launches() as backward:
            torch.autograd.grad(hidden, trained, sent)
    both = forward.counts + backward.counts
    return {
        "forward": forward.counts.total(),
        "backward": backward.counts.total(),
        "both": both.total(),
        "most": dict(both.most_common(6)),
    }


def main() -> dict[str, Any]:
    """Count and print."""
    norms.rms_norm = one_kernel
    found: dict[str, Any] = {}
    for dtype, precision in (
        (torch.float32, Precision.FLOAT32),
        (torch.float32, Precision.BFLOAT16),
        (torch.bfloat16, Precision.BFLOAT16),
    ):
        model = Bench(tiny=True).model(SHAPES["smollm2"], dtype)
        counts = {name: launches(model, precision, fused) for name, fused in FUSED.items()}
        found[f"{precision.value} on a base in {str(dtype).removeprefix('torch.')}"] = counts
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
