"""Worker pools: run attempts on this machine, in this process or in spawned ones that keep loaded models."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import NoReturn, Protocol

from harness.engine.claim import Claims
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.execution.attempt import AttemptResult, WorkerContext, attempt
from harness.execution.ranks import KILLED, Processes

GRACE_SECONDS = 20.0
"""Time for an interrupted worker to record its attempt before it is killed. Killing it loses only that record."""


class WorkerPool(Protocol):
    """Runs up to ``size`` attempts concurrently."""

    size: int

    def begin(self, stage: Stage) -> None:
        """Start an attempt. The caller never has more than ``size`` running."""
        ...

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Wait for at least one attempt to end and return all that ended; an empty list after ``timeout`` seconds."""
        ...

    def stop(self) -> None:
        """Interrupt running attempts and shut the workers down."""
        ...


class InProcess:
    """Runs attempts synchronously in this process: an attempt has ended when ``begin`` returns."""

    size = 1

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._ended: list[AttemptResult] = []

    def begin(self, stage: Stage) -> None:
        """Run the attempt; KeyboardInterrupt propagates."""
        self._ended.append(attempt(stage, self._context))

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Return the result of the last attempt, without waiting."""
        del timeout
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Do nothing: no attempt runs between calls."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Configuration of a spawned worker; pickled.

    Attributes:
        root: the store's folder.
        allow: prefixes of the classes that a stored spec may name.
        tracker: opens the curve of each stage.
        device: a torch device string.
        initialize: called once when the worker starts, and in each rank of a stage with several processes.
        processes: number of processes per stage, by kind of stage.
    """

    root: Path
    allow: tuple[str, ...]
    tracker: TrackerSettings
    device: str
    initialize: Callable[[], None] | None
    processes: Mapping[str, Processes]


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    stage: Stage | None = None


class ProcessPool:
    """Workers in spawned processes. If one dies, the stage it was running fails and a new worker takes its place."""

    def __init__(self, size: int, config: WorkerConfig) -> None:
        self.size = size
        self._config = config
        self._workers: list[_Worker] = []

    def begin(self, stage: Stage) -> None:
        """Hand the stage to an idle worker, or spawn one."""
        for worker in [worker for worker in self._workers if worker.stage is None]:
            try:
                worker.connection.send(stage)
            except OSError:
                # It died while idle: a model may still be loaded in it, so it can run out of memory.
                self._workers.remove(worker)
                worker.connection.close()
                worker.process.join()
            else:
                worker.stage = stage
                return
        worker = self._spawn()
        worker.stage = stage
        worker.connection.send(stage)

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Wait for results of the workers."""
        busy: Mapping[object, _Worker] = {worker.connection: worker for worker in self._workers if worker.stage}
        return [self._result(busy[connection]) for connection in wait([*busy], timeout)]  # type: ignore[list-item]

    def stop(self) -> None:
        """Ask every worker to stop; kill those that are still alive after ``GRACE_SECONDS``."""
        for worker in self._workers:
            # Closing the connection ends an idle worker; the signal interrupts the attempt of a busy one.
            worker.connection.close()
            if worker.stage is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(GRACE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def _spawn(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker_main, args=(theirs, self._config), daemon=False)
        process.start()
        # Close the worker's end here: otherwise its death would not close the pipe.
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _result(self, worker: _Worker) -> AttemptResult:
        stage, worker.stage = worker.stage, None
        assert stage is not None
        try:
            result: AttemptResult = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._workers.remove(worker)
            worker.process.join()
            message = (
                f"The worker process died (exit code {worker.process.exitcode}). "
                f"If the machine ran out of memory, run with fewer workers."
            )
            return AttemptResult(key=stage.key, outcome="failed", cause=KILLED, message=message)
        return result


def _worker_main(connection: Connection, config: WorkerConfig) -> None:
    # Ctrl-C reaches the whole process group; only the parent handles it, and signals each worker once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    Thread(target=_die_with_parent, daemon=True).start()
    # Needed for the log files of stages; nothing is printed, as a spawned process has no stream handler.
    logging.getLogger("harness").setLevel(logging.INFO)
    if config.initialize is not None:
        config.initialize()
    store = Store(config.root, allow=config.allow)
    context = WorkerContext(
        store=store,
        claims=Claims(store.claims),
        tracker=config.tracker,
        device=config.device,
        processes=config.processes,
        initialize=config.initialize,
    )
    try:
        while True:
            connection.send(attempt(connection.recv(), context))
    except (EOFError, KeyboardInterrupt):
        return


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        # An orphaned worker would keep its claims and block other runs.
        os._exit(1)
