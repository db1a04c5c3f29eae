"""Uploads a sweep from the store while it runs, in a process that no stage waits for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import sleep
from typing import TYPE_CHECKING

from harness.engine.store import Store
from harness.errors import TrackingError
from harness.tracking.wandb import Wandb
from harness.wandb_sync.run import RunRecord
from harness.wandb_sync.server import Busy
from harness.wandb_sync.sweep_runs import SweepRuns
from harness.wandb_sync.sync import NOTHING, Connection, connected

if TYPE_CHECKING:
    from harness.wandb_sync.client import Stream

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
"""Interval at which the store is polled."""
LONGEST_SECONDS = 300.0
"""Maximum delay before a retry; the delay starts at ``EVERY_SECONDS`` and doubles."""
LIVE = 32
"""Maximum number of curves that are uploaded live; those of other stages are uploaded once complete."""


class Follower:
    """Uploads the runs of a sweep over one connection, and tracks which of them the server has."""

    def __init__(self, contents: SweepRuns, connection: Connection) -> None:
        """Start without open runs."""
        self._contents = contents
        self._connection = connection
        self._live: dict[str, tuple[Stream, int]] = {}
        self._shown: set[str] = set()
        self.served = False
        """Whether at least one update succeeded."""

    @property
    def missing(self) -> int:
        """Number of runs that the server does not have complete."""
        return len(self._contents.ids) - len(self._shown)

    def update(self) -> str:
        """Upload what is new; return why complete runs could not be uploaded, or an empty text.

        Raises:
            TrackingError: the server is unreachable or rejects a run.
        """
        complete = list(self._contents.finished(without=frozenset(self._shown)))
        for run in complete:
            if (open_run := self._live.pop(run.id, None)) is not None:
                stream, step = open_run
                stream.log(run.rows(after=step))
                stream.complete(run)
        reason = ""
        if complete:
            shown, _, reason = self._connection.deliver(complete)
            self._shown |= shown
            reason = reason or ("some runs could not be uploaded" if len(shown) < len(complete) else "")
        for run in self._contents.running():
            self._extend(run)
        return reason

    def close(self) -> None:
        """Finish the open runs of stages that are not complete."""
        for stream, _ in self._live.values():
            stream.abandon()
        self._live.clear()

    def _extend(self, run: RunRecord) -> None:
        if self._contents.ended(run.id):
            if (open_run := self._live.pop(run.id, None)) is not None:
                open_run[0].abandon()
            return
        if run.id not in self._live:
            if len(self._live) >= LIVE:
                return
            after = self._connection.server.runs([run.id]).get(run.id, NOTHING).step
            self._live[run.id] = (self._connection.client.begin(run), after)
        stream, step = self._live[run.id]
        last = stream.log(run.rows(after=step))
        self._live[run.id] = (stream, step if last is None else last)


def follow(root: Path, sweep: str, settings: Wandb, *, ended: Event, notify: Callable[[str], None]) -> bool:
    """Upload a sweep until the server has all its runs; after ``ended`` is set, once more.

    Args:
        root: the store's folder.
        sweep: the sweep's id.
        settings: what is uploaded, and to which project.
        ended: set by the caller when nothing more will be stored.
        notify: receives messages: where the runs are, and errors.

    Returns:
        Whether the server has all runs.

    Raises:
        StoreError: the store cannot be read.
    """
    store = Store(root)
    contents = SweepRuns(store, sweep, settings)
    delay, follower = EVERY_SECONDS, None
    sent: set[str] = set()

    def notify_once(text: str) -> None:
        """Send a message, unless it was already sent since the last successful update."""
        if text in sent:
            return
        sent.add(text)
        try:
            notify(text)
        except BrokenPipeError:
            # After the run has ended it no longer reads; the upload continues.
            if not ended.is_set():
                raise

    while True:
        last = ended.is_set()
        try:
            with connected(store, settings) as connection:
                notify_once(f"W&B: runs of {sweep} are in {connection.destination}")
                follower = Follower(contents, connection)
                missing = _poll(follower, ended)
            if not missing or last or ended.is_set():
                notify_once(_result(missing, len(contents.ids), sweep))
                return not missing
        except TrackingError as error:
            if follower is not None and follower.served:
                delay, follower = EVERY_SECONDS, None
                sent.clear()
            notify_once(f"{str(error).rstrip('.')}. The sweep continues without W&B.")
            if last:
                notify_once(_result(len(contents.ids), len(contents.ids), sweep))
                return False
            if isinstance(error, Busy):
                # Not cut short by the end of the run, which does not wait for this process.
                sleep(min(error.seconds, LONGEST_SECONDS))
        ended.wait(delay)
        delay = min(2 * delay, LONGEST_SECONDS)


def _poll(follower: Follower, ended: Event) -> int:
    """Upload until the server has all runs or the run has ended; return the number of missing runs."""
    while True:
        last = ended.is_set()
        if reason := follower.update():
            raise TrackingError(f"W&B: {reason}")
        follower.served = True
        if last or not follower.missing:
            follower.close()
            return follower.missing
        ended.wait(EVERY_SECONDS)


def _result(missing: int, total: int, sweep: str) -> str:
    if not missing:
        return f"W&B: all {total} runs are uploaded"
    return f"W&B: {missing} of {total} runs are missing or incomplete; `harness sync {sweep}` uploads them"
