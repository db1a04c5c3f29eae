"""Retry policy: how to resubmit a failed stage, depending on the cause of its failure."""

from dataclasses import dataclass

from harness.engine.fingerprint import WORK, fingerprints
from harness.engine.provenance import source_digest
from harness.engine.store import Store
from harness.execution.state import StageStatus
from harness.slurm.causes import Cause, cause_of
from harness.slurm.job_log import JobEntry

SAME_ERRORS = 3
"""Failures with the same traceback after which a stage is not resubmitted with the same code."""


@dataclass(frozen=True)
class RetryDecision:
    """How to resubmit a stage.

    Attributes:
        refuse: why it must not be resubmitted; empty if it may.
        shrink: divisor of its micro-batch size.
        exclude: nodes that must not run it.
        tried: number of its recorded attempts.
    """

    refuse: str = ""
    shrink: int = 1
    exclude: tuple[str, ...] = ()
    tried: int = 0


def retry_decision(state: StageStatus, key: str, store: Store, entry: JobEntry | None, *, on_oom: str) -> RetryDecision:
    """Return how to resubmit a stage.

    Args:
        state: the state of the stage.
        key: the stage's key.
        store: the store with its attempt records.
        entry: its latest job.
        on_oom: after an out-of-memory error, ``shrink`` halves the micro-batch size, ``fail`` keeps it.
    """
    if _fails_repeatedly(key, store):
        return RetryDecision(
            refuse=f"failed {SAME_ERRORS} times with the same traceback, and neither the code, nor its inputs, nor "
            f"`{store.work(key)}` have changed since. `harness logs {key}` shows the traceback. Fix the code, or "
            "remove that folder if a checkpoint in it causes the error; then the stage is resubmitted. "
            f"`harness stage {key}` runs it on this machine without a change."
        )
    shrink = entry.shrink.get(key, 1) if entry else 1
    if on_oom == "shrink" and state.cause in (Cause.HOST_MEMORY, Cause.GPU_MEMORY):
        shrink *= 2
    exclude = entry.excluded if entry else ()
    if state.cause == Cause.NODE_FAILURE and state.node:
        exclude = (*exclude, state.node)
    return RetryDecision(shrink=shrink, exclude=tuple(dict.fromkeys(exclude)), tried=len(store.attempts(key)))


def _fails_repeatedly(key: str, store: Store) -> bool:
    """Return whether the last attempts failed with the same traceback and neither code nor inputs have changed since.

    Out-of-memory errors do not count: the next attempt may get more memory, or use less.
    """
    attempts = store.attempts(key)[-SAME_ERRORS:]
    causes = {cause_of(attempt) for attempt in attempts}
    traces = {attempt.get("traceback", "") for attempt in attempts}
    codes, current = {attempt.get("code", "") for attempt in attempts}, source_digest(store.allow)
    same = len(attempts) == SAME_ERRORS and causes == {Cause.CODE_ERROR} and len(traces) == 1 and codes == {current}
    if not same or (recorded := attempts[-1].get("left")) is None:
        return same
    return bool(recorded == fingerprints(store, key, recorded.keys() - {WORK}))
