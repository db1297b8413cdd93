"""Who goes to the holdout, and in which order: frozen on the search split alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sartor.records import Trial

MOST = 8  # finalists
FRONT = 5  # of them from the Pareto front; the others are the surest beside it
CLOSE = 0.02  # objectives that differ by less are taken for equal: latencies are never exact
SURE = 1e-4  # p-values on the search split below this are as good as each other


@dataclass(frozen=True)
class Finalist:
    """A trial that goes to the holdout, and the digest of its artifact."""

    digest: str
    trial: Trial


def freeze(trials: Iterable[Trial], most: int = MOST, rival: bool = True) -> tuple[Finalist, ...]:
    """The finalists in their order, the surest first: from the Pareto front of (p-value on the
    search split, objective) among the finished trials that gain anything the surest, the best and
    those evenly between; then the surest of the others. Those beside the front are there because
    the search errs as well: the surest one there is often not the surest in truth. `rival`: whether
    the original could be the answer, so that another must gain something."""
    most_of = 1.0 if rival else math.inf
    known = [
        each
        for each in trials
        if each.state == "done"
        and each.recipe
        and each.figures.get("objective", math.inf) < most_of
    ]
    distinct: dict[str, Trial] = {}
    for trial in sorted([each for each in known if each.p_value <= 0.5] or known, key=_sureness):
        distinct.setdefault(trial.model, trial)  # other recipes may lead to the same artifact
    hopeful = list(distinct.values())
    front: list[Trial] = []
    for trial in hopeful:
        if not front or grade(trial.figures["objective"]) < grade(front[-1].figures["objective"]):
            front.append(trial)
    if len(front) > FRONT:
        step = (len(front) - 1) / (FRONT - 1)
        front = [front[round(at * step)] for at in range(FRONT)]
    numbers = {each.number for each in front}
    beside = [each for each in hopeful if each.number not in numbers]
    frozen = sorted([*front, *beside[: most - len(front)]], key=_sureness)
    return tuple(Finalist(each.model, each) for each in frozen)


def _sureness(trial: Trial) -> tuple[float, int, int, int]:
    """Of those that are equally sure and equally good the shortest recipe comes first: a step that
    brings nothing is left out."""
    step = grade(trial.figures["objective"])
    return max(trial.p_value, SURE), step, len(trial.recipe), trial.number


def grade(objective: float) -> int:
    """Steps of CLOSE on the scale of ratios."""
    return math.floor(math.log(max(objective, 1e-9)) / CLOSE)
