"""Verdicts on what a model answers: paired comparisons on the same examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sartor import means, paired, stats
from sartor.answers import classes_of
from sartor.contracts import Task, WrongRequest
from sartor.definitions import needs_groups
from sartor.evidence import (
    Evidence,
    broken,
    ends,
    free_for_original,
    identical,
    own_value,
    unknown,
    verdict_of,
)
from sartor.judge_calibration import calibration
from sartor.judge_fairness import fair
from sartor.judge_groups import FEWEST, crossings, joined, too_few
from sartor.judge_whole import class_weights, resampled
from sartor.limits import Limit
from sartor.metrics import Metric, Truth, find
from sartor.records import Interval, Verdict
from sartor.stats import Comparison, Floats


def quality(limit: Limit, evidence: Evidence, task: Task, alpha: float, seed: int) -> Verdict:
    metric = find(limit.metric, task)
    own = own_value(limit.metric)
    if evidence.original and own is not None and limit.segment is None:
        return identical(limit, own, 0 if evidence.answers is None else len(evidence.answers[0]))
    if evidence.answers is None or evidence.truth is None:
        if evidence.same and free_for_original(limit, task):
            return identical(limit, math.nan if own is None else own, 0)
        return unknown(limit, f"{limit.metric} was not measured")
    before, after = evidence.answers
    if len(after) != len(before):
        return unknown(limit, f"{len(after)} answers to {len(before)} examples")
    lost = int(np.count_nonzero(_nan_rows(after) & ~_nan_rows(before)))
    if lost:
        return broken(limit, f"NaN in {lost} of {len(after)} answers", len(after))
    if metric.name == "worst_class_drop" and not evidence.original:
        return _classes(limit, evidence, task, alpha)
    if needs_groups(metric.name):
        return fair(limit, evidence, task, alpha, seed)
    if limit.segment is None:
        return _whole(limit, metric, evidence, task, alpha, seed)[0]
    return _segments(limit, metric, evidence, task, alpha, seed)


def _nan_rows(answers: np.ndarray) -> np.ndarray:
    if answers.dtype.kind not in "fc":
        return np.zeros(len(answers), dtype=bool)
    return np.asarray(np.isnan(answers).reshape(len(answers), -1).any(1))


def _segments(
    limit: Limit, metric: Metric, evidence: Evidence, task: Task, alpha: float, seed: int
) -> Verdict:
    """One verdict per value of the column (per crossing of values of several): met when every one
    is. Parts that are named broken are so after Holm's correction."""
    truth = evidence.truth
    parts = [] if truth is None else list(crossings(limit, truth))
    if not parts:
        return unknown(limit, f"there is no column {limit.segment} in the data")
    return _joined(limit, metric, evidence, task, alpha, seed, parts)


def _classes(limit: Limit, evidence: Evidence, task: Task, alpha: float) -> Verdict:
    """The largest drop of a class's recall: paired outcomes on the rows of each class (and of each
    segment, where there is one)."""
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None or truth.label is None:
        raise ValueError("recall needs labels and answers")
    label, right = classes_of(truth), find("accuracy", task)
    bound = limit.bound.resolve(0.0)
    segments = list(crossings(limit, truth)) if limit.segment else [("", np.arange(len(label)))]
    if not segments:
        return unknown(limit, f"there is no column {limit.segment} in the data")
    verdicts, against = [], []
    for (name, rows), c in itertools.product(segments, np.unique(label)):
        inside = rows[label[rows] == c]
        said = ", ".join(each for each in (name, f"class {c}") if each)
        one = replace(limit, text=f"{limit.text} [{said}]")
        if len(inside) < FEWEST:
            verdicts.append(too_few(one, len(inside), "of the class"))
            against.append(1.0)
            continue
        some = (answers[0][inside], answers[1][inside])
        found = _scored(_means(right, truth.take(inside), some, 1.0, 1.0, -bound))
        verdict = verdict_of(one, found, found.negated().interval, bound, alpha, "of the class")
        verdicts.append(verdict)
        against.append(found.below)
    return joined(limit, verdicts, against, alpha)


