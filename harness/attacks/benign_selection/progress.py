"""The scores found so far, in a file that survives a killed attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

FILE = "scores.jsonl"


class Progress:
    """Scores by the index of their example, appended to a file as they are found.

    A line that a killed attempt left unfinished is dropped.

    Args:
        work: the folder of the file; created if missing.
    """

    def __init__(self, work: Path) -> None:
        """Read what an earlier attempt found, and leave complete lines only."""
        work.mkdir(parents=True, exist_ok=True)
        self._path = work / FILE
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        complete = [line for line in lines if line.endswith("\n")]
        if len(complete) < len(lines):
            self._path.write_text("".join(complete), encoding="utf-8")
        self.scores: dict[int, float] = {int(index): float(score) for index, score in map(json.loads, complete)}

    def add(self, found: Iterator[tuple[int, float]]) -> None:
        """Take scores from an iterator, each of which is in the file before the next is asked for."""
        with self._path.open("a", encoding="utf-8") as file:
            for index, score in found:
                self.scores[index] = score
                file.write(json.dumps([index, score]) + "\n")
                file.flush()
