"""The attempt boundary: run one stage under a claim, and turn whatever happens into a record.

The only place of the house where any exception is caught.
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
from harness.engine.files import is_full, is_out_of_memory, refusal, writing
from harness.engine.provenance import Stopwatch, source_digest
from harness.engine.stage import Stage, StageContext, never
from harness.engine.store import Store
from harness.engine.surroundings import surroundings
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, HarnessError, Stopped, StoreError
from harness.execution.ranks import Processes, RankArgs, RankFailed, RankResult, processes_of, share
from harness.execution.state import AttemptState

log = logging.getLogger(__name__)
MISSING_PARENT = "missing parent"
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
LOG = "log.txt"
FULL = "The disk or quota is full. Free some space and run again; nothing stored is harmed."


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """What one process runs stages with.

    Attributes:
        store: where artifacts are read and written.
        claims: the claims on the store's keys.
        tracker: opens the curve of each stage.
        device: a torch device string.
        memory: what consecutive stages of this process share.
        job: id of the scheduler's job that this process is; empty for none.
        processes: how many processes share a stage and how many rows they take at once, by its kind; see
            ``processes_of``.
        initialize: called first in each process that shares a stage; picklable. This one is prepared by its owner.
        stop: whether a stage should save its state and stop; asked by the stages that can.
        shrink: by how much less memory a training should use at once: a power of two.
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
        outcome: the state in which it left the stage; ``stored`` if it already was, ``busy`` if another process holds
            the claim or took it over, ``stopped`` if the next attempt resumes.
        seconds: wall time.
        cause: ``missing parent``, ``killed`` (one of several processes), or the name of the error's class; empty unless
            failed.
        message: for the reader; empty unless failed or stopped.
        trace: the traceback of a bug; empty for a mistake that the user can mend.
    """

    key: str
    outcome: AttemptState
    seconds: float = 0.0
    cause: str = ""
    message: str = ""
    trace: str = ""


def attempt(stage: Stage, desk: WorkerContext) -> AttemptResult:
    """Run a stage unless it is stored or somebody else works on it.

    Raises:
        KeyboardInterrupt: the user asked to stop; this is recorded first.
    """
    try:
        claim = desk.claims.take(stage.key)
    except StoreError as error:
        log.error("%s %s: %s", stage.name, stage.key, error)
        return AttemptResult(key=stage.key, outcome="failed", cause=StoreError.__name__, message=str(error))
    if claim is None:
        return AttemptResult(key=stage.key, outcome="busy")
    with claim:
        # Somebody may have finished the stage between the caller's look at the store and the claim.
        if desk.store.has(stage):
            return AttemptResult(key=stage.key, outcome="stored")
        return _recorded(stage, claim, desk)


def _recorded(stage: Stage, claim: Claim, desk: WorkerContext) -> AttemptResult:
    with ExitStack() as log_file:
        return _caught(stage, claim, desk, log_file)


def _caught(stage: Stage, claim: Claim, desk: WorkerContext, log_file: ExitStack) -> AttemptResult:
    watch = Stopwatch()
    held = False

    def run() -> None:
        nonlocal held
        work = desk.store.work(stage.key)
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
        log_file.enter_context(logged(work / LOG))
        held = _run(stage, claim, desk, watch)

    try:
        result = settled(stage.key, watch, run)
    except KeyboardInterrupt:
        record(stage, desk, watch, {"outcome": "interrupted"})
        raise
    if result.trace and result.cause not in _OUT_OF_MEMORY and (refused := refusal(desk.store.root)):
        # Libraries that write by themselves have errors of many kinds for it.
        result = replace(result, cause=StoreError.__name__, message=f"{refused} ({result.message})", trace="")
    if result.outcome == "failed" and not claim.held():
        # Another process took the stage over and cleared up before it began: what failed here is no news of the stage.
        log.warning("%s %s: another process took the claim over: %s", stage.name, stage.key, result.message)
        result = replace(result, outcome="busy", cause="", message="", trace="")
    if result.outcome in ("stopped", "failed"):
        level = logging.INFO if result.outcome == "stopped" else logging.ERROR
        log.log(level, "%s %s: %s", stage.name, stage.key, result.trace or result.message)
    elif not held:
        result = replace(result, outcome="busy")
    if result.outcome != "executed":
        # What consecutive stages share may be half changed.
        desk.memory.clear()
    ended = {"outcome": result.outcome, "cause": result.cause, "message": result.message, "traceback": result.trace}
    record(stage, desk, watch, ended)
    return result


def settled(key: str, watch: Stopwatch, run: Callable[[], None]) -> AttemptResult:
    """Run something for a stage and say how it ended, whatever happens."""
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


def _run(stage: Stage, claim: Claim, desk: WorkerContext, watch: Stopwatch) -> bool:
    """Run and commit; False if the claim was lost on the way, so that nothing was committed."""
    store = desk.store
    if absent := [parent for parent in stage.parents if not store.has(parent)]:
        listed = ", ".join(f"{parent.name} `{parent.key}`" for parent in absent)
        raise _MissingParentError(f"{stage.name} `{stage.key}` reads {listed}, not in the store. Run the whole plan.")
    store.discard_incomplete(stage)
    work = store.work(stage.key)
    # Its own folder for each claim: a holder that was superseded without noticing writes beside, not between.
    out = work / f"out-{claim.token[:12]}"
    with writing(work):
        for left in work.glob("out-*"):
            shutil.rmtree(left)
        out.mkdir()
    store.write_spec(stage, out)
    log.info("%s %s: started", stage.name, stage.key)
    processes = processes_of(stage, desk.processes)
    if processes.total > 1:
        done = _shared(stage, desk, processes, work=work, out=out)
    else:
        done = _alone(stage, desk, processes, work=work, out=out)
    if not claim.held():
        log.warning("%s %s: another process took the claim over; its result counts", stage.name, stage.key)
        shutil.rmtree(out, ignore_errors=True)
        return False
    provenance = {**watch.provenance(device=desk.device), **processes.provenance(), **done.peaks}
    store.commit(stage, out, facts=done.facts, provenance=provenance)
    log.info("%s %s: finished in %.1f s", stage.name, stage.key, watch.seconds)
    _clear(work)
    return True


def _alone(stage: Stage, desk: WorkerContext, processes: Processes, *, work: Path, out: Path) -> RankResult:
    with closing(desk.tracker.open(key=stage.key, kind=stage.name, work=work)) as tracker:
        ctx = StageContext(
            out=out,
            work=work,
            locate=desk.store.path,
            tracker=tracker,
            device=desk.device,
            memory=desk.memory,
            stop=desk.stop,
            micro_batch_size=processes.micro_batch_size,
            shrink=desk.shrink,
        )
        stage.run(ctx)
    return RankResult(ctx.facts, {})


def _shared(stage: Stage, desk: WorkerContext, processes: Processes, *, work: Path, out: Path) -> RankResult:
    if problems := processes.problems():
        raise ConfigError([f"resources of {stage.name}: {problem}" for problem in problems])
    # What this process keeps for its next stage would take the place of what the ranks load.
    desk.memory.clear()
    gpu.release()
    desk.store.register([stage])
    orders = RankArgs(
        key=stage.key,
        root=desk.store.root,
        allow=desk.store.allow,
        tracker=desk.tracker,
        initialize=desk.initialize,
        device=desk.device,
        out=out,
        work=work,
        folder=work / "ranks",
        sharding=processes.sharding,
        micro_batch_size=processes.micro_batch_size,
        shrink=desk.shrink,
    )
    return share(orders, processes, desk.stop)


def _clear(work: Path) -> None:
    """Remove checkpoints, which lie in subfolders; the log and the curve stay."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def record(stage: Stage, desk: WorkerContext, watch: Stopwatch, ended: dict[str, Any]) -> None:
    """Note in the store how an attempt ended."""
    described = {
        "kind": stage.name,
        "started": watch.started,
        "seconds": watch.seconds,
        "host": platform.node(),
        "pid": os.getpid(),
        "code": source_digest(desk.store.allow),
        **({"job": desk.job, "node": os.environ.get("SLURMD_NODENAME", "")} if desk.job else {}),
        **{name: text for name, text in ended.items() if text},
    }
    if ended.get("traceback"):
        described["left"] = surroundings(desk.store, stage.key, [parent.key for parent in stage.parents])
    try:
        desk.store.record_attempt(stage.key, described)
    except StoreError as error:
        log.warning("the attempt of %s was not recorded: %s", stage.key, error)


class _LogFile(logging.FileHandler):
    """A log that a full disk may cut: whether the stage can go on is found out where it writes its results."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is the library's)
        """Say nothing of a disk that refuses; a log call that is wrong keeps its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, be it that its last lines cannot be written."""
        with suppress(OSError):
            super().close()


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what the house logs in the meantime to a file.

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
