"""A site: what the Slurm executor wants to know about a cluster."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from harness.execution.ranks import Processes


class Site(Protocol):
    """What the executor wants to know about a cluster."""

    @property
    def joins(self) -> tuple[str, ...] | None:
        """Kinds that may go on with the line of their parents; None leaves it to the stages."""
        ...

    @property
    def fans(self) -> tuple[str, ...] | None:
        """Kinds of which several may join one line; None leaves it to the stages."""
        ...

    @property
    def pack(self) -> Mapping[str, int]:
        """How many lines a job holds, by the kind that they begin with."""
        ...

    @property
    def array_limit(self) -> int:
        """Elements of an array."""
        ...

    @property
    def job_cap(self) -> int | None:
        """Jobs in the queue at one time."""
        ...

    @property
    def requeues(self) -> int:
        """How often a job may start again."""
        ...

    @property
    def python(self) -> str | None:
        """The command that starts Python on a node."""
        ...

    @property
    def grace_seconds(self) -> float:
        """How long a stage may go on after Slurm's warning."""
        ...

    @property
    def allow_drift(self) -> bool:
        """Whether jobs may run other code than was submitted."""
        ...

    @property
    def on_oom(self) -> str:
        """``fail`` or ``shrink``."""
        ...

    def parameters(self, lines: Sequence[Sequence[str]], pack: int) -> dict[str, Any]:
        """Return submitit's parameters for jobs that run so many of these lines of kinds each."""
        ...

    @property
    def processes(self) -> Mapping[str, Processes]:
        """How many processes share a stage, by its kind."""
        ...

    def cpus(self, lines: Sequence[Sequence[str]]) -> int:
        """Return how many CPU threads each process of a job that runs lines of these kinds uses."""
        ...

    def device(self, lines: Sequence[Sequence[str]]) -> str:
        """Return the torch device of such a job."""
        ...
