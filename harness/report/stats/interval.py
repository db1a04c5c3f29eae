"""Intervals over seeds and prompts, and the paired test that goes with them.

A score is measured on ``S`` seeds and ``I`` prompts, the same prompts for every seed. Both are samples, so both are
bootstrapped. Prompts are many: they are resampled. Seeds are three to five, and resampling so few leaves out a third
of their variance; their level is a parametric bootstrap from Student's t with ``S - 1`` degrees of freedom instead,
which is what a mean of few normal values calls for. A draw of the mean's error is::

    t * sqrt(MS_seed / SI)  +  resampled prompt error, scaled to sqrt((MS_prompt - MS_residual) / SI)

with the mean squares of the two-way layout (Cornfield and Tukey 1956, Annals of Mathematical Statistics 27). Noise of
single answers is in ``MS_seed`` already and is taken out of the prompts. Shares are bounded and skewed near the bounds,
so the error is laid around the arcsine of the mean's root, whose variance does not depend on the mean (Anscombe 1948,
Biometrika 35); differences are left as they are. `docs/report.md` tells the coverage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.engine.seeding import derive

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.95
"""The confidence of the intervals."""
DRAWS = 4000
"""Of a bootstrap: an end of an interval moves by about a hundredth of its width with another seed."""
RARE = 40
"""So few draws do not tell how rare a difference is: its p value is integrated instead, and has no floor."""
TAIL_REACH, TAIL_STEP = 9.0, 0.01
"""Over how many standard errors of the prompts, and how finely, a rare p value is integrated."""
FAR = 10_000
"""More seeds than this nobody will run."""


class Estimate(NamedTuple):
    """A mean with its interval, as shares.

    Attributes:
        mean: over prompts, then over seeds.
        low: end of the interval; NaN for one seed, which says nothing of another.
        high: the other end.
        p: of the hypothesis that the mean is zero, two-sided; NaN for one seed.
        seed_variance: of a seed's mean.
        prompt_variance: what the choice of prompts adds to the variance of the mean, however many seeds there are;
            where nothing varied, that of a normal interval as wide as the one of what so many prompts may not show.
    """

    mean: float
    low: float
    high: float
    p: float
    seed_variance: float
    prompt_variance: float


def estimates(panels: Sequence[NDArray[Any]], *, difference: bool = False) -> list[Estimate]:
    """Return the mean of each panel and its interval.

    Args:
        panels: verdicts ``[seeds, prompts]`` between 0 and 1, NaN where one could not be judged; a prompt that was
            judged for no seed counts as none. A single column holds scores of seeds without their prompts.
        difference: the verdicts are differences of verdicts, between -1 and 1.
    """
    by_prompts: defaultdict[int, list[int]] = defaultdict(list)
    for index, panel in enumerate(panels):
        by_prompts[panel.shape[1]].append(index)
    found: dict[int, Estimate] = {}
    for prompts, indices in by_prompts.items():
        parts = [_parts(panels[index]) for index in indices]
        errors = _prompt_errors(parts, prompts)
        for index, part, error in zip(indices, parts, errors, strict=True):
            found[index] = _estimate(part, error, difference=difference)
    return [found[index] for index in range(len(panels))]


def more_seeds(estimate: Estimate, seeds: int, width: float) -> float:
    """Return how many seeds must be added until the interval reaches at most ``width`` to either side.

    This is precision, not power: with so many seeds an estimate is known to ``width``, but a true difference of just
    ``width`` is found significant in about half of such sweeps only.

    NaN for one seed; infinity where the prompts alone are too few.
    """
    from scipy import stats

    if not estimate.seed_variance >= 0 or seeds < 2:
        return float("nan")
    room = width**2 - stats.norm.ppf((1 + LEVEL) / 2) ** 2 * estimate.prompt_variance
    enough = _reach(seeds) * estimate.seed_variance <= room
    return float(enough.argmax()) if enough.any() else float("inf")


def holm(values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, by the step-down procedure of Holm (1979); NaN stays and counts not.

    Holm, S. (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    adjusted = list(values)
    known = sorted((p, index) for index, p in enumerate(values) if p == p)  # noqa: PLR0124
    worst = 0.0
    for rank, (p, index) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        adjusted[index] = worst
    return adjusted


class _Parts(NamedTuple):
    """The two-way layout of a panel; ``prompts`` counts those that were judged, ``by_prompt`` is 0 for the others."""

    mean: float
    seeds: int
    prompts: int
    by_prompt: NDArray[Any]
    seed_error: float
    prompt_error: float


def _parts(panel: NDArray[Any]) -> _Parts:
    import numpy as np

    holes = np.isnan(panel)
    judged = ~holes.all(axis=0)
    shifts = np.zeros(panel.shape[1])
    seeds, prompts = len(panel), int(judged.sum())
    if holes.all(axis=1).any():
        return _Parts(float("nan"), seeds, prompts, shifts, float("nan"), float("nan"))
    seed_means = np.nanmean(panel, axis=1) if holes.any() else panel.mean(axis=1)
    mean = float(seed_means.mean())
    panel = _filled(panel[:, judged], seed_means)
    by_prompt = panel.mean(axis=0) - panel.mean()
    shifts[judged] = by_prompt
    if seeds < 2:
        return _Parts(mean, seeds, prompts, shifts, float("nan"), float("nan"))
    seed_square = prompts * seed_means.var(ddof=1)
    prompt_square = noise = 0.0
    if prompts > 1:
        residual = panel - panel.mean(axis=1, keepdims=True) - by_prompt
        # What was filled in has no residual, so it gives no degree of freedom.
        noise = (residual**2).sum() / max(seeds * prompts - int(holes[:, judged].sum()) - seeds - prompts + 1, 1)
        prompt_square = seeds * (by_prompt**2).sum() / (prompts - 1)
    # Seeds may by chance differ less than their noise alone would make them; the prompts' share is not cut for that.
    prompt_part = max(prompt_square - min(noise, seed_square), 0.0)
    size = seeds * prompts
    return _Parts(mean, seeds, prompts, shifts, (seed_square / size) ** 0.5, (prompt_part / size) ** 0.5)


def _filled(panel: NDArray[Any], seed_means: NDArray[Any]) -> NDArray[Any]:
    """Put where a verdict is missing what its seed and its prompt let expect; it has no part in the mean."""
    import numpy as np

    holes = np.isnan(panel)
    if not holes.any():
        return panel
    judged = np.maximum((~holes).sum(axis=0), 1)
    prompt_shift = np.where(holes, 0.0, panel - seed_means[:, None]).sum(axis=0) / judged
    return np.where(holes, seed_means[:, None] + prompt_shift, panel)


def _prompt_errors(parts: Sequence[_Parts], prompts: int) -> NDArray[Any]:
    """Return for each panel the errors ``[panels, draws]`` that resampling its prompts makes."""
    import numpy as np

    errors = np.stack([part.by_prompt for part in parts]) @ _resamples(prompts) / prompts
    spread = errors.std(axis=1, keepdims=True)
    wanted = np.array([[part.prompt_error] for part in parts])
    scaled: NDArray[Any] = np.divide(errors * wanted, spread, out=np.zeros_like(errors), where=spread > 0)
    return scaled


def _estimate(part: _Parts, error: NDArray[Any], *, difference: bool) -> Estimate:
    import numpy as np
    from scipy import stats

    nan = float("nan")
    if part.seeds < 2 or part.mean != part.mean:
        return Estimate(part.mean, nan, nan, nan, nan, nan)
    draws = _student(part.seeds) * part.seed_error + error
    down, up = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    farther = int((np.abs(draws) >= abs(part.mean) - 1e-12).sum())
    p = (1 + farther) / (1 + DRAWS) if farther >= RARE else _tail(part)
    seed_variance, prompt_variance = part.seeds * part.seed_error**2, part.prompt_error**2
    if part.prompts > 1 and part.seed_error == part.prompt_error == 0 and (difference or part.mean in (0.0, 1.0)):
        # Nothing varied: what a rate on that many prompts may be without having been seen (Clopper and Pearson 1934).
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / part.prompts)
        low, high = part.mean - unseen, part.mean + unseen
        prompt_variance = float(unseen / stats.norm.ppf((1 + LEVEL) / 2)) ** 2
    elif difference or not 0 < part.mean < 1:
        low, high = part.mean + down, part.mean + up
    else:
        angle, slope = np.arcsin(part.mean**0.5), 2 * (part.mean * (1 - part.mean)) ** 0.5
        low, high = (np.sin(np.clip(angle + shift / slope, 0, np.pi / 2)) ** 2 for shift in (down, up))
    floor = -1.0 if difference else 0.0
    return Estimate(part.mean, max(float(low), floor), min(float(high), 1.0), p, seed_variance, prompt_variance)


def _tail(part: _Parts) -> float:
    """Return the p value of a mean farther out than draws can tell: prompts are taken as normal there."""
    import numpy as np
    from scipy import special

    mean, prompt_error = abs(part.mean), part.prompt_error
    seed_error = part.seed_error if part.seed_error > 1e-12 else 0.0  # less is rounding
    if seed_error == prompt_error == 0:
        # Nothing varied: a sign test of what was measured.
        return float(min(1.0, 2.0 ** (1 - (part.prompts if part.prompts > 1 else part.seeds))))
    if seed_error == 0:
        return float(2 * special.ndtr(-mean / prompt_error))
    shifts = np.arange(-TAIL_REACH, TAIL_REACH, TAIL_STEP)
    density = np.exp(-(shifts**2) / 2)
    beyond = special.stdtr(part.seeds - 1, (prompt_error * shifts - mean) / seed_error)
    return float(min(1.0, 2 * (beyond * density).sum() / density.sum()))


@cache
def _resamples(prompts: int) -> NDArray[Any]:
    """Return how often each prompt is drawn, ``[prompts, draws]``; the same for all panels of that many prompts."""
    import numpy as np

    chance = np.random.default_rng(derive(0, "report", "prompts", str(prompts)))
    return chance.multinomial(prompts, np.full(prompts, 1 / prompts), size=DRAWS).T.astype("float64")


@cache
def _reach(seeds: int) -> NDArray[Any]:
    """Return the squared half width of an interval of seeds with variance 1, for that many seeds and more."""
    import numpy as np
    from scipy import stats

    counts = np.arange(seeds, FAR)
    half = np.asarray(stats.t.ppf((1 + LEVEL) / 2, counts - 1))
    return half**2 / counts


@cache
def _student(seeds: int) -> NDArray[Any]:
    """Return draws of Student's t, one from each equally likely slice, in random order."""
    import numpy as np
    from scipy import stats

    chance = np.random.default_rng(derive(0, "report", "seeds", str(seeds)))
    draws: NDArray[Any] = stats.t.ppf((chance.permutation(DRAWS) + 0.5) / DRAWS, seeds - 1)
    return draws
