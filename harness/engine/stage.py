"""A stage: one unit of work with an identity.

What is written in a field is identity; what is pulled from the context (paths, device, tracker, resources) is not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from harness.engine.identity import key_of, payload_of
from harness.engine.tracker import Tracker

Sharding = Literal["ddp", "fsdp"]
"""What each of several processes holds of the model: all of it, or its shard of what is not trained."""


class Locate(Protocol):
    """Finds and verifies the artifact of a stage."""

    def __call__(self, stage: "Stage", /) -> Path:
        """Return the folder of the stage's complete artifact."""
        ...


def never() -> bool:
    """Say that a stage should not stop: what one is given that nobody will ask to."""
    return False


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a running stage may use and its identity must not know.

    Attributes:
        out: an empty folder; what is written here becomes the artifact.
        work: a folder that survives a killed attempt; checkpoints live here.
        locate: gives the verified artifact folder of any ancestor stage.
        tracker: takes curves.
        device: a torch device string, for example ``cpu`` or ``cuda:0``.
        memory: lives as long as the process, so that consecutive stages share a loaded base model.
        facts: what the stage wants to have in its manifest (counts, overlaps); JSON values only.
        rank: which of the processes that share the stage this is; only the first, 0, writes to ``out``.
        sharding: what each of them holds of the model.
        stop: whether the stage is asked to save its state in ``work`` and raise ``Stopped``; asked at good moments.
        micro_batch_size: rows that each process may take through the model at once in a training; None is all.
        shrink: by how much less memory the stage should use at once than its settings say: a power of two.
        compiled: the compiler's cache, shared by all jobs of the store; None uses the compiler's own folder.
    """

    out: Path
    work: Path
    locate: Locate
    tracker: Tracker
    device: str = "cpu"
    memory: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    rank: int = 0
    sharding: Sharding = "ddp"
    stop: Callable[[], bool] = never
    micro_batch_size: int | None = None
    shrink: int = 1
    compiled: Path | None = None

    def input(self, stage: "Stage") -> Path:
        """Return the verified artifact folder of an ancestor."""
        return self.locate(stage)


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """One unit of work. Subclasses are final frozen dataclasses; their fields are their identity."""

    name: ClassVar[str]
    """The kind, as it stands in tables and paths."""
    version: ClassVar[int]
    """Bumped when the meaning of the result changes, so that old artifacts are not taken for new ones."""
    parallel: ClassVar[bool] = False
    """Whether several processes can share a run: each calls ``run``, and only the one of rank 0 writes to ``out``."""
    trains: ClassVar[bool] = False
    """Whether it changes weights: then it may have a curve, and its settings tell how a cell was trained."""
    attacks: ClassVar[bool] = False
    """Whether it brings in the attacker's data: what descends from it depends on the attack."""
    fuses: ClassVar[bool] = False
    """Whether a cluster should run it in the job of the parent that it continues."""
    fuses_siblings: ClassVar[bool] = False
    """Whether several of its kind may continue one parent in that parent's job, one after another."""
    loads_base: ClassVar[bool] = False
    """Whether it loads the model of its first ancestor: it starts sooner in a process that has it in memory."""

    @cached_property
    def key(self) -> str:
        """The hash of everything that can change this stage's result, parents included by key."""
        return key_of({"stage": payload_of(self)})

    @cached_property
    def parents(self) -> tuple["Stage", ...]:
        """The stages this one reads, found in its fields (nested settings included), in field order."""
        return tuple(dict.fromkeys(_stages_in(self)))

    def __hash__(self) -> int:
        """Stages are equal when their keys are."""
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Stages are equal when their keys are."""
        return isinstance(other, Stage) and self.key == other.key

    @abstractmethod
    def preflight(self) -> list[str]:
        """Return what would stop this stage for a reason the user can mend, found without computing anything."""

    @abstractmethod
    def run(self, ctx: StageContext) -> None:
        """Do the work and write the artifact to ``ctx.out``."""

    def recorded_settings(self) -> Mapping[str, str] | None:
        """Return which settings say how a model was trained, for what is reported of rows that were trained otherwise.

        Returns:
            By the name that a configuration gives a setting, or a group of them, its dotted path in the fields; none of
            those that tell methods from each other. None for a stage that takes no part in training a model.
        """
        return {} if self.trains else None


def _stages_in(value: object) -> Iterator[Stage]:
    for item in fields(value):  # type: ignore[arg-type]
        content = getattr(value, item.name)
        for part in content if isinstance(content, tuple) else (content,):
            if isinstance(part, Stage):
                yield part
            elif hasattr(part, "__dataclass_fields__"):
                yield from _stages_in(part)


def origin_of(stage: Stage) -> str:
    """Return the key of a stage's first ancestor, or an empty text for a stage without parents."""
    return lineage((stage,))[0].key if stage.parents else ""


def lineage(leaves: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the leaves and all their ancestors, once each, parents before children."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in ordered:
            for parent in stage.parents:
                visit(parent)
            ordered[stage.key] = stage

    for leaf in leaves:
        visit(leaf)
    return tuple(ordered.values())
