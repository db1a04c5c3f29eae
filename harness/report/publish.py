"""Publish: a sweep's record, its rows and their renderings, for a terminal or as files."""

from pathlib import Path
from typing import NamedTuple

from harness.engine.files import writing
from harness.engine.store import Store
from harness.errors import StoreError
from harness.report.render import render
from harness.report.rows import load_rows

FILES = {"table.md": "md", "rows.csv": "csv", "report.json": "json"}
"""What is written beside the store's artifacts, by file name, and its format."""


class Published(NamedTuple):
    """A table for the terminal, and the files that were written."""

    table: str
    files: list[Path]


def report(root: Path, sweep: str | None, format: str) -> str:
    """Return a sweep's report in a format of ``FORMATS``.

    Args:
        root: of the store.
        sweep: the sweep's id or how it begins; None is the latest.
        format: the format's name.

    Raises:
        StoreError: there is no such sweep, or more than one begins so.
        DamagedArtifact: a grade in the store was altered.
    """
    store = Store(root)
    return render(load_rows(store, store.read_sweep(named(store.root, sweep))), format)


def publish(root: Path, sweep: str) -> Published:
    """Write a sweep's report to ``reports/<sweep>/`` in the store.

    Raises:
        StoreError: the store cannot be written.
    """
    store = Store(root)
    rows = load_rows(store, store.read_sweep(sweep))
    folder = store.root / "reports" / sweep
    files = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, format in FILES.items():
            files.append(folder / name)
            files[-1].write_text(render(rows, format), encoding="utf-8")
    return Published(render(rows, "table"), files)


def named(root: Path, sweep: str | None) -> str:
    """Return the id of the sweep that begins so; for None that of the latest.

    Raises:
        StoreError: there is none, or more than one begins so.
    """
    known = Store(root).sweep_ids()
    if not known:
        raise StoreError(f"The store `{root}` has no sweep yet. Run one, or name another store with --store.")
    if sweep is None:
        return known[0]
    if sweep in known:
        return sweep
    begin_so = [name for name in known if name.startswith(sweep)]
    if len(begin_so) > 1:
        raise StoreError(f"`{sweep}` begins {len(begin_so)} sweeps: {', '.join(begin_so[:5])}. Write more of the id.")
    return begin_so[0] if begin_so else sweep
