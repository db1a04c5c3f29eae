"""Examples of a task that no user holds."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, final

from harness.corpora.examples import Example
from harness.corpora.mixture import Compat, ordered_task
from harness.corpora.sources import sources_in
from harness.errors import DataError, Problem


class TaskSource(Protocol):
    """Frozen settings of a task's training examples."""

    @property
    def name(self) -> str:
        """The kind of source."""
        ...

    @property
    def version(self) -> int:
        """Incremented when the same settings give different examples."""
        ...

    def examples(self) -> list[Example]:
        """Return all examples, in their published order."""
        ...

    def preflight(self) -> list[Problem]:
        """Return why the examples cannot be read."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Remaining:
    """The last examples of a task in the order in which mixtures take them, where mixtures take the first.

    Attributes:
        task: the examples of the task.
        rows: number of examples.
        taken: number of examples that a mixture takes.
        compat: the order of the mixture.
        seed: the root seed, which gives the order.
    """

    name: ClassVar[str] = "remaining"
    version: ClassVar[int] = 1
    task: TaskSource
    rows: int
    taken: int
    compat: Compat
    seed: int

    def preflight(self) -> list[Problem]:
        """Return why the examples are not available; sources that are on this machine are read and counted."""
        problems = self.task.preflight()
        if problems or not all(source.at_hand() for source in sources_in(self.task)):
            return problems
        try:
            self.examples()
        except DataError as error:
            return [Problem("", str(error))]
        return []

    def examples(self) -> list[Example]:
        """Return the examples.

        Raises:
            DataError: they cannot be read, or the mixture leaves too few.
        """
        ordered = ordered_task(self.task.examples(), self.compat, self.seed)
        if self.taken + self.rows > len(ordered):
            raise DataError(
                f"{self.rows} benign rows of the server requested, but users hold {self.taken} of the {len(ordered)} "
                f"rows of the task; expected at most {max(len(ordered) - self.taken, 0)}. Lower "
                "`defense.repair.benign_rows` or `finetune.rows`"
            )
        return ordered[len(ordered) - self.rows :]
