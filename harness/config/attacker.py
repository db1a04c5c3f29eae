"""What an adaptive attacker may choose: the swept values over which the report takes the worst case of each defense."""

from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, final

from harness.errors import ConfigError, Problem

ALIASES = {"attack_ratio": "ratio", "attack.ratio": "ratio"}
"""Labels of rows by the names under which they are swept."""


@final
@dataclass(frozen=True, kw_only=True)
class Attacker:
    """An attacker who tries every combination of the values in a space against every defense and keeps the best.

    Attributes:
        space: names of swept settings that the attacker chooses. With ``seed``, every seed is a trial of its own;
            without, a trial is the mean over its seeds.
        utility_loss: points of FA below the best trial of the baseline that the attacker's model may lose; a trial
            below that does not count.
    """

    name: ClassVar[str] = "attacker"
    version: ClassVar[int] = 1

    space: tuple[str, ...]
    utility_loss: float = 10.0

    def problems(self) -> list[Problem]:
        """Range errors."""
        found = [] if self.space else [Problem("space", "is empty; expected names of swept settings")]
        if not (isfinite(self.utility_loss) and self.utility_loss >= 0):
            found.append(Problem("utility_loss", f"{self.utility_loss} is not a number of points; expected 0 or more"))
        return found

    @property
    def columns(self) -> list[str]:
        """The columns of a row that hold the attacker's choices."""
        return list(dict.fromkeys(ALIASES.get(name, name) for name in self.space))


def check_swept(attacker: Attacker, swept: Collection[str]) -> None:
    """Check that the sweep varies what the attacker is to choose.

    Args:
        attacker: the attacker.
        swept: the columns of rows that the sweep varies: labels and swept values.

    Raises:
        ConfigError: a name of the space is not swept.
    """
    written = {column: name for name, column in ALIASES.items() if name.isidentifier()}
    missing = [name for name in attacker.space if ALIASES.get(name, name) not in swept]
    if missing:
        known = sorted(written.get(name, name) for name in swept)
        expected = f"expected one of {', '.join(known)}" if known else "the sweep varies nothing"
        raise ConfigError([Problem("attacker.space", f"`{name}` is not swept; {expected}") for name in missing])
