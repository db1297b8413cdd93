"""Paired outcomes, right or wrong: is the candidate right at most so much less often?

A pair is a gain (the candidate alone is right), a loss (the original alone is) or neither; the
effect is P(gain) - P(loss). The exact test costs some milliseconds at any size that matters and
nearly no power, so that the score test, whose level goes to 6 % on few flips, serves only for
intervals and for more than 50,000 rows.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from sartor.records import Interval
from sartor.special import betaincinv, log_factorials, ndtr, ndtri
from sartor.stats import Comparison, Floats, binomial_above, nothing

BEYOND = 1e-6  # chance that the flip rate lies outside the range that is searched
EXACT_ROWS = 50_000  # beyond, the score test's level is within 0.3 points of the exact one's


def score(gains: Any, losses: Any, n: Any, border: Any) -> Floats:
    """Score statistic of "P(gain) - P(loss) = border" (Tango 1998: the variance comes from the
    maximum-likelihood estimate under that hypothesis). Arrays broadcast; standard normal."""
    g, lost, d = (np.asarray(each, dtype=np.float64) for each in (gains, losses, border))
    b = -g - lost + (2 * n - g + lost) * d
    root = np.sqrt(np.maximum(b * b + 8 * n * lost * d * (1 - d), 0))
    p_loss = np.maximum((root - b) / (4 * n), np.maximum(0, -d))
    variance = n * (2 * p_loss + d * (1 - d))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (g - lost - n * d) / np.sqrt(variance)
    return np.where(variance > 0, z, 0.0)


def score_interval(
    gains: Any, losses: Any, n: Any, level: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """Difference of two paired proportions, low, high: the score test inverted. Vectorised."""
    g, lost, n = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (gains, losses, n)))
    z, estimate = ndtri((1 + level) / 2), (g - lost) / n
    side = np.array([1.0, -1.0]).reshape(2, *[1] * g.ndim)  # both ends at once
    inner = np.broadcast_to(estimate, (2, *g.shape)).copy()
    outer = np.broadcast_to(-side, inner.shape).copy()
    for _ in range(40):
        middle = (inner + outer) / 2
        inside = side * score(g, lost, n, middle) <= z
        inner, outer = np.where(inside, middle, inner), np.where(inside, outer, middle)
    return estimate, outer[0], outer[1]


@lru_cache(maxsize=100_000)
def _interval(gains: int, losses: int, n: int, level: float) -> tuple[float, float, float]:
    """The score interval of one pair of counts: a candidate is judged at several levels."""
    estimate, low, high = (float(x) for x in score_interval(gains, losses, n, level))
    return estimate, low, high


def _largest_tail(n: int, border: float, z: float, low: float, high: float) -> float:
    """The largest probability, over P(loss) in [low, high], that the score statistic reaches `z`
    while the true difference is `border`."""
    fewest = _smallest_gains(n, border, z)

    def highest(rates: Floats) -> tuple[float, int]:
        tails = [_tail(n, border, fewest, float(rate)) for rate in rates]
        return max(tails), int(np.argmax(tails))

    # Evenly in the square root, where the spread of a count is the same everywhere.
    rates = np.linspace(math.sqrt(low), math.sqrt(high), 24) ** 2
    best, at = highest(rates)
    around = np.linspace(rates[max(at - 1, 0)], rates[min(at + 1, len(rates) - 1)], 10)[1:-1]
    return max(best, highest(around)[0])


def _smallest_gains(n: int, border: float, z: float) -> np.ndarray:
    """For every number of flips 0..n the fewest gains with which the statistic reaches z."""
    flips = np.arange(n + 1)
    low, high = np.zeros(n + 1, dtype=np.int64), flips + 1
    for _ in range(int(math.log2(n + 2)) + 2):
        middle = np.minimum((low + high) // 2, flips)
        reached = score(middle, flips - middle, n, border) >= z - 1e-9
        open_ = low < high
        high = np.where(open_ & reached, middle, high)
        low = np.where(open_ & ~reached, middle + 1, low)
    return low


def _tail(n: int, border: float, fewest: np.ndarray, p_loss: float) -> float:
    """P(statistic reaches its value) with these probabilities: binomial over the number of flips,
    and given it over the gains."""
    rate = 2 * p_loss + border
    if rate <= 0:
        return float(fewest[0] <= 0)
    reach = 6.5 * math.sqrt(n * rate * max(1 - rate, 0)) + 15
    m = np.arange(max(0, int(n * rate - reach)), min(n, int(n * rate + reach)) + 1)
    share = (p_loss + border) / rate
    return float(_chances(m, n, rate) @ _reached(m, fewest[m], share))


def _reached(m: np.ndarray, k: np.ndarray, share: float) -> Floats:
    """P(Binomial(m, share) >= k) for numbers of flips m that follow one another, with each of which
    k grows by 1 or stays: with one flip more no fewer gains are needed, and a gain more is enough.
    So each chance is the one before and a term."""
    first = binomial_above(int(k[0]), int(m[0]), share)
    stays = k[1:] == k[:-1]
    terms = _chances(k[:-1] - stays, m[:-1], share) * np.where(stays, share, share - 1)
    return np.cumsum(np.concatenate([[first], terms]))


def _chances(k: Any, n: Any, share: float) -> Floats:
    """P(Binomial(n, share) = k) for whole numbers."""
    share = min(max(share, np.finfo(float).tiny), 1 - np.finfo(float).epsneg)
    possible = (k >= 0) & (k <= n)
    k = np.where(possible, k, 0)
    log = log_factorials(int(np.max(n)))
    log = log[n] - log[k] - log[n - k] + k * math.log(share) + (n - k) * math.log1p(-share)
    return np.where(possible, np.exp(log), 0.0)


@lru_cache(maxsize=100_000)
def p_value(gains: int, losses: int, n: int, border: float) -> float:
    """P-value of "P(gain) - P(loss) <= border": exact unconditional (Barnard 1945), ordered by the
    score statistic and maximised over the flip rates that the number of flips leaves possible
    (Berger and Boos 1994). At most the nominal level at any n."""
    z = float(score(gains, losses, n, border))
    if z <= 0 or n > EXACT_ROWS:  # where nothing can be decided the exact figure is of no use
        return float(ndtr(-z))
    flips = gains + losses
    fewest = float(betaincinv(flips, n - flips + 1, BEYOND / 2)) if flips else 0.0
    most = float(betaincinv(flips + 1, n - flips, 1 - BEYOND / 2)) if flips < n else 1.0
    low = max((fewest - border) / 2, 0.0, -border)
    high = min((most - border) / 2, (1 - border) / 2)
    if high <= low:  # flips so few that they alone speak against the border
        low = high = max(0.0, -border)
    return min(_largest_tail(n, border, z, low, high) + BEYOND, 1.0)


def compare(gains: int, losses: int, n: int, border: float, level: float = 0.95) -> Comparison:
    """Difference of two paired proportions (gains - losses) / n against `border`."""
    method = "exact unconditional test" if n <= EXACT_ROWS else "score test"
    if n == 0:
        return nothing(method)
    estimate, low, high = _interval(int(gains), int(losses), n, level)
    return Comparison(
        Interval(estimate, low, high, level),
        above=p_value(int(gains), int(losses), n, float(border)),
        below=p_value(int(losses), int(gains), n, -float(border)),
        z=float(score(gains, losses, n, border)),
        n=n,
        method=method,
    )
