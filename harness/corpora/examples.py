"""Text examples, their roles, and scores of generations."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """The purpose of an example. Examples of different roles are disjoint by construction."""

    TASK = "task"
    """The user's benign data."""
    REFUSAL = "refusal"
    """Harmful prompt with a refusal: the training data of alignment."""
    HARMFUL = "harmful"
    """Harmful prompt with a harmful answer, available to the defender."""
    ATTACK = "attack"
    """Harmful prompt with a harmful answer, available to the attacker."""
    EVALUATION = "evaluation"
    """Harmful prompt for measuring the harmful score."""


class Example(NamedTuple):
    """One instruction with its answer, before the prompt template is applied."""

    instruction: str
    output: str
    input: str = ""


class Score(NamedTuple):
    """The score of one generation.

    Attributes:
        value: 0 to 1; None if the generation could not be graded: counted, but excluded from means.
        explanation: why the generation has this value.
        categories: probability of each category, stored so that another threshold can be applied later.
    """

    value: float | None
    explanation: str
    categories: Mapping[str, float] = {}


class SafetyRow(NamedTuple):
    """One row of a safety corpus. Columns that a source does not have are empty."""

    prompt: str
    refusal: str = ""
    harmful: str = ""
    category: str = ""
    unsafe: bool = True
