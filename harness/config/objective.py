"""The objective that a multirun returns for each cell, as optimizing sweepers require."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from harness.errors import ConfigError

_TRADEOFF = re.compile(r"hs\s*(?P<sign>[+-])\s*(?P<weight>\d+(\.\d+)?)\s*\*\s*fa_loss")


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """A weighted sum of harmful score (HS) and fine-tune accuracy (FA), both in percent.

    Attributes:
        hs: weight of HS.
        fa: weight of FA.
        fa_loss: weight of ``100 - fa``.
    """

    name: ClassVar[str] = "objective"
    version: ClassVar[int] = 1
    hs: float = 0.0
    fa: float = 0.0
    fa_loss: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Parse ``hs``, ``fa``, ``hs + W*fa_loss`` or ``hs - W*fa_loss``.

        Raises:
            ConfigError: the text is none of these.
        """
        if text in ("hs", "fa"):
            return cls(**{text: 1.0})
        if match := _TRADEOFF.fullmatch(text.strip()):
            return cls(hs=1.0, fa_loss=float(match["sign"] + match["weight"]))
        raise ConfigError(
            [f"{text!r} is not an objective; expected `hs`, `fa` or a trade-off such as `hs + 2*fa_loss` (100 - fa)."]
        )

    def value(self, row: Mapping[str, float | None]) -> float | None:
        """Return the objective of a row with ``hs`` and ``fa`` in percent; None if a score that it needs is missing."""
        hs, fa = row.get("hs"), row.get("fa")
        if (self.hs and hs is None) or ((self.fa or self.fa_loss) and fa is None):
            return None
        return self.hs * (hs or 0.0) + self.fa * (fa or 0.0) + self.fa_loss * (100.0 - (fa or 0.0))
