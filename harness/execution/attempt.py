"""The attempt boundary: runs one stage under a claim and records how it ended.

The only module at run time that catches every exception.
"""

import logging
import os
import platform
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.engine import gpu
from harness.engine.claim import Claim, Claims
from harness.engine.external import external_classes
from harness.engine.files import is_full, is_out_of_memory, write_problem, writing
from harness.engine.fingerprint import fingerprints
from harness.engine.provenance import Stopwatch, source_digest
from harness.engine.stage import Stage, StageContext, never
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, HarnessError, Stopped, StoreError
from harness.execution.ranks import Processes, RankArgs, RankFailed, RankResult, processes_of, run_ranks
from harness.execution.state import AttemptState

log = logging.getLogger(__name__)
MISSING_PARENT = "missing parent"
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
LOG = "log.txt"
FULL = "The disk or quota is full. Free some space and run again; nothing stored is harmed."


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """What a process needs to run stages.

    Attributes:
        store: where artifacts are read and written.
        claims: the claims on the store's keys.
        tracker: opens the curve of each stage.
        device: a torch device string.
        memory: objects that consecutive stages of this process reuse, such as a loaded base model.
        job: id of the scheduler job of this process; empty outside of one.
        processes: number of processes per stage and their micro-batch size, by kind of stage; see ``processes_of``.
        initialize: called first in each process that shares a stage; picklable. This one is prepared by its owner.
        stop: returns whether the running stage should save its state and stop; polled by stages that support it.
        shrink: power of two by which micro-batches are divided after an out-of-memory error.
    """

    store: Store
    claims: Claims
    tracker: TrackerSettings
    device: str = "cpu"
    memory: dict[str, Any] = field(default_factory=dict)
    job: str = ""
    processes: Mapping[str, Processes] = field(default_factory=dict)
    initialize: Callable[[], None] | None = None
    stop: Callable[[], bool] = never
    shrink: int = 1


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended.

    Attributes:
        key: the stage's key.
        outcome: state of the stage after the attempt; ``stored`` if it was in the store already, ``busy`` if another
            process holds the claim or took it over, ``stopped`` if the next attempt resumes it.
        seconds: wall time.
        cause: ``missing parent``, ``killed`` (one of several processes), or the class name of the exception; empty
            unless failed.
        message: error message; empty unless failed or stopped.
        trace: traceback of a bug; empty for a user error.
    """

    key: str
    outcome: AttemptState
    seconds: float = 0.0
    cause: str = ""
    message: str = ""
    trace: str = ""


def attempt(stage: Stage, context: WorkerContext) -> AttemptResult:
    """Run a stage unless it is stored or another process holds its claim.

    Raises:
        KeyboardInterrupt: the user interrupted the run; re-raised after the attempt is recorded.
    """
    try:
        claim = context.claims.take(stage.key)
    except StoreError as error:
        log.error("%s %s: %s", stage.name, stage.key, error)
        return AttemptResult(key=stage.key, outcome="failed", cause=StoreError.__name__, message=str(error))
    if claim is None:
        return AttemptResult(key=stage.key, outcome="busy")
    with claim:
        # Another process may have finished the stage after the caller checked the store.
        if context.store.has_now(stage):
            return AttemptResult(key=stage.key, outcome="stored")
        with ExitStack() as log_file:
            return _run_and_record(stage, claim, context, log_file)


def _run_and_record(stage: Stage, claim: Claim, context: WorkerContext, log_file: ExitStack) -> AttemptResult:
    watch = Stopwatch()
    held = False

    def run() -> None:
        nonlocal held
        work = context.store.work(stage.key)
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
        log_file.enter_context(log_to_file(work / LOG))
        held = _run_and_commit(stage, claim, context, watch)

    try:
        result = run_guarded(stage.key, watch, run)
    except KeyboardInterrupt:
        record(stage, context, watch, {"outcome": "interrupted"})
        raise
    if result.trace and result.cause not in _OUT_OF_MEMORY and (reason := write_problem(context.store.root)):
        # Libraries report a full or read-only disk with many exception classes.
        result = replace(result, cause=StoreError.__name__, message=f"{reason} ({result.message})", trace="")
    if result.outcome == "failed" and not claim.held():
        # Another process took the claim over and removed our files: this failure says nothing about the stage.
        log.warning("%s %s: another process took the claim over: %s", stage.name, stage.key, result.message)
        result = replace(result, outcome="busy", cause="", message="", trace="")
    if result.outcome in ("stopped", "failed"):
        level = logging.INFO if result.outcome == "stopped" else logging.ERROR
        log.log(level, "%s %s: %s", stage.name, stage.key, result.trace or result.message)
    elif not held:
        result = replace(result, outcome="busy")
    if result.outcome != "executed":
        # Reused objects may be in an inconsistent state.
        context.memory.clear()
    ended = {"outcome": result.outcome, "cause": result.cause, "message": result.message, "traceback": result.trace}
    record(stage, context, watch, ended)
    return result


def run_guarded(key: str, watch: Stopwatch, run: Callable[[], None]) -> AttemptResult:
    """Call ``run`` for a stage and turn any exception except ``KeyboardInterrupt`` into a result."""
    outcome: Literal["executed", "stopped", "failed"] = "failed"
    cause = message = trace = ""
    try:
        run()
        outcome = "executed"
    except Stopped as error:
        outcome, message = "stopped", str(error)
    except _MissingParentError as error:
        cause, message = MISSING_PARENT, str(error)
    except RankFailed as error:
        cause, message, trace = error.cause, str(error), error.trace
    except HarnessError as error:
        cause, message = type(error).__name__, str(error)
    except Exception as error:
        if is_full(error):
            cause, message = StoreError.__name__, f"{FULL} ({error})"
        else:
            cause = MemoryError.__name__ if is_out_of_memory(error) else type(error).__name__
            message, trace = f"{cause}: {error}", traceback.format_exc()
    return AttemptResult(key=key, outcome=outcome, seconds=watch.seconds, cause=cause, message=message, trace=trace)


class _MissingParentError(HarnessError):
    """A parent's artifact is not in the store."""


