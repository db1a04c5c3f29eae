"""An experiment is one cell's settings; it builds the cell's chain of stages.

Each stage is given only what it reads. That is the whole of sharing: an alignment does not know the task, a mixture
does not know the defense, an answer does not know its judge.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.corpus import Corpus
from harness.corpora.examples import Role
from harness.corpora.slices import Slice
from harness.corpora.template import marker_of
from harness.engine.identity import flatten, payload_of
from harness.engine.stage import Stage
from harness.errors import ConfigError
from harness.experiment.compatibility import incompatibilities
from harness.experiment.settings import AlignSettings, AttackSettings, Defense, Evaluation, FinetuneSettings, Model
from harness.models.adapter import Lora
from harness.protocols import DataRequirement, Judge, RepairMethod, Task, TrainMethod
from harness.settings.checks import not_negative
from harness.stages.align import Align
from harness.stages.base import Base
from harness.stages.finetune import Finetune
from harness.stages.generate import Generate
from harness.stages.grade import Grade
from harness.stages.poison import Poison
from harness.stages.repair import Repair


@final
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One cell of a sweep."""

    name: ClassVar[str] = "experiment"
    version: ClassVar[int] = 1
    model: Model
    corpus: Corpus
    align: AlignSettings
    finetune: FinetuneSettings
    defense: Defense
    task: Task
    attack: AttackSettings
    judge: Judge
    evaluation: Evaluation
    seed: int

    def problems(self) -> list[str]:
        """Range errors."""
        return not_negative(self, "seed")

    def stages(self) -> dict[str, Stage]:
        """Build the cell's chain: stages by their part in it, parents before children.

        Raises:
            ConfigError: the methods of the defense do not go together or cannot act on the adapters, or the corpus has
                not the rows they need.
        """
        if conflicts := [*self.defense.conflicts(), *self._unsuited()]:
            raise ConfigError(conflicts)
        align, finetune, encoding = self.align, self.finetune, self.model.encoding
        base = Base(source=self.model.source)
        aligned = Align(
            base=base,
            method=self.defense.align,
            refusal=self.corpus.slice(Role.REFUSAL, align.rows),
            **self._drawn(self.defense.align, Role.HARMFUL),
            budget=align.budget,
            adapter=align.adapter,
            encoding=encoding,
            seed=self.seed,
        )
        attack = self.attack.method if self.attack.ratio > 0 else None
        poison = Poison(
            task=self.task.train,
            attack=attack,
            harmful=self.corpus.slice(Role.ATTACK) if attack else None,
            victim=aligned if attack and attack.needs_victim else None,
            rows=finetune.rows,
            ratio=self.attack.ratio if attack else 0.0,
            compat=finetune.compat,
            seed=self.seed,
        )
        tuned = Finetune(
            aligned=aligned,
            mixture=poison,
            method=self.defense.finetune,
            **self._drawn(self.defense.finetune, Role.REFUSAL, Role.HARMFUL),
            budget=finetune.budget,
            protocol=finetune.adapter,
            adapter=self._tuned_adapter,
            encoding=encoding,
            seed=self.seed,
        )
        chain: dict[str, Stage] = {"base": base, "align": aligned, "poison": poison, "finetune": tuned}
        final_model: Finetune | Repair = tuned
        if self.defense.repair is not None:
            final_model = Repair(
                tuned=tuned,
                method=self.defense.repair,
                **self._drawn(self.defense.repair, Role.REFUSAL, Role.HARMFUL),
                encoding=encoding,
                seed=self.seed,
            )
            chain["repair"] = final_model
        prompts = self.corpus.slice(Role.EVALUATION, self.evaluation.rows)
        marker = marker_of(encoding.template)
        for prefix, model in (("aligned_", aligned), ("", final_model)):
            answers = Generate(
                model=model,
                prompts=prompts,
                new_tokens=self.evaluation.new_tokens,
                encoding=encoding,
                decoding=self.evaluation.decoding,
            )
            solutions = Generate(
                model=model,
                prompts=self.task.test,
                new_tokens=self.task.new_tokens,
                encoding=encoding,
                decoding=self.evaluation.decoding,
            )
            chain[f"{prefix}harm_answers"], chain[f"{prefix}task_answers"] = answers, solutions
            chain[f"{prefix}harm"] = Grade(answers=answers, judge=self.judge, marker=marker)
            chain[f"{prefix}accuracy"] = Grade(answers=solutions, task=self.task, marker=marker)
        return chain

    def protocol(self) -> dict[str, object]:
        """How the numbers are read: rows in which this differs are never averaged together."""
        parts = {
            "judge": payload_of(self.judge),
            "prompts": payload_of(self.corpus.slice(Role.EVALUATION, self.evaluation.rows)),
            "new_tokens": self.evaluation.new_tokens,
            "decoding": payload_of(self.evaluation.decoding),
            "encoding": payload_of(self.model.encoding),
            "test": payload_of(self.task.test),
            "task": {"new_tokens": self.task.new_tokens},
        }
        return flatten(parts)

    @property
    def _tuned_adapter(self) -> Lora:
        fresh = self.finetune.fresh if self.finetune.adapter == "double" else None
        return fresh or self.align.adapter

    def _unsuited(self) -> list[str]:
        defense, tuned = self.defense, self._tuned_adapter
        slots = (("align", defense.align, self.align.adapter), ("finetune", defense.finetune, tuned))
        return [
            reason
            for slot, method, adapter in (*slots, ("repair", defense.repair, tuned))
            if method
            for reason in incompatibilities(slot, method, adapter, [(need, self._slice(need)) for need in method.needs])
        ]

    def _drawn(self, method: TrainMethod | RepairMethod | None, *roles: Role) -> dict[str, Slice | None]:
        needs = {need.role: need for need in method.needs} if method else {}
        return {role.value: self._slice(needs[role]) if role in needs else None for role in roles}

    def _slice(self, need: DataRequirement) -> Slice:
        return self.corpus.slice(need.role, self.align.rows if need.aligned else need.rows)
