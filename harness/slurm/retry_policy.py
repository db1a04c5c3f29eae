"""Retry: what to do differently with a stage that failed before, by the cause of its failure."""

from dataclasses import dataclass

from harness.engine.provenance import source_digest
from harness.engine.store import Store
from harness.engine.surroundings import WORK, surroundings
from harness.execution.state import StageStatus
from harness.slurm.causes import Cause, cause_of
from harness.slurm.job_log import JobEntry

SAME_ERRORS = 3
"""How often a stage may fail with one traceback before it is no longer submitted with the same code."""


@dataclass(frozen=True)
class RetryDecision:
    """How to submit a stage again.

    Attributes:
        refuse: why it should not be; empty if it may.
        shrink: by how much to divide the rows that it takes through the model at once.
        exclude: the node to keep it from; empty if any will do.
        tried: how many attempts of it are on record.
    """

    refuse: str = ""
    shrink: int = 1
    exclude: tuple[str, ...] = ()
    tried: int = 0


def retry_decision(state: StageStatus, key: str, store: Store, entry: JobEntry | None, *, on_oom: str) -> RetryDecision:
    """Return how to submit a stage again.

    Args:
        state: what became of it.
        key: its key.
        store: where its attempts are recorded.
        entry: the last job that was given it.
        on_oom: ``shrink`` halves the rows at once after an out-of-memory error, ``fail`` leaves it as it is.
    """
    if _stuck(key, store):
        return RetryDecision(
            refuse=f"failed {SAME_ERRORS} times with the same traceback, and since then nothing has changed: neither "
            f"the code, nor what the stage reads, nor `{store.work(key)}`. `harness logs {key}` shows the traceback. "
            "Fix the code, or remove that folder if a checkpoint in it is to blame, and it is submitted again; "
            f"`harness stage {key}` runs it here as it is."
        )
    shrink = entry.shrink.get(key, 1) if entry else 1
    if on_oom == "shrink" and state.cause in (Cause.HOST_MEMORY, Cause.GPU_MEMORY):
        shrink *= 2
    exclude = entry.excluded if entry else ()
    if state.cause == Cause.NODE_FAILURE and state.node:
        exclude = (*exclude, state.node)
    return RetryDecision(shrink=shrink, exclude=tuple(dict.fromkeys(exclude)), tried=len(store.attempts(key)))


def _stuck(key: str, store: Store) -> bool:
    """Whether the last attempts all ended in one traceback, and the next one would meet what the last one left.

    Memory is no matter of the code alone: the next attempt may be given more, or need less.
    """
    last = store.attempts(key)[-SAME_ERRORS:]
    causes = {cause_of(attempt) for attempt in last}
    traces = {attempt.get("traceback", "") for attempt in last}
    codes, here = {attempt.get("code", "") for attempt in last}, source_digest(store.allow)
    alike = len(last) == SAME_ERRORS and causes == {Cause.CODE_ERROR} and len(traces) == 1 and codes == {here}
    if not alike or (left := last[-1].get("left")) is None:
        return alike
    return bool(left == surroundings(store, key, left.keys() - {WORK}))
