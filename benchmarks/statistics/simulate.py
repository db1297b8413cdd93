"""How often the single methods err, where the truth is known. One command prints all tables:

    python benchmarks/statistics/simulate.py [--repetitions 2000] [--only chain power]

The functions serve the tests too, with fewer repetitions. "Level": how often a limit that does not
hold is called met, at a nominal 5 %; "coverage": how often a 95 % interval holds the truth. The
whole procedure is in `chain.py`, its power in `power.py`, what is printed in `tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from sartor import means, paired, stats
from sartor.bootstrap import bootstrap
from sartor.contracts import Task
from sartor.limits import parse
from sartor.metrics import Truth
from sartor.verdicts import Evidence, judge

BORDER = -0.01  # accuracy >= baseline - 0.01
LIMITS = (parse("accuracy >= baseline - 0.01"),)
TASK = Task("classification", "answer", "accuracy", classes=2)


# --- single methods -----------------------------------------------------------------------------


def paired_levels(n: int, border: float, alpha: float = 0.05) -> tuple[float, float]:
    """The largest level of the exact and of the score test over flip rates 0.2 % to 20 %, by
    summing probabilities, not by chance."""
    low = max(0.002, abs(border) * (1 + 1e-9))
    rates = np.geomspace(low, 0.2, 200)
    most = int(0.2 * n + 5 * np.sqrt(0.2 * n) + 10)
    score = paired._smallest_gains(n, border, float(norm.isf(alpha)))
    exact = np.full(n + 1, n + 1)
    for flips in range(min(most, n) + 1):
        exact[flips] = _fewest_gains(n, flips, border, alpha, int(score[flips]))
    fewest = {"exact": exact, "score": score}
    found = {
        name: max(paired._tail(n, border, k, (rate - border) / 2) for rate in rates)
        for name, k in fewest.items()
    }
    return found["exact"], found["score"]


def _fewest_gains(n: int, flips: int, border: float, alpha: float, start: int) -> int:
    """The fewest gains among so many flips with which the limit is called met; near `start`."""

    def met(gains: int) -> bool:
        return paired.p_value(gains, flips - gains, n, border) <= alpha

    gains = min(start, flips + 1)
    while gains <= flips and not met(gains):
        gains += 1
    while gains > 0 and met(gains - 1):
        gains -= 1
    return gains


def paired_coverage(n: int, border: float, flips: float, draws: int = 20_000) -> float:
    rng = np.random.default_rng(n)
    loss = (flips - border) / 2
    counts = rng.multinomial(n, [loss + border, loss, 1 - flips], draws)
    _, low, high = paired.score_interval(counts[:, 0], counts[:, 1], n)
    return float(((low <= border) & (border <= high)).mean())


Draw = Callable[[np.random.Generator, int], np.ndarray]

REAL: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed losses, exponential": lambda rng, n: 1 - rng.exponential(size=n),
    "skewed losses, lognormal": lambda rng, n: np.exp(0.5) - rng.lognormal(0, 1, n),
    "skewed gains, lognormal": lambda rng, n: rng.lognormal(0, 1, n) - np.exp(0.5),
    "change of squared errors": lambda rng, n: _squares(rng.normal(size=n), rng.normal(size=n)),
    "heavy tails, t3": lambda rng, n: rng.standard_t(3, n),
}

BOUNDED: dict[str, Draw] = {
    "a loss of 1 in 1 %": lambda rng, n: 0.01 - 1.0 * (rng.random(n) < 0.01),
    "a loss of 1 in 0.3 %": lambda rng, n: 0.003 - 0.997 * (rng.random(n) < 0.003 / 1.0),
    "losses of 0.5 in 3 %, noise": lambda rng, n: (
        np.where(rng.random(n) < 0.03, -0.5, rng.uniform(-0.02, 0.02, n)) + 0.015
    ),
    "small smooth changes": lambda rng, n: rng.beta(2, 2, n) * 0.2 - 0.1,
}


def _squares(error: np.ndarray, change: np.ndarray) -> np.ndarray:
    return error**2 - (error + 0.3 * change) ** 2 + 0.09


def mean_level(draw: Draw, n: int, method: str, repetitions: int = 1000) -> float:
    """Level of a test of "the mean is at most 0" where it is 0."""
    rng = np.random.default_rng(n)
    return float(np.mean([_mean_p(draw(rng, n), method) <= 0.05 for _ in range(repetitions)]))


def _mean_p(x: np.ndarray, method: str) -> float:
    if method == "t test":
        error = x.std(ddof=1) / np.sqrt(len(x))
        return float(student.sf(x.mean() / error, len(x) - 1)) if error else float(x.mean() <= 0)
    worst = -1.0 if method == "bounded" else float(x.min())
    values, counts = np.unique(x, return_counts=True)
    return means._mean_p(values, counts.astype(float), worst, 0.0)


def mean_coverage(draw: Draw, n: int, repetitions: int = 500) -> float:
    rng, hits = np.random.default_rng(n + 1), 0
    for _ in range(repetitions):
        found = means.real_mean(draw(rng, n), 0.0, 1.0).interval
        hits += found.low <= 0 <= found.high
    return hits / repetitions


def bootstrap_auc(n: int, repetitions: int, resamples: int = 1000) -> tuple[float, float]:
    """(level, coverage) of the bootstrap for a loss of AUC whose truth is known."""
    rng = np.random.default_rng(n)

    def one() -> stats.Comparison:
        label = rng.random(n) < 0.3
        old = rng.normal(size=n) + 1.5 * label
        new = old + rng.normal(size=n) * 0.4

        def loss(r: np.ndarray) -> float:
            return auc(new[r], label[r]) - auc(old[r], label[r])

        seed = int(rng.integers(1 << 30))
        return bootstrap(loss, n, truth, resamples=resamples, seed=seed)

    def auc(score: np.ndarray, label: np.ndarray) -> float:
        others = np.sort(score[~label])
        return float(np.searchsorted(others, score[label]).mean() / len(others))

    truth = float(norm.cdf(1.5 / np.sqrt(2 * 1.16)) - norm.cdf(1.5 / np.sqrt(2)))
    wrong = covered = 0
    for _ in range(repetitions):
        found = one()
        wrong += found.above <= 0.05
        covered += found.interval.low <= truth <= found.interval.high
    return wrong / repetitions, covered / repetitions


@dataclass(frozen=True)
class Rare:
    """A class of which there are few rows, and a candidate that breaks the limit just so: it loses
    `drop` of the rare class that the original has right, and errs in `flips` of the other."""

    text: str
    rows: int
    positives: int
    drop: float
    flips: float = 0.005
    wrong: float = 0.0  # share of the rare class that the original has wrong

    def draw(self, rng: np.random.Generator) -> Evidence:
        label = (rng.random(self.rows) < self.positives / self.rows).astype(np.int64)
        u = rng.random(self.rows)
        before = np.where(label == 1, u >= self.wrong, 0).astype(np.int64)
        lost = np.where(label == 1, u < self.wrong + self.drop, rng.random(self.rows) < self.flips)
        after = np.where(lost, 1 - label, label)
        return Evidence((2, 1), answers=(before, after), truth=Truth(label, before))


RARE = {
    "recall, 40 of 4,000": Rare("recall >= baseline - 0.01", 4000, 40, 0.02),
    "recall, 20 of 1,000": Rare("recall >= baseline - 0.01", 1000, 20, 0.05, 0.02),
    "balanced accuracy, 20 of 2,000": Rare(
        "balanced_accuracy >= baseline - 0.01", 2000, 20, 0.04, 0.0
    ),
    "balanced accuracy, 20 of 2,000, flips": Rare(
        "balanced_accuracy >= baseline - 0.01", 2000, 20, 0.03, 0.01
    ),
    "balanced accuracy, 300 of 3,000": Rare(
        "balanced_accuracy >= baseline - 0.02", 3000, 300, 0.031, 0.01
    ),
    "recall >= 0.9, 10 of 100": Rare("recall >= 0.9", 100, 10, 0.15, 0.0),
    "F1, 40 of 4,000": Rare("f1 >= baseline - 0.01", 4000, 40, 0.0205, 0.0),
    "F1, 300 of 3,000": Rare("f1 >= baseline - 0.02", 3000, 300, 0.0205, 0.00225),
    "precision, 40 of 4,000": Rare("precision >= baseline - 0.02", 4000, 40, 0.3, 0.000145),
    "precision, 300 of 3,000": Rare("precision >= baseline - 0.02", 3000, 300, 0.1, 0.0021),
    "precision >= 0.9, 30 of 1,000": Rare("precision >= 0.9", 1000, 30, 0.1, 0.0031),
    "F1 >= 0.9, 30 of 1,000": Rare("f1 >= 0.9", 1000, 30, 0.1, 0.0031),
}


def rare_level(world: Rare, repetitions: int) -> float:
    """How often a limit that does not hold is called met."""
    rng, limit = np.random.default_rng(0), parse(world.text)
    met = (judge(limit, world.draw(rng), TASK).outcome == "met" for _ in range(repetitions))
    return sum(met) / repetitions


def rare_auc_level(rows: int, positives: int, repetitions: int) -> float:
    """The same for an AUC that lies 0.02 lower since 4 % of the rare class are answered at
    random; the limit allows 0.01, and all other answers change a little."""
    rng, limit, met = np.random.default_rng(0), parse("auc >= baseline - 0.01"), 0
    for _ in range(repetitions):
        label = (rng.random(rows) < positives / rows).astype(np.int64)
        score = rng.normal(size=rows) + 6 * label
        lost = (label == 1) & (rng.random(rows) < 0.04)
        after = np.where(lost, rng.normal(size=rows), score + 0.01 * rng.normal(size=rows))
        before, after = (1 / (1 + np.exp(3 - each)) for each in (score, after))
        evidence = Evidence((2, 1), answers=(before, after), truth=Truth(label, before))
        met += judge(limit, evidence, TASK).outcome == "met"
    return met / repetitions


def copies_level(rows: int, copies: int, repetitions: int, *, uneven: bool = False) -> float:
    """How often "at most one point worse" is called met where the loss is 1.01 points and each of
    the rows stands there several times (`uneven`: from once to twice as often)."""
    rng, met = np.random.default_rng(0), 0
    for _ in range(repetitions):
        times = rng.integers(1, 2 * copies, rows) if uneven else np.full(rows, copies)
        unit = np.repeat(np.arange(rows), times)
        after = (rng.random(rows) < 0.0101).astype(np.int64)[unit]
        before = np.zeros(len(unit), np.int64)
        truth = Truth(before, before, unit=unit)
        evidence = Evidence((2, 1), answers=(before, after), truth=truth)
        met += judge(LIMITS[0], evidence, TASK).outcome == "met"
    return met / repetitions


def latency_samples(rng: np.random.Generator, rounds: int, calls: int, drift: float) -> np.ndarray:
    """Skewed call times [rounds, calls] whose rounds differ by `drift` (log scale)."""
    per_round = rng.normal(size=(rounds, 1)) * drift
    return np.exp(per_round + rng.gamma(2.0, 0.05, (rounds, calls)))


def quantile_coverage(
    q: float, rounds: int, calls: int, drift: float, repetitions: int, *, naive: bool = False
) -> float:
    rng = np.random.default_rng(rounds)
    truth = float(np.quantile(latency_samples(rng, 200_000, 5, drift), q))
    hits = 0
    for _ in range(repetitions):
        x = latency_samples(rng, rounds, calls, drift)
        found = stats.quantile_interval(x.reshape(1, -1) if naive else x, q)
        hits += found.low <= truth <= found.high
    return hits / repetitions


def ratio_coverage(rounds: int, repetitions: int, method: str = "ranks") -> float:
    """Coverage of the ratio of medians over rounds whose drift both lanes share."""
    rng, hits = np.random.default_rng(rounds), 0
    for _ in range(repetitions):
        drift = rng.normal(size=(rounds, 1)) * 0.1
        lanes = np.exp(drift[None] + rng.gamma(2.0, 0.05, (2, rounds, 20)))
        lanes *= np.exp(rng.normal(size=(2, rounds, 1)) * 0.02)
        ratios = np.log(np.median(lanes[1], 1) / np.median(lanes[0], 1))
        if method == "ranks":
            found = stats.pseudomedian(ratios, 0.0).interval
            low, high = found.low, found.high
        else:
            drawn = np.median(ratios[rng.integers(0, rounds, (1000, rounds))], 1)
            low, high = np.quantile(drawn, [0.025, 0.975])
        hits += low <= 0 <= high
    return hits / repetitions


if __name__ == "__main__":
    from tables import main  # which needs this module

    main()
