"""Decoding steps as CUDA graphs: captured once per shape, then replayed with a single launch.

Launched one by one from Python, the kernels of a step take longer to launch than to run. CUDA graphs need no compiler
on the node, only tensors at fixed addresses.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Run = Callable[[], None]
EAGER_STEPS = 2
"""Eager steps per shape before it is captured: libraries allocate their workspaces, and rare shapes are not worth a
graph."""


class Recorder:
    """Captures steps on a GPU.

    All graphs share one memory pool: they never run concurrently, and the results of a step are written to tensors
    allocated before.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Create the capture stream and an empty memory pool."""
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Capture the kernels of a function without running them; return a function that replays them."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


class Recorded:
    """Runs decoding steps, from CUDA graphs where possible.

    Attributes:
        trouble: why steps run eagerly; empty if they are captured.
        graphs: number of captured shapes.

    Args:
        step: runs one step in place, given batch size and context length.
        record: captures a step, like ``Recorder``; None runs every step eagerly.
    """

    def __init__(self, step: Callable[[int, int], None], *, record: Callable[[Run], Run] | None) -> None:
        """Start without graphs."""
        self.trouble = "" if record else "not on a GPU"
        self.graphs = 0
        self._step, self._record = step, record
        self._taken: Counter[tuple[int, int]] = Counter()
        self._runs: dict[tuple[int, int], Run] = {}

    def __call__(self, rows: int, length: int) -> None:
        """Run one step."""
        shape = (rows, length)
        if run := self._runs.get(shape):
            run()
        elif self._record is None or self._taken[shape] < EAGER_STEPS:
            self._taken[shape] += 1
            self._step(rows, length)
        else:
            self._runs[shape] = self._recorded(shape, self._record)
            self._runs[shape]()

    def _recorded(self, shape: tuple[int, int], record: Callable[[Run], Run]) -> Run:
        def run() -> None:
            self._step(*shape)

        try:
            recorded = record(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.trouble, self._record = f"a step cannot be recorded ({str(error).splitlines()[0]})", None
            log.warning("decoding without CUDA graphs: %s", self.trouble)
            return run
        self.graphs += 1
        return recorded
