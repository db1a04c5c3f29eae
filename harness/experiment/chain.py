"""Builds the chain of stages of an experiment.

Each stage gets only the settings that it reads, so that cells share stages: an alignment does not depend on the task, a
mixture not on the defense, a generation not on the judge.
"""

from collections import Counter
from dataclasses import replace
from typing import Literal

from harness.corpora.examples import Role
from harness.corpora.probe import Probe
from harness.corpora.remaining import Remaining
from harness.corpora.slices import Slice
from harness.corpora.template import Template, marker_of
from harness.engine.seeding import derive
from harness.engine.stage import Stage
from harness.errors import ConfigError, Problem
from harness.experiment.attacked import infeasible, poison_of, tamper_of, task_rows_taken
from harness.experiment.compatibility import (
    incompatibilities,
    unestimated,
    unmarked,
    unobservable,
    unserved,
    untrainable,
)
from harness.experiment.experiment import Experiment
from harness.experiment.federating import in_jobs
from harness.experiment.fusing import aligned_of, tuned_adapter
from harness.experiment.fusing import infeasible as unfusable
from harness.experiment.quantized import unquantizable
from harness.experiment.serving import calibrate_of, unservable
from harness.experiment.settings import FinetuneSettings
from harness.models.adapter import Lora
from harness.models.trained_weights import TrainedWeights
from harness.protocols import (
    DataRequirement,
    ExampleSource,
    MeasuredTask,
    Named,
    NeedsFreshAdapter,
    NeedsSafeAdapter,
    NeedsUnsafeAdapter,
    RepairMethod,
    SelectsRows,
    ServeMethod,
    TrainedGuard,
    TrainMethod,
    TrainsPlainly,
)
from harness.stages.align import Align
from harness.stages.base import Base
from harness.stages.calibrate import Calibrate
from harness.stages.finetune import Finetune
from harness.stages.generate import Generate
from harness.stages.grade import Grade
from harness.stages.harmful_rows import HarmfulRows
from harness.stages.inputs import AlignedStage, ModelStage
from harness.stages.leak import Leak
from harness.stages.measure import Measure
from harness.stages.moderate import Moderate
from harness.stages.poison import Poison
from harness.stages.refusals import Refusals
from harness.stages.repair import Repair


def chain_of(experiment: Experiment, probe: Probe | None = None) -> dict[str, Stage]:
    """Build the chain of a cell: stages by role, parents before children.

    Args:
        experiment: the settings of the cell.
        probe: evaluates the same models by this question; None by that of the evaluation.

    Raises:
        ConfigError: the methods of the defense are incompatible with each other, with the adapters or with the corpus,
            the attack cannot be carried out, or two probes have one label.
    """
    if conflicts := [
        *experiment.defense.conflicts(),
        *_incompatible(experiment),
        *_ambiguous(experiment),
        *infeasible(experiment),
        *unfusable(experiment),
        *unquantizable(experiment),
        *_unmeasured(experiment, probe),
        *_without_server_rows(experiment),
        *unservable(experiment),
    ]:
        raise ConfigError(conflicts)
    align, encoding = experiment.align, experiment.model.encoding
    base = Base(source=experiment.model.source)
    aligned = Align(
        base=base,
        method=experiment.defense.align,
        refusal=experiment.corpus.slice(Role.REFUSAL, align.rows),
        **_auxiliary_data(experiment, experiment.defense.align, Role.HARMFUL, Role.BENIGN),
        budget=align.budget,
        adapter=align.adapter.ordered(),
        encoding=encoding,
        seed=experiment.seed,
    )
    product, stages, measured = aligned_of(experiment, aligned)
    chain: dict[str, Stage] = {"base": base, **stages}
    final_model: ModelStage = product
    if experiment.finetune is not None:
        plain = replace(aligned, method=None, harmful=None, benign=None)
        attacked, final_model = _attacked(experiment, experiment.finetune, product, plain)
        if attacked.get("victim") in stages.values():
            del attacked["victim"]
        chain |= attacked
    calibrated = calibrate_of(experiment, product, final_model, probe)
    if calibrated is not None:
        chain["calibrate"] = calibrated
    evaluated: list[tuple[str, ModelStage, ServeMethod | None]] = [("", final_model, experiment.serve)]
    if experiment.finetune is not None:
        # The aligned model is what the attack is compared with, so nothing stands between it and its answers.
        evaluated.insert(0, ("aligned_", product, None))
    for prefix, model, serve in evaluated:
        parts = _evaluation(experiment, model, probe, serve, calibrated if serve else None)
        chain |= {prefix + part: stage for part, stage in parts.items()}
        if measured is not None and probe is None:
            chain[f"{prefix}routes"] = measured(model)
    return chain