def _joined(
    limit: Limit,
    metric: Metric,
    evidence: Evidence,
    task: Task,
    alpha: float,
    seed: int,
    parts: Sequence[tuple[str, np.ndarray]],
) -> Verdict:
    free = evidence.original and free_for_original(limit, task)
    verdicts, against = [], []
    for name, rows in parts:
        one = replace(limit, text=f"{limit.text} [{name}]")
        if len(rows) < FEWEST and not free:
            verdicts.append(too_few(one, len(rows)))
            against.append(1.0)
            continue
        verdict, below = _whole(one, metric, evidence.take(rows), task, alpha, seed)
        verdicts.append(verdict)
        against.append(below)
    return joined(limit, verdicts, against, alpha)


def _whole(
    limit: Limit, metric: Metric, evidence: Evidence, task: Task, alpha: float, seed: int
) -> tuple[Verdict, float]:
    """The verdict over all rows of the evidence, and the p-value of "the limit holds"."""
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None:
        raise ValueError("a verdict on quality needs answers")
    rows = len(answers[0])
    before, after = (metric.value(each, truth) for each in answers)
    own = own_value(limit.metric)
    if evidence.original and own is not None:
        return _certain(identical(limit, own, rows))
    if math.isnan(after) and not math.isnan(before):
        return _certain(broken(limit, f"{metric.name} of the candidate is not a number", rows))
    relative = limit.bound.kind != "absolute"
    if math.isnan(after) or (relative and not math.isfinite(before)):
        return _open(limit, f"{metric.name} cannot be computed on these {rows} rows", rows)
    if evidence.original and relative:
        return _certain(identical(limit, before, rows))
    sign = 1.0 if limit.higher else -1.0
    share, border = _linear(limit, before)
    found = _compare(metric, evidence, task, sign, share, border, seed)
    if math.isnan(found.interval.estimate):
        return _open(limit, f"{metric.name} varies too little or too wildly here", rows)
    effect = found if limit.higher else found.negated()
    estimate, low, high = (share * before + x for x in ends(effect.interval))
    figures = Interval(estimate, low, high, found.interval.level)
    bound = limit.bound.resolve(before)
    return verdict_of(limit, found, figures, bound, alpha, "examples"), found.below


def _certain(verdict: Verdict) -> tuple[Verdict, float]:
    return verdict, 1 - verdict.p_value


def _open(limit: Limit, note: str, rows: int) -> tuple[Verdict, float]:
    return unknown(limit, note, rows), 1.0


def _linear(limit: Limit, before: float) -> tuple[float, float]:
    """(share, border) such that the limit says: candidate - share x original >= border (<= for a
    limit from above)."""
    kind, value = limit.bound.kind, limit.bound.value
    if kind == "absolute":
        return 0.0, value
    if kind == "offset":
        return 1.0, value
    return (value if before >= 0 else 2.0 - value), 0.0  # as Bound.resolve reads it


def _compare(
    metric: Metric,
    evidence: Evidence,
    task: Task,
    sign: float,
    share: float,
    border: float,
    seed: int,
) -> Comparison:
    """sign x (candidate - share x original) against sign x border."""
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None:
        raise ValueError("a comparison needs answers")
    terms = [metric.ratio(each, truth) for each in answers]
    if terms[0] is not None and terms[1] is not None:
        return _ratio(terms[0], terms[1], truth.units, sign, share, sign * border)
    if metric.scale != "whole":
        return _scored(_means(metric, truth, answers, sign, share, sign * border))
    if metric.name.removeprefix("neg_") in ("ece", "calibration"):
        return calibration(truth, answers, task, share, sign * border)
    weights = class_weights(metric, truth, answers, task, share)
    if weights is None:
        return resampled(metric, truth, answers, task, sign, share, sign * border, seed)
    rows = np.flatnonzero(weights)
    truth, answers = truth.take(rows), (answers[0][rows], answers[1][rows])
    right = find("accuracy", task)
    weights = weights[rows] * (len(rows) / len(weights))
    return _scored(_means(right, truth, answers, sign, share, sign * border), weights)


def _ratio(
    old: tuple[Floats, Floats],
    new: tuple[Floats, Floats],
    units: np.ndarray | None,
    sign: float,
    share: float,
    border: float,
) -> Comparison:
    """A ratio of sums over the same denominators: it is above the border when the mean of
    numerator - border x denominator is above 0 (Cochran 1977), which is a mean of examples."""
    length = new[1]
    total = np.arange(len(length)) if units is None else units
    _, index = np.unique(total, return_inverse=True)
    gained = np.bincount(index.ravel(), weights=sign * (new[0] - share * old[0]) - border * length)
    scale = len(gained) / length.sum()
    spread = float(np.ptp(np.concatenate([old[0], new[0]]))) * scale
    changed = int(np.count_nonzero(new[0] - share * old[0]))
    return means.real_mean(border + gained * scale, border, spread, changed)


