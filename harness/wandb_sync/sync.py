"""Sync: make a W&B project show what the store holds of a sweep. Repeating it changes nothing."""

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
from harness.wandb_sync.run import Entry
from harness.wandb_sync.server import Held, Remote, login
from harness.wandb_sync.sweep_runs import SweepRuns

if TYPE_CHECKING:
    from harness.wandb_sync.client import Wire

log = logging.getLogger(__name__)

AT_ONCE = 4
"""How many runs are sent at the same time."""
PATIENCE = 3
"""After how many refused runs the rest is left for another time."""
NOTHING = Held()


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What a pass did.

    Attributes:
        sent: runs that were sent by this pass.
        current: runs that the server showed already.
        unfinished: runs whose stages are not complete in the store.
        place: where the runs are.
        missing: runs that did not arrive.
        reason: why not.
        offline: whether they were written to files and not sent.
    """

    sent: int
    current: int
    unfinished: int
    place: str
    missing: int = 0
    reason: str = ""
    offline: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """An open way to a server: what sends, and what asks."""

    wire: Wire
    remote: Remote

    @property
    def entity(self) -> str:
        """The owner of the project."""
        return self.wire.entity or ""

    @property
    def place(self) -> str:
        """Where the runs are, for the reader."""
        return f"{self.wire.entity}/{self.wire.project} at {self.remote.address}"

    def deliver(self, entries: Iterable[Entry]) -> tuple[set[str], int, str]:
        """Send what the server does not show yet, and ask afterwards what it shows.

        Returns:
            The ids that the server shows now, how many were sent, and the last refusal.

        Raises:
            TrackingError: the server cannot be asked.
        """
        wanted = {entry.id: entry for entry in entries}
        held = self.remote.held(wanted)
        stale = [entry for entry in wanted.values() if not held.get(entry.id, NOTHING).shows(entry)]
        if not stale:
            return set(wanted), 0, ""
        refusals: list[str] = []

        def send(entry: Entry) -> None:
            if len(refusals) >= PATIENCE:
                return
            try:
                self.wire.send(entry, after=held.get(entry.id, NOTHING).step)
            except TrackingError as error:
                log.warning("%s %s was not sent: %s", entry.kind, entry.id, error)
                refusals.append(str(error))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(send, stale))
        held = self.remote.held(entry.id for entry in stale)
        late = {entry.id for entry in stale if not held.get(entry.id, NOTHING).shows(entry)}
        return wanted.keys() - late, len(stale) - len(late), refusals[-1] if refusals else ""


def sync(root: Path, sweep: str, settings: Wandb) -> Synced:
    """Send what a W&B project does not show of a sweep, stages and cells that are complete.

    In the mode ``offline`` W&B's offline files are written to ``reports/<sweep>/wandb`` in the store instead, all
    anew; ``wandb sync`` sends them from any machine.

    Raises:
        TrackingError: the mode is ``disabled``, wandb is not installed, there is no key, the server cannot be asked, or
            another process sends.
        StoreError: the store cannot be read.
    """
    store = Store(root)
    contents = SweepRuns(store, sweep, settings)
    if settings.effective_mode == "disabled":
        raise TrackingError("W&B is disabled by `tracker.mode` or WANDB_MODE; nothing was sent.")
    _need_wandb()
    if settings.effective_mode == "offline":
        return _written(store, contents, settings)
    with connected(store, settings) as line:
        entries = list(contents.finished())
        shown, sent, reason = line.deliver(entries)
        return Synced(
            sent=sent,
            current=len(shown) - sent,
            unfinished=len(contents.ids) - len(entries),
            place=line.place,
            missing=len(entries) - len(shown),
            reason=reason or ("" if len(shown) == len(entries) else "the server did not keep what it accepted"),
        )


@contextmanager
def connected(store: Store, settings: Wandb) -> Iterator[Line]:
    """Open a way to the server, for one process of the store at a time.

    Raises:
        TrackingError: wandb is not installed, there is no key, the server cannot be asked, or another process sends.
    """
    _need_wandb()
    from harness.wandb_sync.client import Wire, address, refusals, reset

    place = address()
    remote = Remote(
        address=place, key=login(place), project=settings.effective_project, entity=settings.effective_entity
    )
    entity = remote.owner()
    claims = store.root / "mirror"
    with writing(claims):
        claims.mkdir(parents=True, exist_ok=True)
    claim = Claims(claims).take("wandb")
    if claim is None:
        raise TrackingError("Another process is sending from this store to W&B. Wait for it, then sync again.")
    with claim:
        with refusals():
            scratch = tempfile.TemporaryDirectory(prefix="harness-wandb-", ignore_cleanup_errors=True)
        with scratch as folder:
            wire = Wire(mode="online", entity=entity, project=remote.project, folder=Path(folder))
            try:
                yield Line(wire=wire, remote=remote)
            finally:
                reset()


def _written(store: Store, contents: SweepRuns, settings: Wandb) -> Synced:
    from harness.wandb_sync.client import Wire, reset

    folder = store.root / "reports" / contents.sweep
    # Read before the files of the last time go.
    entries = list(contents.finished())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "wandb", ignore_errors=True)
    wire = Wire(mode="offline", entity=settings.effective_entity, project=settings.effective_project, folder=folder)
    for entry in entries:
        wire.send(entry, after=-1)
    reset()
    unfinished = len(contents.ids) - len(entries)
    place = str(folder / "wandb")
    return Synced(sent=len(entries), current=0, unfinished=unfinished, place=place, offline=True)


def _need_wandb() -> None:
    if find_spec("wandb") is None:
        raise TrackingError("W&B is not installed; `pip install 'harness[wandb]'` does it. Nothing was sent.")


def recorded(root: Path, sweep: str) -> Wandb:
    """Return the settings with which a sweep was run, or the defaults if it had another tracker.

    Raises:
        StoreError: there is no such sweep.
        ConfigError: its record was made by other settings than the installed ones.
    """
    data = Store(root).read_sweep(sweep).get("place", {}).get("tracker", {})
    ours = f"{Wandb.__module__}.{Wandb.__qualname__}" in paths_of(str(data.get("_target_", "")))
    return build(Wandb, data) if ours else Wandb()
