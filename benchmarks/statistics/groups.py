"""How often verdicts on groups and on calibration err, where the truth lies on the limit.

    python benchmarks/statistics/groups.py [--repetitions 1000]

"Level": how often a limit that does not hold (the truth lies a hair beyond it) is called met, at a
nominal 5 %; "broken": how often a limit that just holds is called broken; "coverage": of the
95 % interval of the figure. The tests run the same with fewer repetitions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sartor.contracts import Task
from sartor.limits import parse
from sartor.metrics import Truth
from sartor.verdicts import Evidence, judge

TASK = Task("classification", "answer", "accuracy", classes=2, form="classes")
CHANCES = Task("classification", "answer", "ece", classes=2, form="probabilities")


@dataclass(frozen=True)
class Groups:
    """Groups of `rows`, chosen at the rates `after`; the original at `before`, of which a share
    `alike` of the rows keeps its answer where the rates allow. `value`: the true figure."""

    text: str
    value: float
    rows: tuple[int, ...]
    after: tuple[float, ...]
    before: tuple[float, ...]

    def draw(self, rng: np.random.Generator) -> Evidence:
        group = np.repeat(np.arange(len(self.rows)), self.rows)
        u = rng.random(len(group))
        # One uniform number for both: answers change no more than the rates ask for.
        before, after = (
            (u < np.array(rates)[group]).astype(np.int64) for rates in (self.before, self.after)
        )
        truth = Truth(np.ones(len(group), np.int64), before, segments={"group": group})
        return Evidence((2, 1), answers=(before, after), truth=truth)


DPD, EOD, DPR = (
    "demographic_parity_difference@group",
    "equal_opportunity_difference@group",
    "demographic_parity_ratio@group",
)
GROUPS = {
    "2 groups of 500": Groups(f"{DPD} <= 0.0999", 0.1, (500, 500), (0.35, 0.25), (0.35, 0.25)),
    "2 groups of 60 and 2,000": Groups(
        f"{DPD} <= 0.0999", 0.1, (60, 2000), (0.12, 0.02), (0.1, 0.02)
    ),
    "2 groups of 25": Groups(f"{DPD} <= 0.2999", 0.3, (25, 25), (0.7, 0.4), (0.7, 0.4)),
    "5 groups, two apart": Groups(
        f"{DPD} <= 0.0999", 0.1, (300,) * 5, (0.3, 0.2, 0.25, 0.25, 0.25), (0.3,) * 5
    ),
    "8 groups, each at an end": Groups(
        f"{DPD} <= 0.0499", 0.05, (2000,) * 8, (0.25, 0.2) * 4, (0.2,) * 8
    ),
    "opportunity, 2 groups of 500": Groups(
        f"{EOD} <= 0.0999", 0.1, (500, 500), (0.9, 0.8), (0.9, 0.9)
    ),
    "from nothing to 0.02": Groups(
        f"{DPD} <= baseline + 0.0199", 0.02, (1500, 1500), (0.26, 0.24), (0.25, 0.25)
    ),
    "from 0.1 to 0.12": Groups(
        f"{DPD} <= baseline + 0.0199", 0.12, (1500, 1500), (0.37, 0.25), (0.35, 0.25)
    ),
    "turned round, 0.1 to 0.12": Groups(
        f"{DPD} <= baseline + 0.0199", 0.12, (1500, 1500), (0.25, 0.37), (0.35, 0.25)
    ),
    "4 groups, another pair widens": Groups(
        f"{DPD} <= baseline + 0.0199", 0.07, (1500,) * 4, (0.27, 0.2, 0.22, 0.25),
        (0.25, 0.2, 0.22, 0.25),
    ),
    "ratio, 2 groups of 500": Groups(f"{DPR} >= 0.8005", 0.8, (500, 500), (0.5, 0.4), (0.5, 0.4)),
    "ratio against the original's": Groups(
        f"{DPR} >= baseline - 0.0499", 0.75, (2000, 2000), (0.4, 0.3), (0.375, 0.3)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Binary chances, of class 1: the original says `old` too much of itself (on the logit scale),
    the candidate `new`; 1 is calibrated."""

    rows: int
    old: float
    new: float

    def draw(self, rng: np.random.Generator, rows: int | None = None) -> tuple[np.ndarray, ...]:
        logit = 2 * rng.normal(size=rows or self.rows)
        label = (rng.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        chances = (1 / (1 + np.exp(-logit * scale)) for scale in (self.old, self.new))
        return (label, *chances)

    def values(self) -> tuple[float, float]:
        """The true binned errors, of the original and of the candidate."""
        logit = 2 * np.random.default_rng(0).normal(size=4_000_000)
        true = 1 / (1 + np.exp(-logit))
        found = []
        for scale in (self.old, self.new):
            said = 1 / (1 + np.exp(-logit * scale))
            sure = np.maximum(said, 1 - said)
            gap = np.where(said > 0.5, true, 1 - true) - sure
            at = np.minimum((sure * 15).astype(np.int64), 14)
            found.append(float(np.abs(np.bincount(at, gap)).sum() / len(logit)))
        return found[0], found[1]


CALIBRATION = {
    "absolute, 500 rows": (Calibration(500, 1.0, 1.5), False),
    "absolute, 4,000 rows": (Calibration(4000, 1.0, 1.5), False),
    "from calibrated to not, 500 rows": (Calibration(500, 1.0, 1.3), True),
    "from calibrated to not, 4,000 rows": (Calibration(4000, 1.0, 1.3), True),
    "from bad to worse, 2,000 rows": (Calibration(2000, 1.5, 1.8), True),
    "from too sure to unsure, 2,000 rows": (Calibration(2000, 1.3, 0.7), True),
    "hardly changed, 2,000 rows": (Calibration(2000, 1.0, 1.05), True),
}


@dataclass(frozen=True)
class Errors:
    met: float
    covered: float


def group_errors(world: Groups, repetitions: int) -> Errors:
    rng, limit, met, covered = np.random.default_rng(0), parse(world.text), 0, 0
    for _ in range(repetitions):
        found = judge(limit, world.draw(rng), TASK, seed=int(rng.integers(1 << 30)))
        met += found.outcome == "met"
        low, high = found.low, found.high
        if limit.bound.kind == "offset":  # the interval is that of the change
            change = world.value - (found.bound - limit.bound.value)
            change -= _true_before(world) - (found.bound - limit.bound.value)
            known = found.bound - limit.bound.value
            low, high = low - known, high - known
            covered += low <= change <= high
        else:
            covered += low <= world.value <= high
    return Errors(met / repetitions, covered / repetitions)


def _true_before(world: Groups) -> float:
    top, bottom = max(world.before), min(world.before)
    return bottom / top if "ratio" in world.text else top - bottom


def calibration_errors(world: Calibration, relative: bool, repetitions: int) -> Errors:
    rng, (old, new) = np.random.default_rng(0), world.values()
    text = f"ece <= baseline + {new - old - 1e-4:.6f}" if relative else f"ece <= {new - 1e-4:.6f}"
    limit, met, covered = parse(text), 0, 0
    for _ in range(repetitions):
        label, before, after = world.draw(rng)
        evidence = Evidence((2, 1), answers=(before, after), truth=Truth(label, before))
        found = judge(limit, evidence, CHANCES, seed=int(rng.integers(1 << 30)))
        met += found.outcome == "met"
        known = found.bound - limit.bound.value if relative else 0.0
        covered += found.low - known <= new - (old if relative else 0.0) <= found.high - known
    return Errors(met / repetitions, covered / repetitions)


def lines(repetitions: int) -> Iterator[str]:
    yield "| on the limit | level | coverage |"
    yield "|---|---:|---:|"
    for name, world in GROUPS.items():
        found = group_errors(world, repetitions)
        yield f"| {world.text.split('@')[0]}: {name} | {found.met:.3f} | {found.covered:.3f} |"
    for name, (case, relative) in CALIBRATION.items():
        found = calibration_errors(case, relative, repetitions)
        yield f"| ece: {name} | {found.met:.3f} | {found.covered:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    for line in lines(parser.parse_args().repetitions):
        print(line, flush=True)


if __name__ == "__main__":
    main()