@dataclass(frozen=True)
class Means:
    """A limit as "the mean of `values` is above `border`".

    `values` [N] are independent unless they share a number in `units` [N] (None where all are),
    each within `worst` and `best` (infinite where the scores have no bounds). They are oriented so
    that more is better, whatever the limit's direction. `scores`: of (original, candidate), as the
    metric gives them; `share`: how much of the original's is taken off; `sign`: -1 where less of
    the metric is better; `binary`: all scores are 0 or 1."""

    values: Floats
    worst: float
    best: float
    border: float
    units: np.ndarray | None
    scores: tuple[Floats, Floats]
    share: float
    sign: float
    binary: bool


def mean_values(limit: Limit, evidence: Evidence, task: Task) -> Means | None:
    """What a sequential test needs of a limit: its per-example values, over all rows of the
    evidence (a limit on segments is taken apart by `crossings` first).

    None where the limit is no mean of independent bounded scores: figures of a whole set, scores
    without bounds, values that are not finite, a candidate that is the original itself, or no
    answers."""
    truth, answers = evidence.truth, evidence.answers
    metric = find(limit.metric, task)
    if truth is None or answers is None or evidence.original or metric.scale == "whole":
        return None
    if len(answers[0]) != len(answers[1]) or not len(answers[0]):
        return None
    share, border = _linear(limit, metric.value(answers[0], truth))
    sign = 1.0 if limit.higher else -1.0
    found = _means(metric, truth, answers, sign, share, sign * border)
    bounded = math.isfinite(found.worst) and math.isfinite(found.best)
    return found if bounded and np.isfinite(found.values).all() else None


def _means(
    metric: Metric,
    truth: Truth,
    answers: tuple[np.ndarray, np.ndarray],
    sign: float,
    share: float,
    border: float,
) -> Means:
    old, new = (metric.scores(each, truth) for each in answers)
    both = np.concatenate([old, new])
    units = truth.units if truth.units is not None and len(truth.units) == len(old) else None
    if units is not None and len(np.unique(units)) == len(units):
        units = None
    worst, best = -math.inf, math.inf
    if metric.bounds is not None:
        low, high = metric.bounds
        if both.min() < low - 1e-9 or both.max() > high + 1e-9:
            raise WrongRequest(
                f"{metric.name} gives scores outside {low:g} to {high:g}: declare its scale as real"
            )
        corners = [sign * (c - share * b) for c in (low, high) for b in (low, high)]
        worst, best = min(corners), max(corners)
    binary = metric.scale == "binary" and bool(np.isin(both, (0, 1)).all())
    values = sign * (new - share * old)
    return Means(values, worst, best, border, units, (old, new), share, sign, binary)


def _scored(means_of: Means, weights: Floats | None = None) -> Comparison:
    """A mean of scores, or a weighted one (weights of mean 1)."""
    values, border, units = means_of.values, means_of.border, means_of.units
    (old, new), share, sign = means_of.scores, means_of.share, means_of.sign
    if not np.isfinite(values).all():
        return stats.nothing("mean")
    even = weights is None or bool(np.ptp(weights) < 1e-9)
    if weights is not None and not even:
        values = values * weights
    if means_of.binary and even and units is None and share == 1.0:
        gains, losses = int((values > 0).sum()), int((values < 0).sum())
        return paired.compare(gains, losses, len(values), border)
    if means_of.binary and even and units is None and share == 0.0:
        found = stats.proportion(float(new.sum()), len(new), sign * border)
        return found if sign > 0 else found.negated()
    if math.isinf(means_of.worst):
        spread = float(np.ptp(np.concatenate([old, new])))
        changed = int(np.count_nonzero(values))
        values = values if units is None else means.by_group(values, units, border)
        return means.real_mean(values, border, spread, changed)
    most = 1.0 if weights is None else float(weights.max())
    worst, best = most * means_of.worst, most * means_of.best
    if units is not None:  # sums over large units may lie beyond what a mean unit can reach
        values = means.by_group(values, units, border)
        worst, best = min(worst, float(values.min())), max(best, float(values.max()))
    return means.bounded_mean(values, worst, best, border)
