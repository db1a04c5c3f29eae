"""What each rank of a shared stage executes: the stage, as ordered by the supervisor, and a report of how it ended."""

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from threading import Thread
from typing import Any, final

from harness.engine.provenance import Stopwatch, peaks
from harness.engine.stage import StageContext
from harness.engine.store import Store
from harness.execution.attempt import LOG, logged, settled
from harness.execution.ranks import RankArgs


def main() -> int:
    """Run the stage; return the exit code: 1 if it failed, so that the launcher ends the other ranks."""
    Thread(target=_die_with_supervisor, daemon=True).start()
    logging.getLogger("harness").setLevel(logging.INFO)
    orders = RankArgs.received()
    rank = int(os.environ["RANK"])
    facts: dict[str, Any] = {}
    with ExitStack() as log_file:
        if rank == 0:
            log_file.enter_context(logged(orders.work / LOG))
        result = settled(orders.key, Stopwatch(), lambda: _run(orders, rank, facts))
    told = {"outcome": result.outcome, "cause": result.cause, "message": result.message, "trace": result.trace}
    orders.report(rank, {**told, "facts": facts, "peaks": peaks()})
    return int(result.outcome == "failed")


def _run(orders: RankArgs, rank: int, facts: dict[str, Any]) -> None:
    if orders.initialize is not None:
        orders.initialize()
    store = Store(orders.root, allow=orders.allow)
    stage = store.stage(orders.key)
    tracker = orders.tracker.open(key=stage.key, kind=stage.name, work=orders.work) if rank == 0 else _Mute()
    with closing(tracker):
        stage.run(
            StageContext(
                out=orders.out,
                work=orders.work,
                locate=store.path,
                tracker=tracker,
                device=_own(orders.device),
                facts=facts,
                rank=rank,
                sharding=orders.sharding,
                stop=orders.stop,
                micro_batch_size=orders.micro_batch_size,
                shrink=orders.shrink,
            )
        )


@final
class _Mute:
    """The tracker of the ranks that do not speak."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Drop them."""

    def close(self) -> None:
        """Nothing is held."""


def _own(device: str) -> str:
    return f"cuda:{os.environ['LOCAL_RANK']}" if device.startswith("cuda") else device


def _die_with_supervisor() -> None:
    # Not through sys.stdin, whose lock this thread would still hold when the interpreter shuts down.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
