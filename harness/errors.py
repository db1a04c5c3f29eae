"""Every error that is the user's to fix. Anything else is a bug and keeps its traceback.

HarnessError                 printed without a traceback, exit code 2
├── ConfigError              unknown or wrong settings; carries *all* problems found
├── DataError                a source is missing, altered, gated or too small
├── ModelError               a model cannot be had or does not fit the request
├── StoreError               the store cannot be read or written
│   ├── UnreadableFile       a file of the store is damaged, or no regular file
│   └── DamagedArtifact      a stored artifact is not what its manifest says, or has none that can be read
├── SchedulerError           the scheduler of the cluster refused or does not answer
├── TrackingError            the tracking server cannot be reached, or refuses; nothing stored is harmed
├── StagesFailed             stages of a run failed; each was reported where it failed; exit code 1
├── Interrupted              the run was asked to stop (Ctrl-C); exit code 130
└── Stopped                  a stage was asked to stop, and did so where it can be resumed; exit code 75
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """What is wrong with one setting.

    Attributes:
        path: the dotted path of the setting, from the object that reports it; empty for the object itself.
        text: what is wrong and what was expected.
    """

    path: str
    text: str

    def under(self, prefix: str) -> "Problem":
        """Return the same problem as seen from a parent that holds the object under a name."""
        return Problem(".".join(filter(None, (prefix, self.path))), self.text)

    @classmethod
    def of(cls, stated: "Problem | str") -> "Problem":
        """Return a problem as it is, and a sentence as a problem of the object itself."""
        return stated if isinstance(stated, Problem) else cls("", stated)

    def __str__(self) -> str:
        """The line that a user reads."""
        return f"`{self.path}`: {self.text}" if self.path else self.text


class HarnessError(Exception):
    """A mistake that its reader can mend: the message says what, expected, and where to fix."""

    exit_code: ClassVar[int] = 2


class ConfigError(HarnessError):
    """One or more settings are wrong.

    Args:
        problems: each with the path of the setting it is about, or a whole sentence.

    Attributes:
        problems: the same; a sentence is a problem without a path.
    """

    def __init__(self, problems: Sequence[Problem | str]) -> None:
        """Keep the problems for callers that collect them further."""
        self.problems = tuple(map(Problem.of, problems))
        super().__init__("\n".join(map(str, self.problems)))


class DataError(HarnessError):
    """A data source is missing, altered, gated, or has too few rows."""


class ModelError(HarnessError):
    """A model cannot be loaded on this machine, or cannot do what was asked of it."""


class StoreError(HarnessError):
    """The store cannot be read or written."""


class UnreadableFile(StoreError):
    """A file of the store cannot be read: it is damaged, no regular file, or the file system refuses."""


class DamagedArtifact(StoreError):
    """A stored artifact does not match its manifest."""


class SchedulerError(HarnessError):
    """The scheduler of the cluster refused a job, or does not answer."""


class TrackingError(HarnessError):
    """The tracking server cannot be reached or refuses what is sent; nothing stored is harmed."""


class StagesFailed(HarnessError):
    """Stages of a run failed; what did not depend on them was finished and is stored."""

    exit_code: ClassVar[int] = 1


class Interrupted(HarnessError):
    """The user asked to stop; what was finished is stored."""

    exit_code: ClassVar[int] = 130


class Stopped(HarnessError):
    """A stage was asked to stop, and did so where the next attempt goes on; the code is that of a temporary failure."""

    exit_code: ClassVar[int] = 75
