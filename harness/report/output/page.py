"""The page: a report as one HTML file that needs neither a server nor a network."""

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
from harness.report.figures.catalog import gallery
from harness.report.figures.plotly import chart
from harness.report.figures.spec import View
from harness.report.figures.style import looks
from harness.report.figures.tradeoff import TOLERANCE, robust_regions
from harness.report.output.samples import samples
from harness.report.stats import cost
from harness.report.stats.labels import HEADINGS, MEANINGS, compared_names, duration, markers, number, remarks, score
from harness.report.stats.paired import ALPHA, RESOLVED
from harness.report.stats.paper_table import ALIGNED, AVERAGE
from harness.report.stats.results import Results
from harness.report.stats.summary import NOTE


def page(findings: Results, *, views: Mapping[str, Sequence[View]] | None = None, with_samples: bool = False) -> str:
    """Return the page.

    Args:
        findings: of the sweep.
        views: what ``gallery`` returned, if it was called already.
        with_samples: put answers of the models on the page; harmful ones are folded away.
    """
    from jinja2 import Environment, StrictUndefined

    views = gallery(findings) if views is None else views
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"value": value, "duration": duration}
    return environment.from_string(_asset("page.html.j2")).render(
        record=findings.record,
        css=_asset("page.css"),
        script=_asset("page.js"),
        plotly=_plotly(),
        figures={section: _figures(found) for section, found in views.items()},
        charts=_embedded(_charts(findings, views)),
        paper_tables=findings.paper_tables,
        headings=HEADINGS,
        meanings=MEANINGS,
        aligned=ALIGNED,
        average=AVERAGE,
        lines=_lines(findings),
        filters=_filters(findings),
        remarks=remarks(findings.rows, findings.means),
        baseline=findings.baseline,
        comparisons=_comparisons(findings),
        left_out=findings.left_out,
        resolved=RESOLVED * 100,
        alpha=ALPHA,
        robust=robust_regions(findings),
        tolerance=TOLERANCE,
        kinds=cost.kinds(findings),
        overheads=cost.overheads(findings),
        trained=list(dict.fromkeys((*TRAINED, *findings.training))),
        protocol_differences=sorted({note for note in protocol_differences(findings.rows).values() if note}),
        cells=_cells(findings),
        command=shlex.join(findings.record.get("argv", [])),
        provenance=_provenance(findings),
        samples=samples(findings) if with_samples else None,
    )


def _asset(name: str) -> str:
    return resources.files("harness.report.output").joinpath("templates", name).read_text("utf-8")


@cache
def _plotly() -> str:
    """Return plotly.js as it is installed, packed: it is three quarters of the page otherwise."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _embedded(data: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _figures(views: Sequence[View]) -> list[list[View]]:
    """Return the views of a section; those of a group are together."""
    groups: dict[str, list[View]] = {}
    for view in views:
        groups.setdefault(view.group or view.name, []).append(view)
    return list(groups.values())


def _charts(findings: Results, views: Mapping[str, Sequence[View]]) -> dict[str, Any]:
    styles = looks(findings.rows["defense"])
    return {
        view.name: {"alternative": view.alternative, "title": view.title, **chart(view, styles)}
        for found in views.values()
        for view in found
    }


def _lines(findings: Results) -> list[dict[str, Any]]:
    swept = varying(findings.means, findings.rows)
    letters = markers(findings.means)
    return [
        {
            "name": condition_name(line, swept),
            "marker": letters.get(line[NOTE], ""),
            "labels": {name: value(line[name]) for name in ("defense", "task", "model", "attack", "ratio")},
            "scores": [(score(line, name), (index, name) in findings.best) for name in HEADINGS],
            "seeds": line["seeds"],
        }
        for index, line in enumerate(records(findings.means))
    ]


def _filters(findings: Results) -> dict[str, list[str]]:
    """Return the values of every label that tells rows apart."""
    names = ("defense", "ratio", "task", "model", "attack")
    found = {name: list(dict.fromkeys(value(each) for each in findings.rows[name])) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}


def _comparisons(findings: Results) -> list[dict[str, Any]]:
    called = compared_names(findings.means, findings.rows, findings.comparisons)
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
        for each, name in zip(findings.comparisons, called, strict=True)
        for names in [findings.lines[each.line].names]
    ]


def _p(found: float) -> str:
    if found != found:  # noqa: PLR0124
        return "–"
    return "< 0.001" if found < 0.001 else f"{found:.3f}"


def _more(found: float) -> str:
    if found != found:  # noqa: PLR0124
        return "–"
    return "more prompts" if found == float("inf") else f"{found:.0f}"


def _cells(findings: Results) -> list[dict[str, Any]]:
    swept = varying(findings.means, findings.rows)
    rows = records(findings.rows)
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
        for row, cell in zip(rows, findings.record["cells"], strict=True)
    ]


def reproduce(cell: Mapping[str, Any]) -> str:
    """Return the command line that runs a cell again; empty if its record does not tell."""
    overrides = cell.get("overrides")
    return shlex.join(["harness", "-m", *overrides]) if overrides else ""


def _provenance(findings: Results) -> dict[str, list[str]]:
    """Return what the stages ran on: every distinct commit, version, host and device, with how many stages."""
    found: dict[str, dict[str, int]] = {}
    for entry in findings.ledger.values():
        for name, told in _circumstances(entry.provenance):
            counts = found.setdefault(name, {})
            counts[told] = counts.get(told, 0) + 1
    total = {name: sum(counts.values()) for name, counts in found.items()}
    return {
        name: [told if count == total[name] else f"{told} ({count} stages)" for told, count in counts.items()]
        for name, counts in found.items()
    }


def _circumstances(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
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
    return [(name, str(told)) for name, told in [*single.items(), *packages] if told]
