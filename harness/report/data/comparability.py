"""Comparability: differences in the training and evaluation protocols of rows that share a table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from harness.corpora.probe import PROBE
from harness.errors import ConfigError
from harness.report.data.columns import NOTES, PROTOCOL_PREFIX, lacks, protocol_in
from harness.report.data.dropped import count_dropped_notes
from harness.report.data.training_protocol import known_late

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 3
"""Maximum number of notes on dropped examples per protocol."""


def protocol_differences(rows: DataFrame) -> dict[tuple[str, str, str], str]:
    """Return how each protocol differs from the most common one of its task and model.

    Args:
        rows: as returned by ``load_rows``.

    Returns:
        The differences by task, model and hash of the protocol; empty for the most common protocol.
    """
    settings = protocol_in(rows)
    notes: dict[tuple[str, str, str], str] = {}
    for (task, model), block in rows.groupby(["task", "model"], sort=False, dropna=False):
        # Represent each protocol by its most complete row: the protocol of an unfinished cell is partly unknown.
        known = block[settings].notna().sum(axis=1)
        representatives = {
            name: found.iloc[int(known[found.index].to_numpy().argmax())]
            for name, found in block.groupby("protocol", sort=False)
        }
        (common, _), *_ = Counter(block["protocol"]).most_common(1)
        usual = representatives[common]
        for protocol, row in representatives.items():
            differing = [
                f"{name.removeprefix(PROTOCOL_PREFIX)} is {_text(row[name])}, not {_text(usual[name])}"
                for name in settings
                if _text(row[name]) != _text(usual[name]) and not _unknown(name, row[name], usual[name])
            ]
            differing = _without_settings_of_another_judge(differing)
            if differing:
                # Equal settings may lead to different training data, if different examples were dropped.
                notes_here, notes_usual = (
                    count_dropped_notes(block.loc[block["protocol"] == each, NOTES]) for each in (protocol, common)
                )
                differing += [note for note, _ in notes_here.most_common() if note not in notes_usual][:SHOWN]
            notes[str(task), str(model), str(protocol)] = "; ".join(differing)
    return notes


def check_same_protocol(rows: DataFrame) -> None:
    """Check that all rows of a task, model and probe have the same training and evaluation protocol.

    Raises:
        ConfigError: they have not; lists each difference once.
    """
    probes = [rows] if PROBE not in rows else [found for _, found in rows.groupby(PROBE, sort=False, dropna=False)]
    if problems := [problem for found in probes for problem in _differing(found)]:
        raise ConfigError(problems)


def _differing(rows: DataFrame) -> list[str]:
    problems = []
    for (task, model, protocol), note in protocol_differences(rows).items():
        if note:
            others = (rows["task"] == task) & (rows["model"] == model) & (rows["protocol"] == protocol)
            defenses = ", ".join(dict.fromkeys(rows.loc[others, "defense"].astype(str)))
            problems.append(
                f"`--strict`: {others.sum()} cells ({defenses}) are not comparable with the others of task {task}, "
                f"model {model}: {note}. Run them with the same protocol, or report without --strict and read the "
                "footnotes."
            )
    return problems


def _without_settings_of_another_judge(differing: list[str]) -> list[str]:
    """Drop the settings of a judge where the judge itself is another: they have no counterpart."""
    if not any(text.startswith("judge.name is ") for text in differing):
        return differing
    return [text for text in differing if not text.startswith(("judge.version is ", "judge.fields."))]


def _unknown(name: str, *found: Any) -> bool:
    """Return whether one of the values is unset because it is known for finished stages only."""
    return known_late(name) and "unset" in map(_text, found)


def _text(value: Any) -> str:
    if lacks(value):
        return "unset"
    return f"{value:g}" if isinstance(value, float) else str(value)
