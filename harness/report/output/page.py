"""The page: a report as a single self-contained HTML file."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from harness.report.data.columns import KEY_PREFIX, records, value
from harness.report.data.comparability import protocol_differences
from harness.report.data.conditions import condition_name, varying
from harness.report.data.earlier_records import TRAINED
from harness.report.data.joined import commands_of
from harness.report.figures.catalog import figure_catalog
from harness.report.figures.plotly import chart
from harness.report.figures.spec import FigureSpec
from harness.report.figures.style import styles_of
from harness.report.figures.tradeoff import TOLERANCE, robust_regions
from harness.report.output.ensemble_table import ensemble_table
from harness.report.output.equal_accuracy_table import equal_accuracy_table
from harness.report.output.samples import samples
from harness.report.output.worst_case_table import durability_table, worst_case_table
from harness.report.stats import cost
from harness.report.stats.labels import (
    HEADINGS,
    MEANINGS,
    compared_names,
    condition_names,
    duration,
    headings,
    markers,
    number,
    remarks,
    score,
)
from harness.report.stats.paired import ALPHA, RESOLVED
from harness.report.stats.paper_table import ALIGNED, AVERAGE
from harness.report.stats.results import Results
from harness.report.stats.summary import NOTE


def page(
    results: Results, *, views: Mapping[str, Sequence[FigureSpec]] | None = None, with_samples: bool = False
) -> str:
    """Return the page.

    Args:
        results: the results of the sweep.
        views: as returned by ``figure_catalog``; made here if None.
        with_samples: include generations of the models; harmful ones are collapsed.
    """
    from jinja2 import Environment, StrictUndefined

    views = figure_catalog(results) if views is None else views
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"value": value, "duration": duration}
    return environment.from_string(_asset("page.html.j2")).render(
        record=results.record,
        css=_asset("page.css"),
        script=_asset("page.js"),
        plotly=_plotly(),
        figures={section: _figures(found) for section, found in views.items()},
        charts=_script_json(_charts(results, views)),
        paper_tables=results.paper_tables,
        headings=headings(results.rows),
        meanings=MEANINGS | results.shares,
        aligned=ALIGNED,
        average=AVERAGE,
        lines=_lines(results),
        filters=_filters(results),
        remarks=[*remarks(results.rows, results.means), *results.scale_notes],
        baseline=results.baseline,
        comparisons=_comparisons(results),
        judges=results.judges,
        worst_cases=worst_case_table(results.adaptive),
        durability=durability_table(results.adaptive),
        ensembles=ensemble_table(results.ensembles, condition_names(results.means, results.rows)),
        equal_accuracy=equal_accuracy_table(results),
        left_out=results.left_out,
        fidelities=results.fidelities,
        resolved=RESOLVED * 100,
        alpha=ALPHA,
        robust=robust_regions(results),
        tolerance=TOLERANCE,
        kinds=cost.kinds(results),
        overheads=cost.overheads(results),
        trained=list(dict.fromkeys((*TRAINED, *results.training))),
        protocol_differences=sorted({note for note in protocol_differences(results.rows).values() if note}),
        cells=_cells(results),
        commands=[shlex.join(words) for words in commands_of(results.record)],
        provenance=_provenance(results),
        samples=samples(results) if with_samples else None,
    )


def _asset(name: str) -> str:
    return resources.files("harness.report.output").joinpath("templates", name).read_text("utf-8")


@cache
def _plotly() -> str:
    """Return the installed plotly.js, compressed, as it is most of the page."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _script_json(data: Any) -> str:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _figures(views: Sequence[FigureSpec]) -> list[list[FigureSpec]]:
    """Return the figures of a section by group."""
    groups: dict[str, list[FigureSpec]] = {}
    for view in views:
        groups.setdefault(view.group or view.name, []).append(view)
    return list(groups.values())


def _charts(results: Results, views: Mapping[str, Sequence[FigureSpec]]) -> dict[str, Any]:
    styles = styles_of(results.rows["defense"])
    return {
        view.name: {"alternative": view.alternative, "title": view.title, **chart(view, styles)}
        for found in views.values()
        for view in found
    }


