"""Every error that is the user's to fix. Anything else is a bug and keeps its traceback.

HarnessError                 printed without a traceback, exit code 2
├── ConfigError              unknown or wrong settings; carries *all* problems found
├── DataError                a source is missing, altered, gated or too small
├── ModelError               a model cannot be loaded or does not support the request
├── StoreError               the store cannot be read or written
│   ├── UnreadableFile       a file of the store is damaged, or not a regular file
│   └── DamagedArtifact      a stored artifact does not match its manifest, or its manifest cannot be read
├── ServiceError             a service that a judge asks is unreachable, rejects a request, or a limit is reached
├── SchedulerError           the cluster's scheduler rejected a request or does not respond
├── TrackingError            the tracking server is unreachable or rejected a request; the store is unaffected
├── StagesFailed             stages of a run failed; each was reported when it failed; exit code 1
├── Interrupted              the run was interrupted (Ctrl-C); exit code 130
└── Stopped                  a stage stopped on request, at a point from which it can resume; exit code 75
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """What is wrong with one setting.

    Attributes:
        path: the dotted path of the setting, from the object that reports it; empty for the object itself.
        text: what is wrong, and what was expected.
        placed: whether the text names the file, so that the problem is the same for every setting that leads to it.
    """

    path: str
    text: str
    placed: bool = False

    def under(self, prefix: str) -> "Problem":
        """Return the problem with its path prefixed by the name under which a parent holds the object."""
        if self.placed:
            return self
        return Problem(".".join(filter(None, (prefix, self.path))), self.text)

    @classmethod
    def of(cls, stated: "Problem | str") -> "Problem":
        """Return a problem unchanged; wrap a string in a problem without a path."""
        return stated if isinstance(stated, Problem) else cls("", stated)

    def __str__(self) -> str:
        """Return the line that is shown to the user."""
        return f"`{self.path}`: {self.text}" if self.path else self.text


class HarnessError(Exception):
    """An error that the user can fix: the message states what is wrong, what was expected, and where to fix it."""

    exit_code: ClassVar[int] = 2


class ConfigError(HarnessError):
    """One or more settings are wrong.

    Args:
        problems: problems with the path of their setting, or plain messages.

    Attributes:
        problems: the same, with each message wrapped in a problem without a path.
    """

    def __init__(self, problems: Sequence[Problem | str]) -> None:
        """Keep the problems, so that callers can collect them."""
        self.problems = tuple(map(Problem.of, problems))
        super().__init__("\n".join(map(str, self.problems)))


class DataError(HarnessError):
    """A data source is missing, altered, gated, or has too few rows."""


class ModelError(HarnessError):
    """A model cannot be loaded on this machine, or does not support what was requested."""


class StoreError(HarnessError):
    """The store cannot be read or written."""


class UnreadableFile(StoreError):
    """A file of the store cannot be read: it is damaged, not a regular file, or the file system reports an error."""


class DamagedArtifact(StoreError):
    """A stored artifact does not match its manifest, or its manifest cannot be read."""


class ServiceError(HarnessError):
    """A service that a judge asks is unreachable or rejects a request, or a limit on its use is reached."""


class SchedulerError(HarnessError):
    """The cluster's scheduler rejected a request, or does not respond."""


class TrackingError(HarnessError):
    """The tracking server is unreachable or rejected a request; the store is unaffected."""


class StagesFailed(HarnessError):
    """Stages of a run failed; all stages that do not depend on them are finished and stored."""

    exit_code: ClassVar[int] = 1


class Interrupted(HarnessError):
    """The user interrupted the run; finished stages are stored."""

    exit_code: ClassVar[int] = 130


class Stopped(HarnessError):
    """A stage stopped on request, at a point from which the next attempt resumes; exits with EX_TEMPFAIL."""

    exit_code: ClassVar[int] = 75
