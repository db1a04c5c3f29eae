"""Text of a report: names of scores and conditions, formatted numbers, and footnotes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.data.columns import (
    GRADINGS,
    KEY_PREFIX,
    LABELS,
    MISSING,
    NOTES,
    SCORES,
    SHARE_PREFIX,
    Grading,
    records,
    shares_in,
    swept_in,
    value,
)
from harness.report.data.conditions import condition_columns, condition_key, condition_name, varying
from harness.report.stats.interval import LEVEL
from harness.report.stats.summary import HIGH, LOW, NOTE, SIZE

if TYPE_CHECKING:
    from pandas import DataFrame

    from harness.report.stats.paired import Comparison

HEADINGS = {
    "hs": "HS",
    "hs_plus": "HS+",
    "fa": "FA",
    "over_refusal": "OR",
    "aligned_hs": "aligned HS",
    "aligned_fa": "aligned FA",
    "aligned_over_refusal": "aligned OR",
}
"""The scores of a table, in percent, and their headings."""
MEANINGS = {
    "hs": "harmful score: share of harmful prompts answered harmfully, or mean grade (lower is better)",
    "hs_plus": "harmful score that also counts incoherent answers (lower is better)",
    "fa": "fine-tune accuracy: accuracy on the user's task (higher is better)",
    "over_refusal": "over-refusal rate: share of harmless prompts that are refused (lower is better)",
}

LISTED = 4
"""Cells with the same remark that are listed; more are told together."""


def headings(rows: DataFrame) -> dict[str, str]:
    """Return the headings of the scores, and of the shares that stages report."""
    return HEADINGS | {name: name.removeprefix(SHARE_PREFIX).replace("_", " ") for name in shares_in(rows)}


def one_line(text: str) -> str:
    """Return text with all whitespace collapsed, as cells, captions and notes are single lines."""
    return " ".join(text.split())


def where(means: DataFrame, names: Mapping[str, Any]) -> str:
    """Return the ratio of a condition, and its task, model and attack where conditions differ in them."""
    differing = [name for name in ("task", "model", "attack") if means[name].nunique(dropna=False) > 1]
    return ", ".join([f"p={value(names['ratio'])}", *(value(names[name]) for name in differing)])


def number(mean: float, low: float, high: float) -> str:
    """Return a mean and its interval, in percent."""
    if mean != mean:  # noqa: PLR0124
        return "-"
    return f"{mean:.1f}" if low != low else f"{mean:.1f} [{low:.1f}, {high:.1f}]"  # noqa: PLR0124


def score(row: Mapping[str, Any], name: str) -> str:
    """Return a score of a row of ``summarise``, with ``(n=...)`` if it has fewer measurements than seeds.

    A share has neither an interval nor a number of measurements.
    """
    if name.startswith(SHARE_PREFIX):
        return number(row[name], float("nan"), float("nan"))
    fewer = "" if row[name] != row[name] or row[name + SIZE] == row["seeds"] else f" (n={row[name + SIZE]})"
    return number(row[name], row[name + LOW], row[name + HIGH]) + fewer


def duration(hours: float) -> str:
    """Return a duration in hours, minutes or seconds."""
    for unit, size in (("h", 1.0), ("min", 60.0)):
        if hours * size >= 1:
            return f"{hours * size:.3g} {unit}"
    return f"{hours * 3600:.2g} s"


def with_marker(name: str, letter: str) -> str:
    """Return a name with the letter of its footnote if it has one, as in ``booster (lamb 5) [a]``."""
    return f"{name} [{letter}]" if letter else name


def condition_names(means: DataFrame, rows: DataFrame) -> list[str]:
    """Return the name of each condition with its footnote marker, in the order of the means."""
    swept, letters = varying(means, rows), markers(means)
    return [with_marker(condition_name(row, swept), letters.get(row[NOTE], "")) for row in records(means)]


def markers(means: DataFrame) -> dict[str, str]:
    """Return the footnote letter of each difference from the most common protocol."""
    return {note: chr(ord("a") + i % 26) * (1 + i // 26) for i, note in enumerate(filter(None, means[NOTE].unique()))}


def remarks(rows: DataFrame, means: DataFrame) -> list[str]:
    """Return the footnotes of a table of the means."""
    notes = [f"[{letter}] another protocol than the other rows: {note}." for note, letter in markers(means).items()]
    if means[[name + LOW for name in SCORES]].notna().any(axis=None):
        notes.append(f"Scores in percent: mean and {LEVEL:.0%} interval over seeds and prompts.")
    else:
        notes.append("Scores in percent.")
    for grading in GRADINGS:
        # Cells may share a grade, as those of several ratios share that of their aligned model: count it once.
        if count := int(_distinct(rows, grading)[f"{grading.score}_unjudged"].sum()):
            notes.append(f"{count} generations could not be judged and are excluded from {HEADINGS[grading.score]}.")
    return [one_line(note) for note in notes + _of_targets(rows, means) + _of_cells(rows)]


def compared_names(means: DataFrame, rows: DataFrame, comparisons: Iterable[Comparison]) -> list[str]:
    """Return the name of each comparison: of the condition, and of the baseline if that has a marker too."""
    names, notes = condition_names(means, rows), list(means[NOTE])
    return [
        f"{names[each.line]} against {names[each.other]}" if notes[each.other] else names[each.line]
        for each in comparisons
    ]


def _distinct(rows: DataFrame, grading: Grading) -> DataFrame:
    key = KEY_PREFIX + grading.stage
    return rows.drop_duplicates(key) if key in rows else rows


def _of_targets(rows: DataFrame, means: DataFrame) -> list[str]:
    """Return notes that compare conditions with their published targets."""
    if "target" not in rows:
        return []
    by = condition_columns(rows)
    names = dict(zip((condition_key(row, by) for row in records(means)), condition_names(means, rows), strict=True))
    met = {condition_key(row, by): row for row in records(rows) if row["target"]}
    notes = []
    for identity, row in met.items():
        published = ", ".join(
            f"{HEADINGS[score]} {row[f'target_{score}']:.1f}"
            for score in ("hs", "fa")
            if row[f"target_{score}"] == row[f"target_{score}"]
        )
        unstated = f"; not stated there: {row['target_unstated']}" if row["target_unstated"] else ""
        source = f"{row['target_source']}{unstated}"
        verdict = row["target_status"] or "not finished"
        notes.append(f"{names[identity]}, p={row['ratio']:g}: published {published} ({source}): {verdict}.")
    return notes


def _of_cells(rows: DataFrame) -> list[str]:
    remarkable = rows[(rows[MISSING] != "") | (rows[NOTES] != "")]
    unfinished = int((rows[MISSING] != "").sum())
    if not len(remarkable):
        return []
    notes = [f"{unfinished} of {len(rows)} cells are not finished:" if unfinished else "Notes on single cells:"]
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for row in records(remarkable):
        parts = [f"missing {_columns_of(row[MISSING])}"] if row[MISSING] else []
        alike.setdefault("; ".join([*parts, *filter(None, [row[NOTES]])]), []).append(row)
    identity = [*LABELS, *swept_in(rows)]
    for remark, cells in alike.items():
        if len(cells) > LISTED:
            notes.append(f"- {len(cells)} cells ({_told(cells, identity)}): {remark}")
        else:
            notes += [f"- {_told([cell], identity)}: {remark}" for cell in cells]
    return notes


def _told(cells: Sequence[Mapping[str, Any]], identity: Iterable[str]) -> str:
    """Return the values that cells have of each name, as in ``ratio=0|0.1``."""
    found = {name: list(dict.fromkeys(value(cell[name]) for cell in cells)) for name in identity}
    return ", ".join(f"{name}={'|'.join(values)}" for name, values in found.items() if values != ["-"])


def _columns_of(missing: str) -> str:
    """Return the headings of the scores that missing grades belong to."""
    scores = {grading.stage: HEADINGS[grading.score] for grading in GRADINGS}
    return ", ".join(scores[stage] for stage in missing.split(", ") if stage in scores)
