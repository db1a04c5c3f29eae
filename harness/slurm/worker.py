"""The worker: what a Slurm job runs on its node. Stages are rebuilt from their frozen specs in the store, by key."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from harness.engine.claim import Claims
from harness.engine.provenance import Stopwatch, source_digest
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import HarnessError, StoreError
from harness.execution.attempt import AttemptResult, WorkerContext, attempt, record
from harness.execution.ranks import Processes

log = logging.getLogger(__name__)
DRIFT = "code drift"
DRIFTED = (
    "The code of the harness has changed since this job was submitted. Check out the earlier code, or submit again; "
    "`cluster.allow_drift=true` lets jobs run with changed code."
)
REQUEUES = "requeue limit"
TIME_UP = (
    "Slurm ended the job, at its time limit or by preemption, and its requeue limit is reached (`cluster.requeues`). "
    "`harness retry` resumes from its checkpoint."
)
UNWRITABLE_CODE = os.EX_CANTCREAT
"""Exit code of a job that could not record why its stage failed, as the store is full or read-only."""


class TimeUp(HarnessError):
    """The job has to end and has reached its requeue limit."""


class JobFailed(HarnessError):
    """Stages of this job failed; fails the job, so that Slurm does not start jobs that depend on it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Runs chains of stages one after another. Pickled at submission.

    Attributes:
        root: the store's folder.
        allow: prefixes of the classes that a stored spec may name.
        lines: chains of stages, by key; a failed stage only stops the later stages of its chain that need it.
        tracker: opens the curve of each stage.
        prepare: called once in every process that runs stages, before its first stage.
        device: a torch device string.
        processes: number of processes per stage, by kind of stage.
        code: digest of the submitting code.
        allow_drift: whether the job may run with other code.
        umask: umask of the submitting process, so that a shared store stays shared.
        requeues: how often the job may be requeued.
        grace_seconds: how long a stage may run on after Slurm's signal, to reach a checkpoint.
        shrink: divisor of the micro-batch size, by key.
        poll_seconds: interval between checks of a stage that another process is running.
    """

    root: Path
    allow: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    tracker: TrackerSettings
    prepare: Callable[[], None]
    device: str = "cpu"
    processes: Mapping[str, Processes] = field(default_factory=dict)
    code: str
    allow_drift: bool = False
    umask: int = 0o022
    requeues: int = 3
    grace_seconds: float = 60.0
    shrink: Mapping[str, int] = field(default_factory=dict)
    poll_seconds: float = 2.0

    def __call__(self) -> None:
        """Run every chain; requeue the job and exit when Slurm signals that its time is up.

        Raises:
            JobFailed: a stage failed, or the job was not allowed to start.
            SystemExit: with ``UNWRITABLE_CODE`` if a stage failed and the attempt could not be recorded.
        """
        os.umask(self.umask)
        # Needed for the log files of stages; submitit configures no logging for the package.
        logging.getLogger("harness").setLevel(logging.INFO)
        store = Store(self.root, allow=self.allow)
        context = WorkerContext(
            store=store,
            claims=Claims(store.claims),
            tracker=self.tracker,
            device=self.device,
            job=job_id(),
            processes=self.processes,
            initialize=self.prepare,
        )
        if problem := self._start_problem():
            # Record it for the first missing stage of each chain; the others are blocked by it.
            missing = [
                next((stage for stage in map(store.stage, chain) if not store.has(stage)), None) for chain in self.lines
            ]
            for stage in filter(None, missing):
                record(stage, context, Stopwatch(), {"outcome": "failed", **problem})
            if any(missing):
                raise JobFailed(problem["message"])
            return
        # Without requeues left, the job is not requeued but records why it ended.
        requeue = signal.getsignal(signal.SIGUSR2) if _restarts() < self.requeues else None
        preemption = PreemptionHandler(requeue, self.grace_seconds)
        signal.signal(signal.SIGUSR2, preemption.handle)
        self.prepare()
        context = replace(context, stop=preemption.received)
        messages: dict[str, str] = {}
        for chain in self.lines:
            for result in self._run([store.stage(key) for key in chain], context):
                if result.outcome == "stopped" and requeue is None:
                    ended = {"outcome": "failed", "cause": TimeUp.__name__, "message": TIME_UP}
                    record(store.stage(result.key), context, Stopwatch(), ended)
                # A stage that ended within the grace time may have been the last one.
                if preemption.received() and self._left(store):
                    preemption.requeue()
                if result.outcome == "failed":
                    messages[result.key] = result.message
        preemption.ended()
        # Another process may have finished a stage that failed here: only missing artifacts count.
        if left := self._left(store):
            if any(key in messages and not _is_recorded(key, context) for key in left):
                sys.stderr.write("".join(f"{key}: {messages[key]}\n" for key in left if key in messages))
                sys.exit(UNWRITABLE_CODE)
            raise JobFailed("; ".join(f"{key}: {messages[key]}" for key in left if key in messages))

    def _run(self, chain: Sequence[Stage], context: WorkerContext) -> Iterator[AttemptResult]:
        failed: set[str] = set()
        for stage in chain:
            if any(other.key in failed and not context.store.has(other) for other in lineage(stage.parents)):
                failed.add(stage.key)
                continue
            result = self._attempt_when_free(stage, replace(context, shrink=self.shrink.get(stage.key, 1)))
            if result.outcome == "failed":
                failed.add(stage.key)
            yield result

    def _left(self, store: Store) -> list[str]:
        return [key for chain in self.lines for key in chain if not store.has(store.stage(key))]

    def _attempt_when_free(self, stage: Stage, context: WorkerContext) -> AttemptResult:
        """Attempt a stage; while another process is running it, wait and try again."""
        while (result := attempt(stage, context)).outcome == "busy":
            log.info("%s %s: another process is running it", stage.name, stage.key)
            time.sleep(self.poll_seconds)
        return result

    def _start_problem(self) -> dict[str, Any] | None:
        """Return why the job must not start, as fields of an attempt record; None if it may."""
        restarts = _restarts()
        if restarts > self.requeues:
            message = (
                f"The job was requeued {restarts} times; the limit is {self.requeues} (`cluster.requeues`). "
                "Increase its time limit (`cluster.resources`), then run `harness retry`."
            )
            return {"cause": REQUEUES, "message": message}
        if source_digest(self.allow) != self.code and not self.allow_drift:
            return {"cause": DRIFT, "message": DRIFTED}
        return None


class PreemptionHandler:
    """Handles SIGUSR2, Slurm's signal before it ends a job: waits for a checkpoint, then requeues the job.

    Args:
        requeue: submitit's signal handler, which requeues the job and exits; None if no requeue is left.
        grace_seconds: how long to wait for the checkpoint.
    """

    def __init__(self, requeue: Any, grace_seconds: float) -> None:
        """Start without a signal."""
        self._requeue = requeue
        self._grace_seconds = grace_seconds
        self._received = False

    def received(self) -> bool:
        """Return whether the signal was received, so that the running stage should stop."""
        return self._received

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal; a stage that does not stop within the grace time is interrupted."""
        del number, frame
        if not self._received:
            self._received = True
            signal.signal(signal.SIGALRM, lambda *_: self.requeue())
            signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)

    def ended(self) -> None:
        """Interrupt nothing any more."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def requeue(self) -> None:
        """Requeue the job and exit."""
        self.ended()
        if not callable(self._requeue):
            raise TimeUp(TIME_UP)
        self._requeue(signal.SIGUSR2, None)


def _is_recorded(key: str, context: WorkerContext) -> bool:
    """Return whether the last recorded attempt of a stage is a failure of this job."""
    try:
        attempts = context.store.attempts(key)
    except StoreError:
        return False
    return bool(attempts) and attempts[-1].get("job") == context.job and attempts[-1]["outcome"] == "failed"


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def job_id() -> str:
    """Return the id of the job of this process; empty outside of a job."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")
