"""The default tracker: one JSON line per logged step in the stage's work folder, readable while the stage runs."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO, final

from harness.engine.layout import StoreLayout

log = logging.getLogger(__name__)

CURVE = "curve.jsonl"
"""The curve of an attempt, in the work folder of its stage."""
METRICS = "metrics.jsonl"
"""The curve of a finished training, inside its artifact."""
STEP = "step"
"""Field of a curve's rows that holds the optimizer step."""


@final
@dataclass(frozen=True, kw_only=True)
class Jsonl:
    """Writes ``curve.jsonl`` in the work folder. Lines of killed attempts are kept; each line has its step."""

    name: ClassVar[str] = "jsonl"
    version: ClassVar[int] = 1

    def open(self, *, key: str, kind: str, work: Path) -> "JsonlTracker":
        """Append to the stage's curve."""
        return JsonlTracker(work / CURVE, key=key, kind=kind)


@final
class JsonlTracker:
    """The open curve of one stage."""

    def __init__(self, path: Path, *, key: str, kind: str) -> None:
        """The file is opened on the first write: most stages log no curve."""
        self._path = path
        self._labels = {"key": key, "kind": kind}
        self._file: TextIO | None = None

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write one line; if the disk is full, the line is lost and the stage continues."""
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
                if _is_truncated(self._path):
                    self._file.write("\n")
            self._file.write(json.dumps({**self._labels, STEP: step, **metrics}) + "\n")
            self._file.flush()
        except OSError as error:
            log.warning("curve of %s not written: %s", self._labels["key"], error)

    def close(self) -> None:
        """Close the file if one was opened."""
        if self._file is not None:
            try:
                self._file.close()
            # Closing flushes the buffer, which fails again if the disk is still full.
            except OSError as error:
                log.warning("end of the curve of %s not written: %s", self._labels["key"], error)
            self._file = None


def curve_of(layout: StoreLayout, kind: str, key: str) -> Path:
    """Return the file of a stage's curve: the artifact's where the stage stores one, else that of its last attempt."""
    stored = layout.artifact(kind, key) / METRICS
    return stored if stored.exists() else layout.work(key) / CURVE


def read_curve(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a curve in file order; none if the file does not exist.

    Incomplete lines are skipped: one that is being written, or that was truncated by a kill or a full disk.

    Raises:
        OSError: the file cannot be read.
    """
    # Reading a FIFO or a device may block or never end.
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get(STEP), int):
                yield row


def _is_truncated(path: Path) -> bool:
    """Return whether the last line of a file has no newline, as after a kill."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
