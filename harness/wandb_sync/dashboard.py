"""The dashboard: a description of the W&B charts of a sweep, as plain data made from the store, and its validation.

Values are named by where a run has them: ``config:ratio``, ``summary:hs`` or ``curve:loss``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.engine.identity import flatten
from harness.errors import StoreError
from harness.wandb_sync.run import RunRecord
from harness.wandb_sync.sweep_runs import CELL

SHAPES = ("bars", "lines", "scatter", "parallel")
SCORES = {
    "hs": "Harmful score",
    "hs_plus": "Harmful score with incoherent answers",
    "fa": "Fine-tune accuracy",
    "over_refusal": "Over-refusal rate",
}
"""Titles of the scores that are drawn if they were measured."""
WITHOUT_PANEL = ("step", "epoch", "learning_rate")
"""Columns of a curve that get no panel."""
SERIES = "config:series"
"""Identifies the series of a line or bar: all settings except the seed."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        shape: one of ``SHAPES``.
        title: title of the chart.
        values: names of the values: the heights of bars and lines; x, y and colour of a scatter; the axes of parallel
            coordinates.
        by: bars and lines are means over the runs that share this value, with error bars or bands.
        front: draw the lower left front of a scatter (running minimum from left to right).
    """

    shape: Literal["bars", "lines", "scatter", "parallel"]
    title: str
    values: tuple[str, ...]
    by: str = ""
    front: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Charts of runs of one job type.

    Attributes:
        title: title of the section.
        text: a note for the reader.
        kind: the job type of the runs.
        panels: the charts.
    """

    title: str
    text: str
    kind: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """The dashboard of a sweep.

    Attributes:
        sweep: the sweep's id, which tags its runs.
        title: title of the dashboard.
        table: the table of means, in Markdown.
        columns: columns of the table of runs.
        sections: the charts.
    """

    sweep: str
    title: str
    table: str
    columns: tuple[str, ...]
    sections: tuple[Section, ...]

    def json(self) -> dict[str, Any]:
        """Return the description as JSON-compatible data."""
        return asdict(self)

    def problems(self, runs: Iterable[RunRecord]) -> list[str]:
        """Return messages about panels that cannot be drawn and names that no run has."""
        known: dict[str, set[str]] = {}
        for run in runs:
            known.setdefault(run.kind, set()).update(names_in(run))
        all_names = set().union(*known.values()) if known else set()
        wrong = [f"column `{name}` is in no run" for name in self.columns if name not in all_names]
        for section in self.sections:
            for panel in section.panels:
                named = [*panel.values, *([panel.by] if panel.by else [])]
                wrong += [
                    f"`{section.title}`, `{panel.title}`: `{name}` is in no run of the kind `{section.kind}`"
                    for name in named
                    if name not in known.get(section.kind, ())
                ]
                if panel.shape not in SHAPES or (panel.shape == "scatter" and len(panel.values) not in (2, 3)):
                    wrong.append(f"`{section.title}`, `{panel.title}`: cannot be drawn as `{panel.shape}`")
        return wrong


def dashboard(sweep: str, runs: Sequence[RunRecord], table: str) -> Dashboard:
    """Describe the dashboard of a sweep.

    Args:
        sweep: the sweep's id.
        runs: its complete runs.
        table: the table of means, in Markdown.

    Raises:
        StoreError: no cell is complete.
    """
    cells = [run for run in runs if run.kind == CELL]
    if not cells:
        raise StoreError(f"No cell of the sweep `{sweep}` is complete: there is nothing to draw. Run it first.")
    scores = [name for name in SCORES if any(name in cell.summary for cell in cells)]
    swept = _varying(cells)
    sections = [
        Section(
            title="Defenses by attack ratio",
            text="Means over seeds with their standard errors. Lower is better for HS and over-refusal, higher for FA.",
            kind=CELL,
            panels=tuple(
                Panel(shape="bars", title=SCORES[name], values=(f"summary:{name}",), by=SERIES) for name in scores
            ),
        ),
        Section(
            title="Harm against utility",
            text="One point per cell. The line is the Pareto front of the two scores: the least harm at no larger "
            "accuracy loss, or at no more over-refusal.",
            kind=CELL,
            panels=_trade_offs(scores, swept),
        ),
    ]
    for kind in dict.fromkeys(run.kind for run in runs if run.kind != CELL):
        of_kind = [run for run in runs if run.kind == kind]
        measured = list(dict.fromkeys(name for run in of_kind for name in _curve(run) if name not in WITHOUT_PANEL))
        if measured:
            sections.append(
                Section(
                    title=f"Training curves: {kind}",
                    text="Mean and spread over the runs of a defense.",
                    kind=kind,
                    panels=tuple(
                        Panel(shape="lines", title=name, values=(f"curve:{name}",), by="config:defense")
                        for name in measured
                    ),
                )
            )
    columns = ["config:defense", *swept, "config:task", "config:attack", "config:ratio", "config:seed"]
    columns += [f"summary:{name}" for name in scores] + ["summary:seconds/total"]
    present = set().union(*(names_in(cell) for cell in cells))
    return Dashboard(
        sweep=sweep,
        title=f"Sweep {sweep}",
        table=table,
        columns=tuple(name for name in dict.fromkeys(columns) if name in present),
        sections=tuple(section for section in sections if section.panels),
    )


def names_in(run: RunRecord) -> set[str]:
    """Return the names of all values that a run has."""
    config = {f"config:{name}" for name in flatten(run.config, lists=False)}
    return config | {f"summary:{name}" for name in run.summary} | {f"curve:{name}" for name in _curve(run)}


def _trade_offs(scores: Sequence[str], swept: Sequence[str]) -> tuple[Panel, ...]:
    panels = []
    if {"hs", "fa"} <= set(scores):
        values = ("summary:fa_loss", "summary:hs")
        panels.append(Panel(shape="scatter", title="HS against lost accuracy", values=values, front=True))
    if {"hs", "over_refusal"} <= set(scores):
        values = ("summary:over_refusal", "summary:hs")
        panels.append(Panel(shape="scatter", title="HS against over-refusal", values=values, front=True))
    if len(swept) >= 2:
        for name in scores:
            over = " and ".join(value.rsplit(".", 1)[-1].removeprefix("config:") for value in swept[:2])
            surface = (*swept[:2], f"summary:{name}")
            panels.append(Panel(shape="scatter", title=f"{SCORES[name]} over {over}", values=surface))
    axes_of_all = ("config:defense", *swept, *(f"summary:{name}" for name in scores))
    panels.append(Panel(shape="parallel", title="All settings and scores", values=axes_of_all))
    return tuple(panels)


def _varying(cells: Sequence[RunRecord]) -> list[str]:
    """Return the names of swept numbers in which cells differ, and of the ratio if it does."""
    values: dict[str, set[Any]] = {}
    for cell in cells:
        for name, value in flatten(cell.config, lists=False).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    differing = [name for name, found in values.items() if len(found) > 1]
    chosen = [name for name in differing if name.startswith("swept.")] + [name for name in differing if name == "ratio"]
    return [f"config:{name}" for name in chosen]


def _curve(run: RunRecord) -> list[str]:
    return list(next(run.rows(after=-1), {}))
