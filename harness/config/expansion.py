"""Expansion: from one command line of a sweep to the overrides of each of its cells.

Hydra's basic sweeper keeps one override a name, in the place of the first: of two mappings for one group of settings it
would lose one. Here a cell is given all that was written, in its order, so that it is composed as a single run of the
same words.
"""

from collections.abc import Callable, Sequence
from itertools import islice, product
from math import prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep

from harness.config.defense_slots import GROUP, SLOTS, group_of
from harness.config.hydra_errors import composing
from harness.errors import ConfigError, Problem

MOST_CELLS = 100_000
"""Of one sweep. Their plan takes minutes; what asks for more was mistyped, as `range(0,1,1e-9)`, and never ends."""

Options = Callable[[str], Sequence[str]]
"""Gives the options of a config group."""


def options_of(loader: Any, name: str, hydra: Sequence[str]) -> Options:
    """Return a function that gives the options of a group, those in folders of ``hydra.searchpath`` as well.

    Args:
        loader: Hydra's config loader.
        name: the file that is composed.
        hydra: the overrides of Hydra's own settings.
    """
    found: dict[str, list[str]] = {}

    def options(group: str) -> list[str]:
        if group not in found:
            found[group] = loader.get_group_options(group, config_name=name, overrides=list(hydra))
        return found[group]

    return options


@composing()
def expanded(lines: Sequence[str], options: Options, params: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Return the overrides of each cell.

    Args:
        lines: the overrides of the command line; sweeps in Hydra's grammar.
        options: gives the options of a group, for ``glob``.
        params: the sweep of the configuration, as overrides; the command line takes the place of what it names as well.

    Raises:
        ConfigError: an override cannot be read, or a sweep has no values, too many, or none that can be counted.
    """
    parser = OverridesParser.create()
    written = parser.parse_overrides(list(lines))
    named = {(item.key_or_group, item.package) for item in written}
    described = parser.parse_overrides(list(params))
    left = [item for item in described if (item.key_or_group, item.package) not in named]
    values: list[list[str]] = []
    problems: list[Problem] = []
    for item in (*left, *written):
        try:
            values.append(_each(item, options))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if (cells := prod(map(len, values))) > MOST_CELLS:
        widest = max(values, key=len)[0].partition("=")[0]
        counted = f"the sweep has {cells} cells or more, most of them by `{widest}`"
        raise ConfigError([f"{counted}; expected {MOST_CELLS} at most. Divide it into several."])
    return list(product(*values))


def _each(item: Override, options: Options) -> list[str]:
    """Return one override for each value of a sweep.

    Raises:
        ConfigError: there is none, or they cannot be counted.
    """
    line, key = item.input_line or "", item.get_key_element()
    if not item.is_sweep_override():
        return [line]
    if not item.is_discrete_sweep():
        advice = f"an interval is for an optimizing `hydra/sweeper`; expected values, as `{key}=1,2,5`."
        raise ConfigError([f"`{line}`: {advice}"])
    pattern = item.value()
    if isinstance(pattern, Glob):
        offered = _offered(item.key_or_group, options)
        if not (found := pattern.filter(offered)):
            known = f"its options are {', '.join(offered)}" if offered else "it is no config group"
            raise ConfigError([f"`{line}`: no option of `{item.key_or_group}` matches; {known}."])
        return [f"{key}={name}" for name in found]
    # A shuffled range would be written out before its first value comes.
    counted = pattern.range() if isinstance(pattern, RangeSweep) else item.sweep_string_iterator()
    if sum(1 for _ in islice(counted, MOST_CELLS + 1)) > MOST_CELLS:
        raise ConfigError([f"`{line}`: more than {MOST_CELLS} values; expected fewer. Divide the sweep into several."])
    if not (swept := [f"{key}={value}" for value in item.sweep_string_iterator()]):
        raise ConfigError([f"`{line}`: a sweep over nothing; expected at least one value."])
    return swept


def _offered(group: str, options: Options) -> list[str]:
    """Return what a choice of a group may be: that of the defense is also an option of any of its slots."""
    groups = [group, *(group_of(slot) for slot in SLOTS)] if group == GROUP else [group]
    return sorted({name for each in groups for name in options(each)})