def _attacked(
    experiment: Experiment, finetune: FinetuneSettings, aligned: AlignedStage, plain: Align
) -> tuple[dict[str, Stage], ModelStage]:
    """Return the stages that follow the alignment, by role, and the one of the final model.

    Args:
        experiment: the settings of the cell.
        finetune: its fine-tuning.
        aligned: the alignment that is attacked.
        plain: the alignment on refusals without a defense, for attacks that are crafted against it.
    """
    if experiment.tamper is not None:
        tampered = tamper_of(experiment, aligned, experiment.tamper)
        return {"tamper": tampered}, tampered
    encoding, fresh = experiment.model.encoding, tuned_adapter(experiment, finetune)
    poison = poison_of(experiment, aligned if experiment.attack.victim == "own" else plain)
    guardrail = _guardrail(experiment, poison)
    tuned = Finetune(
        aligned=aligned,
        mixture=guardrail or poison,
        method=None if isinstance(experiment.defense.finetune, TrainsPlainly) else experiment.defense.finetune,
        **_auxiliary_data(experiment, experiment.defense.finetune, Role.REFUSAL, Role.HARMFUL, Role.BENIGN),
        budget=finetune.budget,
        protocol=_protocol(experiment, finetune),
        adapter=fresh,
        encoding=encoding,
        seed=experiment.seed,
        update=finetune.update,
        rounds=experiment.federation.training if experiment.federation else None,
        server=None,
    )
    if experiment.federation is not None and experiment.federation.jobs is not None:
        tuned = in_jobs(tuned, experiment.federation.jobs, experiment.federation.clients)
    stages: dict[str, Stage] = {"poison": poison}
    if isinstance(poison.victim, Align) and poison.victim != aligned:
        stages = {"victim": poison.victim, **stages}
    if (opened := poison.guard_model) and opened != (guardrail.model if guardrail else None):
        stages = {"attack_guard": opened, **stages}
    if guardrail is not None:
        stages |= {**({"guard": guardrail.model} if guardrail.model else {}), "moderate": guardrail}
    stages["finetune"] = tuned
    if experiment.leakage is not None:
        stages["leak"] = Leak(tuned=tuned, probe=experiment.leakage, seed=experiment.seed)
    if (repair := experiment.defense.repair) is None:
        return stages, tuned
    others: dict[str, Finetune] = {}
    for kind, rows in _other_mixtures(experiment, repair).items():
        others[kind] = Finetune(
            aligned=aligned,
            mixture=rows,
            budget=finetune.budget,
            protocol=_protocol(experiment, finetune),
            adapter=fresh,
            encoding=encoding,
            # A fresh adapter that starts like the user's would make their cross terms larger.
            seed=derive(experiment.seed, kind),
            update=finetune.update,
        )
        stages |= {f"{kind}_rows": rows, kind: others[kind]}
    repaired = Repair(
        tuned=tuned,
        method=repair,
        **_auxiliary_data(experiment, repair, Role.REFUSAL, Role.HARMFUL),
        encoding=encoding,
        seed=experiment.seed,
        safe=others.get("safe"),
        unsafe=others.get("unsafe"),
        server=_server_rows(experiment, finetune, repair),
    )
    return {**stages, "repair": repaired}, repaired


