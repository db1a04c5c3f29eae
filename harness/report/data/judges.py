"""The judges of a sweep: what tells them apart, and their names in tables and figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness.report.data.columns import PROTOCOL_PREFIX, lacks, value
from harness.report.data.conditions import short_names

JUDGE = "judge"
"""Column with the name of the judge, in sweeps with several; also the prefix of a judge's settings in a protocol."""
NAME, VERSION, FIELDS = f"{JUDGE}.name", f"{JUDGE}.version", f"{JUDGE}.fields."
MOST = 3
"""Maximum number of settings in the name of a judge."""


def judge_settings(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the judge in an evaluation protocol; without its version, which new code changes."""
    return {
        name: found
        for name, found in protocol.items()
        if name.startswith(f"{JUDGE}.") and name != VERSION and not lacks(found)
    }


def judge_labels(protocols: Sequence[Mapping[str, Any]], swept: Collection[str] = ()) -> list[str]:
    """Return the name of the judge of each cell; equal names stand for equal judges.

    Judges of one class are told apart by the settings in which they differ: ``openai (model one)``.

    Args:
        protocols: the evaluation protocols of the cells.
        swept: settings with a column of their own, which need not be repeated in the name.
    """
    own = [
        {name: found for name, found in judge_settings(protocol).items() if name.replace(".fields.", ".") not in swept}
        for protocol in protocols
    ]
    distinct: list[dict[str, Any]] = []
    for settings in own:
        if settings not in distinct:
            distinct.append(settings)
    names: list[str] = []
    for settings in distinct:
        alike = [other for other in distinct if other.get(NAME) == settings.get(NAME)]
        differing = sorted({name for each in alike for name in each if len({str(x.get(name)) for x in alike}) > 1})
        short = short_names(name.removeprefix(FIELDS).replace(".fields.", ".") for name in differing)
        shown = [f"{label} {value(settings.get(name))}" for name, label in zip(differing, short.values(), strict=True)]
        label = value(settings.get(NAME)) + (f" ({', '.join(shown[:MOST])})" if shown else "")
        taken = sum(other == label or other.startswith(f"{label} #") for other in names)
        names.append(f"{label} #{taken + 1}" if taken else label)
    return [names[distinct.index(settings)] for settings in own]


def protocol_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol of a tidy row, by the names of settings."""
    return {
        name.removeprefix(PROTOCOL_PREFIX): found for name, found in row.items() if name.startswith(PROTOCOL_PREFIX)
    }
