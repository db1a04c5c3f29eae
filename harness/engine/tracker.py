"""Trackers: where a running stage logs its curve. The store is authoritative; a tracker only mirrors it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Records the curve of one stage. Never raises: tracking cannot fail a stage."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the metrics of one step."""
        ...

    def close(self) -> None:
        """Release resources; nothing may be logged afterwards."""
        ...


class TrackerSettings(Protocol):
    """Settings of a tracker; not part of identity."""

    @property
    def name(self) -> str:
        """The tracker's name."""
        ...

    @property
    def version(self) -> int:
        """The version of the tracker's format."""
        ...

    def open(self, *, key: str, kind: str, work: Path) -> Tracker:
        """Start or resume the curve of a stage.

        Args:
            key: the stage's key; a requeued stage resumes its curve.
            kind: the stage's kind.
            work: the stage's work folder, which survives a killed attempt.
        """
        ...
