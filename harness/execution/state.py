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

``stored``: its artifact is in the store. ``executed``: stored by this run. ``running``. ``pending``: not started, or
submitted to a scheduler. ``busy``: another process is running it. ``held``: its job, or one that it depends on, is held
until released. ``stopped``: stopped on request, resumable. ``interrupted``: ended by Ctrl-C. ``failed``. ``blocked``:
an ancestor will not be stored. ``lost``: its job disappeared without a record. ``unneeded``: not stored, but all
requested stages are stored without it.
"""
SweepState = Literal["stored", "running", "pending", "held", "failed", "blocked", "lost", "unneeded"]
"""States of a sweep's stages, as printed by ``harness status``."""
EventState = Literal["stored", "executed", "running", "pending", "busy", "failed", "blocked"]
"""States that an executor reports while it runs a plan."""
AttemptState = Literal["stored", "executed", "busy", "stopped", "failed"]
"""How one attempt of a stage ended. The store records it, and ``interrupted``, as ``outcome``."""
SWEEP_STATES: tuple[SweepState, ...] = get_args(SweepState)


class Member(NamedTuple):
    """A stage in a sweep's record: its kind, and the keys of its parents."""

    kind: str
    parents: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """The state of a stage and its reason.

    Attributes:
        kind: the stage's name.
        what: its state.
        cause: of a failed stage: a ``Cause``, or the class name of a user error.
        message: explanation of the state.
        job: id of its latest job; empty for a local run.
        node: node that it ran on.
        log: path of its log file.
        reason: Slurm's reason why its job is pending.
        submitted: time of submission of a pending job, UTC.
        held_by: id of the job to release; empty unless held.
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
    """Return the stages in a sweep's record, parents before children."""
    return {key: Member(stage["kind"], stage["parents"]) for key, stage in record["stages"].items()}
