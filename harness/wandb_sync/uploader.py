"""The companion: the process beside a run that mirrors it. The run never waits for it but a little at the end."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import IO

from harness.engine.tracker import TrackerSettings
from harness.tracking.wandb import Wandb

GRACE_SECONDS = 30.0
"""How long a run that is over waits for what is still to be sent; then the companion goes on alone."""
INTERRUPTED_SECONDS = 3.0
"""The same after Ctrl-C or a bug."""


@contextmanager
def mirrored(tracker: TrackerSettings, root: Path, sweep: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Mirror a sweep while the block runs, if its tracker says so.

    Args:
        tracker: the sweep's.
        root: of the store.
        sweep: the sweep's id; it is recorded already.
        tell: told, from another thread, what the companion says.
    """
    if not isinstance(tracker, Wandb) or tracker.effective_mode == "disabled":
        yield
        return
    why = ""
    if find_spec("wandb") is None:
        why = "is not installed"
    elif tracker.effective_mode != "online":
        why = f"is {tracker.effective_mode}"
    else:
        try:
            process = _started(root, sweep)
        except OSError as error:
            why = f"has no process beside this one ({error.strerror or error})"
    if why:
        yield
        tell(f"W&B {why}: nothing was sent. `harness sync {sweep}` does it, now or later")
        return
    assert process.stdin is not None
    assert process.stdout is not None
    reader = Thread(target=_forward, args=(process.stdout, tell), daemon=True)
    reader.start()
    patience = INTERRUPTED_SECONDS
    try:
        yield
        patience = GRACE_SECONDS
    finally:
        # Tells the companion that nothing more will be stored; so does the death of this process.
        process.stdin.close()
        reader.join(patience)
        if reader.is_alive():
            tell(f"W&B: still sending in the background; if that is cut off, `harness sync {sweep}` completes it")


def _started(root: Path, sweep: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", "sync", sweep, "--store", str(root), "--attached"]
    # Of a session of its own: Ctrl-C is for the run, and what is on its way shall arrive.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


@contextmanager
def attached(to: IO[str] | None) -> Iterator[Event]:
    """Give the companion what is set when the run that started it is over: then ``to`` is closed. None never is."""
    ended = Event()
    if to is not None:
        Thread(target=_wait_for_end, args=(to, ended), daemon=True).start()
    yield ended


def _wait_for_end(stream: IO[str], ended: Event) -> None:
    for _ in stream:
        pass
    ended.set()


def _forward(lines: IO[str], tell: Callable[[str], None]) -> None:
    for line in lines:
        tell(line.rstrip())
