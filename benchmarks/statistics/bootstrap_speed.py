"""How long a paired bootstrap of a figure of the whole set takes, by metric.

    python benchmarks/statistics/bootstrap_speed.py [--rows 10000] [--resamples 2000]

"fast": by counts, as verdicts take it; "slow": rows drawn one resample after the other, as
functions of the user's are, on 100 resamples and scaled up; "verdict": all that a limit costs.
CPU seconds of one process, which a loaded machine does not lengthen as much as those of the
clock; the best of three but for "slow".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sartor.bootstrap import bootstrap
from sartor.contracts import Task
from sartor.definitions import lookup
from sartor.limits import parse
from sartor.metrics import Truth, find
from sartor.verdicts import Evidence, judge

CASES = [
    *(("average_precision", 2), ("f1", 2), ("balanced_accuracy", 2), ("ece", 2)),
    *(
        ("f1_macro", 10),
        ("f1[3]", 10),
        ("balanced_accuracy", 10),
        ("average_precision", 10),
        ("ece", 10),
    ),
    *(("f1_macro", 100), ("r2", 1), ("rmse", 1), ("mean_iou", 5)),
]


def case(name: str, classes: int, rows: int) -> tuple[Evidence, Task]:
    """Answers of an original and of a candidate that differs from it a little."""
    rng = np.random.default_rng(0)
    kind = "segmentation" if name == "mean_iou" else "regression" if classes == 1 else ""
    if kind == "regression":
        label = rng.normal(size=(rows, 1))
        before = label + 0.5 * rng.normal(size=(rows, 1))
        after = before + 0.05 * rng.normal(size=(rows, 1))
    elif kind == "segmentation":
        label = rng.integers(0, classes, (rows, 8, 8))
        before, after = (
            np.where(rng.random(label.shape) < share, (label + 1) % classes, label)
            for share in (0.10, 0.11)
        )
    else:
        label = rng.integers(0, classes, rows)
        before = rng.normal(size=(rows, classes)) + 2 * np.eye(classes)[label]
        after = before + 0.1 * rng.normal(size=before.shape)
    task = Task(kind or "classification", "y", name, classes=classes, form="logits")
    return Evidence((2, 1), answers=(before, after), truth=Truth(label, before)), task


def seconds(work: Callable[[], Any], times: int = 3) -> float:
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def measure(name: str, classes: int, rows: int, resamples: int) -> tuple[float, float, float]:
    """(fast, slow, verdict) in seconds."""
    evidence, task = case(name, classes, rows)
    metric, truth = find(name, task), evidence.truth
    assert evidence.answers is not None
    assert truth is not None
    before, after = evidence.answers

    def effect(chosen: np.ndarray) -> float:
        some = truth.take(chosen)
        return metric.value(after[chosen], some) - metric.value(before[chosen], some)

    def fast() -> None:
        old, new = (metric.weighted(each, truth) for each in (before, after))
        assert old is not None
        assert new is not None
        bootstrap(effect, rows, -0.01, weighted=lambda c: new(c) - old(c), resamples=resamples)

    few = 100
    slow = seconds(lambda: bootstrap(effect, rows, -0.01, resamples=few), 1) * resamples / few
    found = lookup(name)
    sign = ">= baseline - 0.01" if found and found.higher else "<= baseline + 0.01"
    whole = seconds(lambda: judge(parse(f"{name} {sign}"), evidence, task))
    return seconds(fast), slow, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=2_000)
    given = parser.parse_args()
    print(f"{given.rows:,} rows, {given.resamples:,} resamples, CPU seconds\n")
    print("| metric | classes | fast | slow | verdict |\n|---|---:|---:|---:|---:|")
    for name, classes in CASES:
        fast, slow, whole = measure(name, classes, given.rows, given.resamples)
        print(f"| {name} | {classes} | {fast:.2f} | {slow:.1f} | {whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
