"""Expands the command line of a sweep to the overrides of each cell.

Hydra's basic sweeper keeps one override per name, at the position of the first, and would lose one of two mappings for
the same group of settings. Here each cell gets all overrides in the order in which they were written, so that it is
composed exactly like a single run with the same overrides.
"""

from collections.abc import Callable, Sequence
from itertools import islice, product
from math import prod

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep

from harness.config.defense_slots import GROUP, SLOTS, group_of
from harness.config.hydra_errors import wrap_hydra_errors
from harness.errors import ConfigError, Problem

MOST_CELLS = 100_000
"""Maximum per sweep, whose plan takes minutes; a larger sweep is a typo such as `range(0,1,1e-9)`."""

Options = Callable[[str], Sequence[str]]
"""Returns the options of a config group."""


@wrap_hydra_errors()
def expand(lines: Sequence[str], options: Options, params: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Return the overrides of each cell.

    Args:
        lines: the overrides of the command line, with sweeps in Hydra's grammar.
        options: returns the options of a group, for ``glob``.
        params: the sweep of the configuration, as overrides; overrides of the command line replace those of the same
            name.

    Raises:
        ConfigError: an override cannot be parsed, or a sweep has no values, too many, or is not discrete.
    """
    parser = OverridesParser.create()
    written = parser.parse_overrides(list(lines))
    named = {(item.key_or_group, item.package) for item in written}
    configured = parser.parse_overrides(list(params))
    kept = [item for item in configured if (item.key_or_group, item.package) not in named]
    values: list[list[str]] = []
    problems: list[Problem] = []
    for item in (*kept, *written):
        try:
            values.append(_values_of(item, options))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    if (cells := prod(map(len, values))) > MOST_CELLS:
        widest = max(values, key=len)[0].partition("=")[0]
        counted = f"the sweep has at least {cells} cells; `{widest}` has the most values"
        raise ConfigError([f"{counted}; expected {MOST_CELLS} at most. Split it into several sweeps."])
    return list(product(*values))


def deferred(lines: Sequence[str]) -> list[str]:
    """Return the overrides of a sweep, with the values of swept groups as sweeps of one value.

    Hydra composes a sweep once as a whole, without what is swept: `serve.strength=1` of `serve=none,safetylock` would
    be set in the group's default option, which may not have it. A sweep of one value reaches the cells only.
    """
    parsed = OverridesParser.create().parse_overrides(list(lines))
    swept = tuple(f"{item.key_or_group.replace('/', '.')}." for item in parsed if item.is_sweep_override())
    found = []
    for line, item in zip(lines, parsed, strict=True):
        name, _, text = line.partition("=")
        waits = bool(swept) and item.key_or_group.startswith(swept) and not item.is_sweep_override()
        found.append(f"{name}=choice({text})" if waits and text and not item.is_delete() else line)
    return found


def _values_of(item: Override, options: Options) -> list[str]:
    """Return one override for each value of a sweep.

    Raises:
        ConfigError: it has no values, too many, or is not discrete.
    """
    line, key = item.input_line or "", item.get_key_element()
    if not item.is_sweep_override():
        return [line]
    if not item.is_discrete_sweep():
        advice = f"an interval needs an optimizing `hydra/sweeper`; expected values, as in `{key}=1,2,5`."
        raise ConfigError([f"`{line}`: {advice}"])
    pattern = item.value()
    if isinstance(pattern, Glob):
        offered = options_of_group(item.key_or_group, options)
        if not (found := pattern.filter(offered)):
            known = f"its options are {', '.join(offered)}" if offered else "it is not a config group"
            raise ConfigError([f"`{line}`: no option of `{item.key_or_group}` matches; {known}."])
        return [f"{key}={name}" for name in found]
    # Hydra materialises a shuffled range before it yields the first value, so count the range itself.
    counted = pattern.range() if isinstance(pattern, RangeSweep) else item.sweep_string_iterator()
    if sum(1 for _ in islice(counted, MOST_CELLS + 1)) > MOST_CELLS:
        raise ConfigError([f"`{line}`: more than {MOST_CELLS} values; expected fewer. Split the sweep into several."])
    if not (swept := [f"{key}={value}" for value in item.sweep_string_iterator()]):
        raise ConfigError([f"`{line}`: the sweep has no values; expected at least one."])
    return swept


def options_of_group(group: str, options: Options) -> list[str]:
    """Return the options of a group; for the defense, also the options of its slots."""
    groups = [group, *(group_of(slot) for slot in SLOTS)] if group == GROUP else [group]
    return sorted({name for each in groups for name in options(each)})
