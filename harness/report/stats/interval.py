"""Intervals over seeds and prompts, and the paired test that goes with them.

A score is measured on ``S`` seeds and ``I`` prompts, the same prompts for every seed. Both are samples, so both are
bootstrapped. Prompts are many and are resampled. Seeds are three to five, and resampling so few underestimates their
variance by up to a third, so the seed error is a parametric bootstrap from Student's t with ``S - 1`` degrees of
freedom, the distribution of the mean of few normal values. A draw of the mean's error is::

    t * sqrt(MS_seed / SI)  +  resampled prompt error, scaled to sqrt((MS_prompt - MS_residual) / SI)

with the mean squares of the two-way layout (Cornfield and Tukey 1956, Annals of Mathematical Statistics 27). The noise
of single generations is included in ``MS_seed``, so it is subtracted from the prompts' part. Means of scores from 0 to
1 are bounded and skewed near the bounds, so the error is applied on the scale of the arcsine of the square root, on
which the variance of a proportion does not depend on its mean (Anscombe 1948, Biometrika 35); differences are not
transformed. Nothing else assumes that scores are 0 or 1: all variances are those of the scores themselves, so that
graded scores vary less than a proportion with the same mean. `docs/report.md` reports the measured coverage.
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
"""Confidence level of the intervals."""
DRAWS = 4000
"""Bootstrap draws: with another seed, the ends of an interval change by about 1 % of its width."""
TAIL_REACH, TAIL_STEP = 9.0, 0.01
"""Limit and step of the integral of a p value, in standard errors of the prompts."""
ROUNDING = 1e-12
"""Standard errors below this are rounding errors."""
FAR = 10_000
"""Largest number of seeds that ``more_seeds`` considers."""


class Estimate(NamedTuple):
    """A mean with its interval, as fractions.

    Attributes:
        mean: mean over prompts, then over seeds.
        low: lower end of the interval; NaN for a single seed.
        high: upper end of the interval.
        p: two-sided p value of the hypothesis that the mean is zero; NaN for a single seed.
        seed_variance: variance of the mean of one seed.
        prompt_variance: part of the variance of the mean that is due to the choice of prompts, for any number of seeds;
            if nothing varied, the variance of a normal interval that reaches as far as what may be unseen.
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
        panels: scores ``[seeds, prompts]`` from 0 to 1, NaN if a generation could not be judged; prompts that were
            judged for no seed are ignored. A single column holds scores of seeds without scores per prompt.
        difference: whether the scores are differences of scores, from -1 to 1.
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
    """Return how many seeds must be added to reduce the half width of the interval to ``width``.

    This is precision, not power: with that many seeds, a true difference of exactly ``width`` is significant in only
    about half of all sweeps.

    NaN for a single seed; infinity if the prompts alone are too few.
    """
    from scipy import stats

    if not estimate.seed_variance >= 0 or seeds < 2:
        return float("nan")
    room = width**2 - stats.norm.ppf((1 + LEVEL) / 2) ** 2 * estimate.prompt_variance
    enough = _squared_half_widths(seeds) * estimate.seed_variance <= room
    return float(enough.argmax()) if enough.any() else float("inf")


