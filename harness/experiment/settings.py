"""The settings of a cell, by config group."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.corpora.encode import Encoding
from harness.corpora.probe import EncodingChange
from harness.engine.checks import counts, shares
from harness.errors import Problem
from harness.generation.decoding import Decoding
from harness.models.adapter import Lora
from harness.protocols import (
    Attack,
    Estimator,
    ExampleSource,
    HasConflicts,
    ModelSource,
    Named,
    RefusalJudge,
    RepairMethod,
    SelectsRows,
    SendsAlone,
    TrainMethod,
)
from harness.training.budget import Budget


@final
@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model, and how text is encoded for it."""

    name: ClassVar[str] = "model"
    version: ClassVar[int] = 1
    source: ModelSource
    encoding: Encoding


@final
@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Alignment: number of refusal examples, training budget, and the adapter."""

    name: ClassVar[str] = "align"
    version: ClassVar[int] = 1
    rows: int
    budget: Budget
    adapter: Lora

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows")


@final
@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tuning: number of user examples, training budget, and whether the aligned adapter is continued or merged.

    Attributes:
        rows: number of user examples, harmful ones included.
        budget: the training budget.
        adapter: ``single`` continues the aligned adapter; ``double`` merges it, rounded to the base's dtype, and trains
            a new one.
        compat: ``exact`` uses exact counts, ``booster`` the published code's strict slice (99 of 100 examples).
        fresh: configuration of the new adapter; null is that of the alignment. Ignored with ``single``.
        update: estimates gradients from forward passes; null computes them.
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    rows: int
    budget: Budget
    adapter: Literal["single", "double"]
    compat: Literal["exact", "booster"] = "exact"
    fresh: Lora | None = None
    update: Estimator | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows")


@final
@dataclass(frozen=True, kw_only=True)
class Defense:
    """The three slots of a defense; an empty slot (null) means plain training, or no repair."""

    name: ClassVar[str] = "defense"
    version: ClassVar[int] = 1
    align: TrainMethod | None = None
    finetune: TrainMethod | None = None
    repair: RepairMethod | None = None

    def conflicts(self) -> list[Problem]:
        """Return why methods are incompatible with each other."""
        slots: dict[str, Named | None] = {"align": self.align, "finetune": self.finetune, "repair": self.repair}
        found: list[Problem] = []
        for slot, method in slots.items():
            if isinstance(method, HasConflicts):
                found += [Problem.of(stated).under(f"defense.{slot}") for stated in method.conflicts(slots)]
        return found


@final
@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """The attack: how it makes examples, and the fraction of the user's examples that is the attacker's.

    Attributes:
        ratio: the poison ratio. An attack that selects the user's examples acts whatever the ratio, one that sends its
            examples alone at any ratio but 0.
        method: the attack; null is benign fine-tuning.
        victim: the alignment that an attack crafts against, if it reads the aligned model: ``own`` is the one that is
            attacked, ``plain`` the one without a defense (a transfer attack, crafted once for all defenses).
    """

    name: ClassVar[str] = "attack"
    version: ClassVar[int] = 1
    ratio: float
    method: Attack | None = None
    victim: Literal["own", "plain"] = "own"

    @property
    def acting(self) -> Attack | None:
        """The attack; None at a ratio of 0, unless it selects."""
        return self.method if self.ratio > 0 or isinstance(self.method, SelectsRows) else None

    @property
    def acting_ratio(self) -> float:
        """Fraction of the attacker's examples in the training data; 0 without an attack."""
        if self.acting is None or isinstance(self.acting, SelectsRows):
            return 0.0
        return 1.0 if isinstance(self.acting, SendsAlone) else self.ratio

    def problems(self) -> list[Problem]:
        """Range errors."""
        return shares(self, "ratio")


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation: number of prompts for the harmful score, and how generations are decoded.

    Attributes:
        rows: number of evaluation prompts.
        new_tokens: maximum length of a generation for an evaluation prompt, in tokens.
        decoding: decoding of generations, both for evaluation prompts and for the task.
        encoding: how the encoding of these prompts differs from the model's, which trains; null does not differ.
    """

    name: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 1
    rows: int
    new_tokens: int
    decoding: Decoding
    encoding: EncodingChange | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows", "new_tokens")


@final
@dataclass(frozen=True, kw_only=True)
class OverRefusal:
    """Over-refusal: the share of harmless prompts that the model refuses to answer.

    Answers are decoded as those to the evaluation prompts are.

    Attributes:
        prompts: harmless prompts that look harmful.
        judge: decides whether an answer is a refusal.
    """

    name: ClassVar[str] = "over_refusal"
    version: ClassVar[int] = 1
    prompts: ExampleSource
    judge: RefusalJudge
