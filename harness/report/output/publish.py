"""Publish: a sweep's report for a terminal, beside the store's artifacts, or as a folder of files."""

from pathlib import Path
from typing import NamedTuple

from harness.engine.files import writing
from harness.engine.lookup import resolve_sweep
from harness.engine.store import Store
from harness.report.data.comparability import refuse_departures
from harness.report.output.formats import render
from harness.report.stats.results import Results, gather

BRIEF = {"table.md": "md", "rows.csv": "csv", "report.json": "json"}
"""What every run writes beside the store's artifacts, by file name, and its format."""
FULL = {"table.txt": "table", "table.tex": "latex", **BRIEF}
"""What ``--out`` writes, beside the page and the figures."""
PAGE = "index.html"


class Published(NamedTuple):
    """A table for the terminal, and the files that were written."""

    table: str
    files: list[Path]


def report(
    root: Path,
    sweep: str | None,
    format: str,
    *,
    baseline: str | None = None,
    strict: bool = False,
    with_samples: bool = False,
) -> str:
    """Return a sweep's report in a format of ``FORMATS``.

    Args:
        root: of the store.
        sweep: the sweep's id or how it begins; None is the latest.
        format: the format's name.
        baseline: the defense that the others are compared with; None is plain training.
        strict: refuse rows that were not trained and evaluated alike.
        with_samples: put answers on the page.

    Raises:
        ConfigError: the format or the baseline is unknown, or ``strict`` refuses.
        StoreError: there is no such sweep, or more than one begins so.
    """
    findings = _findings(root, sweep, baseline, strict=strict)
    return _page(findings, with_samples=with_samples) if format == "html" else render(findings, format)


def write(
    root: Path,
    sweep: str | None,
    out: Path,
    *,
    baseline: str | None = None,
    strict: bool = False,
    with_samples: bool = False,
) -> Published:
    """Write a sweep's report in all formats, and its figures, to a folder.

    Args:
        root: of the store.
        sweep: the sweep's id or how it begins; None is the latest.
        out: the folder; it need not exist.
        baseline: the defense that the others are compared with; None is plain training.
        strict: refuse rows that were not trained and evaluated alike.
        with_samples: put answers on the page.

    Raises:
        ConfigError: the baseline is unknown, or ``strict`` refuses.
        StoreError: there is no such sweep, or the folder cannot be written.
    """
    from harness.report.figures.catalog import gallery
    from harness.report.figures.matplotlib import save
    from harness.report.figures.style import looks
    from harness.report.output.page import page

    findings = _findings(root, sweep, baseline, strict=strict)
    files = _written(findings, out, FULL)
    views = gallery(findings)
    with writing(out):
        files.append(out / PAGE)
        files[-1].write_text(page(findings, views=views, with_samples=with_samples), encoding="utf-8")
        (out / "figures").mkdir(exist_ok=True)
        styles = looks(findings.rows["defense"])
        for view in (view for found in views.values() for view in found if view.paper):
            files += save(view, out / "figures", styles)
    return Published(render(findings, "table"), files)


def publish(root: Path, sweep: str) -> Published:
    """Write the short report of a sweep that has just run to ``reports/<sweep>/`` in the store.

    Raises:
        StoreError: the store cannot be written.
    """
    store = Store(root)
    findings = gather(store, store.read_sweep(sweep))
    return Published(render(findings, "table"), _written(findings, store.root / "reports" / sweep, BRIEF))


def _findings(root: Path, sweep: str | None, baseline: str | None, *, strict: bool) -> Results:
    store = Store(root)
    findings = gather(store, store.read_sweep(resolve_sweep(store, sweep)), baseline)
    if strict:
        refuse_departures(findings.rows)
    return findings


def _page(findings: Results, *, with_samples: bool) -> str:
    from harness.report.output.page import page

    return page(findings, with_samples=with_samples)


def _written(findings: Results, folder: Path, formats: dict[str, str]) -> list[Path]:
    files = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, format in formats.items():
            files.append(folder / name)
            files[-1].write_text(render(findings, format), encoding="utf-8")
    return files
