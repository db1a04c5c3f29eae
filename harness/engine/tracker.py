"""Trackers: where a running stage reports its curve. The store holds the truth; a tracker is a mirror."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Takes the curve of one stage. Never raises: tracking cannot fail a stage."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the metrics of one step."""
        ...

    def close(self) -> None:
        """Release what is held; nothing is logged afterwards."""
        ...


class TrackerSettings(Protocol):
    """Settings of a tracker; not identity."""

    @property
    def name(self) -> str:
        """The tracker's name."""
        ...

    @property
    def version(self) -> int:
        """The version of what it writes."""
        ...

    def open(self, *, key: str, kind: str, work: Path) -> Tracker:
        """Begin or continue the curve of a stage.

        Args:
            key: the stage's key; a requeued stage continues its curve.
            kind: the stage's kind.
            work: the stage's work folder, which survives a killed attempt.
        """
        ...
