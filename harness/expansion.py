"""Expansion: from a line of overrides with sweeps in Hydra's grammar to one line a cell."""

from collections.abc import Sequence
from itertools import islice
from math import prod
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override, RangeSweep

from harness.errors import ConfigError
from harness.refusal import composing

MOST_CELLS = 100_000
"""Of one sweep. Their plan takes minutes; what asks for more was mistyped, as `range(0,1,1e-9)`, and never ends."""


@composing()
def expanded(parser: Any, texts: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each cell.

    Args:
        parser: Hydra's parser of overrides, with a config loader for ``glob``.
        texts: the overrides of a command line.

    Raises:
        ConfigError: an override cannot be read, or a sweep has no value, or too many.
    """
    overrides = parser.parse_overrides(list(texts))
    # Of two overrides of one name, the last is the one that counts.
    last = {item.get_key_element(): item for item in overrides}
    counts = {item.input_line: _values(item) for item in last.values() if item.is_sweep_override()}
    if nothing := [text for text, count in counts.items() if not count]:
        raise ConfigError([f"`{text}`: a sweep over nothing; expected one value at least." for text in nothing])
    if (cells := prod(counts.values())) > MOST_CELLS:
        widest = max(counts, key=lambda text: counts[text])
        raise ConfigError(
            [f"`{widest}`: the sweep has {cells} cells or more; expected {MOST_CELLS} at most. Divide it into several."]
        )
    cells_of_batch: list[list[str]] = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
    return cells_of_batch


def _values(item: Override) -> int:
    """Count the values of a sweep, up to one more than can be."""
    if not item.is_discrete_sweep():
        # For another sweeper: BasicSweeper says so.
        return 1
    values = item.value()
    # A shuffled range would be written out before its first value comes.
    iterator = values.range() if isinstance(values, RangeSweep) else item.sweep_iterator()
    return sum(1 for _ in islice(iterator, MOST_CELLS + 1))
