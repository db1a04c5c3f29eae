"""A sweep: override lists -> cells -> plan -> executor."""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import get_class
from omegaconf import DictConfig

from harness.config.build import Skipped, examined, settings_of
from harness.config.compose import Composer, Composition, composition_of
from harness.config.objective import Objective
from harness.engine.build import allowed
from harness.engine.files import writing
from harness.engine.folder import folder
from harness.engine.lookup import resolve_key
from harness.engine.plan import Plan
from harness.engine.prefetch import Locatable, fetchables
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.errors import ConfigError, Problem, StagesFailed, StoreError
from harness.execution.attempt import LOG
from harness.execution.cluster import VLLM_PYTHON, Cluster
from harness.execution.executor import Outcome
from harness.experiment.cell import Cell
from harness.local.settings import Local
from harness.slurm.job_log import JobLog
from harness.stages.generate import Generate
from harness.stages.grade import read_summary
from harness.sweep.record import ExecutionSettings, record_sweep, sweep_id
from harness.sweep.reporter import NullReporter, Reporter, Session, SweepPlan, current_session
from harness.tracking.jsonl import Jsonl
from harness.training.process_setup import prepare_process
from harness.wandb_sync.uploader import mirrored

log = logging.getLogger(__name__)


def launch(loader: Any, master: DictConfig, overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Run a batch of cells for a Hydra sweeper: every distinct stage once.

    Returns:
        One finished job a cell, with its objective as the return value; a failed cell's job raises when it is read, a
        skipped one's is None.

    Raises:
        SystemExit: the first batch of an optimizing sweeper was planned; the next would depend on results.
    """
    if not overrides:
        raise ConfigError(["the sweep is over nothing; expected one value at least of everything that is swept"])
    composer = Composer(loader, master)
    sweeper = get_class(master.hydra.sweeper["_target_"])
    ours = sweeper.__module__.startswith("hydra_plugins.harness")
    optimizing = not ours and not issubclass(sweeper, BasicSweeper)
    results = _run_cells([composer.compose(cell) for cell in overrides], needs_results=optimizing)
    now = current_session.get(Session(NullReporter()))
    if now.verb == "plan" and optimizing:
        now.front.say("An optimizing sweeper chooses its cells by results: this is its first batch.")
        raise SystemExit(0)
    if now.verb == "run" and not ours:
        _make_output(Path(master.hydra.sweep.dir), now.front)
    if optimizing:
        results = [StagesFailed(_WITHOUT_OBJECTIVE) if result is None else result for result in results]
    return [_job(cell, result) for cell, result in zip(overrides, results, strict=True)]


_WITHOUT_OBJECTIVE = (
    "A cell has no objective: it was skipped (`on_invalid=skip`), or no answer could be judged. "
    "An optimizing sweeper counts it as a failed trial; Optuna's goes on with `hydra.sweeper.max_failure_rate=1`."
)


def _make_output(folder: Path, front: Reporter) -> None:
    """Make the folder in which a sweeper that is not ours writes what it found: Hydra leaves that to launchers."""
    if not folder.is_dir():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        front.say(f"what the sweeper itself writes goes to {folder}")


def run(config: DictConfig) -> float | None:
    """Run the one cell that Hydra composed and return its objective.

    Raises:
        StagesFailed: a stage of the cell failed.
    """
    if HydraConfig.get().sweeper.get("params"):
        raise ConfigError(
            ["the configuration describes a sweep, and this is a single run; add `-m` to run all its cells"]
        )
    (result,) = _run_cells([composition_of(config)])
    if isinstance(result, StagesFailed):
        raise result
    return result


def run_stage(store: Store, prefix: str, front: Reporter) -> None:
    """Run one registered stage by hand, as a job does: everything comes from its frozen spec and the store.

    Args:
        store: where the spec and the stage's parents are.
        prefix: how its key begins.
        front: is told.

    Raises:
        StoreError: no stage, or more than one, has a key that begins so.
        StagesFailed: it failed.
    """
    stage = store.stage(resolve_key(store, prefix))
    plan = Plan.single(stage)
    place = ExecutionSettings(cluster=Local(workers=1), tracker=Jsonl())
    planned = SweepPlan.of(f"stage {stage.name}", plan, store, place.cluster, cells=0)
    front.planned(planned)
    _prefetch(plan, store)
    outcome = executed(planned, plan, store, place, front)
    if not outcome.complete:
        raise StagesFailed(f"{stage.name} {stage.key} failed; its log is {store.work(stage.key) / LOG}")


def _prefetch(plan: Plan, store: Store) -> None:
    """Find out what would stop the plan, and have everything here that comes from outside, before anything runs."""
    pending = plan.pending(store)
    if not pending:
        return
    plan.preflight(store)
    parts = fetchables(pending).values()
    absent = any(isinstance(part, Locatable) and not part.at_hand() for part in parts)
    for part in parts:
        part.fetch()
    if absent:
        plan.preflight(store)  # which now looks into what was not here before
    store.prepare()


def check_engines(pending: Sequence[Stage], cluster: Cluster) -> None:
    """Check before anything runs that the decoding engine of the pending stages has an interpreter.

    Raises:
        ConfigError: vLLM is required and its interpreter is not set.
    """
    asked = any(isinstance(stage, Generate) and stage.decoding.engine == "vllm" for stage in pending)
    if asked and not (cluster.vllm_python or os.environ.get(VLLM_PYTHON)):
        raise ConfigError(
            [
                Problem(
                    "cluster.vllm_python",
                    "is null, and `evaluation.decoding.engine` is vllm; expected the Python interpreter of an "
                    f"environment that has vLLM, here or in {VLLM_PYTHON} (docs/generation.md)",
                )
            ]
        )


def executed(planned: SweepPlan, plan: Plan, store: Store, place: ExecutionSettings, front: Reporter) -> Outcome:
    """Run a plan where it belongs, mirrored if its tracker says so, and tell how it ended.

    Raises:
        StoreError: nothing failed but for the store, which cannot be written or read.
        Interrupted: the user asked to stop.
    """
    # Jobs of a scheduler have no companion: `harness sync --follow` is theirs.
    wait = place.cluster.wait
    with mirrored(place.tracker, store.root, planned.sweep, front.say) if wait else nullcontext():
        # Without this look ahead, a repeated sweep would import torch to learn that there is nothing to do.
        if not plan.pending(store):
            # Specs that are damaged or lost are written anew; a store that is complete may be read-only.
            with suppress(StoreError):
                store.register(plan.stages)
            outcome = Outcome(cached=tuple(stage.key for stage in plan.stages))
        else:
            executor = place.cluster.executor(
                sweep=planned.sweep,
                tracker=place.tracker,
                on_event=front.event,
                prepare=partial(prepare_process, vllm_python=place.cluster.vllm_python),
            )
            outcome = executor.run(plan, store)
        front.finished(planned, outcome)
    causes = {failure.cause for failure in outcome.failed.values()}
    if causes == {StoreError.__name__}:
        raise StoreError(next(iter(outcome.failed.values())).message)
    return outcome


def _job(overrides: Sequence[str], result: float | StagesFailed | None) -> JobReturn:
    status = JobStatus.FAILED if isinstance(result, StagesFailed) else JobStatus.COMPLETED
    job = JobReturn(overrides=list(overrides), status=status)
    job.return_value = result
    return job


def _run_cells(
    compositions: Sequence[Composition], *, needs_results: bool = False
) -> list[float | StagesFailed | None]:
    examinations = examined(compositions)
    # A cell that was asked for twice is one row.
    cells = list({cell.identity: cell for cell in examinations if isinstance(cell, Cell)}.values())
    skipped = [cell for cell in examinations if isinstance(cell, Skipped)]
    settings = settings_of(compositions[0])
    if needs_results and settings.cluster.dry_run:
        advice = (
            "an optimizing sweeper needs results to go on, and a dry run has none; `harness plan` shows its first batch"
        )
        raise ConfigError([Problem("cluster.dry_run", advice)])
    if needs_results and not settings.cluster.wait:
        raise ConfigError(
            [Problem("cluster.wait", "an optimizing sweeper needs results to go on; set `cluster.wait=true`")]
        )
    plan = Plan.of(leaf for cell in cells for leaf in cell.leaves)
    store = Store(folder(settings.store, "store"), allow=allowed(settings.targets))
    sweep = sweep_id(cells, settings.title)
    now = current_session.get(Session(NullReporter()))
    planned = SweepPlan.of(sweep, plan, store, settings.cluster, cells=len(cells), skipped=skipped)
    now.front.planned(planned)
    if now.verb == "plan":
        return [None] * len(compositions)
    check_engines(plan.pending(store), settings.cluster)
    if not settings.cluster.dry_run:
        _prefetch(plan, store)
        # Before anything runs, so that a killed sweep can be reported; after the checks, so that a refused one is none.
        record_sweep(store, sweep, cells=cells, plan=plan, costs=planned.costs, settings=settings, skipped=skipped)
        JobLog(store.root).cancel(sweep, undo=True)
    else:
        # A rehearsal brings nothing from outside and leaves nothing in the store.
        plan.preflight(store)
    outcome = executed(planned, plan, store, ExecutionSettings.of(settings), now.front)
    return [
        _result(cell, store, settings.objective, outcome) if isinstance(cell, Cell) else None for cell in examinations
    ]


def _result(cell: Cell, store: Store, objective: Objective, outcome: Outcome) -> float | StagesFailed | None:
    missing = [stage for stage in cell.leaves if not store.has(stage)]
    if missing and outcome.deferred and not any(outcome.hopeless(stage.key) for stage in missing):
        return None
    if missing:
        return StagesFailed(f"{len(missing)} of {len(cell.leaves)} results of the cell are missing")
    scores = {part: read_summary(store.path(cell.stages[part]))["score"] for part in ("harm", "accuracy")}
    return objective.value({"hs": scores["harm"], "fa": scores["accuracy"]})
