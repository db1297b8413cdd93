"""How often the bootstrap errs on figures of a whole set, where the truth is known:

    python benchmarks/statistics/bootstrap_levels.py [--repetitions 200] [--rows 300 1000 3000]

Minutes to an hour, and so in a script of its own; its table is in docs/statistics.md. Each figure
has a limit that lies exactly on the true change (found on two million rows), so that "met" and
"broken" are both errors, at a nominal 5 % each, and the 95 % interval should hold it in 95 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from sartor.contracts import Task
from sartor.limits import parse
from sartor.metrics import Truth, find
from sartor.verdicts import Evidence, judge

Sample = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # labels, the original's answers, the candidate's
BINARY = Task("classification", "answer", "accuracy", classes=2)
THREE = Task("classification", "answer", "accuracy", classes=3)
NUMBER = Task("regression", "answer", "mae")


def two_classes(rng: np.random.Generator, n: int) -> Sample:
    """30 % positives; probabilities, of which the candidate's are noisier."""
    label = (rng.random(n) < 0.3).astype(np.int64)
    score = rng.normal(size=n) + 1.8 * label - 1.3
    after = score + 0.35 * rng.normal(size=n)
    return label, *(1 / (1 + np.exp(-1.8 * each)) for each in (score, after))


def rare_class(rng: np.random.Generator, n: int) -> Sample:
    """The same with 5 % positives."""
    label = (rng.random(n) < 0.05).astype(np.int64)
    score = rng.normal(size=n) + 2.5 * label - 2.4
    after = score + 0.3 * rng.normal(size=n)
    return label, *(1 / (1 + np.exp(-2.5 * each)) for each in (score, after))


def three_classes(rng: np.random.Generator, n: int) -> Sample:
    label = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(n, 3)) + 2.0 * np.eye(3)[label]
    after = logits + 0.4 * rng.normal(size=(n, 3))
    return label, *(np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, after))


def numbers(rng: np.random.Generator, n: int) -> Sample:
    """A regression whose errors have heavy tails."""
    label = rng.normal(size=n)
    before = label + 0.4 * rng.standard_t(5, n)
    return label, before, before + 0.15 * rng.standard_t(4, n)


@dataclass(frozen=True)
class Figure:
    metric: str
    draw: Callable[[np.random.Generator, int], Sample]
    task: Task


FIGURES = {
    "AUC": Figure("auc", two_classes, BINARY),
    "AUC, 5 % positives": Figure("auc", rare_class, BINARY),
    "average precision": Figure("average_precision", two_classes, BINARY),
    "F1": Figure("f1", two_classes, BINARY),
    "F1, 5 % positives": Figure("f1", rare_class, BINARY),
    "precision": Figure("precision", two_classes, BINARY),
    "F1 macro, 3 classes": Figure("f1_macro", three_classes, THREE),
    "balanced accuracy, 3 classes": Figure("balanced_accuracy", three_classes, THREE),
    "calibration (ECE)": Figure("calibration", two_classes, BINARY),
    "R2": Figure("r2", numbers, NUMBER),
    "RMSE": Figure("rmse", numbers, NUMBER),
}


@dataclass(frozen=True)
class Found:
    """Shares of the samples in which the limit was called met, called broken, and in which the
    interval held the truth."""

    met: float
    broken: float
    covered: float
    seconds: float


def truth(figure: Figure, rows: int = 2_000_000) -> float:
    label, before, after = figure.draw(np.random.default_rng(12345), rows)
    metric = find(figure.metric, figure.task)
    old, new = (metric.value(each, Truth(label, before)) for each in (before, after))
    return new - old


def level(name: str, rows: int, repetitions: int) -> Found:
    figure, rng = FIGURES[name], np.random.default_rng(rows)
    metric, change = find(figure.metric, figure.task), truth(FIGURES[name])
    sense, sign = (">=" if metric.higher else "<="), "-" if change < 0 else "+"
    limit = parse(f"{figure.metric} {sense} baseline {sign} {abs(change):.8f}")
    outcomes, covered, began = [], 0, time.perf_counter()
    for repetition in range(repetitions):
        label, before, after = figure.draw(rng, rows)
        evidence = Evidence((2, 1), answers=(before, after), truth=Truth(label, before))
        found = judge(limit, evidence, figure.task, seed=repetition)
        outcomes.append(found.outcome)
        covered += found.low <= found.bound <= found.high
    seconds = (time.perf_counter() - began) / repetitions
    share = {each: outcomes.count(each) / repetitions for each in ("met", "broken")}
    return Found(share["met"], share["broken"], covered / repetitions, seconds)


def table(rows: list[int], repetitions: int, processes: int) -> Iterator[str]:
    yield "| figure | rows | met, wrongly | broken, wrongly | the interval holds the truth |"
    yield "|---|---|---|---|---|"
    cases = [(name, n) for n in rows for name in FIGURES]
    with ProcessPoolExecutor(processes) as pool:
        waiting = [pool.submit(level, name, n, repetitions) for name, n in cases]
        for (name, n), each in zip(cases, waiting, strict=True):
            found = each.result()
            yield (
                f"| {name} | {n:,} | {found.met:.1%} | {found.broken:.1%} | {found.covered:.1%} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    for line in table(given.rows, given.repetitions, given.processes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
