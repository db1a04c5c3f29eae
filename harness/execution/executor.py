"""The executor protocol: runs a plan, reports events while it runs, and returns the outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.engine.plan import Plan
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.execution.state import EventState


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of a stage's state.

    Attributes:
        what: the new state of the stage.
        stage: the stage.
        done: number of settled stages of the plan: neither running nor still to be run.
        total: number of stages of the plan.
        seconds: wall time of a finished attempt.
        message: why it failed, which key blocks it, or the id of its job.
    """

    what: EventState
    stage: Stage
    done: int
    total: int
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a stage failed.

    Attributes:
        kind: the stage's name.
        cause: ``missing parent``, ``killed``, or the class name of the exception.
        message: error message.
        trace: traceback of a bug; empty for a user error.
    """

    kind: str
    cause: str
    message: str
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of running or submitting a plan.

    Attributes:
        executed: keys of the stages that this run finished.
        stored: keys of the stages that were in the store, or that another process finished meanwhile.
        failed: why stages failed, by key.
        blocked: the failed ancestor, by key of the stage that did not run.
        submitted: id of each stage's job, by key, if a scheduler runs the plan asynchronously.
        found: number of those stages that already had a job.
        calls: number of calls of the scheduler.
        left: number of stages left to a deferred submission, because of a limit on queued jobs.
        scripts: folder of the scripts of a dry run.
    """

    executed: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    failed: Mapping[str, Failure] = field(default_factory=dict)
    blocked: Mapping[str, str] = field(default_factory=dict)
    submitted: Mapping[str, str] = field(default_factory=dict)
    found: int = 0
    calls: int = 0
    left: int = 0
    scripts: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether no stage failed or is blocked: all leaves are stored or are expected to be."""
        return not self.failed and not self.blocked

    @property
    def deferred(self) -> bool:
        """Whether a scheduler runs the remaining stages."""
        return bool(self.submitted) or self.left > 0

    def hopeless(self, key: str) -> bool:
        """Return whether a stage failed or is blocked by one that did."""
        return key in self.failed or key in self.blocked


def ignore_event(event: Event) -> None:
    """Ignore an event."""
    del event


class Executor(Protocol):
    """Runs plans."""

    def run(self, plan: Plan, store: Store) -> Outcome:
        """Run the stages of a plan that are not in the store.

        Raises:
            StoreError: the store cannot be written.
            Interrupted: the user asked to stop; what was finished is stored.
        """
        ...
