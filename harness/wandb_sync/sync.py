"""Uploads the complete runs of a sweep to a W&B project; idempotent."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from harness.engine.build import build
from harness.engine.claim import Claims
from harness.engine.classes import paths_of
from harness.engine.files import writing
from harness.engine.store import Store
from harness.errors import TrackingError
from harness.tracking.wandb import Wandb
from harness.wandb_sync.run import RunRecord
from harness.wandb_sync.server import Server, ServerRun, login
from harness.wandb_sync.sweep_runs import SweepRuns

if TYPE_CHECKING:
    from harness.wandb_sync.client import Client

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Number of concurrent uploads."""
PATIENCE = 3
"""Number of failed uploads after which the remaining runs are not attempted."""
NOTHING = ServerRun()


@dataclass(frozen=True, kw_only=True)
class Synced:
    """Result of a sync.

    Attributes:
        sent: number of runs uploaded by this sync.
        current: number of runs that were already up to date on the server.
        unfinished: number of runs whose stages are not complete in the store.
        destination: project and server, or folder, of the runs.
        missing: number of runs that could not be uploaded.
        reason: why not.
        offline: whether the runs were written to files instead of uploaded.
    """

    sent: int
    current: int
    unfinished: int
    destination: str
    missing: int = 0
    reason: str = ""
    offline: bool = False


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A project on a server: the client that uploads, and the server that is queried."""

    client: Client
    server: Server

    @property
    def entity(self) -> str:
        """The owner of the project."""
        return self.client.entity or ""

    @property
    def destination(self) -> str:
        """Project and server, as shown to the user."""
        return f"{self.client.entity}/{self.client.project} at {self.server.address}"

    def deliver(self, runs: Iterable[RunRecord]) -> tuple[set[str], int, str]:
        """Upload the runs that the server lacks or has in another version, then query the server again.

        Returns:
            The ids of the runs that are up to date, the number of uploaded runs, and the last error.

        Raises:
            TrackingError: the server cannot be queried.
        """
        wanted = {run.id: run for run in runs}
        held = self.server.runs(wanted)
        stale = [run for run in wanted.values() if not held.get(run.id, NOTHING).shows(run)]
        if not stale:
            return set(wanted), 0, ""
        errors: list[str] = []

        def send(run: RunRecord) -> None:
            if len(errors) >= PATIENCE:
                return
            try:
                self.client.send(run, after=held.get(run.id, NOTHING).step)
            except TrackingError as error:
                log.warning("%s %s was not uploaded: %s", run.kind, run.id, error)
                errors.append(str(error))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(send, stale))
        held = self.server.runs(run.id for run in stale)
        late = {run.id for run in stale if not held.get(run.id, NOTHING).shows(run)}
        return wanted.keys() - late, len(stale) - len(late), errors[-1] if errors else ""


def sync(root: Path, sweep: str, settings: Wandb) -> Synced:
    """Upload the complete stages and cells of a sweep that a W&B project lacks.

    In the mode ``offline``, W&B's offline files of all of them are written to ``reports/<sweep>/wandb`` in the store
    instead; ``wandb sync`` uploads them from any machine.

    Raises:
        TrackingError: the mode is ``disabled``, wandb is not installed, there is no key, the server cannot be queried,
            or another process is uploading.
        StoreError: the store cannot be read.
    """
    store = Store(root)
    contents = SweepRuns(store, sweep, settings)
    if settings.effective_mode == "disabled":
        raise TrackingError("W&B is disabled by `tracker.mode` or WANDB_MODE; nothing was uploaded.")
    _require_wandb()
    if settings.effective_mode == "offline":
        return _write_offline(store, contents, settings)
    with connected(store, settings) as connection:
        runs = list(contents.finished())
        shown, sent, reason = connection.deliver(runs)
        return Synced(
            sent=sent,
            current=len(shown) - sent,
            unfinished=len(contents.ids) - len(runs),
            destination=connection.destination,
            missing=len(runs) - len(shown),
            reason=reason or ("" if len(shown) == len(runs) else "the server did not keep what it accepted"),
        )


@contextmanager
def connected(store: Store, settings: Wandb) -> Iterator[Connection]:
    """Open a connection, for one process per store at a time.

    Raises:
        TrackingError: wandb is not installed, there is no key, the server cannot be queried, or another process is
            uploading.
    """
    _require_wandb()
    from harness.wandb_sync.client import Client, address, reset, wrap_wandb_errors

    url = address()
    server = Server(address=url, key=login(url), project=settings.effective_project, entity=settings.effective_entity)
    entity = server.owner()
    claims = store.root / "mirror"
    with writing(claims):
        claims.mkdir(parents=True, exist_ok=True)
    claim = Claims(claims).take("wandb")
    if claim is None:
        raise TrackingError("Another process is uploading from this store to W&B. Wait for it, then sync again.")
    with claim:
        with wrap_wandb_errors():
            scratch = tempfile.TemporaryDirectory(prefix="harness-wandb-", ignore_cleanup_errors=True)
        with scratch as folder:
            client = Client(mode="online", entity=entity, project=server.project, folder=Path(folder))
            try:
                yield Connection(client=client, server=server)
            finally:
                reset()


def _write_offline(store: Store, contents: SweepRuns, settings: Wandb) -> Synced:
    from harness.wandb_sync.client import Client, reset

    folder = store.root / "reports" / contents.sweep
    # Read before the previous files are removed, so that an unreadable store does not lose them.
    runs = list(contents.finished())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "wandb", ignore_errors=True)
    client = Client(mode="offline", entity=settings.effective_entity, project=settings.effective_project, folder=folder)
    for run in runs:
        client.send(run, after=-1)
    reset()
    unfinished = len(contents.ids) - len(runs)
    return Synced(sent=len(runs), current=0, unfinished=unfinished, destination=str(folder / "wandb"), offline=True)


def _require_wandb() -> None:
    if find_spec("wandb") is None:
        raise TrackingError("W&B is not installed: `pip install 'harness[wandb]'`. Nothing was uploaded.")


def settings_of(root: Path, sweep: str) -> Wandb:
    """Return the W&B settings with which a sweep was run, or the defaults if it had another tracker.

    Raises:
        StoreError: there is no such sweep.
        ConfigError: the recorded settings are not valid for the installed version.
    """
    data = Store(root).read_sweep(sweep).get("place", {}).get("tracker", {})
    is_wandb = f"{Wandb.__module__}.{Wandb.__qualname__}" in paths_of(str(data.get("_target_", "")))
    return build(Wandb, data) if is_wandb else Wandb()
