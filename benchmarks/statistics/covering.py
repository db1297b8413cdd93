"""Coverage of the 95 % intervals that are not in `simulate.py`; see there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.stats import binom

from sartor import means, paired, stats
from sartor.stats import Comparison


def share(n: int, true: float) -> float:
    """Clopper and Pearson's interval of a share, by summing probabilities."""
    counts = np.arange(n + 1)
    chance = binom.pmf(counts, n, true)
    held = [
        found.low <= true <= found.high
        for found in (stats.proportion(k, n, 0.5).interval for k in counts[chance > 1e-12])
    ]
    return float(chance[chance > 1e-12] @ np.array(held))


def paired_exactly(n: int, drop: float, flips: float) -> float:
    """The score interval of paired differences, by summing the chances of all gains and losses."""
    gain, loss = (flips - drop) / 2, (flips + drop) / 2
    gains, losses = (
        np.arange(binom.ppf(1e-9, n, each), binom.ppf(1 - 1e-9, n, each) + 1)
        for each in (gain, loss)
    )
    g, lost = (each.ravel() for each in np.meshgrid(gains, losses))
    possible = g + lost <= n
    g, lost = g[possible], lost[possible]
    chance = binom.pmf(lost, n, loss) * binom.pmf(g, n - lost, gain / (1 - loss))
    _, low, high = paired.score_interval(g, lost, n)
    return float(chance @ ((low <= -drop) & (-drop <= high)))


def _held(
    draw: Callable[[np.random.Generator], Comparison], repetitions: int, seed: int
) -> float:  # fmt: skip
    """How often the interval holds 0."""
    rng = np.random.default_rng(seed)
    found = (draw(rng).interval for _ in range(repetitions))
    return sum(each.low <= 0 <= each.high for each in found) / repetitions


BOUNDED: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "changes of the Brier score": (lambda rng, n: rng.beta(2, 2, n) * 0.2 - 0.1, 1.0),
    "cosine, a loss of 0.5 in 3 %": (
        lambda rng, n: np.where(rng.random(n) < 0.03, -0.5, rng.uniform(-0.02, 0.02, n)) + 0.015,
        2.0,
    ),
    "IoU, skewed losses": (lambda rng, n: 1 / 11 - rng.beta(0.5, 5, n), 1.0),
    "gains and losses of 1, 2 % each": (
        lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n, p=[0.02, 0.96, 0.02]),
        1.0,
    ),
}


def bounded(name: str, n: int, repetitions: int) -> float:
    """Gaffke's bound from both sides."""
    draw, most = BOUNDED[name]

    def one(rng: np.random.Generator) -> Comparison:
        return means.bounded_mean(draw(rng, n), -most, most, 0.0)

    return _held(one, repetitions, n)


def grouped(groups: int, repetitions: int) -> float:
    """Means over rows of groups of 1 to 19 rows that are alike."""

    def one(rng: np.random.Generator) -> Comparison:
        group = np.repeat(np.arange(groups), rng.integers(1, 20, groups))
        values = rng.normal(size=groups)[group] + 0.5 * rng.normal(size=len(group))
        return means.real_mean(means.by_group(values, group, 0.0), 0.0, 1.0)

    return _held(one, repetitions, groups)


def _starts(rng: np.random.Generator, n: int, skewed: bool) -> Comparison:
    values = rng.gamma(2.0, size=n) - 2.0 if skewed else rng.normal(size=n)
    return stats.centre(0.05 * values, 0.0)


def starts(n: int, repetitions: int, *, skewed: bool = False) -> float:
    """Student's t over so many starts of the processes."""
    return _held(partial(_starts, n=n, skewed=skewed), repetitions, n)
