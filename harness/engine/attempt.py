"""The attempt boundary: run one stage under a claim, and turn whatever happens into a record.

The only place of the house where any exception is caught.
"""

import logging
import os
import platform
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.engine.claim import Claim, Claims
from harness.engine.files import is_full, writing
from harness.engine.provenance import Stopwatch, source_digest
from harness.engine.stage import Stage, StageContext
from harness.engine.store import Store
from harness.errors import HarnessError, StoreError
from harness.tracking.tracker import TrackerSettings

log = logging.getLogger(__name__)
MISSING_PARENT = "missing parent"


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What one process runs stages with.

    Attributes:
        store: where artifacts are read and written.
        claims: the claims on the store's keys.
        tracker: opens the curve of each stage.
        device: a torch device string.
        memory: what consecutive stages of this process share.
        job: id of the scheduler's job that this process is; empty for none.
        stop: whether a stage should save its state and stop.
        shrink: by how much less memory a training should use at once.
    """

    store: Store
    claims: Claims
    tracker: TrackerSettings
    device: str = "cpu"
    memory: dict[str, Any] = field(default_factory=dict)
    job: str = ""
    stop: Callable[[], bool] = lambda: False
    shrink: int = 1


@dataclass(frozen=True, kw_only=True)
class Attempted:
    """How an attempt ended.

    Attributes:
        key: the stage's key.
        outcome: ``executed``; ``cached``, it was already in the store; ``busy``, somebody else holds the claim or took
            it over; ``failed``.
        seconds: wall time.
        cause: ``missing parent`` or the name of the error's class; empty unless failed.
        message: for the reader; empty unless failed.
        trace: the traceback of a bug; empty for a mistake that the user can mend.
    """

    key: str
    outcome: Literal["executed", "cached", "busy", "failed"]
    seconds: float = 0.0
    cause: str = ""
    message: str = ""
    trace: str = ""


def attempt(stage: Stage, desk: Desk) -> Attempted:
    """Run a stage unless it is stored or somebody else works on it.

    Raises:
        KeyboardInterrupt: the user asked to stop; this is recorded first.
    """
    try:
        claim = desk.claims.take(stage.key)
    except StoreError as error:
        return _failed(stage, 0.0, StoreError.__name__, str(error))
    if claim is None:
        return Attempted(key=stage.key, outcome="busy")
    with claim:
        # Somebody may have finished the stage between the caller's look at the store and the claim.
        if desk.store.has(stage):
            return Attempted(key=stage.key, outcome="cached")
        return _recorded(stage, claim, desk)


def _recorded(stage: Stage, claim: Claim, desk: Desk) -> Attempted:
    with ExitStack() as log_file:
        return _caught(stage, claim, desk, log_file)


def _caught(stage: Stage, claim: Claim, desk: Desk, log_file: ExitStack) -> Attempted:
    watch = Stopwatch()
    work = desk.store.work(stage.key)
    try:
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
        log_file.enter_context(_logged(work / "log.txt"))
        held = _run(stage, claim, desk, watch)
        result = Attempted(key=stage.key, outcome="executed" if held else "busy", seconds=watch.seconds)
    except KeyboardInterrupt:
        record(stage, desk, watch, {"outcome": "interrupted"})
        raise
    except _MissingParentError as error:
        result = _failed(stage, watch.seconds, MISSING_PARENT, str(error))
    except HarnessError as error:
        result = _failed(stage, watch.seconds, type(error).__name__, str(error))
    except Exception as error:
        if is_full(error):
            message = "The disk or quota is full. Free some space and run again; nothing stored is harmed."
            result = _failed(stage, watch.seconds, StoreError.__name__, message)
        else:
            message = f"{type(error).__name__}: {error}"
            result = _failed(stage, watch.seconds, type(error).__name__, message, traceback.format_exc())
    if result.outcome == "failed":
        # What consecutive stages share may be half changed.
        desk.memory.clear()
    ended = {"outcome": result.outcome, "cause": result.cause, "message": result.message, "traceback": result.trace}
    record(stage, desk, watch, ended)
    return result


class _MissingParentError(HarnessError):
    """A parent's artifact is not in the store."""


def _run(stage: Stage, claim: Claim, desk: Desk, watch: Stopwatch) -> bool:
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
    with closing(desk.tracker.open(key=stage.key, kind=stage.name, work=work)) as tracker:
        ctx = StageContext(
            out=out, work=work, locate=store.path, tracker=tracker, device=desk.device, memory=desk.memory
        )
        stage.run(ctx)
    if not claim.held():
        log.warning("%s %s: another process took the claim over; its result counts", stage.name, stage.key)
        shutil.rmtree(out, ignore_errors=True)
        return False
    store.commit(stage, out, facts=ctx.facts, provenance=watch.provenance(device=desk.device))
    log.info("%s %s: finished in %.1f s", stage.name, stage.key, watch.seconds)
    _clear(work)
    return True


def _clear(work: Path) -> None:
    """Remove checkpoints, which lie in subfolders; the log and the curve stay."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _failed(stage: Stage, seconds: float, cause: str, message: str, trace: str = "") -> Attempted:
    log.error("%s %s: %s", stage.name, stage.key, trace or message)
    return Attempted(key=stage.key, outcome="failed", seconds=seconds, cause=cause, message=message, trace=trace)


def record(stage: Stage, desk: Desk, watch: Stopwatch, ended: dict[str, Any]) -> None:
    """Note in the store how an attempt ended."""
    described = {
        "kind": stage.name,
        "started": watch.started,
        "seconds": watch.seconds,
        "host": platform.node(),
        "pid": os.getpid(),
        "code": source_digest(),
        **({"job": desk.job, "node": os.environ.get("SLURMD_NODENAME", "")} if desk.job else {}),
        **{name: text for name, text in ended.items() if text},
    }
    try:
        desk.store.record_attempt(stage.key, described)
    except StoreError as error:
        log.warning("the attempt of %s was not recorded: %s", stage.key, error)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Append what the house logs in the meantime to a file."""
    logger = logging.getLogger("harness")
    with writing(path):
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
