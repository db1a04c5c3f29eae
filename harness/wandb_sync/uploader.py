"""The uploader: a process that uploads a run to W&B. The run waits for it only briefly, at the end."""

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
"""How long a finished run waits for pending uploads, which then continue in the background."""
INTERRUPTED_SECONDS = 3.0
"""The same after Ctrl-C or an error."""


@contextmanager
def uploading(tracker: TrackerSettings, root: Path, sweep: str, notify: Callable[[str], None]) -> Iterator[None]:
    """Upload a sweep while the block runs, if its tracker is W&B.

    Args:
        tracker: the sweep's tracker.
        root: the store's folder.
        sweep: the sweep's id; its record must exist.
        notify: receives the uploader's output, from another thread.
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
            process = _start(root, sweep)
        except OSError as error:
            why = f"uploader cannot be started ({error.strerror or error})"
    if why:
        yield
        notify(f"W&B {why}: nothing was uploaded; `harness sync {sweep}` does it later")
        return
    assert process.stdin is not None
    assert process.stdout is not None
    reader = Thread(target=_forward, args=(process.stdout, notify), daemon=True)
    reader.start()
    timeout = INTERRUPTED_SECONDS
    try:
        yield
        timeout = GRACE_SECONDS
    finally:
        # Signals the uploader that nothing more will be stored, as does the death of this process.
        process.stdin.close()
        reader.join(timeout)
        if reader.is_alive():
            notify(f"W&B: uploads continue in the background; if they are interrupted, run `harness sync {sweep}`")


def _start(root: Path, sweep: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", "sync", sweep, "--store", str(root), "--attached"]
    # In its own session, so that Ctrl-C does not interrupt uploads.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


@contextmanager
def attached(to: IO[str] | None) -> Iterator[Event]:
    """Yield an event that is set when ``to`` is closed, that is, when the parent run has ended; never set for None."""
    ended = Event()
    if to is not None:
        Thread(target=_wait_for_end, args=(to, ended), daemon=True).start()
    yield ended


def _wait_for_end(stream: IO[str], ended: Event) -> None:
    for _ in stream:
        pass
    ended.set()


def _forward(lines: IO[str], notify: Callable[[str], None]) -> None:
    for line in lines:
        notify(line.rstrip())
