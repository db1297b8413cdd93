"""Means of scores, bounded and unbounded, whose rare big losses must not be overlooked."""

from __future__ import annotations

import math

import numpy as np

from sartor.records import Interval
from sartor.special import ndtr, root
from sartor.stats import Comparison, Floats, nothing


def gamma_sum_below_zero(weights: Floats, counts: Floats) -> float:
    """P(sum of weights x independent Gamma(counts) variables <= 0), by the saddlepoint (Lugannani
    and Rice 1980 in Barndorff-Nielsen's form); within 2 % of the exact figure, on the safe side."""
    if (weights <= 0).all():
        return 1.0
    if (weights >= 0).all():
        return 0.0
    s, low, high = 0.0, 1 / float(weights.min()), 1 / float(weights.max())
    for _ in range(200):
        r = weights / (1 - s * weights)
        slope = float(counts @ r)
        low, high = (low, s) if slope > 0 else (s, high)
        new = s - slope / float(counts @ (r * r))
        new = new if low < new < high else (low + high) / 2
        if abs(new - s) <= 1e-13 * abs(s) or new == s:
            break
        s = new
    r = weights / (1 - s * weights)
    curve = float(counts @ (r * r))
    w = math.copysign(math.sqrt(max(2 * float(counts @ np.log1p(-s * weights)), 0.0)), s)
    u = s * math.sqrt(curve)
    if abs(w) < 1e-3 or u == 0:
        return ndtr(w + float(counts @ r**3) / curve**1.5 / 3)
    return ndtr(w + math.log(u / w) / w)


def _mean_p(values: Floats, counts: Floats, worst: float, border: float) -> float:
    """P-value of "the mean is at most border" where no value lies below `worst`."""
    if border < worst:
        return 0.0
    return gamma_sum_below_zero(np.append(values, worst) - border, np.append(counts, 1.0))


def bounded_mean(
    values: Floats, low: float, high: float, border: float, level: float = 0.95
) -> Comparison:
    """Mean of values within [low, high] against `border`.

    Gaffke's bound (2005; Learned-Miller and Thomas 2020): random Dirichlet weights on the sample
    and on one more observation at the bad end. It equals Clopper and Pearson's for 0/1 values, so
    that rare big losses do not break it, and nears the t test where the spread is small. That it
    holds in general is conjectured, and so far without a counterexample."""
    return _mean(values, low, high, border, level, "Gaffke's bound")


def real_mean(
    values: Floats, border: float, spread: float, changed: int | None = None, level: float = 0.95
) -> Comparison:
    """Mean of unbounded values against `border`, as `bounded_mean` with the worst value seen in
    place of the bound. In simulations with lognormal losses it errs in 6 % of the samples of 50
    and in less than 5 % of those of 200, where the t test errs in 14 % and 9 % and the studentized
    bootstrap in 8 %; losses so rare that none was seen nobody can exclude. `spread` (the range of
    the scores) stands in for the worst value while fewer than 10 values differ from 0 (`changed`,
    where `values` are not single scores)."""
    worst, best = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if (np.count_nonzero(values) if changed is None else changed) < 10:
        worst, best = min(worst, -spread), max(best, spread)
    return _mean(values, worst, best, border, level, "self-bounded mean")


def _mean(
    x: Floats, worst: float, best: float, border: float, level: float, method: str
) -> Comparison:
    if len(x) == 0:
        return nothing(method)
    values, times = np.unique(np.asarray(x, dtype=np.float64), return_counts=True)
    counts, mean, tail = times.astype(np.float64), float(np.mean(x)), (1 - level) / 2

    def end(values: Floats, worst: float, mean: float) -> float:
        if _mean_p(values, counts, worst, mean) <= tail or worst >= mean:
            return mean
        gap = (mean - worst) * 1e-9
        if _mean_p(values, counts, worst, worst + gap) > tail:
            return worst
        return root(lambda at: _mean_p(values, counts, worst, at) - tail, worst + gap, mean)

    error = max(float(np.std(x, ddof=1)) if len(x) > 1 else 0.0, (best - worst) / len(x), 1e-300)
    low, high = end(values, worst, mean), -end(-values, -best, -mean)
    return Comparison(
        Interval(mean, low, high, level),
        above=_mean_p(values, counts, worst, border),
        below=_mean_p(-values, counts, -best, -border),
        z=(mean - border) / (error / math.sqrt(len(x))),
        n=len(x),
        method=method,
    )


def by_group(values: Floats, group: np.ndarray, border: float) -> Floats:
    """One value per group, whose mean is that of all rows: rows of one group are not independent.
    Exact to first order for groups of unequal sizes (Cochran 1977, ratio estimator)."""
    _, index = np.unique(group, return_inverse=True)
    sums = np.bincount(index.ravel(), weights=values - border)
    return np.asarray(border + sums * (len(sums) / len(values)), dtype=np.float64)
