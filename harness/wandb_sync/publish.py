"""Publishes the dashboard of a sweep: written next to its report, and saved on the W&B server if there is one."""

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
"""File with the ids of the saved workspace and report by destination, so that they are replaced the next time."""


class PublishedDashboard(NamedTuple):
    """Result of publishing a dashboard.

    Attributes:
        files: the files that were written.
        addresses: URLs of the saved workspace and report.
        reason: why they were not saved on a server; empty if they were.
    """

    files: list[Path]
    addresses: tuple[str, ...]
    reason: str


def publish_dashboard(root: Path, sweep: str, settings: Wandb, *, strict: bool = False) -> PublishedDashboard:
    """Write ``dashboard.json``, check it, and save it on the server as a workspace and a report.

    Without wandb-workspaces, only the description is written and checked; without a server, the requests are written to
    ``wandb_workspace.json`` and ``wandb_report.json``.

    Args:
        root: the store's folder.
        sweep: the sweep's id.
        settings: the W&B project.
        strict: fail before anything is written if rows differ in their training or evaluation protocol.

    Raises:
        ConfigError: ``strict`` is set and the protocols differ.
        StoreError: the store cannot be read or written, or no cell is complete.
        TrackingError: W&B's models reject the description.
    """
    store = Store(root)
    runs = list(SweepRuns(store, sweep, settings).finished())
    described = dashboard(sweep, runs, report(root, [sweep], "md", strict=strict))
    if problems := described.problems(runs):
        raise StoreError(f"The dashboard of `{sweep}` cannot be drawn: {'; '.join(problems)}")
    folder = store.root / "reports" / sweep
    files = [folder / "dashboard.json"]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(files[0], described.json())
    if find_spec("wandb_workspaces") is None:
        return PublishedDashboard(files, (), "wandb-workspaces is not installed (`pip install 'harness[wandb]'`)")
    from harness.wandb_sync.workspace import Saved, save, specs

    requests = specs(described, entity=settings.effective_entity or "", project=settings.effective_project)
    with writing(folder):
        for name, spec in requests.items():
            files.append(folder / f"wandb_{name}.json")
            write_json(files[-1], spec)
    if settings.effective_mode != "online":
        return PublishedDashboard(files, (), f"W&B is {settings.effective_mode}")
    try:
        with connected(store, settings) as connection:
            path, destination = folder / SAVED, connection.destination
            with reading(path):
                known = json.loads(path.read_text("utf-8")) if path.exists() else {}
            before = Saved(*known[destination]) if destination in known else None
            saved = save(described, entity=connection.entity, project=connection.client.project, before=before)
            with writing(path):
                write_json(path, known | {destination: saved})
    except TrackingError as error:
        return PublishedDashboard(files, (), str(error))
    return PublishedDashboard(files, saved.addresses, "")