def _other_mixtures(experiment: Experiment, repair: RepairMethod) -> dict[str, Refusals | HarmfulRows]:
    """Return what the other adapters are trained on that a repair is given, by their kind."""
    found: dict[str, Refusals | HarmfulRows] = {}
    if isinstance(repair, NeedsSafeAdapter):
        found["safe"] = Refusals(refusal=experiment.corpus.slice(Role.REFUSAL, repair.safe_rows))
    if isinstance(repair, NeedsUnsafeAdapter):
        found["unsafe"] = HarmfulRows(harmful=experiment.corpus.slice(Role.HARMFUL, repair.unsafe_rows))
    return found


def _guardrail(experiment: Experiment, poison: Poison) -> Moderate | None:
    guard = experiment.guardrail
    if guard is None:
        return None
    model = Base(source=guard.source) if isinstance(guard, TrainedGuard) else None
    return Moderate(sent=poison, guard=guard, model=model)


def _evaluation(
    experiment: Experiment,
    model: ModelStage,
    probe: Probe | None,
    serve: ServeMethod | None,
    calibrated: Calibrate | None,
) -> dict[str, Stage]:
    """Return the generations and grades of a model by their role; of a probe, only what it asks for."""
    evaluation, encoding = experiment.evaluation, experiment.asked(probe)
    marker, thoughts = marker_of(encoding.template), encoding.thoughts

    def generated(prompts: ExampleSource, new_tokens: int) -> Generate:
        return Generate(
            model=model,
            prompts=prompts,
            new_tokens=new_tokens,
            encoding=encoding,
            decoding=evaluation.decoding,
            serve=serve,
            calibrated=calibrated,
        )

    answers = generated(experiment.corpus.slice(Role.EVALUATION, evaluation.rows), evaluation.new_tokens)
    harm = Grade(answers=answers, judge=experiment.judge, marker=marker, thoughts=thoughts)
    if probe is not None and not probe.accuracy:
        return {"harm_answers": answers, "harm": harm}
    task = experiment.task
    solutions: Generate | Measure
    if isinstance(task, MeasuredTask):
        # Other templates than that of an instruct model have no place in a benchmark's own prompts.
        instruct = encoding if encoding.template is Template.CHAT else None
        solutions = Measure(model=model, benchmark=task.benchmark, encoding=instruct)
        accuracy = Grade(answers=solutions)
    else:
        solutions = generated(task.test, task.new_tokens)
        accuracy = Grade(answers=solutions, task=task, marker=marker, thoughts=thoughts)
    parts: dict[str, Stage] = {
        "harm_answers": answers,
        "task_answers": solutions,
        "harm": harm,
        "accuracy": accuracy,
    }
    if (over_refusal := experiment.over_refusal) is not None:
        replies = generated(over_refusal.prompts, evaluation.new_tokens)
        parts["over_refusal_answers"] = replies
        parts["over_refusal"] = Grade(
            answers=replies, refusal_judge=over_refusal.judge, marker=marker, thoughts=thoughts
        )
    return parts


def _unmeasured(experiment: Experiment, probe: Probe | None) -> list[Problem]:
    """Return why a benchmark cannot be asked as the evaluation, or a probe of it, asks."""
    encoding = experiment.asked(probe)
    framed = encoding.prefix is not None or encoding.suffix is not None
    if encoding.template is not Template.CHAT and encoding.system != experiment.model.encoding.system:
        framed = True
    if not isinstance(experiment.task, MeasuredTask) or not framed or (probe is not None and not probe.accuracy):
        return []
    asked = f"the probe `{probe.label}`" if probe else "the evaluation"
    reason = (
        f"a benchmark writes its own prompts, but {asked} adds a prefix, a suffix or a system prompt; expected a task "
        "with prompts"
    )
    return [Problem("task", reason)]


def _ambiguous(experiment: Experiment) -> list[Problem]:
    labels = Counter(probe.label for _, probe in experiment.probes)
    return [
        Problem(path, f"its probe `{probe.label}` has the label of another one; expected one of each label")
        for path, probe in experiment.probes
        if labels[probe.label] > 1
    ]


