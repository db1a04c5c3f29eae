"""Comparability: in what rows that share a table were trained or evaluated otherwise than their neighbours."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.report.data.columns import NOTES, PROTOCOL_PREFIX, lacks, protocol_in
from harness.report.data.dropped import dropped_in
from harness.report.data.training_protocol import known_late

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 3
"""Notes on dropped rows that are told of one protocol."""


def protocol_differences(rows: DataFrame) -> dict[tuple[str, str, str], str]:
    """Return how each protocol departs from the one that most rows of its task and model share.

    Args:
        rows: what ``load_rows`` returned.

    Returns:
        By task, model and hash of the protocol; empty for the protocol that most share.
    """
    settings = protocol_in(rows)
    notes: dict[tuple[str, str, str], str] = {}
    for (task, model), block in rows.groupby(["task", "model"], sort=False, dropna=False):
        # Of an unfinished cell less is known than of those it is counted with.
        said = block[settings].notna().sum(axis=1)
        firsts = {
            name: found.iloc[int(said[found.index].to_numpy().argmax())]
            for name, found in block.groupby("protocol", sort=False)
        }
        (shared, _), *_ = Counter(block["protocol"]).most_common(1)
        usual = firsts[shared]
        for protocol, row in firsts.items():
            differing = [
                f"{name.removeprefix(PROTOCOL_PREFIX)} is {_shown(row[name])}, not {_shown(usual[name])}"
                for name in settings
                if _shown(row[name]) != _shown(usual[name]) and not _unknown(name, row[name], usual[name])
            ]
            if differing:
                # In training, what the settings say may not be what was left of the rows.
                mine, others = (dropped_in(block.loc[block["protocol"] == each, NOTES]) for each in (protocol, shared))
                differing += [note for note, _ in mine.most_common() if note not in others][:SHOWN]
            notes[str(task), str(model), str(protocol)] = "; ".join(differing)
    return notes


def refuse_departures(rows: DataFrame) -> None:
    """Check that all rows of a task and model were trained and evaluated alike.

    Raises:
        ConfigError: they were not; every difference is named once.
    """
    problems = []
    for (task, model, protocol), note in protocol_differences(rows).items():
        if note:
            others = (rows["task"] == task) & (rows["model"] == model) & (rows["protocol"] == protocol)
            defenses = ", ".join(dict.fromkeys(rows.loc[others, "defense"].astype(str)))
            problems.append(
                f"`--strict`: {others.sum()} cells ({defenses}) cannot share a table with the others of task {task}, "
                f"model {model}: {note}. Run them alike, or report without --strict and read the footnotes."
            )
    if problems:
        raise ConfigError(problems)


def _unknown(name: str, *found: Any) -> bool:
    """Return whether one of them is what only a stage that has run can tell."""
    return known_late(name) and "unset" in map(_shown, found)


def _shown(value: Any) -> str:
    if lacks(value):
        return "unset"
    return f"{value:g}" if isinstance(value, float) else str(value)
