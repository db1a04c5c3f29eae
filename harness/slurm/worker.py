"""The worker: what a job of a scheduler does on its node. Everything comes from the store: frozen specs, by key."""

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
    "The code of the harness is not the code that submitted this job. Check it out again, or submit anew; "
    "`cluster.allow_drift=true` lets jobs run with other code."
)
REQUEUES = "requeue limit"
TIME_UP = (
    "Slurm ended the job, at its time limit or for another job, and it may not start again (`cluster.requeues`). "
    "`harness retry` goes on from its checkpoint."
)


UNWRITABLE_CODE = os.EX_CANTCREAT
"""The exit code of a job that could not write why its stage failed: a full or read-only store leaves no other word."""


class TimeUp(HarnessError):
    """The job has to end, and may not start again."""


class JobFailed(HarnessError):
    """Stages of this job failed; the scheduler must hear of it, so that nothing that needs them starts."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Runs lines of stages, one after another. It is frozen at submission.

    Attributes:
        root: the store's folder.
        allow: prefixes of the classes that a stored spec may name.
        lines: keys of stages; a stage that fails stops those of its line that need it, and nothing else.
        tracker: opens the curve of each stage.
        prepare: called once, before the first stage, in every process that runs stages.
        device: a torch device string.
        processes: how many processes share a stage, by its kind.
        code: digest of the code that submitted the job.
        allow_drift: whether other code may run it.
        umask: of the process that submitted the job, so that a shared store stays shared.
        requeues: how often the job may be started again before it gives up.
        grace_seconds: how long a stage may go on after the warning that the job will end, to reach a checkpoint.
        shrink: by how much the rows that a stage takes at once are divided, by key.
        poll_seconds: how often to look at a stage on which another process works.
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
        """Run every line; ends the process, to be started again, when Slurm says that time is up.

        Raises:
            JobFailed: a stage failed, or the job was not allowed to begin.
            SystemExit: with ``UNWRITABLE_CODE``, a stage failed and the store does not take down why.
        """
        os.umask(self.umask)
        # For the logs of the stages; whoever starts this process has set up none.
        logging.getLogger("harness").setLevel(logging.INFO)
        store = Store(self.root, allow=self.allow)
        desk = WorkerContext(
            store=store,
            claims=Claims(store.claims),
            tracker=self.tracker,
            device=self.device,
            job=job_id(),
            processes=self.processes,
            initialize=self.prepare,
        )
        if refusal := self._refusal():
            # The rest of a line is blocked by the first that is left.
            missing = [
                next((stage for stage in map(store.stage, line) if not store.has(stage)), None) for line in self.lines
            ]
            for stage in filter(None, missing):
                record(stage, desk, Stopwatch(), {"outcome": "failed", **refusal})
            if any(missing):
                raise JobFailed(refusal["message"])
            return
        # Its last run is not put back into the queue: it says why it ends.
        again = signal.getsignal(signal.SIGUSR2) if _restarts() < self.requeues else None
        last_call = PreemptionHandler(again, self.grace_seconds)
        signal.signal(signal.SIGUSR2, last_call.heard)
        self.prepare()
        desk = replace(desk, stop=last_call.given)
        messages: dict[str, str] = {}
        for line in self.lines:
            for result in self._run([store.stage(key) for key in line], desk):
                if result.outcome == "stopped" and again is None:
                    why = {"outcome": "failed", "cause": TimeUp.__name__, "message": TIME_UP}
                    record(store.stage(result.key), desk, Stopwatch(), why)
                if last_call.given():
                    last_call.pass_on()
                if result.outcome == "failed":
                    messages[result.key] = result.message
        # What failed here may have been finished by another process: only what is missing counts.
        left = [key for line in self.lines for key in line if not store.has(store.stage(key))]
        if left:
            if any(key in messages and not _on_record(key, desk) for key in left):
                sys.stderr.write("".join(f"{key}: {messages[key]}\n" for key in left if key in messages))
                sys.exit(UNWRITABLE_CODE)
            raise JobFailed("; ".join(f"{key}: {messages[key]}" for key in left if key in messages))

    def _run(self, line: Sequence[Stage], desk: WorkerContext) -> Iterator[AttemptResult]:
        unmet: set[str] = set()
        for stage in line:
            if any(other.key in unmet and not desk.store.has(other) for other in lineage(stage.parents)):
                unmet.add(stage.key)
                continue
            result = self._settled(stage, replace(desk, shrink=self.shrink.get(stage.key, 1)))
            if result.outcome == "failed":
                unmet.add(stage.key)
            yield result

    def _settled(self, stage: Stage, desk: WorkerContext) -> AttemptResult:
        """Attempt a stage until nobody else works on it."""
        while (result := attempt(stage, desk)).outcome == "busy":
            log.info("%s %s: another process works on it", stage.name, stage.key)
            time.sleep(self.poll_seconds)
        return result

    def _refusal(self) -> dict[str, Any] | None:
        """Why the job may not begin."""
        restarts = _restarts()
        if restarts > self.requeues:
            message = (
                f"The job was started again {restarts} times; the limit is {self.requeues} (`cluster.requeues`). "
                "Give it more time (`cluster.resources`), then `harness retry`."
            )
            return {"cause": REQUEUES, "message": message}
        if source_digest(self.allow) != self.code and not self.allow_drift:
            return {"cause": DRIFT, "message": DRIFTED}
        return None


class PreemptionHandler:
    """What Slurm's warning, USR2, leads to: a checkpoint at the next step, and the job's return to the queue.

    Args:
        requeue: the handler of whoever started this job; it puts the job back and ends the process. Without one, time
            is up.
        grace_seconds: how long to wait for the checkpoint.
    """

    def __init__(self, requeue: Any, grace_seconds: float) -> None:
        """Nothing has been heard."""
        self._requeue = requeue
        self._grace_seconds = grace_seconds
        self._heard = False

    def given(self) -> bool:
        """Whether the stage at work shall stop."""
        return self._heard

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Take the signal; a stage that does not stop in time is left where it is."""
        del number, frame
        if not self._heard:
            self._heard = True
            signal.signal(signal.SIGALRM, lambda *_: self.pass_on())
            signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)

    def pass_on(self) -> None:
        """Put the job back into the queue and end the process."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not callable(self._requeue):
            raise TimeUp(TIME_UP)
        self._requeue(signal.SIGUSR2, None)


def _on_record(key: str, desk: WorkerContext) -> bool:
    """Say whether the last attempt that the store knows of a stage is this job's."""
    try:
        attempts = desk.store.attempts(key)
    except StoreError:
        return False
    return bool(attempts) and attempts[-1].get("job") == desk.job and attempts[-1]["outcome"] == "failed"


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def job_id() -> str:
    """Return the id of the job that this process is in; empty outside of one."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")
