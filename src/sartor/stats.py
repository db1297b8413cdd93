"""Intervals, tests and their multiplicity. numpy only.

Every test holds an effect against a border and answers with a `Comparison`: both one-sided
p-values and a two-sided interval. Effects are oriented by the caller so that more is better;
"non-inferior by a margin" is "the effect is above -margin". How well each method keeps its level
is simulated in `benchmarks/statistics/simulate.py`. Here are shares, latency
and multiplicity; `paired` holds paired outcomes, `means` the means of scores, `bootstrap` figures
of whole sets.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from sartor.records import Interval
from sartor.special import betainc, betaincinv, ndtr, ndtri, stdtr, stdtrit

Floats = np.ndarray[Any, np.dtype[np.float64]]

POWER = 0.8  # how likely the number of examples that `needed` names is to decide


@dataclass(frozen=True)
class Comparison:
    """An effect against a border.

    `above`: p-value of "the effect is at most the border"; when it is small, the effect is shown
    to lie above. `below`: likewise from the other side. `z`: how far the estimate lies above the
    border, in standard errors. `n`: independent units that were seen."""

    interval: Interval
    above: float
    below: float
    z: float
    n: int
    method: str

    def negated(self) -> Comparison:
        """The same comparison of minus the effect with minus the border."""
        old = self.interval
        turned = Interval(-old.estimate, -old.high, -old.low, old.level)
        return replace(self, interval=turned, above=self.below, below=self.above, z=-self.z)


def nothing(method: str, n: int = 0) -> Comparison:
    """What is known of an effect that could not be estimated."""
    return Comparison(Interval(math.nan, -math.inf, math.inf), 1.0, 1.0, math.nan, n, method)


# --- one proportion -----------------------------------------------------------------------------


def proportion(successes: float, n: float, border: float, level: float = 0.95) -> Comparison:
    """A share against `border`: exact binomial, interval of Clopper and Pearson (1934). Both
    counts may be fractions (effective sizes)."""
    if n <= 0:
        return nothing("exact binomial")
    k, tail = successes, (1 - level) / 2
    low = betaincinv(k, n - k + 1, tail) if k > 0 else 0.0
    high = betaincinv(k + 1, n - k, 1 - tail) if k < n else 1.0
    share = k / n
    spread = math.sqrt(max(border * (1 - border), 1e-12) / n)
    return Comparison(
        Interval(share, low, high, level),
        above=binomial_above(k, n, border),
        below=binomial_above(n - k, n, 1 - border),
        z=(share - border) / spread,
        n=int(n),
        method="exact binomial",
    )


def binomial_above(successes: float, n: float, share: float) -> float:
    """P(Binomial(n, share) >= successes)."""
    if successes <= 0 or successes > n:
        return float(successes <= 0)
    return betainc(successes, n - successes + 1, share)


# --- latency ------------------------------------------------------------------------------------


def quantile_runs(q: float, alpha: float = 0.05) -> int:
    """The fewest runs from which an upper bound of the q-quantile can be had at 1 - alpha."""
    return math.ceil(math.log(alpha) / math.log(q))


def least_rounds(alpha: float = 0.05) -> int:
    """The fewest rounds in which a difference that shows in every one is decided, and one more:
    the smallest p-value of signed ranks over n rounds is 2**-n."""
    return math.ceil(math.log2(1 / alpha)) + 1


def effective_size(samples: Floats, q: float) -> float:
    """How many independent calls the calls in rounds [rounds, calls] are worth where their
    q-quantile is concerned (Kish's design effect; Korn and Graubard 1998 for few rounds). The
    likeness of a tail alone is badly known: that of one twice as heavy counts where it is more."""
    rounds, calls = samples.shape
    if rounds < 2 or calls < 2:
        return float(samples.size)
    alike = max(_likeness(samples, q), _likeness(samples, max(2 * q - 1, 0.5)))
    if alike == 0:
        return float(samples.size)
    few = (stdtrit(samples.size - 1, 0.975) / stdtrit(rounds - 1, 0.975)) ** 2
    return float(max(few * samples.size / (1 + (calls - 1) * alike), 1.0))


def _likeness(samples: Floats, q: float) -> float:
    """Intraclass correlation, within rounds, of lying beyond the q-quantile."""
    calls = samples.shape[1]
    beyond = (samples > np.quantile(samples, q)).astype(np.float64)
    between = calls * float(beyond.mean(1).var(ddof=1))
    within = float(beyond.var(1, ddof=1).mean())
    total = between + (calls - 1) * within
    return max((between - within) / total, 0.0) if total > 0 else 0.0


def quantile(samples: Floats, q: float, border: float, level: float = 0.95) -> Comparison:
    """The q-quantile of calls [rounds, calls] against `border`, by order statistics (Woodruff
    1952), with the effective number of calls where rounds differ. An end of the interval that the
    number of calls cannot bound is infinite."""
    x, worth = np.sort(samples, axis=None), effective_size(samples, q)
    n = len(x)

    def above(k: int) -> float:  # k calls at or below the border: too few for a quantile below it
        return 1 - betainc(k * worth / n + 1, max(worth - k * worth / n, 1e-9), q)

    def below(k: int) -> float:  # k calls below the border: too many for a quantile above it
        seen = max(k * worth / n, 1e-9)
        return betainc(seen, worth - seen + 1, q)

    tail = (1 - level) / 2
    lows = bisect_right(range(n), tail, key=above)
    highs = bisect_left(range(1, n + 1), -tail, key=lambda k: -below(k))
    low = float(x[lows - 1]) if lows else -math.inf
    high = float(x[highs]) if highs < n else math.inf
    share = float(np.searchsorted(x, border, "left")) / n
    z = (q - share) / math.sqrt(q * (1 - q) / worth)
    return Comparison(
        Interval(float(np.quantile(x, q)), low, high, level),
        above=above(int(np.searchsorted(x, border, "right"))),
        below=below(int(np.searchsorted(x, border, "left"))),
        z=z,
        n=n,
        method=f"order statistics of {n} runs"
        + (f" worth {worth:.0f}" if worth < 0.95 * n else ""),
    )


def quantile_interval(samples: Floats, q: float, level: float = 0.95) -> Interval:
    """The q-quantile of calls [rounds, calls] with its interval; see `quantile`."""
    return quantile(np.atleast_2d(samples), q, 0.0, level).interval


def pseudomedian(values: Floats, border: float, level: float = 0.95) -> Comparison:
    """Hodges and Lehmann's (1963) estimate of the centre of values, one per round, against
    `border`: exact by Wilcoxon's signed ranks, for values that scatter symmetrically, as the
    logarithm of the ratio of two lanes of one round does. With 6 rounds it covers 97 % and with
    10 95 %, where a percentile bootstrap over the rounds covers 94 %."""
    x = np.asarray(values, dtype=np.float64)
    while len(x) > 800:  # neighbours are merged: pairs grow with the square
        x = x[: len(x) // 2 * 2].reshape(-1, 2).mean(1)
    n, method = len(x), f"Hodges-Lehmann over {len(values)} rounds"
    if n < 2:
        return nothing(method, n)
    i, j = np.triu_indices(n)
    walsh = np.sort((x[i] + x[j]) / 2)
    cut = _rank_cut(n, (1 - level) / 2)
    low, high = (walsh[cut - 1], walsh[-cut]) if cut > 0 else (-math.inf, math.inf)
    estimate = float(np.median(walsh))
    error = float(np.std(x, ddof=1)) / math.sqrt(n) * math.sqrt(math.pi / 3)
    return Comparison(
        Interval(estimate, float(low), float(high), level),
        above=_rank_tail(n, int(np.count_nonzero(walsh > border))),
        below=_rank_tail(n, int(np.count_nonzero(walsh < border))),
        z=(estimate - border) / error if error > 0 else math.copysign(math.inf, estimate - border),
        n=n,
        method=method,
    )


def centre(values: Floats, border: float, level: float = 0.95, first: int = 0) -> Comparison:
    """The mean of a few independent values against `border`, by Student's t: for one log ratio
    per block of fresh processes. Over 72 such blocks of a model beside itself 3.2 to 4.0 % of the
    tests at 3 % were wrong, with 3 to 8 blocks; rounds in the same processes were wrong in 25 %.

    `first`: how many values there were when it was settled, by their scatter, how many to have.
    The scatter is then theirs, with their degrees of freedom (Stein 1945): the level holds however
    the number was chosen from it. Where all values scatter more, theirs counts: one wild start
    among the later ones would else be taken for a difference (`benchmarks/noise.py`)."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    told = x[:first] if 1 < first < n else x
    free, method = len(told) - 1, f"t over {n} starts of every process"
    if len(told) < n:
        method += f", their number by the scatter of the first {first}"
    if n < 2:
        return nothing(method, n)
    spread = max(float(np.std(told, ddof=1)), float(np.std(x, ddof=1)))
    return student(float(x.mean()), spread / math.sqrt(n), free, border, n, method, level)


def student(
    estimate: float,
    error: float,
    free: float,
    border: float,
    n: int,
    method: str,
    level: float = 0.95,
) -> Comparison:
    """An estimate with its standard error against `border`, by Student's t with `free` degrees of
    freedom."""
    half = stdtrit(free, (1 + level) / 2) * error
    far = (estimate - border) / error if error > 0 else math.copysign(math.inf, estimate - border)
    return Comparison(
        Interval(estimate, estimate - half, estimate + half, level),
        above=stdtr(free, -far),
        below=stdtr(free, far),
        z=far,
        n=n,
        method=method,
    )


def values_for(values: Floats, half: float, most: int, level: float = 0.95) -> int:
    """How many values, these among them and at most `most`, bring half the width of the interval
    of `centre` down to `half`, by the scatter of these (Stein 1945)."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return most
    wanted = (stdtrit(len(x) - 1, (1 + level) / 2) * float(np.std(x, ddof=1)) / half) ** 2
    return int(min(max(math.ceil(wanted), len(x)), most))


@lru_cache(maxsize=4096)
def _rank_sums(n: int) -> Floats:
    """P(signed-rank sum = k) for k = 0 .. n(n+1)/2."""
    chances = np.ones(1)
    for rank in range(1, n + 1):
        longer = np.zeros(len(chances) + rank)
        longer[: len(chances)] += chances / 2
        longer[rank:] += chances / 2
        chances = longer
    return chances


def _rank_tail(n: int, total: int) -> float:
    """P(signed-rank sum >= total) where the values scatter evenly about the border."""
    if n <= 60:
        return float(min(_rank_sums(n)[total:].sum(), 1.0))
    spread = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return ndtr(-(total - 0.5 - n * (n + 1) / 4) / spread)


def _rank_cut(n: int, tail: float) -> int:
    """How many Walsh averages may be cut off at an end; 0 where the rounds are too few."""
    if n <= 60:
        return int(np.searchsorted(np.cumsum(_rank_sums(n)), tail, "right"))
    spread = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return max(int(n * (n + 1) / 4 + ndtri(tail) * spread), 0)


def noise_floor(baseline: Floats, twin: Floats) -> float:
    """|log ratio| between the original and its twin, arrays [rounds, calls]: what two processes
    of the same model differ by. More rounds do not lower it."""
    ratios = np.log(np.median(twin, 1) / np.median(baseline, 1))
    if len(ratios) < 2:
        return float(abs(ratios.mean()))
    return abs(pseudomedian(ratios, 0.0).interval.estimate)


# --- how many more, and multiplicity ------------------------------------------------------------


def needed(n: float, z: float, p: float, alpha: float = 0.05) -> float | None:
    """About how many units would show the effect above its border, were the present estimate and
    spread the truth, with a chance of 80 %. None where the estimate lies on the wrong side (more
    would only decide against it), infinity on the border itself."""
    if math.isnan(z) or z < 0:
        return None
    if z == 0 or p >= 1:
        return math.inf
    # Where hardly anything was seen to differ, z means little: p then falls as exp(-n).
    rare = n * math.log(alpha) / math.log(p) if p > 0 else 0.0
    return float(math.ceil(max(rare, n * ((ndtri(1 - alpha) + ndtri(POWER)) / z) ** 2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that each may be held against alpha whichever are picked (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * float(p_values[at])))
        adjusted[int(at)] = worst
    return adjusted
