"""Entry point of a rank: runs the stage and reports to the supervisor how it ended."""

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from threading import Thread
from typing import Any, final

from harness.engine.provenance import Stopwatch, peak_memory
from harness.engine.stage import StageContext
from harness.engine.store import Store
from harness.execution.attempt import LOG, log_to_file, run_guarded
from harness.execution.ranks import RankArgs


def main() -> int:
    """Run the stage; return exit code 1 if it failed, so that the launcher ends the other ranks."""
    Thread(target=_die_with_supervisor, daemon=True).start()
    logging.getLogger("harness").setLevel(logging.INFO)
    args = RankArgs.from_environment()
    rank = int(os.environ["RANK"])
    facts: dict[str, Any] = {}
    with ExitStack() as log_file:
        if rank == 0:
            log_file.enter_context(log_to_file(args.work / LOG))
        result = run_guarded(args.key, Stopwatch(), lambda: _run(args, rank, facts))
    report = {"outcome": result.outcome, "cause": result.cause, "message": result.message, "trace": result.trace}
    args.report(rank, {**report, "facts": facts, "peaks": peak_memory()})
    return int(result.outcome == "failed")


def _run(args: RankArgs, rank: int, facts: dict[str, Any]) -> None:
    if args.initialize is not None:
        args.initialize()
    store = Store(args.root, allow=args.allow)
    stage = store.stage(args.key)
    tracker = args.tracker.open(key=stage.key, kind=stage.name, work=args.work) if rank == 0 else _NullTracker()
    with closing(tracker):
        stage.run(
            StageContext(
                out=args.out,
                work=args.work,
                locate=store.path,
                compiled=store.layout.compiled,
                tracker=tracker,
                device=_local_device(args.device),
                facts=facts,
                rank=rank,
                sharding=args.sharding,
                stop=args.stop,
                micro_batch_size=args.micro_batch_size,
                shrink=args.shrink,
            )
        )


@final
class _NullTracker:
    """The tracker of every rank but the first: discards metrics."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Discard the metrics."""

    def close(self) -> None:
        """Do nothing."""


def _local_device(device: str) -> str:
    return f"cuda:{os.environ['LOCAL_RANK']}" if device.startswith("cuda") else device


def _die_with_supervisor() -> None:
    # os.read, not sys.stdin: this thread would still hold the lock of sys.stdin at interpreter shutdown.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
