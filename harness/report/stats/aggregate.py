"""Means of settings over exactly those situations in which all settings were measured.

A mean that skips missing cells would favour a setting whose hardest cells have not run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.report.data.conditions import varying
from harness.report.stats.labels import markers, with_marker
from harness.report.stats.results import Results
from harness.report.stats.summary import NOTE

if TYPE_CHECKING:
    from pandas import DataFrame, Series


class DefenseMeans(NamedTuple):
    """The conditions of one defense that can be averaged.

    Attributes:
        defense: the defense's label.
        name: the label with the letter of its footnote.
        means: rows of the table of means: for each task and model, those with the defense's most common protocol.
        left_out: number of conditions with another protocol.
    """

    defense: str
    name: str
    means: DataFrame
    left_out: int

    @property
    def remark(self) -> str:
        """Note on the conditions that are left out; empty if none is."""
        if not self.left_out:
            return ""
        return f" {self.left_out} conditions of {self.defense} under another protocol are left out."


class Complete(NamedTuple):
    """The settings that were measured in every situation in which any setting was.

    Attributes:
        means: their rows of the table of means.
        situations: number of situations, and so of rows per setting.
        settings: number of settings, incomplete ones included.
        incomplete: number of settings that lack a situation; they are not in ``means``.
    """

    means: DataFrame
    situations: int
    settings: int
    incomplete: int

    @property
    def remark(self) -> str:
        """Note on incomplete settings; empty if there are none."""
        return f" {self.incomplete} of {self.settings} settings incomplete." if self.incomplete else ""


def by_defense(results: Results) -> list[DefenseMeans]:
    """Return the conditions of each defense that can be averaged; different protocols are never averaged."""
    letters = markers(results.means)
    kept = []
    for defense, lines in results.means.groupby("defense", sort=False):
        # On a tie, prefer the protocol without a footnote.
        ordered = lines.sort_values(NOTE, kind="stable")
        usual = ordered.groupby(["task", "model"], dropna=False)["protocol"].transform(_most_common)
        same = ordered[ordered["protocol"] == usual].sort_index()
        letter = ", ".join(letters[note] for note in same[NOTE].unique() if note)
        kept.append(DefenseMeans(str(defense), with_marker(str(defense), letter), same, len(lines) - len(same)))
    return kept


def numbers_in(results: Results, means: DataFrame) -> list[str]:
    """Return the swept numbers that vary in some rows of the table of means, the attack ratio last."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    names = [*varying(results.means, results.rows), "ratio"]
    return [
        name
        for name in names
        if means[name].nunique(dropna=False) > 1
        and means[name].notna().any()
        and is_numeric_dtype(means[name].dropna().infer_objects())
        and not is_bool_dtype(means[name].dropna().infer_objects())
    ]


def complete(lines: DataFrame, scores: Sequence[str], setting: Sequence[str], situation: Sequence[str]) -> Complete:
    """Return the settings that were measured in all situations.

    Args:
        lines: rows of the table of means.
        scores: the scores that must have been measured.
        setting: columns that identify a setting.
        situation: columns that identify a situation.
    """
    names = list(setting)
    measured = lines.dropna(subset=list(scores))
    situations = len(measured.drop_duplicates(list(situation)))
    known = measured[_sizes(measured, names) == situations]
    settings = len(lines.drop_duplicates(names))
    return Complete(known, situations, settings, settings - len(known.drop_duplicates(names)))


def means_over(found: Complete, names: Sequence[str], others: Sequence[str], scores: Sequence[str]) -> DataFrame:
    """Return the mean of the scores for each value of ``names``.

    The mean is over the situations, and over those values of ``others`` that occur with every value of ``names``.

    Args:
        found: as returned by ``complete`` for settings identified by ``names`` and ``others``.
        names: columns; the result has these and the scores.
        others: the columns of the other settings.
        scores: the scores to average.
    """
    lines = found.means
    if others:
        wanted = len(lines.drop_duplicates(list(names))) * found.situations
        lines = lines[_sizes(lines, list(others)) == wanted]
    return lines.groupby(list(names), dropna=False, sort=False)[list(scores)].mean().reset_index()


def _most_common(found: Iterable[str]) -> str:
    return Counter(found).most_common(1)[0][0]


def _sizes(lines: DataFrame, names: list[str]) -> Series[int]:
    """Return, for each row, the number of rows with the same values."""
    return lines.groupby(names, dropna=False)["defense"].transform("size")
