"""Running a sweep: override lists -> cells -> plan -> executor."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import get_class
from omegaconf import DictConfig

from harness.config.attacker import check_swept
from harness.config.build import Skipped, check_cells, settings_of
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
from harness.errors import ConfigError, HarnessError, Problem, StagesFailed, StoreError
from harness.execution.attempt import LOG
from harness.execution.cluster import VLLM_PYTHON, Cluster
from harness.execution.executor import Outcome
from harness.execution.judge_service import from_environment
from harness.experiment.cell import Cell
from harness.local.settings import Local
from harness.protocols import RemoteJudge
from harness.slurm.job_log import JobLog
from harness.stages.generate import Generate
from harness.stages.grade import Grade, read_summary
from harness.stages.moderate import Moderate
from harness.sweep.chat_templates import check_chat_templates
from harness.sweep.external_code import check_external_code
from harness.sweep.quantized_bases import check_quantized_bases
from harness.sweep.record import ExecutionSettings, record_sweep, sweep_id
from harness.sweep.reporter import NullReporter, Reporter, Session, SweepPlan, current_session
from harness.sweep.weight_training import check_weight_trainings
from harness.tracking.jsonl import Jsonl
from harness.training.process_setup import prepare_process
from harness.wandb_sync.uploader import uploading

log = logging.getLogger(__name__)


def launch(loader: Any, master: DictConfig, overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Run a batch of cells for a Hydra sweeper; each distinct stage runs once.

    Returns:
        One finished job per cell, whose return value is the objective; None for a skipped cell. Reading the return
        value of a failed cell raises.

    Raises:
        SystemExit: the first batch of an optimizing sweeper was planned; the next batch depends on its results.
    """
    if not overrides:
        raise ConfigError(["the sweep has no cells; expected at least one value for everything that is swept"])
    composer = Composer(loader, master)
    sweeper = get_class(master.hydra.sweeper["_target_"])
    own_sweeper = sweeper.__module__.startswith("hydra_plugins.harness")
    optimizing = not own_sweeper and not issubclass(sweeper, BasicSweeper)
    results = _run_cells([composer.compose(cell) for cell in overrides], needs_results=optimizing)
    session = current_session.get(Session(NullReporter()))
    if session.verb == "plan" and optimizing:
        session.reporter.note("An optimizing sweeper chooses its cells by results: this is its first batch.")
        raise SystemExit(0)
    if session.verb == "run" and not own_sweeper:
        _make_output(Path(master.hydra.sweep.dir), session.reporter)
    if optimizing:
        results = [StagesFailed(_WITHOUT_OBJECTIVE) if result is None else result for result in results]
    return [_job(cell, result) for cell, result in zip(overrides, results, strict=True)]


_WITHOUT_OBJECTIVE = (
    "A cell has no objective: it was skipped (`on_invalid=skip`), or no generation could be judged. "
    "An optimizing sweeper counts it as a failed trial; Optuna's continues with `hydra.sweeper.max_failure_rate=1`."
)


def _make_output(folder: Path, reporter: Reporter) -> None:
    """Create the folder in which a third-party sweeper writes its results: Hydra leaves that to launchers."""
    if not folder.is_dir():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        reporter.note(f"the sweeper writes its own output to {folder}")


def run(config: DictConfig) -> float | None:
    """Run the single cell that Hydra composed and return its objective.

    Raises:
        StagesFailed: a stage of the cell failed.
    """
    sweeper = HydraConfig.get().sweeper
    if not isinstance(sweeper, DictConfig):
        advice = f"`{sweeper}` is no sweeper's settings; a sweeper is chosen with a slash: `hydra/sweeper=NAME`"
        raise ConfigError([Problem("hydra.sweeper", advice)])
    if sweeper.get("params"):
        raise ConfigError(
            ["the configuration describes a sweep, and this is a single run; add `-m` to run all its cells"]
        )
    (result,) = _run_cells([composition_of(config)])
    if isinstance(result, StagesFailed):
        raise result
    return result


