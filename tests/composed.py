"""Composition for tests: the files of ``conf/`` are read once in a process, not once in a test."""

from collections.abc import Sequence
from functools import cache

from harness.config.compose import CommandLines, Composition
from harness.config.compose import compose as compose_anew


@cache
def _command_lines() -> CommandLines:
    return CommandLines()


def compose(overrides: Sequence[str], config_dir: str | None = None) -> list[Composition]:
    """Return what ``harness.config.compose.compose`` returns; files of a ``config_dir`` are read anew."""
    return _command_lines().compose(overrides) if config_dir is None else compose_anew(overrides, config_dir)
