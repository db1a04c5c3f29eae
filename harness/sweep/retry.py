"""Retry a sweep: resubmit what is not stored, according to why it failed."""

from collections.abc import Iterator, Mapping

from harness.engine.plan import Plan
from harness.engine.stage import Stage, lineage
from harness.engine.store import Store
from harness.errors import DamagedArtifact, StagesFailed
from harness.slurm.job_log import JobLog
from harness.slurm.lock import submission_lock
from harness.sweep.record import place_of, plan_of, recorded, store_of
from harness.sweep.reporter import Reporter, SweepPlan
from harness.sweep.run import executed


def retry(root: Store, name: str | None, changes: Mapping[str, object], front: Reporter) -> None:
    """Submit again what is not stored, by the causes of its failures; damaged artifacts are set aside for it.

    Args:
        root: the store.
        name: the sweep's id or how it begins; None is the latest.
        changes: settings of the cluster or the tracker to change, by dotted name.
        front: is told.

    Raises:
        StoreError: there is no such sweep, or its specs cannot be read.
        ConfigError: a change is wrong.
        StagesFailed: a stage failed again, or is refused.
    """
    record = recorded(root, name)
    # A retry returns, whatever the run did; `cluster.wait=true` among the changes makes it stay.
    stays = {"cluster.wait": False} if "wait" in record["place"]["cluster"] else {}
    place = place_of(record, {**stays, **changes})
    store = store_of(root, record)
    plan = plan_of(store, record)
    if place.cluster.dry_run:
        for stage in _damaged(plan, store):
            front.say(f"the artifact of {stage.name} {stage.key} is damaged; a retry sets it aside")
    else:
        # Of two retries at once, the second finds what the first has set aside.
        with submission_lock(store, front.say):
            for stage in _damaged(plan, store):
                aside = store.set_aside(stage)
                front.say(f"the artifact of {stage.name} {stage.key} is damaged; it lies in {aside} now")
        JobLog(store.root).cancel(record["id"], undo=True)
    planned = SweepPlan.of(record["id"], plan, store, place.cluster, cells=len(record["cells"]))
    front.planned(planned)
    outcome = executed(planned, plan, store, place, front)
    if not outcome.complete:
        raise StagesFailed(f"{len(outcome.failed)} stages failed or are refused, {len(outcome.blocked)} are blocked")


def _damaged(plan: Plan, store: Store) -> Iterator[Stage]:
    """Find stored results, and ancestors of stages that met a damaged artifact, that are damaged at this moment."""
    met = tuple(stage for stage in plan.pending(store) if _cause(stage, store) == DamagedArtifact.__name__)
    for stage in {stage.key: stage for stage in (*lineage(met), *plan.leaves)}.values():
        if not store.has(stage):
            continue
        try:
            store.path(stage)
        except DamagedArtifact:
            yield stage


def _cause(stage: Stage, store: Store) -> str:
    attempts = store.attempts(stage.key)
    return str(attempts[-1].get("cause", "")) if attempts else ""
