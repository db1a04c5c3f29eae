"""Worker pools: run attempts on this machine, in this process or in spawned ones that keep loaded models."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import NamedTuple, NoReturn, Protocol

from harness.engine import gpu
from harness.engine.claim import Claims
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import StoreError
from harness.execution.attempt import AttemptResult, WorkerContext, attempt
from harness.execution.ranks import KILLED, Processes, processes_of
from harness.local.gpus import VISIBLE
from harness.local.ready_queue import base_of

GRACE_SECONDS = 20.0
"""Time for an interrupted worker to record its attempt before it is killed. Killing it loses only that record."""


class WorkerPool(Protocol):
    """Runs one attempt at a time on each of its workers, which are numbered from 0."""

    @property
    def bases(self) -> Mapping[int, str]:
        """The key of the base that each worker holds or is about to load, by its number; an empty text for none."""
        ...

    @property
    def idle(self) -> Sequence[int]:
        """The workers that can run a stage."""
        ...

    def begin(self, stage: Stage, worker: int) -> None:
        """Start an attempt on an idle worker."""
        ...

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Wait for at least one attempt to end and return all that ended; an empty list after ``timeout`` seconds."""
        ...

    def stop(self) -> None:
        """Interrupt running attempts and shut the workers down."""
        ...


class InProcess:
    """Runs attempts synchronously in this process: an attempt has ended when ``begin`` returns."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._base = ""
        self._ended: list[AttemptResult] = []

    @property
    def bases(self) -> Mapping[int, str]:
        """The base that this process holds."""
        return {0: self._base}

    @property
    def idle(self) -> Sequence[int]:
        """This process, once its last result was fetched."""
        return () if self._ended else (0,)

    def begin(self, stage: Stage, worker: int) -> None:
        """Run the attempt; KeyboardInterrupt propagates."""
        del worker
        result = attempt(stage, self._context)
        self._base = _base_after(result, stage, self._base, self._context.processes)
        self._ended.append(result)

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Return the result of the last attempt, without waiting."""
        del timeout
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Do nothing: no attempt runs between calls."""


def _base_after(result: AttemptResult, stage: Stage, before: str, processes: Mapping[str, Processes]) -> str:
    """Return the base that a process still holds after an attempt."""
    if result.outcome in ("stored", "busy"):
        return before
    if result.outcome != "executed" or processes_of(stage, processes).total > 1:
        # An attempt that failed, or that left the work to several ranks, drops what was loaded.
        return ""
    return base_of(stage) or before


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


class _Process(NamedTuple):
    process: SpawnProcess
    connection: Connection


@dataclass
class _Worker:
    gpus: str | None
    running: _Process | None = None
    stage: Stage | None = None
    base: str = ""


class ProcessPool:
    """Workers in spawned processes. If one dies, the stage it was running fails and a new process takes its place.

    Args:
        gpus: the value of ``CUDA_VISIBLE_DEVICES`` in the process of each worker; None leaves it as it is here.
        config: what every worker is given.
    """

    def __init__(self, gpus: Sequence[str | None], config: WorkerConfig) -> None:
        self._config = config
        self._workers = [_Worker(visible) for visible in gpus]

    @property
    def bases(self) -> Mapping[int, str]:
        """What each worker holds, or loads for the stage that it runs."""
        return {
            number: (base_of(worker.stage) if worker.stage else "") or worker.base
            for number, worker in enumerate(self._workers)
        }

    @property
    def idle(self) -> Sequence[int]:
        """Workers without a stage, those that have a process before those that need one."""
        free = [number for number, worker in enumerate(self._workers) if worker.stage is None]
        return sorted(free, key=lambda number: self._workers[number].running is None)

    def begin(self, stage: Stage, worker: int) -> None:
        """Send the key of the stage to the worker, which reads its spec; spawn its process if there is none."""
        chosen = self._workers[worker]
        chosen.stage = stage
        if chosen.running is not None:
            try:
                chosen.running.connection.send(stage.key)
            except OSError:
                # It died while idle: a model may still be loaded in it, so it can run out of memory.
                chosen.running.connection.close()
                chosen.running.process.join()
                chosen.base = ""
            else:
                return
        chosen.running = self._spawn(chosen.gpus)
        chosen.running.connection.send(stage.key)

    def ended(self, timeout: float | None) -> list[AttemptResult]:
        """Wait for results of the workers."""
        busy: dict[object, _Worker] = {
            each.running.connection: each for each in self._workers if each.running and each.stage
        }
        return [self._result(busy[connection]) for connection in wait([*busy], timeout)]  # type: ignore[list-item]

    def stop(self) -> None:
        """Ask every worker to stop; kill those that are still alive after ``GRACE_SECONDS``."""
        started = [(worker.running, worker.stage) for worker in self._workers if worker.running is not None]
        for running, stage in started:
            # Closing the connection ends an idle worker; the signal interrupts the attempt of a busy one.
            running.connection.close()
            if stage is not None:
                running.process.terminate()
        for running, _ in started:
            running.process.join(GRACE_SECONDS)
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
        self._workers.clear()

    def _spawn(self, gpus: str | None) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        sharing = sum(worker.gpus == gpus for worker in self._workers)
        process = context.Process(target=_worker_main, args=(theirs, gpus, sharing, self._config), daemon=False)
        process.start()
        # Close the worker's end here: otherwise its death would not close the pipe.
        theirs.close()
        return _Process(process, ours)

    def _result(self, worker: _Worker) -> AttemptResult:
        stage, worker.stage = worker.stage, None
        assert stage is not None
        assert worker.running is not None
        try:
            result: AttemptResult = worker.running.connection.recv()
        except (EOFError, ConnectionResetError):
            process, worker.running = worker.running.process, None
            process.join()
            message = (
                f"The worker process died (exit code {process.exitcode}). "
                f"If the machine ran out of memory, run with fewer workers."
            )
            result = AttemptResult(key=stage.key, outcome="failed", cause=KILLED, message=message)
        worker.base = _base_after(result, stage, worker.base, self._config.processes)
        return result


def _worker_main(connection: Connection, gpus: str | None, sharing: int, config: WorkerConfig) -> None:
    # Before anything imports torch.
    if gpus is not None:
        os.environ[VISIBLE] = gpus
    gpu.set_workers(sharing)
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
            connection.send(_attempt(connection.recv(), context))
    except (EOFError, KeyboardInterrupt):
        return


def _attempt(key: str, context: WorkerContext) -> AttemptResult:
    """Run a stage by its key: a chain of hundreds of stages is deeper than what can be pickled."""
    try:
        stage = context.store.stage(key)
    except StoreError as error:
        return AttemptResult(key=key, outcome="failed", cause=StoreError.__name__, message=str(error))
    return attempt(stage, context)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        # An orphaned worker would keep its claims and block other runs.
        os._exit(1)
