"""GPU memory of this process. Never imports torch: if no stage has imported it, no GPU is in use."""

import gc
import os
import sys
from typing import Any

_WORKERS = "HARNESS_GPU_WORKERS"


def set_workers(number: int) -> None:
    """Record in the environment of this process how many workers, itself included, share its GPU."""
    os.environ[_WORKERS] = str(number)


def workers() -> int:
    """Return how many workers share the GPU of this process."""
    return int(os.environ.get(_WORKERS, "1"))


def peak_bytes() -> int | None:
    """Return the peak GPU memory allocated by this process, in bytes; None if it has not used a GPU."""
    cuda = _cuda()
    return None if cuda is None else int(cuda.max_memory_allocated())


def release() -> None:
    """Collect garbage and release cached GPU memory, so that another process can use it."""
    gc.collect()
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
