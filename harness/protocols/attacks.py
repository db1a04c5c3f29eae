"""Interface of attacks: what an attack needs, what it may do, and the resources available to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.engine.stage import never
from harness.errors import DataError, Problem
from harness.protocols.learner import Named, Product
from harness.protocols.shelves import ModelSource

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase


class Victim(NamedTuple):
    """The aligned model that an attack crafts against.

    Attributes:
        model: the model with its adapter, on the device, in eval mode. An attack that changes weights restores them.
        tokenizer: the model's tokenizer.
        encoding: prompt template and tokenization of the fine-tuning.
    """

    model: Module
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding


class OpenedGuard(Protocol):
    """A guard whose weights an attack reads, in eval mode and frozen."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The guard's tokenizer, with the victim's vocabulary."""
        ...

    @property
    def embeddings(self) -> Tensor:
        """The input embeddings, ``[vocabulary, width]``."""
        ...

    def tokens(self, turns: Sequence[Example]) -> list[list[int]]:
        """Return what the guard reads of uploaded rows, as it does when it judges them.

        Args:
            turns: each one turn of the user (``instruction``) and one of the assistant (``output``).
        """
        ...

    def losses(self, rows: Sequence[list[int]]) -> list[float]:
        """Return ``-log P(harmless)`` of every row of ``tokens``, in nats."""
        ...

    def loss(self, embedded: Tensor) -> Tensor:
        """Return ``-log P(harmless)`` of a row, given its input embeddings ``[time, width]``, for gradients."""
        ...


@runtime_checkable
class WhiteBoxGuard(Named, Protocol):
    """Optional: a guard that can be opened, so that an attack can take gradients through it."""

    def vocabulary_mismatch(self, victim: ModelSource) -> str | None:
        """Return why the guard's vocabulary is not that of a victim's model; None if it is, or if it is unknown yet."""
        ...

    def opened(self, model: Path | None, *, device: str) -> OpenedGuard:
        """Load the guard.

        Args:
            model: the folder of the model, of a guard whose model is made by a stage.
            device: a torch device string.

        Raises:
            ModelError: the model is not available or does not fit into memory.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class AttackNeeds:
    """What an attack reads; all of it is in its context.

    Attributes:
        pool: harmful examples.
        refusals: a refusal for each prompt of the pool.
        hosts: examples of the user that are not sent as they are, at least as many as the attack crafts.
        victim: the aligned model, so that the mixture depends on the alignment.
        encoding: template and tokenization, for an attack that writes prompts into its examples.
        guard: the weights of a guard (``attack.guard``), which need not be the one that moderates.
    """

    pool: bool = False
    refusals: bool = False
    hosts: bool = False
    victim: bool = False
    encoding: bool = False
    guard: bool = False


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """Resources of an attack. What it does not need (``AttackNeeds``) may be empty.

    Attributes:
        rng: random generator of the attack; its seed is the same for every defense and every ratio.
        pool: the attacker's harmful examples, in the order in which mixtures take them.
        refusals: the refusal of each prompt of the pool.
        hosts: the user's benign examples that are not sent as they are, in the order in which mixtures take them: to
            rewrite, or, for an attack that selects the user's examples, to choose from.
        victim: the aligned model.
        encoding: template and tokenization of the fine-tuning.
        guard: the opened guard.
        device: a torch device string.
        work: a folder that survives a killed attempt, for checkpoints of a long attack.
        stop: returns whether a long attack should save its state in ``work`` and raise ``Stopped``.
        facts: recorded in the manifest of the mixture, under ``attack``; JSON values only.
    """

    rng: Random
    pool: Sequence[Example] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    hosts: Sequence[Example] = ()
    victim: Victim | None = None
    encoding: Encoding | None = None
    guard: OpenedGuard | None = None
    device: str = "cpu"
    work: Path
    stop: Callable[[], bool] = never
    facts: dict[str, Any]


class Attack(Named, Protocol):
    """Frozen settings of how the attacker crafts examples; see also the optional protocols below, and ``HasProbes``."""

    @property
    def needs(self) -> AttackNeeds:
        """What the attack reads."""
        ...

    def craft(self, count: int, ctx: AttackContext) -> list[Example]:
        """Return exactly ``count`` examples: the attacker's own, or, of an attack that selects, some of the user's.

        Attacks that take the examples in order give mixtures that are nested over ratios.

        Raises:
            DataError: there are too few examples to craft from.
            Stopped: ``ctx.stop`` asked for it.
        """
        ...


@runtime_checkable
class SelectsRows(Attack, Protocol):
    """Optional: an attack that makes no examples, but chooses which of the user's own are sent.

    Its ratio of harmful examples is 0, and it acts whatever the poison ratio of the settings.
    """

    selects_rows: ClassVar[bool]


@runtime_checkable
class SendsAlone(Attack, Protocol):
    """Optional: an attack whose examples are sent without any of the user's own, as many as it says itself.

    Its ratio of harmful examples is 1, whatever the poison ratio of the settings, unless that is 0.
    """

    sends_alone: ClassVar[bool]

    @property
    def rows(self) -> int:
        """The number of examples."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """What an attack will be asked for, as far as it is known before anything runs.

    Attributes:
        count: the number of examples to craft; 0 for a change of the weights.
        pool_rows: the number of examples that the attack will find in the pool; 0 without one.
    """

    count: int
    pool_rows: int


@runtime_checkable
class ChecksPlan(Protocol):
    """Optional: an attack, or a change of the weights, that cannot do everything that it may be asked for."""

    def preflight(self, plan: AttackPlan) -> Sequence[Problem]:
        """Return why the attack cannot be carried out; paths are relative to its settings."""
        ...


class Tampering(Named, Protocol):
    """Frozen settings of an attack that changes an aligned model's weights without training."""

    def tamper(
        self, victim: Victim, harmful: Sequence[Example], harmless: Sequence[Example], *, device: str
    ) -> Mapping[str, Product]:
        """Return what is added to matrices of the victim, by module name; the victim itself is left as it is.

        Args:
            victim: the aligned model, without an adapter.
            harmful: the attacker's harmful examples.
            harmless: the user's benign examples.
            device: a torch device string.

        Raises:
            DataError: there are too few examples.
            ModelError: the model does not have what the attack changes.
        """
        ...


def first_of(rows: Sequence[Example], count: int) -> list[Example]:
    """Return the first ``count`` examples of an attacker's pool or of its hosts.

    Raises:
        DataError: there are fewer; mixtures check this beforehand and name the setting.
    """
    if count > len(rows):
        raise DataError(f"{count} rows requested, but there are {len(rows)}; expected at least as many")
    return list(rows[:count])
