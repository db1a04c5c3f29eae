"""Attacks: how harmful rows are made, and what an attacker may use to make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.protocols.learner import Named

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase


class Victim(NamedTuple):
    """The aligned model that an attack crafts against.

    Attributes:
        model: with its adapter, on the device, in evaluation mode. An attack that changes weights restores them.
        tokenizer: of the model.
        encoding: how the user's rows become tokens in the fine-tuning.
    """

    model: Module
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """What an attack may use besides its pool of harmful rows.

    Attributes:
        rng: the attack's own random choices; the same for every defense and every ratio.
        task: the user's own rows in their published order, among which the harmful ones will be.
        victim: the aligned model; None unless the attack asks for it (``needs_victim``).
        device: a torch device string.
        work: a folder that survives a killed attempt, for what a long attack resumes from.
        facts: what the attack wants to have in the manifest of the mixture, under ``attack``; JSON values only.
    """

    rng: Random
    task: Sequence[Example]
    victim: Victim | None
    device: str
    work: Path
    facts: dict[str, Any]


class Attack(Named, Protocol):
    """Frozen settings of how the attacker makes harmful rows; their number is decided by the mixture."""

    @property
    def needs_victim(self) -> bool:
        """Whether crafting needs the aligned model; then the mixture depends on the alignment."""
        ...

    def craft(self, harmful: Sequence[Example], count: int, ctx: AttackContext) -> list[Example]:
        """Return exactly ``count`` harmful rows made from the attacker's pool.

        Raises:
            DataError: the pool is too small.
        """
        ...
