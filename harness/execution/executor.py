"""The executor: where a plan runs. What every executor tells its caller, while it runs and at the end."""

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
    """Something that happened to a stage.

    Attributes:
        what: the state that the stage is in from now on.
        stage: the stage.
        done: how many of the plan's stages are settled: neither to be run nor running.
        total: how many stages the plan has.
        seconds: wall time of a finished attempt.
        message: why it failed, which key blocks it, or which job was given it.
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
        cause: ``missing parent``, ``killed``, or the name of the error's class.
        message: for the reader.
        trace: the traceback of a bug; empty for a mistake that the user can mend.
    """

    kind: str
    cause: str
    message: str
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a plan.

    Attributes:
        executed: keys of the stages that this run finished.
        stored: keys of the stages that were in the store, or that another process finished meanwhile.
        failed: why, by key.
        blocked: the failed key that is in the way, by the key of the stage that did not run.
        submitted: the job that was given each stage, by key, where a scheduler runs the plan when the harness has left.
        found: how many of those stages had a job before.
        calls: how often the scheduler was called.
        left: how many stages a job will submit later, because the scheduler's queue may not hold more.
        scripts: where a dry run wrote what it would have submitted.
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
        """Whether everything that was asked for is in the store, or will be as far as one can tell."""
        return not self.failed and not self.blocked

    @property
    def deferred(self) -> bool:
        """Whether a scheduler runs what is left."""
        return bool(self.submitted) or self.left > 0

    def hopeless(self, key: str) -> bool:
        """Whether a stage failed or is blocked by one that did."""
        return key in self.failed or key in self.blocked


def unheard(event: Event) -> None:
    """Tell nobody what happened."""
    del event


class Executor(Protocol):
    """Where a plan runs."""

    def run(self, plan: Plan, store: Store) -> Outcome:
        """Run the stages of a plan that are not in the store.

        Raises:
            StoreError: the store cannot be written.
            Interrupted: the user asked to stop; what was finished is stored.
        """
        ...
