"""How often the statistics err, where the truth is known. One command prints a table:

    python benchmarks/statistics/simulate.py [--repetitions 10000]

The functions serve the tests too, with fewer repetitions. "Level": how often a limit that does not
hold is called met, at a nominal 5 %; "coverage": how often a 95 % interval holds the truth.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from sartor import means, paired, stats
from sartor.bootstrap import bootstrap
from sartor.certify import Certifier, Finalist, freeze
from sartor.contracts import Task
from sartor.ledger import Ledger
from sartor.limits import parse, parse_objective
from sartor.metrics import Truth
from sartor.records import Trial
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


# --- certification with the selection in the loop -----------------------------------------------


@dataclass(frozen=True)
class World:
    """Candidates whose accuracy lies exactly one point below the original's, so that none of them
    may be certified as "at most one point below", and `good` ones that lose nothing.

    `flips` are the shares of changed answers; `alike` is the correlation, from candidate to
    candidate, of what decides whether a row is lost."""

    candidates: int = 30
    good: int = 0
    flips: tuple[float, ...] = (0.015, 0.03, 0.06, 0.12)
    alike: float = 0.0
    search_rows: int = 1000
    holdout_rows: int = 1000

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """P(gain), P(loss) of every candidate."""
        flips = np.resize(np.array(self.flips), self.candidates)
        drop = np.full(self.candidates, -BORDER)
        drop[: self.good] = 0.0
        return (flips - drop) / 2, (flips + drop) / 2

    def draw(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """+1 gain, -1 loss, 0 neither [rows, candidates]."""
        gain, loss = self.rates()
        if self.alike == 0:
            u = rng.random((rows, self.candidates), dtype=np.float32)
        else:
            shared = rng.standard_normal((rows, 1), dtype=np.float32) * np.float32(self.alike**0.5)
            u = rng.standard_normal((rows, self.candidates), dtype=np.float32)
            u = shared + u * np.float32((1 - self.alike) ** 0.5)
        top, bottom = (1 - gain, loss) if self.alike == 0 else (norm.isf(gain), norm.ppf(loss))
        return (u > top.astype(np.float32)).astype(np.int8) - (u < bottom.astype(np.float32))


class Holdout:
    """Stands for a sealed part; the simulation's measurements know what is in it."""

    digest = "simulated"

    segments: ClassVar[dict[str, Any]] = {}

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def open(self) -> Any:
        return self

    def first(self, rows: int) -> Holdout:
        return Holdout(rows)


@dataclass(frozen=True)
class Counts:
    """How many of the repetitions certified a wrong candidate by the procedure; by testing every
    finalist instead of stopping; by testing every candidate; and how many certified a good one."""

    wrong: int
    walking_on: int
    everything: int
    good: int
    repetitions: int


def certification(world: World, repetitions: int, seed: int = 0, runs: int = 1) -> Counts:
    """Runs search and certification, early answer and ledger included, `repetitions` times. With
    one run the ledger's total is chosen so that this run's share is the whole 5 %; with more, they
    share 5 % and all of them use the same holdout."""
    rng = np.random.default_rng(seed)
    wrong = walking = everything = good = 0
    # Ledgers wait for the disk at every line: in memory that costs nothing.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for repetition in range(repetitions):
            total = 0.05 / 0.6 if runs == 1 else 0.05
            ledger = Ledger(Path(folder) / f"{repetition}.jsonl", "simulated", total)
            holdout = world.draw(rng, world.holdout_rows)
            certified: set[int] = set()
            finalists: tuple[Finalist, ...] = ()
            for run in range(runs):
                found, finalists = _one_run(world, rng, holdout, ledger, str(run))
                certified |= found
            p = _p_values(holdout)
            passing = set(np.flatnonzero(p <= 0.05).tolist())
            bad = set(range(world.good, world.candidates))
            wrong += bool(certified & bad)
            walking += bool(passing & bad & {each.trial.number for each in finalists})
            everything += bool(passing & bad)
            good += bool(certified - bad)
    return Counts(wrong, walking, everything, good, repetitions)