def _lines(results: Results) -> list[dict[str, Any]]:
    swept = varying(results.means, results.rows)
    letters = markers(results.means)
    return [
        {
            "name": condition_name(row, swept),
            "marker": letters.get(row[NOTE], ""),
            "labels": {name: value(row[name]) for name in ("defense", "task", "model", "attack", "ratio")},
            "scores": [(score(row, name), (index, name) in results.best) for name in headings(results.rows)],
            "seeds": row["seeds"],
        }
        for index, row in enumerate(records(results.means))
    ]


def _filters(results: Results) -> dict[str, list[str]]:
    """Return the values of each label in which rows differ."""
    names = ("defense", "ratio", "task", "model", "attack")
    found = {name: list(dict.fromkeys(value(each) for each in results.rows[name])) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}


def _comparisons(results: Results) -> list[dict[str, Any]]:
    called = compared_names(results.means, results.rows, results.comparisons)
    return [
        {
            "name": name,
            "labels": {name: value(names[name]) for name in ("defense", "task", "model", "attack", "ratio")},
            "score": HEADINGS[each.score],
            "difference": number(each.difference, each.low, each.high),
            "p": _p(each.p),
            "p_holm": _p(each.p_holm),
            "significant": each.p_holm < ALPHA,
            "seeds": each.seeds,
            "more": _more(each.more_seeds),
        }
        for each, name in zip(results.comparisons, called, strict=True)
        for names in [results.conditions[each.line].names]
    ]


def _p(found: float) -> str:
    if found != found:  # noqa: PLR0124
        return "–"
    return "< 0.001" if found < 0.001 else f"{found:.3f}"


def _more(found: float) -> str:
    if found != found:  # noqa: PLR0124
        return "–"
    return "more prompts" if found == float("inf") else f"{found:.0f}"


def _cells(results: Results) -> list[dict[str, Any]]:
    swept = varying(results.means, results.rows)
    rows = records(results.rows)
    return [
        {
            "name": condition_name(row, swept),
            "labels": {name: value(row[name]) for name in ("defense", "task", "model", "attack", "ratio")},
            "seed": row["seed"],
            "missing": row["missing"],
            "notes": row["notes"],
            "reproduce": reproduce(cell),
            "keys": {name.removeprefix(KEY_PREFIX): row[name] for name in row if name.startswith(KEY_PREFIX)},
        }
        for row, cell in zip(rows, results.record["cells"], strict=True)
    ]


def reproduce(cell: Mapping[str, Any]) -> str:
    """Return the command line that reproduces a cell; empty if its record has no overrides."""
    overrides = cell.get("overrides")
    return shlex.join(["harness", *cell.get("flags", ()), "-m", *overrides]) if overrides else ""


def _provenance(results: Results) -> dict[str, list[str]]:
    """Return the distinct commits, versions, hosts and devices of the stages, with the number of stages of each."""
    found: dict[str, dict[str, int]] = {}
    for entry in results.stage_records.values():
        for name, text in _provenance_items(entry.provenance):
            counts = found.setdefault(name, {})
            counts[text] = counts.get(text, 0) + 1
    total = {name: sum(counts.values()) for name, counts in found.items()}
    return {
        name: [text if count == total[name] else f"{text} ({count} stages)" for text, count in counts.items()]
        for name, counts in found.items()
    }


def _provenance_items(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    code = provenance.get("code") or {}
    commit = f"{code['commit']}{' with changes' if code.get('dirty') else ''}" if code.get("commit") else ""
    argv = provenance.get("argv")
    single = {
        "commit": commit,
        "python": provenance.get("python", ""),
        "platform": provenance.get("platform", ""),
        "host": provenance.get("host", ""),
        "device": provenance.get("device", ""),
        "command": shlex.join(argv) if argv else "",
    }
    packages = [(name, str(version)) for name, version in (provenance.get("packages") or {}).items()]
    return [(name, str(text)) for name, text in [*single.items(), *packages] if text]
