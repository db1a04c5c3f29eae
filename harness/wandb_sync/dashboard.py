"""The dashboard: our own description of what W&B should draw of a sweep. Plain data, made from the store, checked here.

Names say where a value is: ``config:ratio``, ``summary:hs`` or ``curve:loss``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.engine.identity import flatten
from harness.errors import StoreError
from harness.wandb_sync.run import Entry
from harness.wandb_sync.sweep_runs import CELL

SHAPES = ("bars", "lines", "scatter", "parallel")
SCORES = {"hs": "Harmful score", "hs_plus": "Harmful score with incoherent answers", "fa": "Fine-tune accuracy"}
"""The scores that are compared, where they were measured."""
QUIET = ("step", "epoch", "learning_rate")
"""Columns of a curve that need no panel."""
SERIES = "config:series"
"""What a line or bar stands for: everything but the seed."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure.

    Attributes:
        shape: of ``SHAPES``.
        title: above it.
        values: what is drawn: bars and lines their heights, a scatter x, y and colour, parallel coordinates its axes.
        by: bars and lines are means of the runs that share this value, with an error bar or band.
        front: draw the lower left front of a scatter: from left to right, the least so far.
    """

    shape: Literal["bars", "lines", "scatter", "parallel"]
    title: str
    values: tuple[str, ...]
    by: str = ""
    front: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Figures of runs of one kind.

    Attributes:
        title: above it.
        text: what must be known to read it.
        kind: the job type of the runs.
        panels: the figures.
    """

    title: str
    text: str
    kind: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """What is drawn of a sweep.

    Attributes:
        sweep: its id, which tags its runs.
        title: above all.
        table: the table of means, in Markdown.
        columns: of the table of runs.
        sections: the figures.
    """

    sweep: str
    title: str
    table: str
    columns: tuple[str, ...]
    sections: tuple[Section, ...]

    def json(self) -> dict[str, Any]:
        """Return the description as it is written."""
        return asdict(self)

    def problems(self, entries: Iterable[Entry]) -> list[str]:
        """Return what in the description names nothing that a run has."""
        known: dict[str, set[str]] = {}
        for entry in entries:
            known.setdefault(entry.kind, set()).update(names_in(entry))
        everywhere = set().union(*known.values()) if known else set()
        wrong = [f"column `{name}` is in no run" for name in self.columns if name not in everywhere]
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


def dashboard(sweep: str, entries: Sequence[Entry], table: str) -> Dashboard:
    """Describe the dashboard of a sweep.

    Args:
        sweep: its id.
        entries: its runs, as far as they are complete.
        table: the table of means, in Markdown.

    Raises:
        StoreError: no cell is complete.
    """
    cells = [entry for entry in entries if entry.kind == CELL]
    if not cells:
        raise StoreError(f"No cell of the sweep `{sweep}` is complete: there is nothing to draw yet. Run it first.")
    scores = [name for name in SCORES if any(name in cell.summary for cell in cells)]
    swept = _varying(cells)
    sections = [
        Section(
            title="Defenses by attack ratio",
            text="Means over seeds with their standard errors. Lower is better for HS, higher for FA.",
            kind=CELL,
            panels=tuple(
                Panel(shape="bars", title=SCORES[name], values=(f"summary:{name}",), by=SERIES) for name in scores
            ),
        ),
        Section(
            title="Harm against utility",
            text="One point a cell. The line is the Pareto front: the least harm at an accuracy loss not larger.",
            kind=CELL,
            panels=_trade_offs(scores, swept),
        ),
    ]
    for kind in dict.fromkeys(entry.kind for entry in entries if entry.kind != CELL):
        runs = [entry for entry in entries if entry.kind == kind]
        measured = list(dict.fromkeys(name for entry in runs for name in _curve(entry) if name not in QUIET))
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
    held = set().union(*(names_in(cell) for cell in cells))
    return Dashboard(
        sweep=sweep,
        title=f"Sweep {sweep}",
        table=table,
        columns=tuple(name for name in dict.fromkeys(columns) if name in held),
        sections=tuple(section for section in sections if section.panels),
    )


def names_in(entry: Entry) -> set[str]:
    """Return the names of everything a run has."""
    config = {f"config:{name}" for name in flatten(entry.config, lists=False)}
    return config | {f"summary:{name}" for name in entry.summary} | {f"curve:{name}" for name in _curve(entry)}


def _trade_offs(scores: Sequence[str], swept: Sequence[str]) -> tuple[Panel, ...]:
    panels = []
    if {"hs", "fa"} <= set(scores):
        values = ("summary:fa_loss", "summary:hs")
        panels.append(Panel(shape="scatter", title="HS against lost accuracy", values=values, front=True))
    if len(swept) >= 2:
        for name in scores:
            over = " and ".join(value.rsplit(".", 1)[-1].removeprefix("config:") for value in swept[:2])
            surface = (*swept[:2], f"summary:{name}")
            panels.append(Panel(shape="scatter", title=f"{SCORES[name]} over {over}", values=surface))
    axes_of_all = ("config:defense", *swept, *(f"summary:{name}" for name in scores))
    panels.append(Panel(shape="parallel", title="All settings and scores", values=axes_of_all))
    return tuple(panels)


def _varying(cells: Sequence[Entry]) -> list[str]:
    """Return the numbers in which cells differ, the swept ones first; the seed is none."""
    values: dict[str, set[Any]] = {}
    for cell in cells:
        for name, value in flatten(cell.config, lists=False).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    differing = [name for name, found in values.items() if len(found) > 1]
    chosen = [name for name in differing if name.startswith("swept.")] + [name for name in differing if name == "ratio"]
    return [f"config:{name}" for name in chosen]


def _curve(entry: Entry) -> list[str]:
    return list(next(entry.rows(after=-1), {}))
