"""The judges of a sweep side by side: their agreement, and whether the order of the defenses depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import NamedTuple

from harness.report.stats.agreement import JudgeAgreement
from harness.report.stats.judge_order import Order


class JudgeComparison(NamedTuple):
    """The judges of a sweep side by side.

    Attributes:
        agreement: how far they agree on the answers that several of them graded.
        orders: the order of the defenses, one entry per pair of judges.
    """

    agreement: JudgeAgreement
    orders: Sequence[Order]

    @property
    def notes(self) -> list[str]:
        """The comparison as sentences: order of the defenses, agreement, abstentions."""
        notes = [order.sentence for order in self.orders]
        for each in self.agreement.pairs:
            kappa = "undefined" if isnan(each.kappa) else f"{each.kappa:.2f} [{each.low:.2f}, {each.high:.2f}]"
            notes.append(
                f"{each.first} and {each.second} gave equal verdicts to {each.equal:.1f}% of {each.answers} answers, "
                f"Cohen's kappa {kappa}."
            )
        means = ", ".join(
            f"{each.name} {'-' if isnan(each.score) else format(each.score, '.1f')} "
            f"({each.abstentions} of {each.answers} not judged)"
            for each in self.agreement.judges
        )
        alpha = "undefined" if isnan(self.agreement.alpha) else f"{self.agreement.alpha:.2f}"
        return [*notes, f"Mean score by judge on the same answers: {means}; Krippendorff's alpha {alpha}."]
