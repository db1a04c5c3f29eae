"""Decoding steps as CUDA graphs: recorded once per shape, then launched with one call.

A step of a small batch costs as much as a step of a large one when each of its thousand kernels is launched by Python.
A graph needs no compiler on the node, only tensors whose addresses stay.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Run = Callable[[], None]
EAGER_STEPS = 2
"""Steps of a shape that are taken before it is recorded: libraries settle their workspaces, and rare shapes pay off
without a graph."""


class Recorder:
    """Records steps on a GPU.

    All graphs work in one memory pool: they never run at the same time, and what a step leaves behind lies in tensors
    that were there before.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with an empty pool."""
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Record what a function launches, without running it; return what launches it again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


class Recorded:
    """Takes steps by shape, recorded ones where that is possible.

    Attributes:
        trouble: why steps are launched one kernel at a time; empty if they are recorded.
        graphs: how many shapes have been recorded.

    Args:
        step: takes a step of so many rows that reads so many positions; changes tensors in place and returns nothing.
        record: as ``Recorder``; None launches every kernel of every step.
    """

    def __init__(self, step: Callable[[int, int], None], *, record: Callable[[Run], Run] | None) -> None:
        """Start without a graph."""
        self.trouble = "" if record else "not on a GPU"
        self.graphs = 0
        self._step, self._record = step, record
        self._taken: Counter[tuple[int, int]] = Counter()
        self._runs: dict[tuple[int, int], Run] = {}

    def __call__(self, rows: int, length: int) -> None:
        """Take one step."""
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
