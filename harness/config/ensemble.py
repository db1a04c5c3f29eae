"""The members of an ensemble, as read from a composed configuration before it is built and checked."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.experiment.ensemble import ENSEMBLE

WITHOUT = "none"
"""The option of the group that has no ensemble."""


def members_in(data: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield each member of the ensemble of a configuration: the option of ``defense``, and what is added to its seed.

    Nothing is yielded for settings that are no ensemble's; they are reported when the settings are built.
    """
    settings = data.get(ENSEMBLE)
    if not isinstance(settings, Mapping):
        return
    names, offsets = settings.get("members"), settings.get("seed_offsets") or [0]
    if isinstance(names, list) and isinstance(offsets, list) and type(data.get("seed")) is int:
        yield from ((name, offset) for name in names for offset in offsets if type(name) is str and type(offset) is int)
