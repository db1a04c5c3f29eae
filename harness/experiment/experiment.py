"""An experiment: the settings of one cell, from which ``chain`` builds stages."""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.corpus import Corpus
from harness.corpora.encode import Encoding
from harness.corpora.examples import Role
from harness.corpora.probe import Probe
from harness.engine.checks import not_negative
from harness.engine.identity import flatten, payload_of
from harness.errors import Problem
from harness.experiment.fusing import Experts, Joint, Merging, Routed
from harness.experiment.settings import (
    AlignSettings,
    AttackSettings,
    Defense,
    Evaluation,
    Federation,
    FinetuneSettings,
    Model,
    OverRefusal,
)
from harness.protocols import HasMatch, HasProbes, Judge, MeasuredTask, ServeMethod, Tampering, Task, TrainedGuard
from harness.stages.leak import Leakage


@final
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One cell of a sweep.

    Attributes:
        finetune: the user's fine-tuning; null ends the cell after the alignment, whose model is then the final one.
        over_refusal: how over-refusal is measured; null does not measure it.
        tamper: changes the aligned model instead of a fine-tuning; null fine-tunes.
        guardrail: judges the user's rows before they are fine-tuned on; null trains on all of them.
        fuse: what is attacked instead of the alignment on refusals: a fusion of it with other experts; null fuses none.
        experts: the rows of the other experts; read by a fusion only.
        leakage: measures what gradients give away of the rows; null does not.
        federation: clients that hold the user's rows and train on them; null fine-tunes in one place.
        serve: acts between the final model and its answers; null lets the model answer alone. The aligned model, which
            is evaluated before the attack, always does.
    """

    name: ClassVar[str] = "experiment"
    version: ClassVar[int] = 1
    model: Model
    corpus: Corpus
    align: AlignSettings
    finetune: FinetuneSettings | None
    defense: Defense
    task: Task | MeasuredTask
    attack: AttackSettings
    judge: Judge
    evaluation: Evaluation
    seed: int
    over_refusal: OverRefusal | None = None
    tamper: Tampering | None = None
    guardrail: Judge | TrainedGuard | None = None
    fuse: Merging | Joint | Routed | None = None
    experts: Experts | None = None
    federation: Federation | None = None
    leakage: Leakage | None = None
    serve: ServeMethod | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        return not_negative(self, "seed")

    @property
    def probes(self) -> tuple[tuple[str, Probe], ...]:
        """The probes of the attack and of the methods, each with the setting that declares it."""
        defense = self.defense
        parts: dict[str, object] = {
            "attack.method": self.attack.method,
            "defense.align": defense.align,
            "defense.finetune": defense.finetune,
            "defense.repair": defense.repair,
        }
        return tuple(
            (path, probe) for path, part in parts.items() if isinstance(part, HasProbes) for probe in part.probes
        )

    def asked(self, probe: Probe | None = None) -> Encoding:
        """Return the encoding of the evaluation, or that of one of its probes."""
        encoding = self.model.encoding
        for change in (self.evaluation.encoding, probe and probe.change):
            encoding = change.of(encoding) if change else encoding
        return encoding

    def protocol(self, probe: Probe | None = None) -> dict[str, object]:
        """Return the evaluation protocol; rows in which it differs are never averaged."""
        parts: dict[str, object] = {
            "judge": payload_of(self.judge),
            "prompts": payload_of(self.corpus.slice(Role.EVALUATION, self.evaluation.rows)),
            "new_tokens": self.evaluation.new_tokens,
            "decoding": payload_of(self.evaluation.decoding),
            "encoding": payload_of(self.asked(probe)),
            **self._task_protocol(),
        }
        if self.over_refusal is not None:
            parts["over_refusal"] = {
                "judge": payload_of(self.over_refusal.judge),
                "prompts": payload_of(self.over_refusal.prompts),
            }
        return flatten(parts)

    def _task_protocol(self) -> dict[str, object]:
        if isinstance(self.task, MeasuredTask):
            # Not only the benchmark: rows of one label are compared, and the label does not name the user's data.
            return {"test": payload_of(self.task.benchmark), "task": {"train": payload_of(self.task.train)}}
        match = self.task.match if isinstance(self.task, HasMatch) else None
        return {
            "test": payload_of(self.task.test),
            "task": {"new_tokens": self.task.new_tokens, **({"match": match} if match else {})},
        }
