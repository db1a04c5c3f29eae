"""States of stages: one vocabulary for status, events and attempts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

StageState = Literal[
    "stored",
    "executed",
    "running",
    "pending",
    "busy",
    "held",
    "stopped",
    "interrupted",
    "failed",
    "blocked",
    "lost",
    "unneeded",
]
"""Every state that a stage can be in.

``stored``: its artifact is in the store. ``executed``: stored, by this run. ``running``. ``pending``: not started, or
given to a scheduler. ``busy``: another process works on it. ``held``: its job, or one that it needs, waits until
somebody releases it. ``stopped``: asked to stop, and resumable. ``interrupted``: ended by Ctrl-C. ``failed``.
``blocked``: an ancestor will not be stored. ``lost``: its job is gone without a record. ``unneeded``: not stored, and
everything that was asked for is stored without it.
"""
SweepState = Literal["stored", "running", "pending", "held", "failed", "blocked", "lost", "unneeded"]
"""Where a stage of a sweep stands: what ``harness status`` prints."""
EventState = Literal["stored", "executed", "running", "pending", "busy", "failed", "blocked"]
"""What an executor reports while it runs a plan."""
AttemptState = Literal["stored", "executed", "busy", "stopped", "failed"]
"""How one attempt of a stage ended. The store records it, and ``interrupted``, as ``outcome``."""
SWEEP_STATES: tuple[SweepState, ...] = get_args(SweepState)


class Member(NamedTuple):
    """A stage of a sweep, as its record names it: the kind, and the keys of its parents."""

    kind: str
    parents: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """Where a stage stands, and why.

    Attributes:
        kind: the stage's name.
        what: its state.
        cause: why, for a failed one: a ``Cause``, or the name of the error that its user can fix.
        message: for the reader.
        job: the last job that was given the stage; empty for a local one.
        node: where it ran.
        log: the file to look into.
        reason: why its job waits, in Slurm's words.
        submitted: when its job was submitted, UTC, for one that waits.
        held_by: the number of the job that has to be released; empty unless held.
    """

    kind: str
    what: SweepState
    cause: str = ""
    message: str = ""
    job: str = ""
    node: str = ""
    log: str = ""
    reason: str = ""
    submitted: str = ""
    held_by: str = ""


def members_of(record: Mapping[str, Any]) -> dict[str, Member]:
    """Return the stages that a sweep's record names, parents before children."""
    return {key: Member(stage["kind"], stage["parents"]) for key, stage in record["stages"].items()}
