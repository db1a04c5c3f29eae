"""The GPUs that this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes. CUDA is not initialized."""

import os
from collections.abc import Sequence
from itertools import takewhile

VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIG = "MIG-"


def visible_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs of this process: those in ``CUDA_VISIBLE_DEVICES``, or else their numbers."""
    import torch

    return gpu_names(torch.cuda.device_count(), os.environ.get(VISIBLE))


def gpu_names(count: int, visible: str | None) -> tuple[str, ...]:
    """Return the names of GPUs.

    Args:
        count: number of GPUs that CUDA shows to this process.
        visible: value of ``CUDA_VISIBLE_DEVICES``: numbers, UUIDs of GPUs or of MIG instances; None if it is not set.
    """
    if visible is None:
        return tuple(map(str, range(count)))
    listed = [name.strip() for name in visible.split(",")]
    if count and listed[0].startswith(_MIG):
        # CUDA shows a process only the first MIG instance, but another process can be given the next one.
        return tuple(dict.fromkeys(takewhile(is_mig, listed)))
    return tuple(listed[:count])


def is_mig(name: str) -> bool:
    """Return whether a name is that of a MIG instance: a part of a GPU that is a device of its own."""
    return name.startswith(_MIG)


def group_gpus(gpus: Sequence[str], size: int) -> tuple[str, ...]:
    """Return values of ``CUDA_VISIBLE_DEVICES`` with ``size`` GPUs each; GPUs that do not fill a group are unused."""
    return tuple(",".join(gpus[start : start + size]) for start in range(0, len(gpus) - size + 1, size))
