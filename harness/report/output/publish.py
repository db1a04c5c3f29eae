"""Returns the report of one or several sweeps in one format, or writes it to a folder or to the store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.engine.files import writing
from harness.engine.lookup import resolve_sweep
from harness.engine.store import Store
from harness.errors import ConfigError, Problem
from harness.report.data.comparability import check_same_protocol
from harness.report.data.joined import joined_record
from harness.report.output.formats import render
from harness.report.stats.results import Results, load_results

BRIEF = {"table.md": "md", "rows.csv": "csv", "report.json": "json"}
"""Files that every run writes to ``reports/`` in the store, with their formats."""
FULL = {"table.txt": "table", "table.tex": "latex", **BRIEF}
"""Files that ``--out`` writes in addition to the page and the figures, with their formats."""
PAGE = "index.html"


class Published(NamedTuple):
    """A table for the terminal, and the files that were written.

    Attributes:
        table: the table.
        files: the files.
        others: figures in the same folder that are not of this report; an earlier one may have written them.
    """

    table: str
    files: list[Path]
    others: Sequence[Path] = ()


def report(
    root: Path,
    sweeps: Sequence[str] | None,
    format: str,
    *,
    baseline: str | None = None,
    strict: bool = False,
    with_samples: bool = False,
) -> str:
    """Return the report of sweeps in a format of ``FORMATS``.

    Args:
        root: the store's folder.
        sweeps: ids of the sweeps, or prefixes of them, which are reported as one; None is the latest.
        format: name of the format.
        baseline: the defense with which others are compared; None is plain training.
        strict: fail if rows differ in their training or evaluation protocol.
        with_samples: include generations in the page.

    Raises:
        ConfigError: the format or the baseline is unknown, the sweeps declare different attackers, or ``strict`` is
            set and protocols differ.
        StoreError: there is no such sweep, or the prefix is ambiguous.
    """
    results = _load(root, sweeps, baseline, strict=strict)
    return _page(results, with_samples=with_samples) if format == "html" else render(results, format)


def write(
    root: Path,
    sweeps: Sequence[str] | None,
    out: Path,
    *,
    baseline: str | None = None,
    strict: bool = False,
    with_samples: bool = False,
) -> Published:
    """Write the report of sweeps in all formats, and its figures, to a folder.

    Args:
        root: the store's folder.
        sweeps: ids of the sweeps, or prefixes of them, which are reported as one; None is the latest.
        out: the folder; created if it does not exist.
        baseline: the defense with which others are compared; None is plain training.
        strict: fail if rows differ in their training or evaluation protocol.
        with_samples: include generations in the page.

    Raises:
        ConfigError: the baseline is unknown, the sweeps declare different attackers, ``strict`` is set and
            protocols differ, or the folder cannot be written.
        StoreError: there is no such sweep.
    """
    from harness.report.figures.catalog import figure_catalog
    from harness.report.figures.matplotlib import KINDS, save
    from harness.report.figures.style import styles_of
    from harness.report.output.page import page

    results = _load(root, sweeps, baseline, strict=strict)
    views = figure_catalog(results)
    with _writing_out(out):
        files = _write_formats(results, out, FULL)
        files.append(out / PAGE)
        files[-1].write_text(page(results, views=views, with_samples=with_samples), encoding="utf-8")
        (out / "figures").mkdir(exist_ok=True)
        styles = styles_of(results.rows["defense"])
        for view in (view for found in views.values() for view in found if view.paper):
            files += save(view, out / "figures", styles)
        others = sorted({path for kind in KINDS for path in (out / "figures").glob(f"*.{kind}")}.difference(files))
    return Published(render(results, "table"), files, others)


def publish(root: Path, sweep: str) -> Published:
    """Write the brief report of a sweep to ``reports/<sweep>/`` in the store, after a run.

    Raises:
        StoreError: the store cannot be written.
    """
    store = Store(root)
    results = load_results(store, store.read_sweep(sweep))
    folder = store.root / "reports" / sweep
    with writing(folder):
        return Published(render(results, "table"), _write_formats(results, folder, BRIEF))


@contextmanager
def _writing_out(folder: Path) -> Iterator[None]:
    """Convert an ``OSError`` while the user's folder is written: it need not be in the store."""
    try:
        yield
    except OSError as error:
        reason = f"`{error.filename or folder}` cannot be written: {error.strerror or error}"
        raise ConfigError([Problem("--out", f"{reason}; expected a folder that you may write to")]) from None


def _load(root: Path, sweeps: Sequence[str] | None, baseline: str | None, *, strict: bool) -> Results:
    store = Store(root)
    asked: Sequence[str | None] = sweeps or [None]
    named = dict.fromkeys(resolve_sweep(store, sweep) for sweep in asked)
    results = load_results(store, joined_record([store.read_sweep(name) for name in named]), baseline)
    if strict:
        check_same_protocol(results.rows)
    return results


def _page(results: Results, *, with_samples: bool) -> str:
    from harness.report.output.page import page

    return page(results, with_samples=with_samples)


def _write_formats(results: Results, folder: Path, formats: dict[str, str]) -> list[Path]:
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, format in formats.items():
        files.append(folder / name)
        files[-1].write_text(render(results, format), encoding="utf-8")
    return files