def _run_and_commit(stage: Stage, claim: Claim, context: WorkerContext, watch: Stopwatch) -> bool:
    """Run the stage and commit its artifact; return False, without committing, if the claim was lost meanwhile."""
    store = context.store
    if absent := [parent for parent in stage.parents if not store.has_now(parent)]:
        listed = ", ".join(f"{parent.name} `{parent.key}`" for parent in absent)
        raise _MissingParentError(f"{stage.name} `{stage.key}` needs {listed}, not in the store. Run the whole sweep.")
    store.discard_incomplete(stage)
    work = store.work(stage.key)
    # One output folder per claim: a process that lost its claim without noticing cannot corrupt the new holder's files.
    out = work / f"out-{claim.token[:12]}"
    with writing(work):
        for leftover in work.glob("out-*"):
            shutil.rmtree(leftover)
        out.mkdir()
    store.write_spec(stage, out)
    log.info("%s %s: started", stage.name, stage.key)
    # Before the stage runs: files that are edited meanwhile are not what it runs.
    code = {"classes": found} if (found := external_classes(stage)) else {}
    processes = processes_of(stage, context.processes)
    if processes.total > 1:
        done = _run_ranks(stage, context, processes, work=work, out=out)
    else:
        done = _run_in_process(stage, context, processes, work=work, out=out)
    if not claim.held():
        log.warning("%s %s: another process took the claim over; this result is discarded", stage.name, stage.key)
        shutil.rmtree(out, ignore_errors=True)
        return False
    provenance = {**watch.provenance(device=context.device), **processes.provenance(), **done.peaks, **code}
    store.commit(stage, out, facts=done.facts, provenance=provenance)
    log.info("%s %s: finished in %.1f s", stage.name, stage.key, watch.seconds)
    _remove_checkpoints(work)
    return True


def _run_in_process(stage: Stage, context: WorkerContext, processes: Processes, *, work: Path, out: Path) -> RankResult:
    with closing(context.tracker.open(key=stage.key, kind=stage.name, work=work)) as tracker:
        ctx = StageContext(
            out=out,
            work=work,
            locate=context.store.path,
            compiled=context.store.layout.compiled,
            replies=context.store.layout.replies,
            tracker=tracker,
            device=context.device,
            memory=context.memory,
            stop=context.stop,
            micro_batch_size=processes.micro_batch_size,
            shrink=context.shrink,
        )
        stage.run(ctx)
    return RankResult(ctx.facts, {})


def _run_ranks(stage: Stage, context: WorkerContext, processes: Processes, *, work: Path, out: Path) -> RankResult:
    if problems := processes.problems():
        raise ConfigError([f"resources of {stage.name}: {problem}" for problem in problems])
    # Free the memory that this process keeps for its next stage: the ranks need it.
    context.memory.clear()
    gpu.release()
    context.store.register([stage])
    args = RankArgs(
        key=stage.key,
        root=context.store.root,
        allow=context.store.allow,
        tracker=context.tracker,
        initialize=context.initialize,
        device=context.device,
        out=out,
        work=work,
        folder=work / "ranks",
        sharding=processes.sharding,
        micro_batch_size=processes.micro_batch_size,
        shrink=context.shrink,
    )
    return run_ranks(args, processes, context.stop)


def _remove_checkpoints(work: Path) -> None:
    """Remove the checkpoints, which are subfolders; keep the log and the curve."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def record(stage: Stage, context: WorkerContext, watch: Stopwatch, ended: dict[str, Any]) -> None:
    """Append the outcome of an attempt to the stage's record in the store."""
    described = {
        "kind": stage.name,
        "started": watch.started,
        "seconds": watch.seconds,
        "host": platform.node(),
        "pid": os.getpid(),
        "code": source_digest(context.store.allow),
        **({"job": context.job, "node": os.environ.get("SLURMD_NODENAME", "")} if context.job else {}),
        **{name: text for name, text in ended.items() if text},
    }
    if ended.get("traceback"):
        described["left"] = fingerprints(context.store, stage.key, [parent.key for parent in stage.parents])
    try:
        context.store.record_attempt(stage.key, described)
    except StoreError as error:
        log.warning("the attempt of %s was not recorded: %s", stage.key, error)


class _LogFile(logging.FileHandler):
    """A log file whose write errors are ignored: a full disk fails the stage only when it writes its results."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is the library's)
        """Ignore file system errors; a faulty log call still prints its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, even if its last lines cannot be flushed."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append what the package logs within the context to a file.

    Raises:
        StoreError: the file cannot be opened.
    """
    logger = logging.getLogger("harness")
    with writing(path):
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
