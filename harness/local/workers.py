"""Crews: who runs attempts on this machine. This process itself, or spawned ones that keep their memory."""

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
"""How long an interrupted worker may take to write its record. Killing it afterwards costs nothing but the record."""


class WorkerPool(Protocol):
    """Runs as many attempts at a time as it has workers."""

    size: int

    def begin(self, stage: Stage) -> None:
        """Begin an attempt. The caller never begins more than ``size`` at a time."""
        ...

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Wait until an attempt has ended, and return all that have; an empty list after ``timeout`` seconds."""
        ...

    def stop(self) -> None:
        """Interrupt what runs, and dismiss the workers."""
        ...


class InProcess:
    """This process does the work: each attempt has ended when ``begin`` returns."""

    size = 1

    def __init__(self, desk: WorkerContext) -> None:
        self._desk = desk
        self._ended: list[AttemptResult] = []

    def begin(self, stage: Stage) -> None:
        """Run the attempt; Ctrl-C passes through."""
        self._ended.append(attempt(stage, self._desk))

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Return the attempt that has ended, without waiting."""
        del timeout
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Nothing runs between calls."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a spawned worker needs to set up its desk. It is pickled.

    Attributes:
        root: the store's folder.
        allow: prefixes of the classes that a stored spec may name.
        tracker: opens the curve of each stage.
        device: a torch device string.
        initialize: called once when the worker starts, and in each process that shares a stage.
        processes: how many processes share a stage, by its kind.
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
    """Workers in spawned processes. One that dies costs the stage it was running, and is replaced."""

    def __init__(self, size: int, briefing: WorkerConfig) -> None:
        self.size = size
        self._briefing = briefing
        self._workers: list[_Worker] = []

    def begin(self, stage: Stage) -> None:
        """Give the attempt to an idle worker, or to a new one."""
        for worker in [worker for worker in self._workers if worker.stage is None]:
            try:
                worker.connection.send(stage)
            except OSError:
                # It died while it had nothing to do; an idle worker may hold a model, and memory runs out.
                self._workers.remove(worker)
                worker.connection.close()
                worker.process.join()
            else:
                worker.stage = stage
                return
        worker = self._hired()
        worker.stage = stage
        worker.connection.send(stage)

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Wait for the workers."""
        busy: Mapping[object, _Worker] = {worker.connection: worker for worker in self._workers if worker.stage}
        return [self._result(busy[connection]) for connection in wait([*busy], timeout)]  # type: ignore[list-item]

    def stop(self) -> None:
        """Ask every worker to stop; kill those that do not."""
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

    def _hired(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._briefing), daemon=False)
        process.start()
        # The worker's end must be closed here, or its death would go unnoticed.
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


def _work(connection: Connection, briefing: WorkerConfig) -> None:
    # Ctrl-C reaches the whole process group; only the parent answers it, and tells each worker once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    Thread(target=_die_with_parent, daemon=True).start()
    # For the logs of the stages; a spawned process has no handler that would print it.
    logging.getLogger("harness").setLevel(logging.INFO)
    if briefing.initialize is not None:
        briefing.initialize()
    store = Store(briefing.root, allow=briefing.allow)
    desk = WorkerContext(
        store=store,
        claims=Claims(store.claims),
        tracker=briefing.tracker,
        device=briefing.device,
        processes=briefing.processes,
        initialize=briefing.initialize,
    )
    try:
        while True:
            connection.send(attempt(connection.recv(), desk))
    except (EOFError, KeyboardInterrupt):
        return


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        # Without its parent a worker would hold claims that nobody waits for.
        os._exit(1)
