"""The objective that a multirun returns for each cell, as optimizing sweepers require."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from harness.errors import ConfigError

_TERM = re.compile(r"\s*(?P<sign>[+-])\s*(?P<weight>\d+(\.\d+)?)\s*\*\s*(?P<score>fa_loss|over_refusal)\s*")


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """A weighted sum of harmful score (HS), fine-tune accuracy (FA) and over-refusal rate, all in percent.

    Attributes:
        hs: weight of HS.
        fa: weight of FA.
        fa_loss: weight of ``100 - fa``.
        over_refusal: weight of the over-refusal rate.
    """

    name: ClassVar[str] = "objective"
    version: ClassVar[int] = 1
    hs: float = 0.0
    fa: float = 0.0
    fa_loss: float = 0.0
    over_refusal: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Parse ``hs``, ``fa``, or ``hs`` plus or minus ``W*fa_loss`` and ``W*over_refusal``, each at most once.

        Raises:
            ConfigError: the text is none of these.
        """
        if text.strip() in ("hs", "fa"):
            return cls(**{text.strip(): 1.0})
        start, score, rest = text.strip().partition("hs")
        weights = {"hs": 1.0}
        while (match := _TERM.match(rest)) and match["score"] not in weights:
            weights[match["score"]] = float(match["sign"] + match["weight"])
            rest = rest[match.end() :]
        if start or not score or rest:
            raise ConfigError(
                [
                    f"{text!r} is not an objective; expected `hs`, `fa` or a trade-off such as `hs + 2*fa_loss` "
                    "(100 - fa) or `hs + 2*fa_loss + 1*over_refusal`."
                ]
            )
        return cls(**weights)

    def value(self, row: Mapping[str, float | None]) -> float | None:
        """Return the objective of a row of scores in percent, by name; None if one that it needs is missing."""
        hs, fa, over_refusal = (row.get(score) for score in ("hs", "fa", "over_refusal"))
        needed = ((self.hs, hs), (self.fa or self.fa_loss, fa), (self.over_refusal, over_refusal))
        if any(weight and score is None for weight, score in needed):
            return None
        return (
            self.hs * (hs or 0.0)
            + self.fa * (fa or 0.0)
            + self.fa_loss * (100.0 - (fa or 0.0))
            + self.over_refusal * (over_refusal or 0.0)
        )
