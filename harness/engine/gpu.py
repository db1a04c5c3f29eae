"""GPU memory of this process. Never imports torch: if no stage has imported it, no GPU is in use."""

import gc
import sys
from typing import Any


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
