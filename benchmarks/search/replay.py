"""Replays searches on recorded landscapes: how many trials until the best is nearly found.

    python benchmarks/search/replay.py [--seeds 30] [--only NAME] [--methods ours random tpe]

For each landscape and each set of limits a search asks, the recording answers, until a feasible
candidate within 3 % of the best feasible objective was tried. Feasible: on all recorded rows the
limits hold by the point estimate, and nothing is slower or bigger than the original. The search is
told what a real run would tell it: the verdict of the paired counts. What it learns from other
models are the other landscapes, never the one it is tested on; the portfolio written by hand is
left out, since its author knew some of these models (`hand` is the search with it).
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from spaces import SPACES, restricted

from sartor import paired
from sartor.contracts import Technique, to_json
from sartor.priors import Lesson, correlation, observed
from sartor.proposals import SLOTS, rebuilt
from sartor.records import Trial, Verdict
from sartor.search import GuidedSearch
from sartor.space import Choice, domains

HERE = Path(__file__).resolve().parent / "landscapes"
NEAR = 1.03
SLOWER = 1.2


@dataclass(frozen=True)
class Goal:
    """Limits and objective of a replay: accuracy may fall by `slack`; `size` is the share of the
    original's bytes that is allowed."""

    slack: float
    size: float = 1.0
    objective: str = "latency"

    def __str__(self) -> str:
        size = f", size <= {self.size:g} x" if self.size < 1 else ""
        return f"{self.objective}; accuracy - {self.slack:g}{size}"


GOALS = (Goal(0.002), Goal(0.01), Goal(0.01, size=0.28), Goal(0.01, objective="size"))


