"""Decoding steps as CUDA graphs: captured once per shape, then replayed with a single launch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch

from harness.models.cuda_graphs import Record, Run

log = logging.getLogger(__name__)

EAGER_STEPS = 2
"""Eager steps per shape before it is captured: libraries allocate their workspaces, and rare shapes are not worth a
graph."""


class Recorded:
    """Runs decoding steps, from CUDA graphs where possible.

    Attributes:
        trouble: why steps run eagerly; empty if they are captured.
        graphs: number of captured shapes.

    Args:
        step: runs one step in place, given batch size and context length.
        record: captures a step, like ``Recorder``; None runs every step eagerly.
    """

    def __init__(self, step: Callable[[int, int], None], *, record: Record | None) -> None:
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

    def _recorded(self, shape: tuple[int, int], record: Record) -> Run:
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
