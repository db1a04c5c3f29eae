"""The attacker's progress: HS of the best trial so far against the number of trials, by defense."""

from __future__ import annotations

from harness.report.figures.spec import Lines, Series
from harness.report.stats.results import Results


def attacker_views(results: Results) -> list[Lines]:
    """Return the figure of the attacker's progress; empty unless the sweep declares an attacker.

    A defense against which no trial is useful has no line.
    """
    if results.adaptive is None:
        return []
    series = [
        Series(
            name=case.name,
            defense=case.defense,
            x=[step.trials for step in case.curve],
            y=[step.mean for step in case.curve],
            low=[step.low for step in case.curve],
            high=[step.high for step in case.curve],
        )
        for case in results.adaptive.cases
        if case.chosen is not None
    ]
    if not series:
        return []
    ends = ", ".join(f"{each.name} {each.y[-1]:.1f}" for each in series)
    # A line at 0 would look like a defense that withstands.
    useless = [case.name for case in results.adaptive.cases if case.chosen is None]
    none = f" Without a useful trial, and not drawn: {', '.join(useless)}." if useless else ""
    return [
        Lines(
            name="attacker",
            title="HS of the attacker's best trial so far",
            x_title="trials",
            y_title="HS (%)",
            alternative="Expected over orders of the trials; bars are 10th and 90th percentiles of these orders, and "
            f"no intervals over seeds. After all: {ends}.{none}",
            series=series,
        )
    ]
