"""Follow: mirror a sweep while it runs, from the store, in a process that no stage waits for."""

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
from harness.wandb_sync.run import Entry
from harness.wandb_sync.server import Busy
from harness.wandb_sync.sweep_runs import SweepRuns
from harness.wandb_sync.sync import NOTHING, Line, connected

if TYPE_CHECKING:
    from harness.wandb_sync.client import Stream

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
"""How often the store is looked at."""
LONGEST_SECONDS = 300.0
"""How long a server that does not answer is left alone at most; at first it is ``EVERY_SECONDS``."""
LIVE = 32
"""How many curves are followed at the same time; of more, the others are sent when they are complete."""


class Follower:
    """What is known of a sweep's runs on a server while one connection lasts."""

    def __init__(self, contents: SweepRuns, line: Line) -> None:
        """Know nothing yet."""
        self._contents = contents
        self._line = line
        self._live: dict[str, tuple[Stream, int]] = {}
        self._shown: set[str] = set()
        self.served = False
        """Whether a turn went well: the server is not in trouble with all of it."""

    @property
    def missing(self) -> int:
        """How many runs the server does not show as complete."""
        return len(self._contents.ids) - len(self._shown)

    def turn(self) -> str:
        """Send what is new; return why something that is complete did not arrive, or an empty text.

        Raises:
            TrackingError: the server cannot be reached, or refuses.
        """
        complete = list(self._contents.finished(without=frozenset(self._shown)))
        for entry in complete:
            if (open_run := self._live.pop(entry.id, None)) is not None:
                stream, step = open_run
                stream.log(entry.rows(after=step))
                stream.complete(entry)
        reason = ""
        if complete:
            shown, _, reason = self._line.deliver(complete)
            self._shown |= shown
            reason = reason or ("some runs did not arrive" if len(shown) < len(complete) else "")
        for entry in self._contents.running():
            self._extend(entry)
        return reason

    def leave(self) -> None:
        """End the runs of stages that are not complete."""
        for stream, _ in self._live.values():
            stream.abandon()
        self._live.clear()

    def _extend(self, entry: Entry) -> None:
        if self._contents.ended(entry.id):
            if (open_run := self._live.pop(entry.id, None)) is not None:
                open_run[0].abandon()
            return
        if entry.id not in self._live:
            if len(self._live) >= LIVE:
                return
            after = self._line.remote.held([entry.id]).get(entry.id, NOTHING).step
            self._live[entry.id] = (self._line.wire.begin(entry), after)
        stream, step = self._live[entry.id]
        last = stream.log(entry.rows(after=step))
        self._live[entry.id] = (stream, step if last is None else last)


def follow(root: Path, sweep: str, settings: Wandb, *, ended: Event, tell: Callable[[str], None]) -> bool:
    """Mirror a sweep until all of it is shown, or once more after ``ended`` is set.

    Args:
        root: of the store.
        sweep: the sweep's id.
        settings: where to, and what.
        ended: set by the caller when nothing more will be stored.
        tell: told where the runs are, and what goes wrong.

    Returns:
        Whether the server shows everything.

    Raises:
        StoreError: the store cannot be read.
    """
    store = Store(root)
    contents = SweepRuns(store, sweep, settings)
    pause, follower = EVERY_SECONDS, None
    told: set[str] = set()

    def say(text: str) -> None:
        """Say it, if it was not said since the server last took something."""
        if text in told:
            return
        told.add(text)
        try:
            tell(text)
        except BrokenPipeError:
            # The run that listened is over, and so is its patience; what it stored is still sent.
            if not ended.is_set():
                raise

    while True:
        last = ended.is_set()
        try:
            with connected(store, settings) as line:
                say(f"W&B: runs of {sweep} are in {line.place}")
                follower = Follower(contents, line)
                missing = _attend(follower, ended)
            if not missing or last or ended.is_set():
                say(_result(missing, len(contents.ids), sweep))
                return not missing
        except TrackingError as error:
            if follower is not None and follower.served:
                pause, follower = EVERY_SECONDS, None
                told.clear()
            say(f"{str(error).rstrip('.')}. The sweep goes on without it.")
            if last:
                say(_result(len(contents.ids), len(contents.ids), sweep))
                return False
            if isinstance(error, Busy):
                # In full, also when the run is over meanwhile: no run waits for this process.
                sleep(min(error.seconds, LONGEST_SECONDS))
        ended.wait(pause)
        pause = min(2 * pause, LONGEST_SECONDS)


def _attend(follower: Follower, ended: Event) -> int:
    """Look at the store time and again; return how many runs are not shown when there is nothing more to do."""
    while True:
        last = ended.is_set()
        if reason := follower.turn():
            raise TrackingError(f"W&B: {reason}")
        follower.served = True
        if last or not follower.missing:
            follower.leave()
            return follower.missing
        ended.wait(EVERY_SECONDS)


def _result(missing: int, total: int, sweep: str) -> str:
    if not missing:
        return f"W&B: all {total} runs are there"
    return f"W&B: {missing} of {total} runs are not there or not complete; `harness sync {sweep}` sends them"
