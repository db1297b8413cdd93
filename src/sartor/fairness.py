"""Rates by group, and how far apart they lie: as fairlearn's metrics of the same names.

Demographic parity compares how often groups are given class 1; equal opportunity the same among
those whose label is 1 (the true positive rate); equalized odds that and the false positive rate
(Hardt, Price and Srebro, NeurIPS 2016). A difference is the largest rate minus the smallest, a
ratio the smallest over the largest; equalized odds takes the worse of its two rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sartor.answers import Floats, Truth, classes_of, decisions
from sartor.contracts import Task, WrongRequest

RATES = {
    "demographic_parity": ("selection rate",),
    "equal_opportunity": ("true positive rate",),
    "equalized_odds": ("true positive rate", "false positive rate"),
}


def unsaid(answers: np.ndarray, truth: Truth, task: Task) -> Any:
    raise WrongRequest(
        "fairness metrics compare the values of a column: write e.g. "
        "demographic_parity_difference@sex <= 0.1"
    )


def conditions(name: str, truth: Truth, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """The rates that the metric compares, and the rows [N] that each is taken over."""
    for rate in RATES[name.rpartition("_")[0]]:
        if rate == "selection rate":
            yield rate, np.ones(size, dtype=bool)
        else:
            yield rate, classes_of(truth) == (1 if rate == "true positive rate" else 0)


def chosen(answers: np.ndarray, task: Task) -> np.ndarray:
    """[N] whether the decision is class 1."""
    return np.asarray(decisions(answers, task) == 1)


def gap(high: Any, low: Any, ratio: bool) -> Floats:
    """How much worse off the second rate is: more is less fair, for both kinds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-low / high if ratio else high - low)


def figure(rates: Sequence[Floats], ratio: bool) -> float:
    """The metric, from each of its rates by group [G]; groups without rows are NaN and left out."""
    known = [each[~np.isnan(each)] for each in rates]
    known = [each for each in known if len(each)]
    if not known:
        return float("nan")
    each = [gap(rate.max(), rate.min(), ratio) for rate in known]
    return float(np.max(each)) * (-1 if ratio else 1)


def value(name: str, answers: np.ndarray, truth: Truth, task: Task, group: np.ndarray) -> float:
    """The metric of that name over groups [N]."""
    picked = chosen(answers, task)
    inside = [group == each for each in np.unique(group)]
    with np.errstate(invalid="ignore"):
        rates = [
            np.array([picked[rows & each].sum() / (rows & each).sum() for each in inside])
            for _, rows in conditions(name, truth, len(group))
        ]
    return figure(rates, name.endswith("ratio"))
