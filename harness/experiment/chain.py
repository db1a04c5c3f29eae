"""Builds the chain of stages of an experiment.

Each stage gets only the settings that it reads, so that cells share stages: an alignment does not depend on the task, a
mixture not on the defense, a generation not on the judge.
"""

from harness.corpora.examples import Role
from harness.corpora.slices import Slice
from harness.corpora.template import Template, marker_of
from harness.engine.stage import Stage
from harness.errors import ConfigError, Problem
from harness.experiment.compatibility import incompatibilities, unserved
from harness.experiment.experiment import Experiment
from harness.models.adapter import Lora
from harness.protocols import DataRequirement, MeasuredTask, RepairMethod, TrainMethod
from harness.stages.align import Align
from harness.stages.base import Base
from harness.stages.finetune import Finetune
from harness.stages.generate import Generate
from harness.stages.grade import Grade
from harness.stages.measure import Measure
from harness.stages.poison import Poison
from harness.stages.repair import Repair


def chain_of(experiment: Experiment) -> dict[str, Stage]:
    """Build the chain of a cell: stages by role, parents before children.

    Raises:
        ConfigError: the methods of the defense are incompatible with each other, with the adapters or with the corpus.
    """
    if conflicts := [*experiment.defense.conflicts(), *_incompatible(experiment)]:
        raise ConfigError(conflicts)
    align, finetune, encoding = experiment.align, experiment.finetune, experiment.model.encoding
    base = Base(source=experiment.model.source)
    aligned = Align(
        base=base,
        method=experiment.defense.align,
        refusal=experiment.corpus.slice(Role.REFUSAL, align.rows),
        **_auxiliary_data(experiment, experiment.defense.align, Role.HARMFUL),
        budget=align.budget,
        adapter=align.adapter.ordered(),
        encoding=encoding,
        seed=experiment.seed,
    )
    attack = experiment.attack.acting
    poison = Poison(
        task=experiment.task.train,
        attack=attack,
        harmful=experiment.corpus.slice(Role.ATTACK) if attack else None,
        victim=aligned if attack and attack.needs_victim else None,
        encoding=encoding if attack and attack.needs_victim else None,
        rows=finetune.rows,
        ratio=experiment.attack.acting_ratio,
        compat=finetune.compat,
        seed=experiment.seed,
    )
    tuned = Finetune(
        aligned=aligned,
        mixture=poison,
        method=experiment.defense.finetune,
        **_auxiliary_data(experiment, experiment.defense.finetune, Role.REFUSAL, Role.HARMFUL),
        budget=finetune.budget,
        protocol=finetune.adapter,
        adapter=_tuned_adapter(experiment),
        encoding=encoding,
        seed=experiment.seed,
    )
    chain: dict[str, Stage] = {"base": base, "align": aligned, "poison": poison, "finetune": tuned}
    final_model: Finetune | Repair = tuned
    if experiment.defense.repair is not None:
        final_model = Repair(
            tuned=tuned,
            method=experiment.defense.repair,
            **_auxiliary_data(experiment, experiment.defense.repair, Role.REFUSAL, Role.HARMFUL),
            encoding=encoding,
            seed=experiment.seed,
        )
        chain["repair"] = final_model
    prompts = experiment.corpus.slice(Role.EVALUATION, experiment.evaluation.rows)
    marker = marker_of(encoding.template)
    for prefix, model in (("aligned_", aligned), ("", final_model)):
        answers = Generate(
            model=model,
            prompts=prompts,
            new_tokens=experiment.evaluation.new_tokens,
            encoding=encoding,
            decoding=experiment.evaluation.decoding,
        )
        solutions, accuracy = _task_stages(experiment, model)
        chain[f"{prefix}harm_answers"], chain[f"{prefix}task_answers"] = answers, solutions
        chain[f"{prefix}harm"] = Grade(answers=answers, judge=experiment.judge, marker=marker)
        chain[f"{prefix}accuracy"] = accuracy
        if (over_refusal := experiment.over_refusal) is not None:
            replies = Generate(
                model=model,
                prompts=over_refusal.prompts,
                new_tokens=experiment.evaluation.new_tokens,
                encoding=encoding,
                decoding=experiment.evaluation.decoding,
            )
            chain[f"{prefix}over_refusal_answers"] = replies
            chain[f"{prefix}over_refusal"] = Grade(answers=replies, refusal_judge=over_refusal.judge, marker=marker)
    return chain


def _task_stages(experiment: Experiment, model: Align | Finetune | Repair) -> tuple[Stage, Grade]:
    """Return the stage of a model's answers to the task, and the one that grades them."""
    task, encoding = experiment.task, experiment.model.encoding
    if isinstance(task, MeasuredTask):
        own_prompts = None if encoding.template is not Template.CHAT else encoding
        measured = Measure(model=model, benchmark=task.benchmark, encoding=own_prompts)
        return measured, Grade(answers=measured)
    solutions = Generate(
        model=model,
        prompts=task.test,
        new_tokens=task.new_tokens,
        encoding=encoding,
        decoding=experiment.evaluation.decoding,
    )
    return solutions, Grade(answers=solutions, task=task, marker=marker_of(encoding.template))


def _tuned_adapter(experiment: Experiment) -> Lora:
    fresh = experiment.finetune.fresh if experiment.finetune.adapter == "double" else None
    return (fresh or experiment.align.adapter).ordered()


def _incompatible(experiment: Experiment) -> list[Problem]:
    defense, tuned = experiment.defense, _tuned_adapter(experiment)
    slots = (("align", defense.align, experiment.align.adapter), ("finetune", defense.finetune, tuned))
    return [
        *unserved(experiment.evaluation.decoding.engine, (experiment.align.adapter, tuned)),
        *(
            reason
            for slot, method, adapter in (*slots, ("repair", defense.repair, tuned))
            if method
            for reason in incompatibilities(
                slot, method, adapter, [(need, _slice(experiment, need)) for need in method.needs]
            )
        ),
    ]


def _auxiliary_data(
    experiment: Experiment, method: TrainMethod | RepairMethod | None, *roles: Role
) -> dict[str, Slice | None]:
    needs = {need.role: need for need in method.needs} if method else {}
    return {role.value: _slice(experiment, needs[role]) if role in needs else None for role in roles}


def _slice(experiment: Experiment, need: DataRequirement) -> Slice:
    return experiment.corpus.slice(need.role, experiment.align.rows if need.aligned else need.rows)
