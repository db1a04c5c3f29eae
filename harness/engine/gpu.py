"""What the engine asks of a GPU. It never loads torch: if no stage has, nothing of this process lies on a GPU."""

import gc
import sys
from typing import Any


def peak_bytes() -> int | None:
    """Return the most memory that this process has held on its GPU; None if it has not used one."""
    cuda = _cuda()
    return None if cuda is None else int(cuda.max_memory_allocated())


def release() -> None:
    """Give back what nothing refers to any more, so that another process can have it."""
    gc.collect()
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
