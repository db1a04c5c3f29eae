"""Settings: what a sweep tried, and their means over exactly the situations that all of them were measured in.

A mean over everything else that skips what is missing makes the setting best whose hardest cells have not run.
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


class Kept(NamedTuple):
    """The lines of one defense that can be averaged.

    Attributes:
        defense: its name.
        name: with the letter of its footnote.
        lines: rows of the means, of each task and model those under the protocol that most lines of the defense have.
        left_out: how many lines have another protocol.
    """

    defense: str
    name: str
    lines: DataFrame
    left_out: int

    @property
    def remark(self) -> str:
        """What is not in the means; empty if all lines are."""
        if not self.left_out:
            return ""
        return f" {self.left_out} lines of {self.defense} under another protocol are left out."


class Complete(NamedTuple):
    """The lines of settings that were measured in every situation in which any was.

    Attributes:
        lines: of these settings.
        situations: how many lines each of them has.
        settings: how many settings there are.
        incomplete: how many of them lack a situation, and are not among the lines.
    """

    lines: DataFrame
    situations: int
    settings: int
    incomplete: int

    @property
    def remark(self) -> str:
        """How many settings are left blank; empty if none is."""
        return f" {self.incomplete} of {self.settings} settings incomplete." if self.incomplete else ""


def by_defense(findings: Results) -> list[Kept]:
    """Return the lines of each defense that can be averaged; different protocols never share a mean."""
    letters = markers(findings.means)
    kept = []
    for defense, lines in findings.means.groupby("defense", sort=False):
        # Of two that are as frequent, the one without a footnote.
        ordered = lines.sort_values(NOTE, kind="stable")
        usual = ordered.groupby(["task", "model"], dropna=False)["protocol"].transform(_commonest)
        same = ordered[ordered["protocol"] == usual].sort_index()
        letter = ", ".join(letters[note] for note in same[NOTE].unique() if note)
        kept.append(Kept(str(defense), with_marker(str(defense), letter), same, len(lines) - len(same)))
    return kept


def numbers_in(findings: Results, means: DataFrame) -> list[str]:
    """Return the swept numbers that vary among some lines, the attack ratio last."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    names = [*varying(findings.means, findings.rows), "ratio"]
    return [
        name
        for name in names
        if means[name].nunique(dropna=False) > 1
        and means[name].notna().any()
        and is_numeric_dtype(means[name].dropna().infer_objects())
        and not is_bool_dtype(means[name].dropna().infer_objects())
    ]


def complete(lines: DataFrame, scores: Sequence[str], setting: Sequence[str], situation: Sequence[str]) -> Complete:
    """Return the lines of the settings that miss nothing.

    Args:
        lines: rows of the means.
        scores: what must be measured.
        setting: columns that make a setting.
        situation: columns that make a situation.
    """
    names = list(setting)
    measured = lines.dropna(subset=list(scores))
    situations = len(measured.drop_duplicates(list(situation)))
    known = measured[_sizes(measured, names) == situations]
    settings = len(lines.drop_duplicates(names))
    return Complete(known, situations, settings, settings - len(known.drop_duplicates(names)))


def means_over(found: Complete, names: Sequence[str], others: Sequence[str], scores: Sequence[str]) -> DataFrame:
    """Return the mean of the scores for each value of ``names``.

    The mean is over the situations, and over those values of the other settings that every value of ``names`` has.

    Args:
        found: what ``complete`` returned for settings made of ``names`` and ``others``.
        names: columns; the result has them and the scores.
        others: the columns of the other settings.
        scores: what is averaged.
    """
    lines = found.lines
    if others:
        wanted = len(lines.drop_duplicates(list(names))) * found.situations
        lines = lines[_sizes(lines, list(others)) == wanted]
    return lines.groupby(list(names), dropna=False, sort=False)[list(scores)].mean().reset_index()


def _commonest(found: Iterable[str]) -> str:
    return Counter(found).most_common(1)[0][0]


def _sizes(lines: DataFrame, names: list[str]) -> Series[int]:
    """Return with each line how many have the same values."""
    return lines.groupby(names, dropna=False)["defense"].transform("size")