def holm(values: Sequence[float]) -> list[float]:
    """Return p values adjusted by the step-down procedure of Holm (1979); NaN is kept and not counted.

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
    """The two-way layout of a panel; ``prompts`` counts judged prompts, ``by_prompt`` is 0 for the others."""

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
    panel = _impute(panel[:, judged], seed_means)
    by_prompt = panel.mean(axis=0) - panel.mean()
    shifts[judged] = by_prompt
    if seeds < 2:
        return _Parts(mean, seeds, prompts, shifts, float("nan"), float("nan"))
    seed_square = prompts * seed_means.var(ddof=1)
    prompt_square = noise = 0.0
    if prompts > 1:
        residual = panel - panel.mean(axis=1, keepdims=True) - by_prompt
        # Imputed values have no residual, so they contribute no degrees of freedom.
        noise = (residual**2).sum() / max(seeds * prompts - int(holes[:, judged].sum()) - seeds - prompts + 1, 1)
        prompt_square = seeds * (by_prompt**2).sum() / (prompts - 1)
    # By chance, seeds may differ less than the noise implies; then do not subtract more than their mean square.
    prompt_part = max(prompt_square - min(noise, seed_square), 0.0)
    size = seeds * prompts
    return _Parts(mean, seeds, prompts, shifts, _error(seed_square / size), _error(prompt_part / size))


def _error(variance: float) -> float:
    """Return the square root; 0 below ``ROUNDING``: equal graded scores differ from their mean by rounding."""
    error = float(variance) ** 0.5
    return error if error > ROUNDING else 0.0


def _impute(panel: NDArray[Any], seed_means: NDArray[Any]) -> NDArray[Any]:
    """Impute missing verdicts from the effects of their seed and prompt; they do not affect the mean."""
    import numpy as np

    holes = np.isnan(panel)
    if not holes.any():
        return panel
    judged = np.maximum((~holes).sum(axis=0), 1)
    prompt_shift = np.where(holes, 0.0, panel - seed_means[:, None]).sum(axis=0) / judged
    return np.where(holes, seed_means[:, None] + prompt_shift, panel)


def _prompt_errors(parts: Sequence[_Parts], prompts: int) -> NDArray[Any]:
    """Return the errors of the means ``[panels, draws]`` from resampling the prompts."""
    import numpy as np

    errors = np.stack([part.by_prompt for part in parts]) @ resamples(prompts) / prompts
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
    seed_variance, prompt_variance = part.seeds * part.seed_error**2, part.prompt_error**2
    floor = -1.0 if difference else 0.0
    if part.prompts > 1 and part.seed_error == part.prompt_error == 0:
        # Nothing varied. Another score has at most the probability `unseen`, the bound of the Clopper-Pearson interval
        # (Clopper and Pearson 1934) for zero events, and lies at most at an end of the scale.
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / part.prompts)
        low, high = part.mean - unseen * (part.mean - floor), part.mean + unseen * (1 - part.mean)
        farthest = unseen * max(part.mean - floor, 1 - part.mean)
        prompt_variance = float(farthest / stats.norm.ppf((1 + LEVEL) / 2)) ** 2
    elif difference or not 0 < part.mean < 1:
        low, high = part.mean + down, part.mean + up
    else:
        angle, slope = np.arcsin(part.mean**0.5), 2 * (part.mean * (1 - part.mean)) ** 0.5
        low, high = (np.sin(np.clip(angle + shift / slope, 0, np.pi / 2)) ** 2 for shift in (down, up))
    ends = max(float(low), floor), min(float(high), 1.0)
    return Estimate(part.mean, *ends, _p_value(part), seed_variance, prompt_variance)


def _p_value(part: _Parts) -> float:
    """Return the p value of a mean, with the prompts' error taken as normal.

    Integrated numerically: the share of draws beyond the mean would be off by a few thousandths, which may decide.
    """
    import numpy as np
    from scipy import special

    mean, seed_error, prompt_error = abs(part.mean), part.seed_error, part.prompt_error
    if seed_error == prompt_error == 0:
        # Nothing varied: a sign test, of prompts that all differ or of none.
        signs = part.prompts if part.prompts > 1 else part.seeds
        return 1.0 if mean <= ROUNDING else min(1.0, 2.0 ** (1 - signs))
    if seed_error == 0:
        return float(2 * special.ndtr(-mean / prompt_error))
    shifts = np.arange(-TAIL_REACH, TAIL_REACH, TAIL_STEP)
    density = np.exp(-(shifts**2) / 2)
    beyond = special.stdtr(part.seeds - 1, (prompt_error * shifts - mean) / seed_error)
    return float(min(1.0, 2 * (beyond * density).sum() / density.sum()))


@cache
def resamples(prompts: int) -> NDArray[Any]:
    """Return how often each prompt is drawn, ``[prompts, draws]``; the same for all panels with this many prompts."""
    import numpy as np

    chance = np.random.default_rng(derive(0, "report", "prompts", str(prompts)))
    return chance.multinomial(prompts, np.full(prompts, 1 / prompts), size=DRAWS).T.astype("float64")


@cache
def _squared_half_widths(seeds: int) -> NDArray[Any]:
    """Return the squared half width of a t interval at variance 1, for ``seeds``, ``seeds + 1``, ... seeds."""
    import numpy as np
    from scipy import stats

    counts = np.arange(seeds, FAR)
    half = np.asarray(stats.t.ppf((1 + LEVEL) / 2, counts - 1))
    return half**2 / counts


@cache
def _student(seeds: int) -> NDArray[Any]:
    """Return stratified draws of Student's t: one quantile of each of equally likely strata, in random order."""
    import numpy as np
    from scipy import stats

    chance = np.random.default_rng(derive(0, "report", "seeds", str(seeds)))
    draws: NDArray[Any] = stats.t.ppf((chance.permutation(DRAWS) + 0.5) / DRAWS, seeds - 1)
    return draws