def run_stage(store: Store, prefix: str, reporter: Reporter) -> None:
    """Run one registered stage, as a job does: from its stored spec and the artifacts of its parents.

    Args:
        store: has the spec and the artifacts of the parents.
        prefix: a unique prefix of the stage's key.
        reporter: receives the progress.

    Raises:
        StoreError: no stage, or more than one, has a key with this prefix.
        StagesFailed: it failed.
    """
    stage = store.stage(resolve_key(store, prefix))
    plan = Plan.single(stage)
    settings = ExecutionSettings(cluster=Local(workers=1, judge_service=from_environment()), tracker=Jsonl())
    planned = SweepPlan.of(f"stage {stage.name}", plan, store, settings.cluster, cells=0)
    reporter.planned(planned)
    _prefetch(plan, store)
    outcome = execute(planned, plan, store, settings, reporter)
    if not outcome.complete:
        raise StagesFailed(f"{stage.name} {stage.key} failed; its log is {store.work(stage.key) / LOG}")


def _prefetch(plan: Plan, store: Store) -> None:
    """Check the pending stages and download what they need, before anything runs."""
    pending = plan.pending(store)
    if not pending:
        return
    plan.preflight(store)
    parts = fetchables(pending).values()
    absent = any(isinstance(part, Locatable) and not part.at_hand() for part in parts)
    for part in parts:
        part.fetch()
    if absent:
        plan.preflight(store)  # now covers the downloaded files as well
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


def check_services(pending: Sequence[Stage], cluster: Cluster) -> None:
    """Check before anything runs that a service which a judge or guard of the pending stages asks can be asked.

    Raises:
        ConfigError: its key is missing, or its address cannot be used.
    """
    judges = [stage.judge for stage in pending if isinstance(stage, Grade)]
    guards = [stage.guard for stage in pending if isinstance(stage, Moderate)]
    asked = any(isinstance(judge, RemoteJudge) for judge in (*judges, *guards))
    if asked and (problem := cluster.judge_service.problem()):
        raise ConfigError([problem])


def execute(planned: SweepPlan, plan: Plan, store: Store, settings: ExecutionSettings, reporter: Reporter) -> Outcome:
    """Run a plan on its cluster, with an uploader if its tracker is W&B, and report the outcome.

    Raises:
        StoreError: all failures have the same cause, a store that cannot be read or written.
        Interrupted: the user interrupted the run.
    """
    # No uploader for a run that only submits jobs: `harness sync --follow` uploads those.
    wait = settings.cluster.wait
    with uploading(settings.tracker, store.root, planned.sweep, reporter.note) if wait else nullcontext():
        # Checked here because an executor imports torch, even if there is nothing to run.
        if not plan.pending(store):
            # Rewrites damaged or missing specs; a complete store may be read-only.
            with suppress(StoreError):
                store.register(plan.stages)
            outcome = Outcome(stored=tuple(stage.key for stage in plan.stages))
        else:
            executor = settings.cluster.executor(
                sweep=planned.sweep,
                tracker=settings.tracker,
                on_event=reporter.event,
                prepare=partial(
                    prepare_process,
                    vllm_python=settings.cluster.vllm_python,
                    judge_service=settings.cluster.judge_service,
                ),
            )
            outcome = executor.run(plan, store)
        reporter.finished(planned, outcome)
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
    checked = check_cells(compositions)
    # Equal cells are one row; so is each probe of a cell, and each member of an ensemble.
    asked = [row for cell in checked if isinstance(cell, Cell) for row in cell.rows]
    cells = list({cell.identity: cell for cell in asked}.values())
    skipped = [cell for cell in checked if isinstance(cell, Skipped)]
    settings = settings_of(compositions[0])
    if needs_results and settings.cluster.dry_run:
        advice = (
            "an optimizing sweeper needs the results of each batch, and a dry run has none; "
            "`harness plan` shows its first batch"
        )
        raise ConfigError([Problem("cluster.dry_run", advice)])
    if needs_results and not settings.cluster.wait:
        raise ConfigError(
            [Problem("cluster.wait", "an optimizing sweeper needs the results of each batch; set `cluster.wait=true`")]
        )
    # The objective is that of the row without a probe.
    measured = all("over_refusal" in cell.stages for cell in checked if isinstance(cell, Cell))
    if settings.objective.over_refusal and not measured:
        advice = "it needs over-refusal, which some cells do not measure; expected `over_refusal=NAME`, as in xstest"
        raise ConfigError([Problem("objective", advice)])
    # A batch of an optimizing sweeper varies what it happens to vary.
    if settings.attacker and not needs_results:
        check_swept(settings.attacker, _varied(cells))
    plan = Plan.of(leaf for cell in cells for leaf in cell.leaves)
    store = Store(folder(settings.store, "store"), allow=allowed(settings.targets))
    sweep = sweep_id(cells, settings.title)
    session = current_session.get(Session(NullReporter()))
    for note in _settings_of_others(compositions, checked):
        session.reporter.note(note)
    check_external_code(plan.stages, store, session.reporter.note)
    planned = SweepPlan.of(sweep, plan, store, settings.cluster, cells=len(cells), skipped=skipped)
    session.reporter.planned(planned)
    check_weight_trainings(planned.weight_trainings, settings.cluster)
    check_quantized_bases(plan.pending(store), settings.cluster)
    if session.verb == "plan":
        for problem in _foreseen(plan, store, settings.cluster):
            session.reporter.note(f"a run would stop: {problem}")
        return [None] * len(compositions)
    check_engines(plan.pending(store), settings.cluster)
    check_services(plan.pending(store), settings.cluster)
    if not settings.cluster.dry_run:
        _prefetch(plan, store)
        check_chat_templates(plan.pending(store))
        # Before anything runs, so that a killed sweep can be reported; after the checks, so that an invalid sweep
        # leaves no record.
        record_sweep(store, sweep, cells=cells, plan=plan, costs=planned.costs, settings=settings, skipped=skipped)
        JobLog(store.root).cancel(sweep, undo=True)
    else:
        # A dry run downloads nothing and writes nothing to the store.
        plan.preflight(store)
    outcome = execute(planned, plan, store, ExecutionSettings.of(settings), session.reporter)
    return [_result(cell, store, settings.objective, outcome) if isinstance(cell, Cell) else None for cell in checked]


