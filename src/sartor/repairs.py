"""Buying quality back: a recipe that gains but breaks a limit is tried again, milder.

A technique's `repair` setting buys quality back as it grows, and costs some of the gain. Its
smallest value that meets the limits is found by bisection over the values of its domain: in as many
trials as the logarithm of their number, since the order in which parts are spared is measured
(the most sensitive first) and every value spares what the one before it spared.

Training longer comes first, since it costs no gain. Where there is no time for it, what was trained
as long as there was time is made milder at another step.

What is too big or too slow goes the other way: the share that a structure keeps is lowered by as
much as its limit is missed, until it is met; and what training made good beyond doubt goes on in
steps, for it leaves gain behind.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from sartor.contracts import Recipe, Technique, technique_name, trains
from sartor.limits import PERFORMANCE
from sartor.proposals import key_of
from sartor.records import Trial, Verdict
from sartor.space import domains

# Doubt below which nothing is trained longer: what is just likely on the rows that chose it is not
# certified on others.
SURE = 0.001
GRID = 16  # values of an interval that are told apart


class Repairs:
    """For every recipe, its repair setting put aside, between which values the answer lies."""

    def __init__(self, known: Mapping[str, type[Technique]]) -> None:
        self.known = known
        self.between: dict[str, tuple[int, int]] = {}
        self.trained: dict[str, tuple[Trial, Recipe]] = {}  # the longest that was not enough
        self.spent: set[str] = set()  # recipes for whose longer training there is no time

    def after(self, trial: Trial, recipe: Recipe, best: float) -> Recipe | None:
        """The recipe to try next after this trial, if its repair is worth going on with: what
        gains no more than `best` (an objective) will not gain more by being made milder."""
        root = self._cut_short(trial, recipe)
        if root is not None:
            self.spent.add(root)
            return self.after(*self.trained.pop(root), best)
        at = self._place_of_repair(recipe)
        if at is None:
            return None
        technique = recipe[at]
        name, root = technique.repair or "", _root(recipe, at)
        values = _values(technique, name)
        low, high = self.between.get(root, (-1, _useful(values, trial, at)))
        place = _place(values, getattr(technique, name))
        longer = lengthens(technique)
        harmed = _harmed(trial, SURE if longer else 0.5)
        value = trial.figures.get("objective", 1.0)
        # What trains gains nothing by training longer, but what is the best may become sure.
        if harmed and (value < best or (longer and value == best)):
            low = max(low, place)
            if longer:
                self.trained[root] = trial, recipe
        elif root in self.between or not harmed:
            high = min(high, place)
        if harmed or root in self.between:
            self.between[root] = (low, high)
        if root not in self.between or low < 0 or high - low < 2:
            return None
        milder = dataclasses.replace(technique, **{name: values[(low + high) // 2]})
        return (*recipe[:at], milder, *recipe[at + 1 :])

    def _place_of_repair(self, recipe: Recipe) -> int | None:
        """Which step to make milder: one that could train longer, since that costs no gain, else
        the last one that can be."""
        able = [at for at, step in enumerate(recipe) if step.repair]
        trained = [at for at in able if lengthens(recipe[at])]
        spent = [at for at in trained if _root(recipe, at) in self.spent]
        more = [at for at in trained if at not in spent and not _at_its_end(recipe[at])]
        return max(more or [at for at in able if at not in spent], default=None)

    def _cut_short(self, trial: Trial, recipe: Recipe) -> str | None:
        """The root of what was trained before, if this trial was to train it longer and there was
        no time for it."""
        if trial.state not in ("refused", "failed"):
            return None
        roots = [
            _root(recipe, at)
            for at, step in enumerate(recipe)
            if lengthens(step) and technique_name(step) == trial.culprit
        ]
        return next((root for root in roots if root in self.trained), None)


def lengthens(technique: Technique) -> bool:
    """Whether its repair is to train longer, which costs no gain."""
    return technique.repair == "effort"


def bolder(trial: Trial, recipe: Recipe, best: float) -> Recipe | None:
    """The recipe with the last of its shares lowered, at least by one of its values: to where size,
    multiply-accumulates or latency would meet their limits if they fell as it does; by a third
    where what was trained is the `best` (an objective) and surely keeps its limits."""
    part = _part(trial, recipe, best)
    if part is None:
        return None
    for at in reversed(range(len(recipe))):
        technique, name = recipe[at], recipe[at].repair
        if technique.stage != "structure" or name is None:
            continue
        now = getattr(technique, name)
        lower = [each for each in _values(technique, name) if 0 < each < now]
        if lower:
            wanted = max((each for each in lower if each <= now * part), default=lower[0])
            lowered = dataclasses.replace(technique, **{name: wanted})
            return (*recipe[:at], lowered, *recipe[at + 1 :])
    return None


def _part(trial: Trial, recipe: Recipe, best: float) -> float | None:
    """The part of a share that is to be left; None where there is no reason to leave less."""
    if trial.same or doubtful(trial):
        return None
    missed = [v for v in trial.verdicts if v.method and v.p_value > 0.5 and not _of_answers(v)]
    if missed:
        return min(min(v.bound, v.estimate) / max(v.bound, v.estimate) for v in missed)
    gains = trial.figures.get("objective", 1.0) <= min(best, 1.0)
    slack = trial.state == "done" and trial.p_value <= SURE and gains
    return 2 / 3 if slack and any(map(trains, recipe)) else None


def _root(recipe: Recipe, at: int) -> str:
    """What recipes that differ in one repair setting have in common."""
    technique = recipe[at]
    name = technique.repair or ""
    first = dataclasses.replace(technique, **{name: _values(technique, name)[0]})
    return key_of((*recipe[:at], first, *recipe[at + 1 :]))


def _at_its_end(technique: Technique) -> bool:
    name = technique.repair or ""
    values = _values(technique, name)
    return _place(values, getattr(technique, name)) == len(values) - 1


def _useful(values: list[Any], trial: Trial, at: int) -> int:
    """How many of the values can mean anything: a count of parts to spare ends below the parts
    that the step touched."""
    counts = all(isinstance(each, int) for each in values) and values[0] == 0
    if not counts or at >= len(trial.steps):
        return len(values)
    parts = len(trial.steps[at].get("touched", ()))
    return sum(each < max(parts, 1) for each in values)


def _harmed(trial: Trial, doubt: float) -> bool:
    """Whether a limit on quality is in so much doubt; above a half it rather fails than holds."""
    if trial.state not in ("done", "dropped") or trial.same:
        return False
    return bool(doubtful(trial, doubt))


def doubtful(trial: Trial, doubt: float = 0.5) -> list[Verdict]:
    """The limits on quality that are in so much doubt: those that are estimated, not counted."""
    return [v for v in trial.verdicts if v.p_value > doubt and _of_answers(v) and v.method]


def _of_answers(verdict: Verdict) -> bool:
    """Whether it is on quality, and not on the artifact's size or speed."""
    return re.split(r"[.@\[]", verdict.limit.split()[0])[0] not in PERFORMANCE


def _values(technique: Technique, name: str) -> list[Any]:
    return domains(technique)[name].grid(GRID)


def _place(values: list[Any], value: Any) -> int:
    """The last place whose value is not above."""
    return max((i for i, each in enumerate(values) if each <= value), default=0)
