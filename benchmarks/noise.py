"""How often a model is found faster than itself, by recorded starts of both.

    python benchmarks/loaded.py record --state calm --to build/loaded      # and --state loaded
    python benchmarks/noise.py build/loaded [--repetitions 4000]

Every race of `loaded.py` has the original and its twin in each of its starts: one log ratio whose
truth is 1. Races of twelve starts are drawn from them (without replacement, of one model and
state), with a random sign, since which of the two is called the candidate is arbitrary; each way
of choosing how many starts to judge by is counted for how often it errs at the level given.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from loaded import Recorded, recorded

from sartor import stats
from sartor.judge_timing import NARROW, ROOM, _starts

FIRST, MOST = 6, 12
Values = np.ndarray
Judge = Callable[[Values, float], bool]


def below(values: Values, alpha: float, first: int = 0) -> bool:
    return stats.centre(values, 0.0, first=first).below <= alpha


def two_stages(values: Values, alpha: float) -> bool:
    """Sartor's: the first six settle how many, their scatter is that of the verdict."""
    found = stats.centre(values[:FIRST], 0.0)
    total = FIRST
    if min(found.above, found.below) > ROOM:
        total = stats.values_for(values[:FIRST], NARROW, MOST)
    return below(values[:total], alpha, FIRST)


def by_width(values: Values, alpha: float) -> bool:
    """One more start until the interval is narrow, and the scatter of all."""
    for n in range(FIRST, MOST + 1):
        found = stats.centre(values[:n], 0.0)
        if found.interval.high - found.interval.estimate <= NARROW:
            break
    return found.below <= alpha


def until_decided(values: Values, alpha: float) -> bool:
    """One more start until it is decided: what must not be done."""
    return any(below(values[:n], alpha) for n in range(FIRST, MOST + 1))


WAYS: dict[str, Judge] = {
    "six starts": lambda values, alpha: below(values[:FIRST], alpha),
    "two stages (Sartor)": two_stages,
    "until narrow": by_width,
    "until decided": until_decided,
}


def pools(races: list[Recorded], left: bool) -> dict[tuple[str, str], Values]:
    """(model, state) -> log(twin / original) of every start, centred: what two starts differ by
    in truth is nothing."""
    found: dict[tuple[str, str], list[Values]] = {}
    for race in races:
        timing = race.timing.undisturbed() if left else replace(race.timing, queued=None)
        control = timing.of([timing.baseline, timing.lanes[2], timing.lanes[2]])
        key = race.facts["model"], race.facts["state"]
        found.setdefault(key, []).append(_starts(control, "p50"))
    return {key: np.concatenate(each) for key, each in found.items()}


def main() -> None:
    """A table: the share of wrong verdicts, by model, state and way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--alpha", type=float, default=0.03)
    given = parser.parse_args()
    races = recorded(given.folder)
    rng = np.random.default_rng(0)
    print(f"| model, state | starts | scatter | {' | '.join(WAYS)} |")
    print("|---|---|---|" + "---|" * len(WAYS))
    for left in (True, False):
        for (model, state), pool in sorted(pools(races, left).items()):
            wrong = dict.fromkeys(WAYS, 0)
            for _ in range(given.repetitions):
                values = rng.choice(pool, MOST, replace=False) * rng.choice([-1.0, 1.0])
                for name, way in WAYS.items():
                    wrong[name] += way(values, given.alpha)
            cells = [f"{count / given.repetitions:.1%}" for count in wrong.values()]
            what = f"{model}, {state}" + ("" if left else ", queue left in")
            print(f"| {what} | {len(pool)} | {pool.std():.1%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
