"""CUDA graphs: kernels that are captured once and then launched together.

Launched one by one from Python, the kernels of a small batch or a small model take longer to launch than to run. CUDA
graphs need no compiler on the node, only tensors at fixed addresses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Run = Callable[[], None]
Record = Callable[[Run], Run]
"""Captures what a function launches without running it, and returns a function that launches it."""


class Recorder:
    """Captures on a GPU; a ``Record``.

    All graphs share one memory pool, so no two may run concurrently, and what one leaves in the pool is overwritten by
    the next one: results are written to tensors allocated before, or used up before another graph runs.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Create the capture stream and an empty memory pool."""
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Capture the kernels of a function without running them; return a function that replays them."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                run()
        finally:
            # `torch.cuda.graph` leaves its stream current if the capture fails as it ends.
            torch.cuda.set_stream(before)
        return graph.replay
