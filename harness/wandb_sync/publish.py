"""The exhibit: a sweep's dashboard, written beside its report and, where there is a server, saved on it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from harness.engine.files import reading, write_json, writing
from harness.engine.store import Store
from harness.errors import StoreError, TrackingError
from harness.report import report
from harness.tracking.wandb import Wandb
from harness.wandb_sync.dashboard import dashboard
from harness.wandb_sync.sweep_runs import SweepRuns
from harness.wandb_sync.sync import connected

SAVED = "wandb_saved.json"
"""Remembers by place what was saved there, so that it is replaced the next time."""


class Exhibited(NamedTuple):
    """What was made of a dashboard.

    Attributes:
        files: that were written.
        addresses: of what a server keeps.
        reason: why no server keeps it; empty if one does.
    """

    files: list[Path]
    addresses: tuple[str, ...]
    reason: str


def exhibit(root: Path, sweep: str, settings: Wandb, *, strict: bool = False) -> Exhibited:
    """Write ``dashboard.json``, check it, and save it on the server as a workspace and a report.

    Without wandb-workspaces the description alone is written and checked; without a server, what would be sent is
    written to ``wandb_workspace.json`` and ``wandb_report.json``.

    Args:
        root: of the store.
        sweep: the sweep's id.
        settings: where to.
        strict: refuse rows that were not trained and evaluated alike, before anything is written.

    Raises:
        ConfigError: ``strict`` refuses.
        StoreError: the store cannot be read or written, or no cell is complete.
        TrackingError: the description is not what W&B takes.
    """
    store = Store(root)
    entries = list(SweepRuns(store, sweep, settings).finished())
    described = dashboard(sweep, entries, report(root, sweep, "md", strict=strict))
    if problems := described.problems(entries):
        raise StoreError(f"The dashboard of `{sweep}` cannot be drawn: {'; '.join(problems)}")
    folder = store.root / "reports" / sweep
    files = [folder / "dashboard.json"]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(files[0], described.json())
    if find_spec("wandb_workspaces") is None:
        return Exhibited(files, (), "wandb-workspaces is not installed (`pip install 'harness[wandb]'`)")
    from harness.wandb_sync.workspace import Saved, save, specs

    ready = specs(described, entity=settings.effective_entity or "", project=settings.effective_project)
    with writing(folder):
        for name, spec in ready.items():
            files.append(folder / f"wandb_{name}.json")
            write_json(files[-1], spec)
    if settings.effective_mode != "online":
        return Exhibited(files, (), f"W&B is {settings.effective_mode}")
    try:
        with connected(store, settings) as line:
            memory = folder / SAVED
            with reading(memory):
                kept = json.loads(memory.read_text("utf-8")) if memory.exists() else {}
            before = Saved(*kept[line.place]) if line.place in kept else None
            saved = save(described, entity=line.entity, project=line.wire.project, before=before)
            with writing(memory):
                write_json(memory, kept | {line.place: saved})
    except TrackingError as error:
        return Exhibited(files, (), str(error))
    return Exhibited(files, saved.addresses, "")
