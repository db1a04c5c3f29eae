"""What the jobs of these tests do. A module of its own: submitit pickles it by name, workers import it."""

import time
from pathlib import Path

from submitit.core.utils import DelayedSubmission


def write(path: Path, text: str) -> str:
    """Leave a trace and return it."""
    path.write_text(text)
    return text


def refuse() -> None:
    """Fail as code fails."""
    raise ValueError("this function always raises")


def note_and_sleep(path: Path, seconds: float) -> int:
    """Note each run as a line; sleep only in the first. Returns how many runs there were."""
    with path.open("a") as notes:
        notes.write("run\n")
    runs = len(path.read_text().splitlines())
    if runs == 1:
        time.sleep(seconds)
    return runs


class Patient:
    """Counts how often it was interrupted, keeps the count over a requeue, and ends once it was."""

    def __init__(self, started: Path) -> None:
        self.started = started
        self.interruptions = 0

    def __call__(self) -> int:
        self.started.touch()
        deadline = time.monotonic() + 120
        while not self.interruptions and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.interruptions

    def checkpoint(self) -> DelayedSubmission:
        """What submitit calls on USR2."""
        self.interruptions += 1
        return DelayedSubmission(self)


def hoard(megabytes: int) -> int:
    """Hold memory until somebody minds."""
    held = bytearray(b"x") * (megabytes << 20)
    time.sleep(30)
    return len(held)
