"""A stage: one unit of work with an identity.

Fields are part of the identity; values from the context (paths, device, tracker, resources) are not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from harness.engine.identity import key_of, payload_of
from harness.engine.tracker import Tracker
from harness.errors import Problem

Sharding = Literal["ddp", "fsdp"]
"""How a model is distributed over processes: ``ddp`` replicates it, ``fsdp`` shards it."""


class Locate(Protocol):
    """Locates and verifies the artifact of a stage."""

    def __call__(self, stage: "Stage", /) -> Path:
        """Return the folder of the stage's complete artifact."""
        ...


def never() -> bool:
    """Return False: the ``stop`` of a stage that is never asked to stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a running stage may use that is not part of its identity.

    Attributes:
        out: an empty folder; its content becomes the artifact.
        work: a folder that survives a killed attempt; holds checkpoints.
        locate: returns the verified artifact folder of any ancestor stage.
        tracker: receives curves.
        device: a torch device string, for example ``cpu`` or ``cuda:0``.
        memory: lives as long as the process, so that consecutive stages can reuse a loaded base model.
        facts: entries for the manifest, such as counts and overlaps; JSON values only.
        rank: rank of this process in a stage with several processes; only rank 0 writes to ``out``.
        sharding: how the model is distributed over the ranks.
        stop: returns whether the stage should save its state in ``work`` and raise ``Stopped``; polled between steps.
        micro_batch_size: examples per forward pass in each process during training; None is the whole share of a batch.
        shrink: power of two by which micro-batches are divided, to use less memory than the settings ask for.
        compiled: the compiler's cache, shared by all jobs of the store; None uses the compiler's own folder.
        replies: where replies of services are kept, shared by all jobs of the store; None keeps them in ``work``.
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
    replies: Path | None = None

    def input(self, stage: "Stage") -> Path:
        """Return the verified artifact folder of an ancestor."""
        return self.locate(stage)


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """One unit of work. Subclasses are final frozen dataclasses; their fields are their identity."""

    name: ClassVar[str]
    """The kind of stage, as used in tables and paths."""
    version: ClassVar[int]
    """Bumped when results change, so that old artifacts are not reused."""
    parallel: ClassVar[bool] = False
    """Whether the stage can run in several processes: each calls ``run``, and only rank 0 writes to ``out``."""
    trains: ClassVar[bool] = False
    """Whether it changes weights. Then it may log a curve, and its settings are part of a cell's training protocol."""
    attacks: ClassVar[bool] = False
    """Whether it uses the attacker's data, so that its descendants depend on the attack."""
    fuses: ClassVar[bool] = False
    """Whether a cluster should run it in the same job as its parent."""
    fuses_siblings: ClassVar[bool] = False
    """Whether several children of this kind may run in the job of a common parent, one after another."""
    loads_base: ClassVar[bool] = False
    """Whether it loads the model of its first ancestor, so that it starts faster in a process that has it in memory."""

    @cached_property
    def key(self) -> str:
        """Hash of everything that can change this stage's result, including the parents' keys."""
        return key_of({"stage": payload_of(self)})

    @cached_property
    def parents(self) -> tuple["Stage", ...]:
        """The stages that this one reads: those in its fields and nested settings, in field order."""
        return tuple(dict.fromkeys(_stages_in(self)))

    @property
    def reported_shares(self) -> Mapping[str, str]:
        """Facts between 0 and 1 (null: undefined) that report and W&B show in percent, each with its meaning."""
        return {}

    def __hash__(self) -> int:
        """Stages are equal when their keys are."""
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Stages are equal when their keys are."""
        return isinstance(other, Stage) and self.key == other.key

    @abstractmethod
    def preflight(self) -> list[Problem]:
        """Return problems that would make this stage fail and that the user can fix, without computing anything."""

    @abstractmethod
    def run(self, ctx: StageContext) -> None:
        """Do the work and write the artifact to ``ctx.out``."""

    def recorded_settings(self) -> Mapping[str, str] | None:
        """Return the settings of the training protocol, so that reports can flag cells trained under another protocol.

        Returns:
            Dotted paths in the fields, by the configuration's name of the setting or group; without settings that
            distinguish methods. None for a stage that does not train a model.
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
    """Return the key of a stage's first ancestor; empty for a stage without parents."""
    return lineage((stage,))[0].key if stage.parents else ""


def lineage(leaves: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the leaves and all their ancestors, without duplicates, parents before children."""
    ordered: dict[str, Stage] = {}
    # Not a recursion: a chain may be deeper than Python's stack, such as one of hundreds of rounds.
    pending = list(reversed(leaves))
    while pending:
        stage = pending[-1]
        missing = [] if stage.key in ordered else [each for each in stage.parents if each.key not in ordered]
        if missing:
            pending += reversed(missing)
        else:
            ordered.setdefault(stage.key, stage)
            pending.pop()
    return tuple(ordered.values())
