"""Interface of attacks, and the resources available to them."""

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
        model: the model with its adapter, on the device, in eval mode. An attack that changes weights restores them.
        tokenizer: the model's tokenizer.
        encoding: prompt template and tokenization of the fine-tuning.
    """

    model: Module
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """Resources of an attack besides its pool of harmful examples.

    Attributes:
        rng: random generator of the attack; its seed is the same for every defense and every ratio.
        task: the user's benign examples in their published order, with which the harmful ones will be mixed.
        victim: the aligned model; None unless the attack requires it (``needs_victim``).
        device: a torch device string.
        work: a folder that survives a killed attempt, for checkpoints of a long attack.
        facts: recorded in the manifest of the mixture, under ``attack``; JSON values only.
    """

    rng: Random
    task: Sequence[Example]
    victim: Victim | None
    device: str
    work: Path
    facts: dict[str, Any]


class Attack(Named, Protocol):
    """Frozen settings of how the attacker crafts harmful examples; their number is a setting of the mixture.

    An attack that is evaluated under further questions, such as one with its trigger, also satisfies ``HasProbes``.
    """

    @property
    def needs_victim(self) -> bool:
        """Whether crafting needs the aligned model, so that the mixture depends on the alignment."""
        ...

    def craft(self, harmful: Sequence[Example], count: int, ctx: AttackContext) -> list[Example]:
        """Return exactly ``count`` harmful examples crafted from the attacker's pool.

        Raises:
            DataError: the pool is too small.
        """
        ...
