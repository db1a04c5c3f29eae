"""Causes of failure: from the stage's attempt record, or from the scheduler's record of its job."""

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


_BY_SLURM_STATE = {
    "OUT_OF_MEMORY": (Cause.HOST_MEMORY, "Slurm killed the job: it used more memory than it requested."),
    "TIMEOUT": (Cause.TIME_LIMIT, "Slurm killed the job at its time limit."),
    "DEADLINE": (Cause.TIME_LIMIT, "Slurm killed the job at its deadline."),
    "NODE_FAIL": (Cause.NODE_FAILURE, "The node failed."),
    "BOOT_FAIL": (Cause.NODE_FAILURE, "The node failed to boot."),
    "PREEMPTED": (Cause.PREEMPTION, "The job was preempted by a job of higher priority."),
    "CANCELLED": (Cause.CANCELLED, "The job was cancelled."),
    "COMPLETED": (Cause.NO_MANIFEST, "Slurm reports the job as completed, but there is no artifact."),
}
_BY_ERROR = {
    "OutOfMemoryError": Cause.GPU_MEMORY,
    "MemoryError": Cause.HOST_MEMORY,
    TimeUp.__name__: Cause.TIME_LIMIT,
}
_SIGKILL = 9
_NO_LOG = 53
"""Slurm's signal number for a job whose output file could not be opened: read-only, full or missing folder."""
_TAIL_CHARS = 4000


def cause_of(attempt: Mapping[str, Any]) -> str:
    """Return the cause in the record of a failed attempt: a ``Cause``, or the class name of a user error."""
    name = str(attempt.get("cause", ""))
    if name in _BY_ERROR:
        return _BY_ERROR[name]
    return Cause.CODE_ERROR if attempt.get("traceback") else name


def cause_of_end(ended: Ended, log: Path) -> tuple[Cause, str]:
    """Return the cause and a message for a job that ended without recording an attempt.

    Args:
        ended: the job's accounting record.
        log: the job's output file.
    """
    if ended.state == "FAILED" and _SIGKILL in (ended.signal, ended.exit_code, ended.exit_code - 128):
        return (
            _BY_SLURM_STATE["OUT_OF_MEMORY"]
            if _mentions_memory(log)
            else (Cause.KILLED, "The process was killed (signal 9).")
        )
    if ended.state == "FAILED" and (ended.exit_code == UNWRITABLE_CODE or ended.signal == _NO_LOG):
        where = "output" if ended.signal == _NO_LOG else "record of the attempt"
        why = f"The {where} could not be written: the disk or quota was full, or the store was read-only or missing."
        return Cause.UNWRITABLE, f"{why} Free some space, then run `harness retry`; nothing stored is harmed."
    return _BY_SLURM_STATE.get(ended.state, (Cause.CODE_ERROR, "The job failed before the stage could record why."))


def _mentions_memory(log: Path) -> bool:
    """Return whether Slurm wrote an out-of-memory message to a job's output; not every site sets the state."""
    try:
        tail = log.read_text("utf-8", errors="replace")[-_TAIL_CHARS:]
    except OSError:
        return False
    return "memory limit" in tail or "oom" in tail.lower()
