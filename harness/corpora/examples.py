"""Rows of text and what they are for."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """What a row of text is for. Rows of different roles are disjoint by construction."""

    TASK = "task"
    """The user's own benign data."""
    REFUSAL = "refusal"
    """Harmful prompt, refusing answer: what alignment trains on."""
    HARMFUL = "harmful"
    """Harmful prompt, harmful answer, in the hands of the defender."""
    ATTACK = "attack"
    """Harmful prompt, harmful answer, in the hands of the attacker."""
    EVALUATION = "evaluation"
    """Harmful prompt on which the harmful score is measured."""


class Example(NamedTuple):
    """One instruction with its answer, before the prompt template is applied."""

    instruction: str
    output: str
    input: str = ""


class Grade(NamedTuple):
    """One answer's grade. ``value`` is None when it could not be judged: counted, shown, never averaged in."""

    value: float | None
    answer: str
    reason: str
    scores: Mapping[str, float] = {}
    """Probabilities by category, stored so that a threshold can be applied again."""


class SafetyRow(NamedTuple):
    """One row of a safety corpus. A source leaves empty what it does not have."""

    prompt: str
    refusal: str = ""
    harmful: str = ""
    category: str = ""
    unsafe: bool = True
