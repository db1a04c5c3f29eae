"""The table of ensembles and their controls."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.output.defense_table import DefenseTable, Line
from harness.report.stats.ensembles import EnsembleScore
from harness.report.stats.labels import HEADINGS, number, one_line
from harness.stages.cross_fit import ALL, BEST, BY_SCORE, ENSEMBLE, MEAN, ORACLE, RANDOM

CONTROLS = {
    ENSEMBLE: "ensemble",
    BEST: "best member",
    MEAN: "mean member",
    ALL: "vote of all",
    BY_SCORE: "by score only",
    RANDOM: "random subset",
    ORACLE: "oracle",
}
_HEADING = ("ensemble", "score", "gain over best member", *list(CONTROLS.values())[1:], "diversity", "asked")
"""The second column has the ensemble's own score."""
NOTE = (
    "Everything is chosen on other folds of the prompts than it is scored on, including the best member; only the "
    "oracle knows the grades, and is an upper bound. Diversity: focal diversity of all members' failures. Asked: mean "
    "number of members. Each score has a choice of its own, which a deployed system could not make: HS and "
    "over-refusal of a row are those of one system only if the same members are asked."
)


def ensemble_table(found: Sequence[EnsembleScore], names: Sequence[str]) -> DefenseTable | None:
    """Return the table, with what it allows to say as notes; None without ensembles.

    Args:
        found: as returned by ``ensemble_scores``.
        names: the name of each condition of the sweep.
    """
    if not found:
        return None
    sentences = [
        f"{names[each.line]}, {HEADINGS[each.score]}: {each.verdict} "
        f"({number(each.gain, each.low, each.high)} points, {each.seeds} {'seed' if each.seeds == 1 else 'seeds'})."
        for each in found
    ]
    lines = [Line(each.defense, _cells(each, names[each.line])) for each in found]
    return DefenseTable(_HEADING, lines, [NOTE, *map(one_line, sentences)])


def _cells(each: EnsembleScore, name: str) -> tuple[str, ...]:
    nan = float("nan")
    own, *others = (number(each.scores.get(control, nan), nan, nan) for control in CONTROLS)
    return (
        one_line(name),
        f"{HEADINGS[each.score]} {own}",
        number(each.gain, each.low, each.high),
        *others,
        "-" if each.diversity != each.diversity else f"{each.diversity:.2f}",
        f"{each.pool:.1f}",
    )
