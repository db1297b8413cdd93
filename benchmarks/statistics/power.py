"""What certification finds, beside the plain way: one paired test per candidate with Bonferroni.

50 candidates that trade quality for size: drops of 0 to 2 points, 1 to 6 % of the answers changed,
the smaller the worse on the whole; the answers changed grow with the drop ("alike") or have nothing
to do with it ("apart"). The procedure is Sartor's own, a first run with its early answer (which
takes 4 of the 5 %); the plain way has the same holdout and all of the 5 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from chain import (
    TASK,
    Holdout,
    Kind,
    World,
    count,
    even,
    evidence,
    in_memory,
    mixed,
    outcomes,
    p_of_counts,
    remembered,
)

from sartor.certify import BET, Certifier
from sartor.finalists import Finalist, freeze
from sartor.ledger import Ledger
from sartor.limits import parse_objective
from sartor.racing import EARLY_GAIN, likely
from sartor.records import Trial
from sartor.verdicts import Evidence

SEED = 2  # none that the procedure was tuned with
CLOSE = 1.05  # times the best feasible objective: as good as found

WORLDS = {
    "accuracy": World((), margin_by_segment=None, most_flips=None),
    "accuracy, four segments, flips": World((), margin_by_segment=0.05, most_flips=0.05),
}
TRADES = ("alike", "apart")
RUN = "run"


@dataclass(frozen=True)
class Power:
    """Shares of the repetitions in which something was certified, in which it was within 5 % of the
    best feasible candidate's objective, and in which it was not feasible; and the mean objective
    reached, 1 being the original's."""

    something: float
    best: float
    wrong: float
    objective: float


@dataclass(frozen=True)
class Candidates:
    recipes: list[tuple[int, ...]]
    kinds: list[Kind]
    sizes: np.ndarray  # [K], of 1000
    feasible: np.ndarray  # [K]

    @property
    def best(self) -> float:
        return float(self.sizes[self.feasible].min(initial=1000)) / 1000


def candidates(world: World, rng: np.random.Generator, trade: str) -> Candidates:
    many = world.candidates
    on = rng.random((many, world.parts)) < 0.5
    recipes = [tuple(np.flatnonzero(row).tolist()) or (0,) for row in on]
    harm = rng.random(many)  # how much is taken away
    if trade == "alike":
        drop = np.clip(0.02 * harm * rng.uniform(0, 1.6, many) - 0.001, 0, 0.02)
        flips = 0.01 + 0.05 * harm * rng.uniform(0.6, 1, many)
    else:
        drop, flips = 0.02 * harm, rng.uniform(0.01, 0.06, many)
    flips = np.maximum(flips, 1.1 * drop)
    sizes = (950 - 430 * harm - rng.uniform(0, 170, many)).astype(int)
    feasible = (drop < world.margin) & (flips < (world.most_flips or 1.0))
    kinds = [even(d, f) for d, f in zip(drop, flips, strict=True)]
    return Candidates(recipes, kinds, sizes, feasible)


def compare(name: str, trade: str, holdout: int, repetitions: int) -> dict[str, Power]:
    """The power of Sartor, of the plain way on the same holdout, and of the plain way on all rows,
    the search part included: without a search that looks at them it needs no part for that."""
    world, rng = WORLDS[name], np.random.default_rng([SEED, TRADES.index(trade), holdout])
    picked: dict[str, list[tuple[int | None, Candidates]]] = {}
    with remembered(), in_memory() as folder:
        for number in range(repetitions):
            found = candidates(world, rng, trade)
            ledger = Ledger(folder / f"{number}.jsonl", Holdout.digest)
            for way, chosen in _ways(world, found, holdout, ledger, rng):
                picked.setdefault(way, []).append((chosen, found))
    return {way: _power(chosen) for way, chosen in picked.items()}


def _ways(
    world: World, found: Candidates, rows: int, ledger: Ledger, rng: np.random.Generator
) -> Iterator[tuple[str, int | None]]:
    search, held = (
        outcomes(rng.standard_normal((n, world.parts), dtype=np.float32), found.recipes,
                 found.kinds)
        for n in (rows * 3 // 5, rows)  # the parts have 30 and 50 % of the data
    )  # fmt: skip
    seen, kept = count(search), count(held)
    yield "Sartor", _certified(world, found, p_of_counts(world, *seen), held, ledger)
    yield "Bonferroni", _plain(p_of_counts(world, *kept), found)
    both = [a + b for a, b in zip(seen, kept, strict=True)]
    yield "Bonferroni, all rows", _plain(p_of_counts(world, *both), found)


def _plain(p: np.ndarray, found: Candidates) -> int | None:
    passing = np.flatnonzero(p <= 0.05 / len(p))
    return int(passing[found.sizes[passing].argmin()]) if len(passing) else None


def _certified(
    world: World, found: Candidates, p: np.ndarray, held: np.ndarray, ledger: Ledger
) -> int | None:
    trials = [
        Trial(
            number, ({"technique": str(number)},), "done", p_value=float(p[number]),
            model=str(number), figures={"objective": found.sizes[number] / 1000},
        )
        for number in range(len(p))
    ]  # fmt: skip
    sealed: Any = Holdout(len(held))
    order = mixed(len(held))

    def measure(finalist: Finalist, part: Holdout | None) -> Evidence:
        number = finalist.trial.number
        if part is None:
            return Evidence((1000, int(found.sizes[number])))
        return evidence(held[order[: len(part)], number], int(found.sizes[number]), part)

    certifier = Certifier(world.limits, parse_objective("size"), TASK, measure, sealed, ledger, RUN)
    level = ledger.early_level(RUN) * (1 - BET["early"])
    searched = len(held) * 3 // 5
    sure = next(
        (
            trial
            for trial in trials
            if trial.figures["objective"] <= EARLY_GAIN
            and likely(trial.p_value, searched, len(held), level)
        ),
        None,
    )
    early = certifier.early(Finalist(sure.model, sure)).rows[0] if sure else None
    best = certifier.final(freeze(trials), early).best
    return best.finalist.trial.number if best else None


def _power(chosen: list[tuple[int | None, Candidates]]) -> Power:
    reached = [1.0 if at is None else found.sizes[at] / 1000 for at, found in chosen]
    return Power(
        something=float(np.mean([at is not None for at, _ in chosen])),
        best=float(
            np.mean(
                [
                    at is not None and bool(found.feasible[at]) and value <= CLOSE * found.best
                    for (at, found), value in zip(chosen, reached, strict=True)
                ]
            )
        ),
        wrong=float(np.mean([at is not None and not found.feasible[at] for at, found in chosen])),
        objective=float(np.mean(reached)),
    )
