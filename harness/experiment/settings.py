"""The settings of a cell, group by group."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.corpora.encode import Encoding
from harness.engine.checks import counts, shares
from harness.errors import Problem
from harness.generation.decoding import Decoding
from harness.models.adapter import Lora
from harness.protocols import Attack, HasConflicts, ModelSource, Named, RepairMethod, TrainMethod
from harness.training.budget import Budget


@final
@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model and how text becomes its tokens."""

    name: ClassVar[str] = "model"
    version: ClassVar[int] = 1
    source: ModelSource
    encoding: Encoding


@final
@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Stage A: ``rows`` refusals, a budget, and the adapter that is trained."""

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
    """Stage B: ``rows`` user rows, a budget, and whether the aligned adapter is continued or merged.

    Attributes:
        adapter: ``single`` continues the aligned adapter; ``double`` merges it, rounded to the base's number format,
            and trains a fresh one.
        compat: ``exact`` counts, or ``booster`` for the published strict slice (99 of 100).
        fresh: size and place of the fresh adapter; null is the alignment's. Not read with ``single``, which has none.
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    rows: int
    budget: Budget
    adapter: Literal["single", "double"]
    compat: Literal["exact", "booster"] = "exact"
    fresh: Lora | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows")


@final
@dataclass(frozen=True, kw_only=True)
class Defense:
    """Three slots where a defense may act; a slot that is null is plain training, or nothing."""

    name: ClassVar[str] = "defense"
    version: ClassVar[int] = 1
    align: TrainMethod | None = None
    finetune: TrainMethod | None = None
    repair: RepairMethod | None = None

    def conflicts(self) -> list[Problem]:
        """Return which methods do not go together, and why."""
        slots: dict[str, Named | None] = {"align": self.align, "finetune": self.finetune, "repair": self.repair}
        found: list[Problem] = []
        for slot, method in slots.items():
            if isinstance(method, HasConflicts):
                found += [Problem.of(stated).under(f"defense.{slot}") for stated in method.conflicts(slots)]
        return found


@final
@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """What share of the user's rows is harmful, and how those rows are made (null: the benign fine-tune)."""

    name: ClassVar[str] = "attack"
    version: ClassVar[int] = 1
    ratio: float
    method: Attack | None = None

    @property
    def acting(self) -> Attack | None:
        """The attack, if there is one: of no rows it is none, whatever the method."""
        return self.method if self.ratio > 0 else None

    @property
    def acting_ratio(self) -> float:
        """The share of harmful rows in what is trained on: 0 if there is no attack."""
        return self.ratio if self.acting is not None else 0.0

    def problems(self) -> list[Problem]:
        """Range errors."""
        return shares(self, "ratio")


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Stage D: on how many prompts the harmful score is read, and how answers are generated.

    Attributes:
        rows: evaluation prompts.
        new_tokens: longest answer to an evaluation prompt, in tokens.
        decoding: how answers are generated, to evaluation prompts and to the task's.
    """

    name: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 1
    rows: int
    new_tokens: int
    decoding: Decoding

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows", "new_tokens")
