"""A problem of a setting: where it is, and what is wrong with it."""

from typing import NamedTuple


class Problem(NamedTuple):
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

    def __str__(self) -> str:
        """The line that a user reads."""
        return f"`{self.path}`: {self.text}" if self.path else self.text
