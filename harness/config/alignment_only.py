"""Cells that end after alignment, chosen by `finetune=none`: their composed data have null in place of a fine-tuning.

A file that comes later, such as an experiment's or `update=none`, may set a part of the fine-tuning all the same, and a
user may sweep one of its settings together with such cells. Neither has an effect on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from hydra.core.override_parser.types import Override

from harness.config.overrides import InvalidOverride
from harness.errors import ConfigError, Problem

FINETUNE, NONE = "finetune", "none"
"""The config group of the fine-tuning, and its option that uses none."""


def ends_after_alignment(choices: Mapping[str, str]) -> bool:
    """Return whether a choice of groups has no fine-tuning."""
    return choices.get(FINETUNE) == NONE


def estimator_problems(choices: Mapping[str, str]) -> list[Problem]:
    """Return why the choice of an estimator has no effect; it is a part of the settings that are null."""
    update = choices.get("update", NONE)
    if not ends_after_alignment(choices) or update == NONE:
        return []
    reason = f"`{update}` belongs to a fine-tuning, but the cell ends after the alignment (`finetune=none`)"
    return [Problem("update", f"{reason}; expected `none`")]


def idle_values(values: Sequence[Override]) -> dict[int, InvalidOverride]:
    """Return those of a cell's value overrides, by position, that set a fine-tuning which the cell does not have."""
    reason = "sets a fine-tuning, but the cell ends after the alignment (`finetune=none`)"
    return {
        index: InvalidOverride(item.key_or_group, item.input_line or "", Problem(item.key_or_group, reason))
        for index, item in enumerate(values)
        if item.key_or_group.startswith(f"{FINETUNE}.")
    }


@contextmanager
def explaining_interpolations(choices: Mapping[str, str]) -> Iterator[None]:
    """Explain that a setting which is computed from those of the fine-tuning cannot be resolved without one.

    Raises:
        ConfigError: as inside, with the explanation.
    """
    try:
        yield
    except ConfigError as error:
        if not ends_after_alignment(choices) or not any(f"{FINETUNE}." in str(problem) for problem in error.problems):
            raise
        reason = (
            "`none` ends the cell after the alignment, but another choice takes values from a fine-tuning, such as a "
            "defense that acts in or after one; expected a fine-tuning, or none of these"
        )
        raise ConfigError([Problem(FINETUNE, reason), *error.problems]) from None
