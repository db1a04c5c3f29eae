"""Retry a sweep: resubmit the stages that are not stored, according to their causes of failure."""

from collections.abc import Iterator, Mapping

from harness.engine.plan import Plan
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.errors import DamagedArtifact, StagesFailed
from harness.slurm.job_log import JobLog
from harness.slurm.lock import submission_lock
from harness.sweep.record import execution_settings_of, plan_of, read_record, store_of
from harness.sweep.reporter import Reporter, SweepPlan
from harness.sweep.run import execute


def retry(root: Store, name: str | None, changes: Mapping[str, object], reporter: Reporter) -> None:
    """Resubmit the stages that are not stored, according to their causes of failure; move damaged artifacts aside.

    Args:
        root: the store.
        name: id of the sweep, or a prefix of it; None is the latest.
        changes: settings of the cluster or the tracker to override, by dotted name.
        reporter: receives the progress.

    Raises:
        StoreError: there is no such sweep, or its specs cannot be read.
        ConfigError: an override is invalid.
        StagesFailed: a stage failed again, or must not be retried.
    """
    record = read_record(root, name)
    # A retry does not wait for its jobs, even if the run did, unless `cluster.wait=true` is among the overrides.
    no_wait = {"cluster.wait": False} if "wait" in record["place"]["cluster"] else {}
    settings = execution_settings_of(record, {**no_wait, **changes})
    store = store_of(root, record)
    plan = plan_of(store, record)
    if settings.cluster.dry_run:
        for stage in _damaged(plan, store):
            reporter.note(f"the artifact of {stage.name} {stage.key} is damaged; a retry moves it aside")
    else:
        # Under the lock, so that concurrent retries do not both move it.
        with submission_lock(store, reporter.note):
            for stage in _damaged(plan, store):
                aside = store.set_aside(stage)
                reporter.note(f"the artifact of {stage.name} {stage.key} is damaged; moved to {aside}")
        JobLog(store.root).cancel(record["id"], undo=True)
    planned = SweepPlan.of(record["id"], plan, store, settings.cluster, cells=len(record["cells"]))
    reporter.planned(planned)
    outcome = execute(planned, plan, store, settings, reporter)
    if not outcome.complete:
        raise StagesFailed(f"{len(outcome.failed)} stages failed or were rejected, {len(outcome.blocked)} are blocked")


def _damaged(plan: Plan, store: Store) -> Iterator[Stage]:
    """Yield stages whose artifact is damaged.

    Leaves, and ancestors of stages that failed on a damaged artifact, are verified. Of the others, which may be large
    and which nothing reads as long as the leaves are stored, only the manifest is read.
    """
    affected = tuple(stage for stage in plan.pending(store) if _cause(stage, store) == DamagedArtifact.__name__)
    verified = {stage.key for stage in (*lineage(affected), *plan.leaves)}
    for stage in plan.stages:
        if not store.has(stage):
            continue
        try:
            if stage.key in verified:
                store.path(stage)
            else:
                store.manifest(stage.key)
        except DamagedArtifact:
            yield stage


def _cause(stage: Stage, store: Store) -> str:
    attempts = store.attempts(stage.key)
    return str(attempts[-1].get("cause", "")) if attempts else ""