class Landscape:
    def __init__(self, path: Path) -> None:
        facts = json.loads(gzip.decompress(path.read_bytes()))
        self.name: str = facts["name"]
        self.rows: int = facts["rows"]
        self.size: int = facts["size"]
        self.features: Mapping[str, float] = facts["features"]
        self.known: Mapping[str, type[Technique]] = restricted(SPACES[self.name])
        self.portfolio = facts["portfolio"]
        whole = {c["digest"]: c for c in facts["candidates"] if "ratio" in c}
        self.candidates: dict[str, dict[str, Any]] = {}
        for each in facts["candidates"]:
            entries = tuple(self._completed(facts["steps"][at]) for at in each["recipe"])
            key = json.dumps(entries, sort_keys=True)
            found = {**whole.get(each.get("digest", ""), {}), **each, "entries": entries}
            if "right" in found:
                found["bits"] = self._bits(found["right"])
            self.candidates[key] = found
        self.own = self.candidates["[]"]["bits"]

    def _completed(self, step: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the settings that the technique got since it was recorded, as they are usually."""

        return {**to_json(self.known[step["technique"]]()), **step}

    def _bits(self, text: str) -> np.ndarray:
        packed = np.frombuffer(base64.b85decode(text), np.uint8)
        return np.unpackbits(packed)[: self.rows].astype(bool)

    def objective(self, found: Mapping[str, Any], goal: Goal) -> float:
        if not found["entries"]:
            return 1.0
        return float(found["ratio"] if goal.objective == "latency" else found["size"] / self.size)

    def feasible(self, found: Mapping[str, Any], goal: Goal) -> bool:
        if not found["entries"]:
            return goal.size >= 1
        if "bits" not in found:
            return False
        sound = found["bits"].sum() - self.own.sum() >= -goal.slack * self.rows - 1e-9
        light = found["size"] <= goal.size * self.size
        # What is not clearly slower is left to the certificate, where size is the objective.
        return bool(
            sound and light and found["ratio"] <= (1.0 if goal.objective == "latency" else 1.05)
        )

    def best(self, goal: Goal) -> float:
        return min(
            (self.objective(c, goal) for c in self.candidates.values() if self.feasible(c, goal)),
            default=math.inf,
        )

    def trial(self, number: int, entries: tuple[Any, ...], goal: Goal, seen: set[str]) -> Trial:
        """What a real run would be told."""
        found = self.candidates[json.dumps(entries, sort_keys=True)]
        if "bits" not in found:
            return Trial(
                number, entries, found["state"], "recorded so", culprit=found.get("culprit", "")
            )
        figures = {"objective": self.objective(found, goal), "latency.ratio": found["ratio"],
                   "size": found["size"]}  # fmt: skip
        verdicts: tuple[Verdict, ...] = ()
        if goal.size < 1:
            bound = goal.size * self.size
            met, size = found["size"] <= bound, float(found["size"])
            verdicts = (Verdict("size", "met" if met else "broken", size, size, size, bound,
                                0.0 if met else 1.0, "exact", 0),)  # fmt: skip
            if not met:
                return Trial(number, entries, "dropped", "size", figures, verdicts, 1.0)
        slow = found["ratio"] > (1.0 if goal.objective == "latency" else SLOWER)
        if entries and (slow or figures["objective"] > 1):
            return Trial(number, entries, "dropped", "no gain", figures, verdicts, 0.0)
        verdicts += (self._quality(found, goal),)
        p = max(each.p_value for each in verdicts)
        same = found["digest"] in seen
        seen.add(found["digest"])
        lost = verdicts[-1].p_value > 0.99
        state = "dropped" if same or lost else "done"
        return Trial(number, entries, state, "", figures, verdicts, p, 1.0, self.rows, same=same)  # type: ignore[arg-type]

    def _quality(self, found: Mapping[str, Any], goal: Goal) -> Verdict:
        gains = int((found["bits"] & ~self.own).sum())
        losses = int((self.own & ~found["bits"]).sum())
        if not found["entries"]:
            return Verdict("accuracy", "met", 0.0, 0.0, 0.0, 0.0, 0.0, "exact", self.rows)
        key = (gains, losses, goal.slack)
        if key not in self._compared:
            self._compared[key] = paired.compare(gains, losses, self.rows, -goal.slack)
        c = self._compared[key]
        outcome = "met" if c.above <= 0.05 else "broken" if c.below <= 0.05 else "undecided"
        i = c.interval
        return Verdict("accuracy", outcome, i.estimate, i.low, i.high, -goal.slack, c.above,
                       c.method, self.rows)  # type: ignore[arg-type]  # fmt: skip

    @cached_property
    def _compared(self) -> dict[Any, Any]:
        return {}


# -- methods: each gives (landscape, goal, seed, others) -> a searcher with ask and tell --------


class Random:
    def __init__(self, land: Landscape, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(land.candidates)).tolist()
        entries = [c["entries"] for c in land.candidates.values()]
        self.waiting = [(), *(entries[at] for at in order if entries[at])]

    def ask(self) -> tuple[Any, ...] | None:
        return self.waiting.pop(0) if self.waiting else None

    def tell(self, trial: Trial) -> None:
        pass


class PlainTpe:
    """Optuna's TPE as it comes, over slots, techniques and settings; the limits as penalties (or,
    `constrained`, as constraints: c-TPE). What it asks twice costs it no trial."""

    def __init__(self, land: Landscape, seed: int, constrained: bool = False) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.known = land.known
        self.study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed), direction="minimize"
        )
        self.constrained = constrained
        self.first, self.asked = True, None
        self.told: dict[str, Trial] = {}
        self.rng = np.random.default_rng(seed)
        self.all = [c["entries"] for c in land.candidates.values()]

    def ask(self) -> tuple[Any, ...] | None:
        if self.first:
            self.first = False
            return ()
        for _ in range(100):
            self.asked = self.study.ask()
            entries = self._suggested()
            known = self.told.get(json.dumps(entries, sort_keys=True))
            if known is None:
                return entries
            self._teach(self.asked, known)
        self.asked = None
        left = [e for e in self.all if json.dumps(e, sort_keys=True) not in self.told]
        return left[int(self.rng.integers(len(left)))] if left else None

    def tell(self, trial: Trial) -> None:
        self.told[trial.key] = trial
        if self.asked is not None:
            self._teach(self.asked, trial)

    def _teach(self, question: Any, trial: Trial) -> None:
        value = trial.figures.get("objective", 3.0)
        broken = max([-1.0, *(each.p_value - 0.5 for each in trial.verdicts)])
        if self.constrained:
            question.set_constraint("limits", 1.0 if trial.culprit else broken)
        elif trial.culprit or broken > 0:
            value = max(value, 1.0) + trial.p_value
        self.study.tell(question, value)

    def _suggested(self) -> tuple[Any, ...]:

        steps: list[Technique] = []
        for number, stage in enumerate(SLOTS):
            names = [n for n, cls in self.known.items() if cls.stage == stage]
            if SLOTS[:number].count(stage) >= len(names):  # no more places than techniques
                continue
            picked = self.asked.suggest_categorical(f"{number}:{stage}", ["none", *names])  # type: ignore[attr-defined]
            if picked == "none" or any(isinstance(s, self.known[picked]) for s in steps):
                continue
            settings = {
                name: domain.values[self.asked.suggest_categorical(  # type: ignore[attr-defined]
                    f"{number}:{picked}:{name}", list(range(len(domain.values))))]
                for name, domain in domains(self.known[picked]).items()
                if isinstance(domain, Choice)
            }  # fmt: skip
            steps.append(self.known[picked](**settings))
        return tuple(to_json(each) for each in steps)


class Ours:
    def __init__(
        self, land: Landscape, goal: Goal, seed: int, others: list[Landscape], hand: bool = False,
        cls: type[GuidedSearch] = GuidedSearch,
    ) -> None:  # fmt: skip
        first = [rebuilt(land.known, each) for each in land.portfolio] if hand else []
        learned = [e for n, o in enumerate(others, 1) for e in lessons(o, n, land, goal, seed)]
        known = [each for each in first if each is not None]
        self.searcher = cls("onnx", land.known, known, lessons=learned, seed=seed)

    def ask(self) -> tuple[Any, ...] | None:

        asked = self.searcher.ask()
        return tuple(to_json(each) for each in asked[0]) if asked else None

    def tell(self, trial: Trial) -> None:
        self.searcher.tell(trial)


DRAWN = 40  # trials that a journal of another model holds


def lessons(other: Landscape, source: int, land: Landscape, goal: Goal, seed: int) -> list[Lesson]:
    """What the journal of a run on `other` would teach: of some trials, drawn at random."""
    alike = correlation(other.features, land.features)
    entries = [c["entries"] for c in other.candidates.values()]
    order = np.random.default_rng([seed, source]).permutation(len(entries))[:DRAWN]
    trials = [other.trial(0, entries[at], goal, set()) for at in order.tolist()]
    return [Lesson(t.recipe, t.state, observed(t), source, alike) for t in trials]


METHODS: dict[str, Callable[[Landscape, Goal, int, list[Landscape]], Any]] = {
    "random": lambda land, goal, seed, others: Random(land, seed),
    "tpe": lambda land, goal, seed, others: PlainTpe(land, seed),
    "c-tpe": lambda land, goal, seed, others: PlainTpe(land, seed, constrained=True),
    "alone": lambda land, goal, seed, others: Ours(land, goal, seed, []),
    "hand": lambda land, goal, seed, others: Ours(land, goal, seed, [], hand=True),
    "ours": lambda land, goal, seed, others: Ours(land, goal, seed, others),
}


MOST = 0.4  # of the candidates: then a replay is given up, and counts as one that took them all


def needed(land: Landscape, goal: Goal, searcher: Any) -> int:
    """Trials until a feasible candidate within 3 % of the best was tried."""
    best, seen = land.best(goal), set[str]()
    for number in range(
        int(MOST * len(land.candidates))
        if not isinstance(searcher, Random)
        else len(land.candidates)
    ):
        entries = searcher.ask()
        if entries is None:
            break
        found = land.candidates[json.dumps(entries, sort_keys=True)]
        if land.feasible(found, goal) and land.objective(found, goal) <= NEAR * best:
            return number + 1
        if not isinstance(searcher, Random):
            searcher.tell(land.trial(number, entries, goal, seen))
    return len(land.candidates)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--only", action="append")
    parser.add_argument("--methods", nargs="+", default=["ours", "alone", "random", "tpe"])
    given = parser.parse_args()
    lands = [Landscape(path) for path in sorted(HERE.glob("*.json.gz"))]
    print(f"| landscape | candidates | goal | best | within 3 % | {' | '.join(given.methods)} |")
    print("|" + "---|" * (5 + len(given.methods)))
    for land in lands:
        if given.only and land.name not in given.only:
            continue
        others = [each for each in lands if each is not land]
        for goal in GOALS:
            print(line(land, goal, others, given.methods, given.seeds), flush=True)


def line(land: Landscape, goal: Goal, others: list[Landscape], methods: Any, seeds: int) -> str:
    best = land.best(goal)
    good = sum(
        land.feasible(c, goal) and land.objective(c, goal) <= NEAR * best
        for c in land.candidates.values()
    )
    cells = [land.name, str(len(land.candidates)), str(goal), f"{best:.3f}", str(good)]
    if best >= 1:
        return f"| {' | '.join([*cells, *('-' for _ in methods)])} |"
    for method in methods:
        took = [needed(land, goal, METHODS[method](land, goal, s, others)) for s in range(seeds)]
        low, middle, high = np.quantile(took, [0.1, 0.5, 0.9])
        cells.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
