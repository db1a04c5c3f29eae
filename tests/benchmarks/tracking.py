"""What tracking costs a training stage: `python tests/benchmarks/tracking.py`.

An alignment of the tiny model is run with a tracker that does nothing, with `jsonl` and with `wandb` offline, in turns;
ratios are of neighbours in time. Beside the wall times, the seconds inside the tracker's own calls are added up: their
share is not disturbed by whatever else the machine does. Then W&B's offline files of a finished sweep are written.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config.build import cells_of
from harness.config.compose import compose
from harness.engine.claim import Claims
from harness.engine.store import Store
from harness.errors import HarnessError
from harness.execution.attempt import WorkerContext, attempt
from harness.tracking.jsonl import Jsonl
from harness.tracking.wandb import Wandb
from harness.wandb_sync.sync import sync

OVERRIDES = (
    "align.budget.epochs=2",
    "align.rows=100",
    "model.source.steps=60",
    "evaluation.rows=8",
    "task.test_rows=8",
)


class Nothing:
    """A tracker that does nothing."""

    name, version = "nothing", 1

    def open(self, **_: Any) -> "Nothing":
        return self

    def log(self, metrics: Any, *, step: int) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Timed:
    """A tracker whose calls are timed."""

    inner: Any
    spent: list[float] = field(default_factory=lambda: [0.0])
    name: str = "timed"
    version: int = 1

    def _time(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return action(*args, **kwargs)
        finally:
            self.spent[0] += time.perf_counter() - began

    def open(self, **kwargs: Any) -> "Timed":
        return Timed(self._time(self.inner.open, **kwargs), self.spent)

    def log(self, metrics: Any, *, step: int) -> None:
        self._time(self.inner.log, metrics, step=step)

    def close(self) -> None:
        self._time(self.inner.close)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    (cell,) = cells_of(compose(OVERRIDES))
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "store")
        store.prepare()
        _run(store, cell.stages["base"], Nothing())
        seconds: dict[str, list[float]] = {"nothing": [], "jsonl": [], "wandb offline": []}
        shares: dict[str, list[float]] = {name: [] for name in seconds}
        trackers = {"nothing": Nothing(), "jsonl": Jsonl(), "wandb offline": Wandb(mode="offline")}
        for turn in range(asked.rounds + 1):
            for name in sorted(trackers, key=lambda name: (list(trackers).index(name) + turn) % len(trackers)):
                timed = Timed(trackers[name])
                took = _run(store, cell.stages["align"], timed)
                # The first turn warms up.
                if turn:
                    seconds[name].append(took)
                    shares[name].append(timed.spent[0] / took)
        for name in ("jsonl", "wandb offline"):
            ratios = [one / other for one, other in zip(seconds[name], seconds["nothing"], strict=True)]
            print(
                f"{name:<14} stage {statistics.median(seconds[name]):.2f} s, {statistics.median(ratios):.3f} times the "
                f"untracked; inside the tracker {statistics.median(shares[name]):.3%} of the stage"
            )
    _offline()


def _run(store: Store, stage: Any, tracker: Any) -> float:
    shutil.rmtree(store.folder(stage), ignore_errors=True)
    shutil.rmtree(store.work(stage.key), ignore_errors=True)
    began = time.perf_counter()
    result = attempt(stage, WorkerContext(store=store, claims=Claims(store.claims), tracker=tracker))
    if result.outcome != "executed":
        raise HarnessError(result.message)
    return time.perf_counter() - began


def _offline() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "harness", "-m", "defense=sft,booster", "attack_ratio=p00,p20", *OVERRIDES]
        subprocess.run(command, cwd=scratch, check=True, capture_output=True)
        root = Path(scratch) / "store"
        began = time.perf_counter()
        written = sync(root, Store(root).sweep_ids()[0], Wandb(mode="offline"))
        took = time.perf_counter() - began
        print(f"offline files  {took / written.sent:.2f} s a run ({written.sent} runs, wandb's start included)")


if __name__ == "__main__":
    main()
