"""Comparability: in what rows that share a table were trained or evaluated otherwise than their neighbours."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.report.rows import PROTOCOL_PREFIX, protocol_in

if TYPE_CHECKING:
    from pandas import DataFrame


def departures(rows: DataFrame) -> dict[Any, str]:
    """Return by index of a row how its protocol departs from the one that most rows of its task and model share.

    Args:
        rows: what ``load_rows`` returned.
    """
    settings = protocol_in(rows)
    notes: dict[Any, str] = {}
    for _, block in rows.groupby(["task", "model"], sort=False, dropna=False):
        (shared, _), *_ = Counter(block["protocol"]).most_common(1)
        usual = block[block["protocol"] == shared].iloc[0]
        for _, alike in block.groupby("protocol", sort=False):
            row = alike.iloc[0]
            differing = [
                f"{name.removeprefix(PROTOCOL_PREFIX)} is {_shown(row[name])}, not {_shown(usual[name])}"
                for name in settings
                if _shown(row[name]) != _shown(usual[name])
            ]
            notes |= dict.fromkeys(alike.index, "; ".join(differing))
    return notes


def refuse_departures(rows: DataFrame) -> None:
    """Check that all rows of a task and model were trained and evaluated alike.

    Raises:
        ConfigError: they were not; every difference is named once.
    """
    found: dict[str, list[str]] = {}
    for index, note in departures(rows).items():
        if note:
            found.setdefault(note, []).append(str(rows.loc[index, "defense"]))
    if found:
        raise ConfigError(
            [
                f"`--strict`: {len(defenses)} cells ({', '.join(dict.fromkeys(defenses))}) cannot share a table with "
                f"the others: {note}. Run them alike, or report without --strict and read the footnotes."
                for note, defenses in found.items()
            ]
        )


def _shown(value: Any) -> str:
    missing = value is None or value != value  # noqa: PLR0124  (NaN is what pandas puts where a cell lacks a setting)
    return "unset" if missing else str(value)
