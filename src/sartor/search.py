"""Which recipe to try next: the original, what is known to be good, repairs of what came close,
then longer trainings of what a short one brought nearest to its limits, then whatever a model of
what was seen expects most of.

Ask and tell: the caller owns the loop. The same seed and the same answers give the same questions,
so a run that was killed is continued by telling the journal's trials again.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sartor.contracts import Recipe, Technique, technique_name
from sartor.priors import DONE, Lesson, objective_of, observed
from sartor.proposals import (
    Points,
    belief,
    by_kind,
    everything,
    key_of,
    legal,
    neighbours,
    rebuilt,
    sample,
    singles,
)
from sartor.records import Trial
from sartor.repairs import SURE, Repairs, bolder, doubtful, lengthens
from sartor.surrogate import Observed, expected_improvement, holds, predict, stacked

__all__ = ["GuidedSearch", "key_of"]

HOPELESS = 2  # a technique that only ever refused or failed is not suggested again
PARENTS = 4  # of the best trials the neighbours are looked at
EVERY, SOME = 3, 30  # every so many asks only so many recipes drawn at random are looked at
DRAWN = 200  # recipes drawn at random beside them
BELIEF = 0.5  # what is believed beforehand, as a power, at the first trial
FRUITLESS = 5000  # draws in a row that bring only known recipes: the space is exhausted


class GuidedSearch:
    """The default Searcher.

    `known` maps technique names to classes for models of `kind`, and for what a conversion among
    them makes of these; what is `requested` comes first, then the `portfolio`, each in its
    order, then what comes `later`, which is asked for only when that was tried; `lessons` are
    trials of earlier runs on other models; `trials` ends the search after that many (None: until
    the caller stops); `ends` are the kinds of model that recipes may end in, where some are named.
    """

    def __init__(
        self,
        kind: str,
        known: Mapping[str, type[Technique]],
        portfolio: Sequence[Recipe] = (),
        *,
        requested: Sequence[Recipe] = (),
        later: Iterable[Recipe] = (),
        lessons: Sequence[Lesson] = (),
        trials: int | None = None,
        seed: int = 0,
        ends: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.ends = frozenset(ends)
        self.known = dict(sorted(known.items()))
        if lessons or not portfolio:  # what is learned orders all; something must come first
            portfolio, later = list(dict.fromkeys([*portfolio, *later])), ()
        self.waiting: list[Recipe] = [(), *requested, *portfolio]
        self.later = iter(later)
        self.trials = trials
        self.longer: list[tuple[Trial, Recipe]] = []  # what was trained, to be trained for longer
        self.told: dict[str, Trial] = {}
        self.pending: set[str] = set()
        self.useless: Counter[str] = Counter()
        self.useful: set[str] = set()
        self.repairs = Repairs(self.known)
        self.points = Points(self.known)
        self.opened: int | None = None  # trials that were told before the first proposal
        self.lessons = tuple(lessons)
        self.rng = np.random.default_rng(seed)
        self.all = everything(self.known, kind)
        if portfolio and lessons:  # what is learned orders what is tried first
            order = np.argsort(-self._promise(portfolio), kind="stable")
            self.waiting = [(), *requested, *(portfolio[at] for at in order)]
        elif not (
            portfolio or requested or lessons
        ):  # nothing is known: each technique by itself first
            self.waiting += singles(self.known, kind)

    def ask(self) -> tuple[Recipe, float] | None:
        if self.trials is not None and len(self.told) >= self.trials:
            return None
        while self.waiting or self._opened_later():
            recipe = self.waiting.pop(0)
            if key_of(recipe) not in self.told and self._allowed(recipe):
                return self._asked(recipe)
        if longer := self._worth_training():
            return self._asked(longer)
        if self.opened is None:
            self.opened = len(self.told)
        pool = self._pool()
        if not pool:
            return None
        promise = np.log(np.maximum(self._promise(pool), 1e-300)) + self._believed(pool)
        return self._asked(pool[int(np.argmax(promise))])

    def _opened_later(self) -> bool:
        self.waiting += self.later
        return bool(self.waiting)

    def _asked(self, recipe: Recipe) -> tuple[Recipe, float]:
        self.pending.add(key_of(recipe))
        return recipe, 1.0

    def tell(self, trial: Trial) -> None:
        self.told[trial.key] = trial
        self.pending.discard(trial.key)
        if trial.culprit:
            self.useless[trial.culprit] += 1
        elif trial.state in DONE:
            self.useful |= {entry["technique"] for entry in trial.recipe}
        recipe = rebuilt(self.known, trial.recipe)
        milder = self.repairs.after(trial, recipe, self._best()) if recipe else None
        if recipe and milder and _trains_longer(recipe, milder):
            self.longer.append((trial, milder))
        elif milder:
            self.waiting.insert(0, milder)
        elif recipe and (bold := bolder(trial, recipe, self._best())):
            # What was too big was not trained, and cost next to nothing: the one that fits is next.
            self.waiting.insert(0 if trial.state == "dropped" else len(self.waiting), bold)

    def upcoming(self, n: int) -> list[Recipe]:
        """At most `n` recipes that are likely to be asked next, the likeliest first, without a
        change of state: what would be asked if no answer changed the plan."""
        ahead = copy.copy(self)
        ahead.waiting, ahead.pending = list(self.waiting), set(self.pending)
        ahead.longer, ahead.later = list(self.longer), iter(())
        ahead.rng, ahead.points = copy.deepcopy(self.rng), self.points.copied()
        ahead.trials = None
        found: list[Recipe] = []
        while len(found) < n:
            asked = ahead.ask()
            if asked is None:
                break
            found.append(asked[0])
        return found

    def _worth_training(self) -> Recipe | None:
        """Of what would gain, or is the best but not surely, what a short training brought
        nearest to its limits: little training decides what gets more."""
        best = self._best()
        self.longer = [
            (trial, recipe)
            for trial, recipe in self.longer
            if objective_of(trial) <= best and not self._known(recipe)
        ]
        if not self.longer:
            return None
        nearest = min(self.longer, key=lambda each: _shortfall(each[0]))
        self.longer.remove(nearest)
        return nearest[1]

    # -- what may be asked --------------------------------------------------------------------

    def left_out(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """Those that are not asked for, whoever wants them."""
        return [each for each in recipes if not self._allowed(each)]

    def _allowed(self, recipe: Recipe) -> bool:
        if not self._ends(recipe):
            return False
        return all(technique_name(each) in self.known or each.makes for each in recipe)

    def _ends(self, recipe: Recipe) -> bool:
        """Whether its model is of a kind that was asked for; the original is tried in any case."""
        return not recipe or not self.ends or by_kind(recipe, self.kind)[-1][0] in self.ends

    def _worth(self, recipe: Recipe) -> bool:
        names = {technique_name(each) for each in recipe}
        return all(self.useless[n] < HOPELESS or n in self.useful for n in names)

    def _pool(self) -> list[Recipe]:
        """Recipes that were not tried yet: all where there are few, else the neighbours of the
        best and some at random. Now and then only a few at random, which are short more often
        than not: a model that is wrong is not followed for ever."""
        if len(self.told) % EVERY == EVERY - 1:
            few = self._new([self._drawn() for _ in range(SOME)])
            if few:
                return few
        if self.all is not None:
            return self._new(self.all)
        near: list[Recipe] = []
        for trial in self._parents():
            recipe = rebuilt(self.known, trial.recipe)
            near += neighbours(recipe, self.known, self.kind) if recipe is not None else []
        near += [each for each in map(self._learned, self.lessons) if each]
        drawn = (self._drawn() for _ in range(DRAWN))
        pool = self._new([*near, *drawn])
        for _ in range(0 if pool else FRUITLESS):
            pool = self._new([self._drawn()])
            if pool:
                break
        return pool

    def _drawn(self) -> Recipe:
        return sample(self.known, self.rng, self.kind)

    def _learned(self, lesson: Lesson) -> Recipe | None:
        recipe = rebuilt(self.known, lesson.recipe)
        return recipe if recipe and legal(recipe, self.kind) else None

    def _new(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        found: dict[str, Recipe] = {}
        for each in recipes:
            if not self._known(each) and self._ends(each) and self._worth(each):
                found.setdefault(key_of(each), each)
        return list(found.values())

    def _known(self, recipe: Recipe) -> bool:
        key = key_of(recipe)
        return key in self.told or key in self.pending

    # -- what to expect of it -----------------------------------------------------------------

    def _parents(self) -> list[Trial]:
        """The best trials whose limits hold; where these are few also those that come nearest."""
        best = sorted(filter(feasible, self.told.values()), key=objective_of)
        others = [each for each in self.told.values() if each.verdicts and not feasible(each)]
        return [*best, *sorted(others, key=_worst_margin, reverse=True)][:PARENTS]

    def _best(self) -> float:
        """The best objective among trials whose limits hold; that of the original is 1."""
        found = [objective_of(each) for each in self.told.values() if feasible(each)]
        return min([1.0, *found])

    def _promise(self, pool: Sequence[Recipe]) -> np.ndarray:
        """How much each recipe promises: expected improvement times probability to be feasible."""
        wanted = self.points.of(pool)
        seen = [Lesson(t.recipe, t.state, observed(t), 0, 1.0) for t in self.told.values()]
        seen += self.lessons
        promise = np.ones(len(pool))
        carried = [(each, 1.0 if each.state in DONE else -1.0) for each in seen]
        if any(value < 0 for _, value in carried):
            promise *= holds(*self._predicted(carried, wanted, 1.0))
        for name in sorted({name for each in seen for name in each.observed}):
            rows = [(each, each.observed[name]) for each in seen if name in each.observed]
            if name == "objective":
                mean, deviation = self._predicted(rows, wanted, 0.0)
                promise *= expected_improvement(mean, deviation, math.log(self._best()))
            else:
                promise *= holds(*self._predicted(rows, wanted))
        return promise

    def _believed(self, pool: Sequence[Recipe]) -> np.ndarray:
        """The logarithm of how much each is believed to be the best before anything was tried,
        which counts less with every proposal (Hvarfner and others, ICLR 2022)."""
        believed = np.array([belief(each, self.known, self.kind) for each in pool])
        return BELIEF * believed / (1 + len(self.told) - (self.opened or 0))

    def _predicted(
        self,
        rows: Sequence[tuple[Lesson, float]],
        wanted: np.ndarray,
        centre: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        points = self.points([each.recipe for each, _ in rows])
        both = stacked([points, wanted])
        seen = Observed(
            both[: len(rows)],
            np.array([value for _, value in rows]),
            np.array([each.source for each, _ in rows]),
            np.array([each.likeness for each, _ in rows]),
        )
        return predict(seen, both[len(rows) :], centre)


def feasible(trial: Trial) -> bool:
    """Whether its limits rather hold than not."""
    sound = trial.state == "done" or trial.same
    return sound and trial.p_value <= 0.5 and math.isfinite(objective_of(trial))


def _trains_longer(recipe: Recipe, milder: Recipe) -> bool:
    changed = [(old, new) for old, new in zip(recipe, milder, strict=True) if new != old]
    return any(
        lengthens(new) and getattr(new, "effort", 0) > getattr(old, "effort", 0)
        for old, new in changed
    )


def _shortfall(trial: Trial) -> float:
    """By what share of its bound the quality is off that is off most, less than none where it
    rather holds; how many examples were seen is not asked, as a p-value would."""
    off = [
        math.copysign(v.estimate - v.bound, v.p_value - 0.5) / max(abs(v.bound), 1e-9)
        for v in doubtful(trial, SURE)
    ]
    return max(off, default=0.0)


def _worst_margin(trial: Trial) -> float:
    """By how much the limit that is missed most holds; less than none for what lacks a figure."""
    margins = [value for name, value in observed(trial).items() if name != "objective"]
    return min(margins, default=-math.inf)
