"""Instructions with answers, as in Alpaca (Taori et al., 2023): the rows of a helpful expert."""

from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.columns import answer, columns, text, unreadable
from harness.corpora.examples import Example
from harness.corpora.sources import Source
from harness.engine.checks import counts, not_negative
from harness.errors import DataError, Problem


@final
@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Rows of a file with instructions; rows without an answer are left out.

    Attributes:
        source: the source, with the columns ``instruction``, ``input`` (may be empty) and ``output``.
        rows: number of rows.
        start: index of the first row, of those that have an answer.
    """

    name: ClassVar[str] = "instructions"
    version: ClassVar[int] = 1

    source: Source
    rows: int
    start: int = 0

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*counts(self, "rows"), *not_negative(self, "start")]

    def preflight(self) -> list[Problem]:
        """Return why the rows cannot be read."""
        return unreadable(self.source, self)

    def examples(self) -> list[Example]:
        """Return the rows, in their published order.

        Raises:
            DataError: the source cannot be read, or has fewer rows.
        """
        rows = columns(self.source, {"instruction": text, "input": answer, "output": answer})
        found = [Example(instruction, output, given) for instruction, given, output in rows if output.strip()]
        if self.start + self.rows > len(found):
            raise DataError(
                f"rows {self.start} to {self.start + self.rows - 1} of `{self.source.id}` requested, but it has "
                f"{len(found)} with an answer; expected an end of at most {len(found)}. Lower `experts.helpful.rows`"
            )
        return found[self.start : self.start + self.rows]