def _one_run(
    world: World, rng: np.random.Generator, holdout: np.ndarray, ledger: Ledger, run: str
) -> tuple[set[int], tuple[Finalist, ...]]:
    sizes = rng.uniform(300, 900, world.candidates).astype(int)
    search = world.draw(rng, world.search_rows)

    def measure(finalist: Finalist, part: Any) -> Evidence:
        changes = holdout[: part.rows, finalist.trial.number]
        return _evidence(changes, int(sizes[finalist.trial.number]))

    certifier = Certifier(
        LIMITS, parse_objective("size"), TASK, measure, Holdout(len(holdout)), ledger, run
    )  # type: ignore[arg-type]
    half = freeze(_trials(search[: world.search_rows // 2, : world.candidates // 2], sizes))
    early = None
    if half and half[0].trial.p_value <= 0.1:
        early = next(iter(certifier.early(half[0]).rows), None)
    finalists = freeze(_trials(search, sizes))
    found = certifier.final(finalists, early)
    certified = {row.finalist.trial.number for row in found.rows if row.status == "certified"}
    return certified, finalists


def _p_values(changes: np.ndarray) -> np.ndarray:
    gains, losses = (changes > 0).sum(0), (changes < 0).sum(0)
    return norm.sf(paired.score(gains, losses, len(changes), BORDER))


def _trials(changes: np.ndarray, sizes: np.ndarray) -> Iterator[Trial]:
    for number, p in enumerate(_p_values(changes)):
        yield Trial(
            number, ({"technique": str(number)},), "done",
            figures={"objective": sizes[number] / 1000}, p_value=float(p), model=str(number),
        )  # fmt: skip


def _evidence(changes: np.ndarray, size: int) -> Evidence:
    """Answers in which the original is wrong just where the candidate gains."""
    label = np.zeros(len(changes), dtype=np.int64)
    before, after = (changes > 0).astype(np.int64), (changes < 0).astype(np.int64)
    return Evidence((1000, size), answers=(before, after), truth=Truth(label, before))


WORLDS = {
    "30 on the border, independent": World(),
    "30 on the border, correlated": World(alike=0.8),
    "25 on the border, 5 good": World(good=5, alike=0.5),
}


# --- the table ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10_000)
    many = parser.parse_args().repetitions
    began = time.monotonic()
    for line in _table(many):
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)


def _table(many: int) -> Iterator[str]:
    for n in (50, 100, 200, 500, 1000, 2000, 10_000):
        for border in (-0.002, -0.01, 0.0):
            exact, score = paired_levels(n, border)
            yield f"paired 0/1, n {n}, margin {-border}: level exact {exact:.4f}, score {score:.4f}"
    for n in (50, 200, 1000, 10_000):
        for flips in (0.012, 0.03, 0.1, 0.2):
            covered = paired_coverage(n, BORDER, flips, 20 * many)
            yield f"paired 0/1, n {n}, flips {flips}: coverage of the interval {covered:.4f}"
    for n in (50, 200, 1000, 4000):
        for name, draw in REAL.items():
            level, t = (mean_level(draw, n, each, many // 4) for each in ("self", "t test"))
            covered = mean_coverage(draw, n, many // 20)
            yield f"mean, n {n}, {name}: level {level:.3f} (t test {t:.3f}), coverage {covered:.3f}"
        for name, draw in BOUNDED.items():
            level, t = (mean_level(draw, n, each, many // 4) for each in ("bounded", "t test"))
            yield f"bounded mean, n {n}, {name}: level {level:.3f} (t test {t:.3f})"
    for n in (200, 1000):
        level, covered = bootstrap_auc(n, many // 20)
        yield f"bootstrap of AUC, n {n}: level {level:.3f}, coverage {covered:.3f}"
    for name, rare in RARE.items():
        yield f"rare class, {name}: level {rare_level(rare, many // 20):.3f}"
    for rows, positives in ((4000, 40), (3000, 300)):
        level = rare_auc_level(rows, positives, many // 50)
        yield f"rare class, AUC, {positives} of {rows}: level {level:.3f}"
    for rows in (200, 1000):
        for uneven in (False, True):
            level = copies_level(rows, 10, many // 10, uneven=uneven)
            yield f"{rows} rows, {'1 to 19' if uneven else '10'} copies: level {level:.3f}"
    for q, rounds, calls in ((0.5, 20, 20), (0.95, 20, 50), (0.95, 40, 20), (0.99, 40, 50)):
        for drift in (0.0, 0.05):
            ours = quantile_coverage(q, rounds, calls, drift, many // 5)
            plain = quantile_coverage(q, rounds, calls, drift, many // 5, naive=True)
            yield (
                f"p{q * 100:.0f} of {rounds} x {calls} calls, drift {drift}: coverage {ours:.3f} "
                f"(rounds ignored {plain:.3f})"
            )
    for rounds in (6, 10, 20, 40):
        ranks, drawn = (ratio_coverage(rounds, many // 4, each) for each in ("ranks", "bootstrap"))
        yield f"ratio over {rounds} rounds: coverage {ranks:.3f} (percentile bootstrap {drawn:.3f})"
    for name, world in WORLDS.items():
        for runs in (1, 4):
            found = certification(world, many, runs=runs)
            share = {k: getattr(found, k) / many for k in ("wrong", "walking_on", "everything")}
            yield (
                f"{name}, {runs} run(s): wrongly certified {share['wrong']:.4f} (walking on past "
                f"failures {share['walking_on']:.4f}, all 30 tested {share['everything']:.4f}); "
                f"a good one certified {found.good / many:.3f}"
            )


if __name__ == "__main__":
    main()
