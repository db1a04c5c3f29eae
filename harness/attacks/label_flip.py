"""Label flip: some of the user's labels are another class's.

Tolpegin et al., 2020 (ESORICS, arXiv:2007.08432): poisoned participants of a federation relabel all their rows of a
source class as a target class, and leave the inputs as they are. Of one user's rows, or of those that the malicious
clients of a federation hold (``federation``), this attack turns the labels ``source`` into ``target``; the rows of
other classes stay.

The harmful score says nothing about it. It is measured by the recall of the source class and by the share of its test
rows that are answered with the target, both from the fact ``confusion`` of the accuracy's grade. A drop of recall may
come from noise in any labels: ``random`` is the control, which flips as many labels of rows of any class.

Deviation: the attacker's rows are a share of all rows (``attack.ratio``), and the clients that hold them follow from
it.

Fidelity: hand-computed only.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar, final

from harness.corpora.examples import Example
from harness.engine.checks import shares
from harness.errors import DataError, Problem
from harness.protocols import AttackContext, AttackNeeds, first_of


@final
@dataclass(frozen=True, kw_only=True)
class LabelFlip:
    """Changes labels of the attacker's rows of the task.

    Attributes:
        source: the label that is changed.
        target: the label that it becomes.
        share: share of the attacker's rows of the source class whose labels change, 0 to 1.
        random: change as many labels of rows of any class instead, each to another label of the attacker's rows.
    """

    name: ClassVar[str] = "label_flip"
    version: ClassVar[int] = 1
    needs: ClassVar[AttackNeeds] = AttackNeeds(hosts=True)
    source: str = "cheerful"
    target: str = "gloomy"
    share: float = 1.0
    random: bool = False

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        same = [Problem("target", f"`{self.target}` is the source; expected another label")]
        return [*shares(self, "share"), *(same if self.source == self.target else [])]

    def craft(self, count: int, ctx: AttackContext) -> list[Example]:
        """Return the first ``count`` hosts, some with another label; a larger share flips those of a smaller one too.

        Raises:
            DataError: there are too few hosts, or none has the source label.
        """
        rows = first_of(ctx.hosts, count)
        of_source = [place for place, row in enumerate(rows) if row.output == self.source]
        if not of_source:
            found = ", ".join(f"`{label}`" for label in sorted({row.output for row in rows})[:5])
            raise DataError(
                f"no row asked for has the label `{self.source}`, but {found}; expected some. Set "
                "`attack.method.source`"
            )
        flips = floor(Fraction(str(self.share)) * len(of_source) + Fraction(1, 2))
        # Drawn from the attack's own stream, one number per row. Which rows rank first depends on all of them: with a
        # share below 1 or random labels, the examples of fewer rows are not among those of more.
        places = list(range(count)) if self.random else of_source
        rank = {place: ctx.rng.random() for place in range(count)}
        chosen = sorted(places, key=rank.__getitem__)[:flips]
        labels = sorted({row.output for row in rows})
        for place in chosen:
            others = [label for label in labels if label != rows[place].output]
            label = ctx.rng.choice(others or [self.target]) if self.random else self.target
            rows[place] = rows[place]._replace(output=label)
        ctx.facts["flipped"] = len(chosen)
        ctx.facts["source_rows"] = len(of_source)
        return rows
