"""Training curves: what the stages of a sweep logged, grouped by defense and thinned for reading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.report.data.columns import value
from harness.report.data.conditions import condition_name, varying
from harness.report.figures.spec import Lines, Series, listed
from harness.report.stats.labels import markers, with_marker
from harness.report.stats.results import Results
from harness.report.stats.summary import NOTE
from harness.tracking.jsonl import read_curve

POINTS = 80
"""Positions of a curve; steps between them are averaged."""
STAGES = 6
"""Of one group are averaged; more tell no more about its shape."""
GROUPS = 18
"""More lines in one figure nobody can tell apart; then a line is a defense."""
_BOOKKEEPING = ("step", "epoch", "key", "kind")


class _Curve(NamedTuple):
    """The mean of a group's stages, quantity by quantity."""

    name: str
    defense: str
    quantities: Mapping[str, tuple[list[float], list[float]]]


def training_views(findings: Results) -> list[Lines]:
    """Return one view per stage kind, attack ratio (after the attack) and logged quantity, a line per defense."""
    views = []
    for kind in findings.training:
        by_ratio = _curves(findings, kind)
        for ratio, curves in by_ratio.items():
            names = dict.fromkeys(name for curve in curves for name in curve.quantities)
            for name in sorted(names, key=lambda found: (found != "loss", found)):
                drawn = [
                    Series(name=curve.name, defense=curve.defense, x=found[0], y=found[1])
                    for curve in curves
                    if (found := curve.quantities.get(name))
                ]
                if not _constant(drawn):
                    views.append(_view(kind, ratio, name, drawn, paper=name == "loss" and ratio == list(by_ratio)[-1]))
    return views


def _view(kind: str, ratio: str, name: str, drawn: Sequence[Series], *, paper: bool) -> Lines:
    when = f"{kind}, p={ratio}" if ratio else kind
    return Lines(
        name="-".join(filter(None, ("curve", kind, ratio, name))),
        title=f"{when}: {name}",
        x_title="optimizer step",
        y_title=name,
        alternative=f"{name} during {when}, mean over stages, for {_ends(drawn)}.",
        group="curves",
        paper=paper,
        series=drawn,
        markers=False,
    )


def _curves(findings: Results, kind: str) -> dict[str, list[_Curve]]:
    """Return the curves of a kind by attack ratio; a stage before the attack knows of none."""
    groups: defaultdict[str, defaultdict[tuple[str, str], dict[str, None]]]
    groups = defaultdict(lambda: defaultdict(dict))
    columns = findings.training[kind]
    swept = varying(findings.means, findings.rows)
    many = len({condition_name(line.names, swept) for line in findings.lines}) > GROUPS
    letters = markers(findings.means)
    for line, note in zip(findings.lines, findings.means[NOTE], strict=True):
        defense = str(line.names["defense"])
        keys = [key for cell in line.cells for column in columns if isinstance(key := cell.get(column), str)]
        if keys:
            attacked = any(findings.ledger[key].attacked for key in keys)
            settings = [] if many else [name for name in swept if attacked or not name.startswith("finetune")]
            ratio = value(line.names["ratio"]) if attacked else ""
            name = with_marker(condition_name(line.names, settings), letters.get(note, ""))
            groups[ratio][defense, name] |= dict.fromkeys(keys)
    return {
        ratio: [_mean(findings, defense, name, kind, list(keys)) for (defense, name), keys in found.items()]
        for ratio, found in groups.items()
    }


def _mean(findings: Results, defense: str, name: str, kind: str, keys: Sequence[str]) -> _Curve:
    import numpy as np

    chosen = [keys[index] for index in np.linspace(0, len(keys) - 1, min(STAGES, len(keys))).astype(int)]
    logged = [table for key in chosen if (table := _logged(findings.store.root, kind, key))]
    quantities = {}
    for quantity in dict.fromkeys(name for table in logged for name in table if name != "step"):
        having = [table for table in logged if quantity in table]
        last = max(table["step"][-1] for table in having)
        bins = np.linspace(0, last, POINTS + 1)
        steps = np.concatenate([table["step"] for table in having])
        found = np.concatenate([table[quantity] for table in having])
        place = np.clip(np.digitize(steps, bins, right=True) - 1, 0, POINTS - 1)
        count = np.bincount(place, minlength=POINTS)
        with np.errstate(invalid="ignore"):
            x, y = (np.bincount(place, weights=what, minlength=POINTS) / count for what in (steps, found))
        kept = count > 0
        quantities[quantity] = ([round(v, 1) for v in x[kept]], [float(f"{v:.5g}") for v in y[kept]])
    return _Curve(name, defense, quantities)


def _logged(root: Path, kind: str, key: str) -> dict[str, Any]:
    """Return the numbers a stage logged, ``[steps]`` by name; of a stage that is not finished, what it has so far."""
    import numpy as np

    places = (root / "artifacts" / kind / key / "metrics.jsonl", root / "work" / key / "curve.jsonl")
    path = next((place for place in places if place.exists()), None)
    if path is None:
        return {}
    records = {record["step"]: record for record in _records(path)}
    steps = sorted(records)
    if not steps:
        return {}
    names = [
        name
        for name, found in records[steps[-1]].items()
        if name not in _BOOKKEEPING and isinstance(found, int | float) and not isinstance(found, bool)
    ]
    table = {name: np.array([records[step].get(name, np.nan) for step in steps], dtype="float64") for name in names}
    finite = {name: values for name, values in table.items() if np.isfinite(values).all()}
    return {"step": np.array(steps, dtype="float64"), **finite}


def _records(path: Path) -> list[dict[str, Any]]:
    """Return what is readable."""
    try:
        return list(read_curve(path))
    except OSError:
        return []


def _constant(series: Sequence[Series]) -> bool:
    return len({y for each in series for y in each.y}) <= 1


def _ends(series: Sequence[Series]) -> str:
    return listed([f"{each.name} (from {each.y[0]:.3g} to {each.y[-1]:.3g})" for each in series])