def _foreseen(plan: Plan, store: Store, cluster: Cluster) -> Iterator[str]:
    """Yield why a run would be refused, as far as that can be known without a network and without writing."""
    pending = plan.pending(store)
    checks = (
        store.check_folder,
        partial(check_engines, pending, cluster),
        partial(check_services, pending, cluster),
        partial(plan.preflight, store),
    )
    for check in checks:
        try:
            check()
        except HarnessError as error:
            yield from str(error).splitlines()


def _settings_of_others(compositions: Sequence[Composition], checked: Sequence[Cell | Skipped]) -> Iterator[str]:
    """Yield a line for each override that some methods of the sweep do not have, and whose cells are without it."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for composition, cell in zip(compositions, checked, strict=True):
        if isinstance(cell, Cell):
            found |= {
                override.name: found[override.name] | {str(cell.labels["defense"]): None}
                for override in composition.invalid
            }
    for name, defenses in found.items():
        yield f"{name} is no setting of {', '.join(defenses)}: such cells are without it"


def _varied(cells: Sequence[Cell]) -> set[str]:
    """Return the columns of rows in which cells differ, apart from the defense."""
    rows = [{**cell.labels, **cell.swept} for cell in cells]
    names = {name for row in rows for name in row} - {"defense"}
    return {name for name in names if len({str(row.get(name)) for row in rows}) > 1}


def _result(cell: Cell, store: Store, objective: Objective, outcome: Outcome) -> float | StagesFailed | None:
    leaves = {leaf.key: leaf for each in (cell, *cell.probes) for leaf in each.leaves}
    missing = [stage for stage in leaves.values() if not store.has(stage)]
    if missing and outcome.deferred and not any(outcome.hopeless(stage.key) for stage in missing):
        return None
    if missing:
        return StagesFailed(f"{len(missing)} of {len(leaves)} results of the cell are missing")
    parts = {"hs": "harm", "fa": "accuracy", "over_refusal": "over_refusal"}
    return objective.value(
        {
            score: read_summary(store.path(cell.stages[part]))["score"]
            for score, part in parts.items()
            if part in cell.stages
        }
    )
