"""The area under the ROC curve as a sum of what each row brings to it, and its uncertainty by that
(DeLong, DeLong and Clarke-Pearson 1988): no resampling, and wider where positives are few."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from sartor.answers import Floats, Ints, Truth, classes_of, log_probabilities
from sartor.contracts import Task
from sartor.records import Interval
from sartor.special import expit, logit
from sartor.stats import Comparison, nothing, student

METHOD = "DeLong's variance"


def auc_parts(answers: np.ndarray, truth: Truth, task: Task) -> tuple[Floats, Ints] | None:
    """(what each row moves the area by [N], the class it belongs to [N]); the mean over classes
    against the rest where there are more than two. None where scores are not finite, or rows of
    fewer than two classes are there."""
    label, logs = classes_of(truth), log_probabilities(answers, task)
    known = np.unique(label)
    if not np.isfinite(logs).all() or len(known) < 2:
        return None
    if logs.shape[1] == 2:
        return _placed(logs[:, 1] - logs[:, 0], label == 1), label
    moved = [_placed(logs[:, each], label == each) for each in known]
    return np.mean(moved, axis=0), label


def _placed(score: Floats, positive: np.ndarray) -> Floats:
    """[N]: of each row, the share of the rows of the other side that it stands rightly to, less
    the area, by the number of rows on its own side."""
    own, others = score[positive], score[~positive]
    moved = np.empty(len(score))
    for mine, side, theirs in ((own, positive, others), (-others, ~positive, -own)):
        ranked = np.sort(theirs)
        below = np.searchsorted(ranked, mine, "left") + np.searchsorted(ranked, mine, "right")
        placed = below / (2 * len(theirs))
        moved[side] = (placed - placed.mean()) / len(mine)
    return moved


def compare_share(
    value: float, moved: Floats, stratum: Ints, border: float, units: Ints | None = None
) -> Comparison:
    """A figure within 0 and 1 against `border`, on the scale of logits: on its own scale it is
    skewed, and errors at 0.5 % were twice as many as they should be."""
    if not (0 < value < 1 and 0 < border < 1):
        return compare(value, moved, stratum, border, units)
    slope = value * (1 - value)
    found = compare(logit(value), moved / slope, stratum, logit(border), units)
    inner = found.interval
    if not math.isfinite(inner.estimate):
        return found
    ends = expit(inner.low), expit(inner.high)
    return replace(found, interval=Interval(value, *ends, inner.level))


def compare(
    estimate: float, moved: Floats, stratum: Ints, border: float, units: Ints | None = None
) -> Comparison:
    """An effect of which each row brings `moved` [N], against `border`, by Student's t. The
    variance is that within strata (classes), whose degrees of freedom (fewer where some rows move
    it far) are put together after Satterthwaite, or between `units` [N] where rows belong
    together."""
    if units is not None and len(np.unique(units)) == len(units):
        units = None
    if units is None:
        held = np.bincount(stratum) > 0
        powers = [np.bincount(stratum, moved**k)[held].astype(np.float64) for k in (0, 2, 4)]
        (counts, squares, _), n, free = powers, len(moved), _freedom(*powers)
    else:  # as free as so many equal units would be
        sums = np.bincount(np.unique(units, return_inverse=True)[1].ravel(), moved)
        squares, n = np.array([float(sums @ sums)]), len(sums)
        fourth = float((sums**4).sum())
        counts = np.array([min(squares[0] ** 2 / fourth if fourth else n, n)])
        free = counts - 1.0
    if free.min(initial=math.inf) <= 0:  # a class of one row says nothing of how such rows scatter
        return nothing(METHOD, n)
    each = squares * (counts / (counts - 1))  # the variance that one stratum brings
    total = float(each.sum())
    if not math.isfinite(estimate):
        return nothing(METHOD, n)
    if total <= 0:  # nothing changed: what was not seen is for the caller to judge
        sure = Interval(estimate, estimate, estimate)
        return Comparison(
            sure, float(estimate <= border), float(estimate >= border), math.nan, n, METHOD
        )
    together = total**2 / float((each**2 / free).sum())
    return student(estimate, math.sqrt(total), together, border, n, METHOD)


def _freedom(counts: Floats, squares: Floats, fourths: Floats) -> Floats:
    """Degrees of freedom of the variances of so many values each, by their kurtosis about
    zero (where they are centred but for means over several classes): twice the square of a variance
    by the variance of its estimate. Those of normal values are n - 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.nan_to_num(counts * fourths / squares**2 - 3.0)
        return np.where(counts > 1, 2 / (2 / (counts - 1) + np.maximum(excess, 0) / counts), 0.0)
