"""States of stages: one vocabulary for status, events and attempts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

What = Literal["stored", "running", "pending", "held", "failed", "blocked", "lost", "unneeded"]


WHATS: tuple[What, ...] = ("stored", "running", "pending", "held", "failed", "blocked", "lost", "unneeded")


class Member(NamedTuple):
    """A stage of a sweep, as its record names it: the kind, and the keys of its parents."""

    kind: str
    parents: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class State:
    """What became of a stage.

    Attributes:
        kind: the stage's name.
        what: ``stored``; ``running``; ``pending``; ``held``, its job, or one that it needs, waits until somebody
            releases it; ``failed``; ``blocked``, an ancestor will not be stored; ``lost``, its job is gone without a
            word; ``unneeded``, it is not stored, and what was asked for is stored without it.
        cause: why, for a failed one: a ``Cause``, or the name of the error that its user can mend.
        message: for the reader.
        job: the last job that was given the stage; empty for a local one.
        node: where it ran.
        log: the file to look into.
        reason: why its job waits, in Slurm's words.
        submitted: when its job was submitted, UTC, for one that waits.
        held_by: the number of the job that has to be released; empty unless held.
    """

    kind: str
    what: What
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