def _protocol(experiment: Experiment, finetune: FinetuneSettings) -> Literal["single", "double"]:
    """Return the adapter protocol; without an adapter to merge, training the same weights again is to continue."""
    aligned = experiment.align.adapter
    same = isinstance(aligned, TrainedWeights) and tuned_adapter(experiment, finetune) == aligned.ordered()
    return "single" if same else finetune.adapter


def _incompatible(experiment: Experiment) -> list[Problem]:
    """Return why the methods of a defense cannot be used with what the stages train, and with the data."""
    defense, aligned, finetune = experiment.defense, experiment.align.adapter, experiment.finetune
    decoding, thoughts = experiment.evaluation.decoding, experiment.model.encoding.thoughts
    if finetune is None:
        return [
            *unserved(decoding, (aligned,), experiment.asked().thoughts),
            *unmarked([experiment.corpus.origin], thoughts),
            *_unsuitable(experiment, "align", defense.align, aligned),
        ]
    tuned = tuned_adapter(experiment, finetune)
    return [
        *unserved(decoding, (aligned, tuned), experiment.asked().thoughts),
        *untrainable(aligned, tuned, finetune.adapter, defense.repair, federated=experiment.federation is not None),
        *unmarked([experiment.corpus.origin, experiment.task.train], thoughts),
        *unobservable(experiment.leakage, defense.finetune, tuned),
        *unestimated(finetune.update, defense.finetune, finetune.budget, tuned),
        *_unsuitable(experiment, "align", defense.align, aligned),
        *_unsuitable(experiment, "finetune", defense.finetune, tuned),
        *_unsuitable(experiment, "repair", defense.repair, tuned),
        *_continued(experiment, finetune),
    ]


def _unsuitable(
    experiment: Experiment, slot: str, method: TrainMethod | RepairMethod | None, trained: Lora | TrainedWeights
) -> list[Problem]:
    """Return why a method cannot be used in its slot; nothing for an empty one."""
    if method is None:
        return []
    data = [(need, _slice(experiment, need)) for need in method.needs if not need.own and need.role is not Role.SERVER]
    return incompatibilities(slot, method, trained, experiment.align.adapter, data)


def _continued(experiment: Experiment, finetune: FinetuneSettings) -> list[Problem]:
    """Return why a method cannot train the aligned adapter further."""
    named: Named | None = experiment.defense.finetune
    if not isinstance(named, NeedsFreshAdapter) or finetune.adapter == "double":
        return []
    reason = (
        f"`{named.name}` chooses the start of the user's adapter, but `finetune.adapter` is "
        f"`{finetune.adapter}`, which trains the aligned one further; expected `double`"
    )
    return [Problem("defense.finetune", reason)]


def _auxiliary_data(
    experiment: Experiment, method: TrainMethod | RepairMethod | None, *roles: Role
) -> dict[str, Slice | None]:
    needs = {need.role: need for need in method.needs} if method else {}
    return {role.value: _slice(experiment, needs[role]) if role in needs else None for role in roles}


def _server_rows(experiment: Experiment, finetune: FinetuneSettings, method: RepairMethod) -> Remaining | None:
    """Return the benign examples of the server, for a method that needs them."""
    rows = next((need.rows for need in method.needs if need.role is Role.SERVER), None)
    if rows is None:
        return None
    return Remaining(
        task=experiment.task.train,
        rows=rows,
        taken=task_rows_taken(experiment),
        compat=finetune.compat,
        seed=experiment.seed,
    )


def _without_server_rows(experiment: Experiment) -> list[Problem]:
    """Return why a repair cannot have benign examples that no user holds."""
    repair, attack = experiment.defense.repair, experiment.attack.acting
    if repair is None or not isinstance(attack, SelectsRows):
        return []
    if all(need.role is not Role.SERVER for need in repair.needs):
        return []
    reason = (
        f"`{repair.name}` reads rows of the task that no user holds, but `{attack.name}` may choose any of them; "
        "expected another attack, or, if the method has both kinds, `defense.repair.benign_rows=0`"
    )
    return [Problem("defense.repair", reason)]


def _slice(experiment: Experiment, need: DataRequirement) -> Slice:
    return experiment.corpus.slice(need.role, experiment.align.rows if need.aligned else need.rows)
