"""Training curves: metrics that the stages of a sweep logged, averaged by defense and downsampled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.engine.layout import StoreLayout
from harness.report.data.columns import value
from harness.report.data.conditions import condition_name, differing, varying
from harness.report.figures.spec import Lines, Series, listed
from harness.report.stats.ensembles import is_ensemble
from harness.report.stats.labels import markers, with_marker
from harness.report.stats.results import Results
from harness.report.stats.summary import NOTE
from harness.tracking.jsonl import curve_of, read_curve

POINTS = 80
"""Number of bins of a curve; the steps of a bin are averaged."""
STAGES = 6
"""Maximum number of stages of a group that are averaged; more hardly change the shape."""
GROUPS = 18
"""Maximum number of lines per figure; above it, there is one line per defense."""
_BOOKKEEPING = ("step", "epoch", "key", "kind")


class _Curve(NamedTuple):
    """The mean curve of a group's stages, by quantity."""

    name: str
    defense: str
    quantities: Mapping[str, tuple[list[float], list[float]]]


def training_views(results: Results) -> list[Lines]:
    """Return a figure per stage kind, attack ratio (if attacked) and logged quantity, with a line per defense."""
    views = []
    for kind in results.training:
        by_ratio = _curves(results, kind)
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


def _curves(results: Results, kind: str) -> dict[str, list[_Curve]]:
    """Return the curves of a kind by attack ratio; the ratio of stages before the attack is empty."""
    groups: defaultdict[str, defaultdict[tuple[str, str], dict[str, None]]]
    groups = defaultdict(lambda: defaultdict(dict))
    swept = varying(results.means, results.rows)
    many = len({condition_name(condition.names, swept) for condition in results.conditions}) > GROUPS
    letters = markers(results.means)
    trained = list(_trained(results, kind))
    shared: defaultdict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for keys, names in trained:
        shared[keys].append(names)
    # What distinguishes conditions that share their stages (a judge, an attack at a ratio of 0) is idle in them.
    idle = {
        (names["defense"], names["ratio"], name)
        for each in shared.values()
        for name in differing(each)
        for names in each
    }
    for keys, names in trained:
        defense, ratio = str(names["defense"]), names["ratio"]
        attacked = any(results.stage_records[key].attacked for key in keys)
        settings = [] if many else [name for name in swept if (defense, ratio, name) not in idle]
        letter = "" if (defense, ratio, NOTE) in idle else letters.get(names[NOTE], "")
        name = with_marker(condition_name(names, settings), letter)
        groups[value(ratio) if attacked else ""][defense, name] |= dict.fromkeys(keys)
    return {
        ratio: [_mean(results, defense, name, kind, list(keys)) for (defense, name), keys in found.items()]
        for ratio, found in groups.items()
    }


def _trained(results: Results, kind: str) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield the keys of the stages of a kind for each condition that has any, and its names with its note."""
    columns = results.training[kind]
    for condition, note in zip(results.conditions, results.means[NOTE], strict=True):
        if is_ensemble(condition, results.stage_records):
            continue
        keys = tuple(key for cell in condition.cells for column in columns if isinstance(key := cell.get(column), str))
        if keys:
            yield keys, {**condition.names, NOTE: note}


def _mean(results: Results, defense: str, name: str, kind: str, keys: Sequence[str]) -> _Curve:
    import numpy as np

    chosen = [keys[index] for index in np.linspace(0, len(keys) - 1, min(STAGES, len(keys))).astype(int)]
    logged = [table for key in chosen if (table := _read_metrics(results.store.layout, kind, key))]
    quantities = {}
    for quantity in dict.fromkeys(name for table in logged for name in table if name != "step"):
        tables = [table for table in logged if quantity in table]
        last = max(table["step"][-1] for table in tables)
        bins = np.linspace(0, last, POINTS + 1)
        steps = np.concatenate([table["step"] for table in tables])
        found = np.concatenate([table[quantity] for table in tables])
        index = np.clip(np.digitize(steps, bins, right=True) - 1, 0, POINTS - 1)
        count = np.bincount(index, minlength=POINTS)
        with np.errstate(invalid="ignore"):
            x, y = (np.bincount(index, weights=weights, minlength=POINTS) / count for weights in (steps, found))
        kept = count > 0
        quantities[quantity] = ([round(v, 1) for v in x[kept]], [float(f"{v:.5g}") for v in y[kept]])
    return _Curve(name, defense, quantities)


def _read_metrics(layout: StoreLayout, kind: str, key: str) -> dict[str, Any]:
    """Return the metrics that a stage has logged, ``[steps]`` by name; those so far if it is not finished."""
    import numpy as np

    records = {record["step"]: record for record in _records(curve_of(layout, kind, key))}
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
    """Return the rows of a curve; none if the file cannot be read."""
    try:
        return list(read_curve(path))
    except OSError:
        return []


def _constant(series: Sequence[Series]) -> bool:
    return len({y for each in series for y in each.y}) <= 1


def _ends(series: Sequence[Series]) -> str:
    return listed([f"{each.name} (from {each.y[0]:.3g} to {each.y[-1]:.3g})" for each in series])
