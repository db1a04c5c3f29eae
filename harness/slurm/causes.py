"""Causes: why a stage failed, by its own record or by what the scheduler says of its job."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.execution.attempt import MISSING_PARENT
from harness.execution.ranks import KILLED
from harness.slurm.client import Ended
from harness.slurm.worker import DRIFT, REQUEUES, UNWRITABLE_CODE, TimeUp


class Cause(StrEnum):
    """Why a stage failed."""

    HOST_MEMORY = "out of memory"
    GPU_MEMORY = "out of GPU memory"
    TIME_LIMIT = "time limit"
    NODE_FAILURE = "node failure"
    PREEMPTION = "preempted"
    CANCELLED = "cancelled"
    CODE_ERROR = "code error"
    UNWRITABLE = "store not writable"
    MISSING_PARENT = MISSING_PARENT
    KILLED = KILLED
    REQUEUES = REQUEUES
    DRIFT = DRIFT
    NO_MANIFEST = "ended without a result"


_OF_SLURM = {
    "OUT_OF_MEMORY": (Cause.HOST_MEMORY, "Slurm ended the job: it used more memory than it asked for."),
    "TIMEOUT": (Cause.TIME_LIMIT, "Slurm ended the job at its time limit."),
    "DEADLINE": (Cause.TIME_LIMIT, "Slurm ended the job at its deadline."),
    "NODE_FAIL": (Cause.NODE_FAILURE, "The node died."),
    "BOOT_FAIL": (Cause.NODE_FAILURE, "The node did not come up."),
    "PREEMPTED": (Cause.PREEMPTION, "A job of higher priority took the node."),
    "CANCELLED": (Cause.CANCELLED, "The job was cancelled."),
    "COMPLETED": (Cause.NO_MANIFEST, "Slurm calls the job completed, but it left no artifact."),
}
_OF_ERRORS = {
    "OutOfMemoryError": Cause.GPU_MEMORY,
    "MemoryError": Cause.HOST_MEMORY,
    TimeUp.__name__: Cause.TIME_LIMIT,
}
_KILL = 9
_NO_LOG = 53
"""The "signal" of a job whose output Slurm could not open: the folder is read-only, full or gone."""
_TAIL = 4000


def cause_of(attempt: Mapping[str, Any]) -> str:
    """Return the cause that a failed attempt's record tells: a ``Cause``, or an error that the user can mend."""
    name = str(attempt.get("cause", ""))
    if name in _OF_ERRORS:
        return _OF_ERRORS[name]
    return Cause.CODE_ERROR if attempt.get("traceback") else name


def cause_of_end(ended: Ended, log: Path) -> tuple[Cause, str]:
    """Return why a job ended that left no word of its own, and that in words.

    Args:
        ended: how the accounting remembers it.
        log: what it printed.
    """
    if ended.state == "FAILED" and _KILL in (ended.signal, ended.exit_code, ended.exit_code - 128):
        return _OF_SLURM["OUT_OF_MEMORY"] if _memory_in(log) else (Cause.KILLED, "The process was killed (signal 9).")
    if ended.state == "FAILED" and (ended.exit_code == UNWRITABLE_CODE or ended.signal == _NO_LOG):
        where = "output" if ended.signal == _NO_LOG else "record of the attempt"
        why = f"The disk or quota was full, or the store read-only or gone: not even the {where} could be written."
        return Cause.UNWRITABLE, f"{why} Make room, then `harness retry`; nothing stored is harmed."
    return _OF_SLURM.get(ended.state, (Cause.CODE_ERROR, "The job failed before the stage could say why."))


def _memory_in(log: Path) -> bool:
    """Say whether Slurm noted in a job's output that it ended it for its memory: its state does not tell everywhere."""
    try:
        tail = log.read_text("utf-8", errors="replace")[-_TAIL:]
    except OSError:
        return False
    return "memory limit" in tail or "oom" in tail.lower()
