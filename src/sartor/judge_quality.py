"""Verdicts on what a model answers: paired comparisons on the same examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sartor import means, paired, stats
from sartor.contracts import Task, WrongRequest
from sartor.evidence import (
    Evidence,
    broken,
    ends,
    free_for_original,
    identical,
    own_value,
    together,
    unknown,
    verdict_of,
)
from sartor.judge_whole import class_weights, resampled
from sartor.limits import Limit
from sartor.metrics import Metric, Truth, find
from sartor.records import Interval, Verdict
from sartor.stats import Comparison, Floats

FEWEST = 20  # rows below which a segment is not judged


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
    if limit.segment is None:
        return _whole(limit, metric, evidence, task, alpha, seed)
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
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None:
        raise ValueError("segments need answers")
    parts, against = [], []
    free = evidence.original and free_for_original(limit, task)
    for name, rows in crossings(limit, truth):
        one = replace(limit, text=f"{limit.text} [{name}]")
        if len(rows) < FEWEST and not free:
            note = f"too few examples: {len(rows)}, {FEWEST - len(rows)} more to look at it at all"
            part = replace(unknown(one, note, len(rows)), needs=FEWEST - len(rows))
            below = 1.0
        else:
            some = (answers[0][rows], answers[1][rows])
            within = replace(evidence, answers=some, truth=truth.take(rows), same=evidence.original)
            part = _whole(one, metric, within, task, alpha, seed)
            below = _whole(one, metric, within, task, alpha, seed, against=True).p_value
        parts.append(part)
        against.append(below)
    if not parts:
        return unknown(limit, f"there is no column {limit.segment} in the data")
    sure = stats.holm(against)
    parts = [
        replace(part, outcome="undecided") if part.outcome == "broken" and p > alpha else part
        for part, p in zip(parts, sure, strict=True)
    ]
    outcome, p = together(parts)
    worst = max(parts, key=lambda each: (each.p_value, -len(each.limit)))
    needs = max((each.needs or 0 for each in parts if each.outcome == "undecided"), default=0)
    note = f"the least sure: {worst.limit[len(limit.text) + 1 :]}"
    return replace(
        worst, limit=limit.text, outcome=outcome, p_value=p, parts=tuple(parts),
        needs=needs or None, note="; ".join(each for each in (note, worst.note) if each),
    )  # fmt: skip


def crossings(limit: Limit, truth: Truth) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows of every combination of values that occurs."""
    names = limit.segments
    if not all(name in truth.segments for name in names):
        return
    columns = [np.asarray(truth.segments[name]).astype(str) for name in names]
    values = [np.unique(column) for column in columns]
    for combination in itertools.product(*values):
        inside = np.logical_and.reduce(
            [column == value for column, value in zip(columns, combination, strict=True)]
        )
        if inside.any():
            said = (f"{name}={value}" for name, value in zip(names, combination, strict=True))
            yield ", ".join(said), np.flatnonzero(inside)


def _whole(
    limit: Limit,
    metric: Metric,
    evidence: Evidence,
    task: Task,
    alpha: float,
    seed: int,
    *,
    against: bool = False,
) -> Verdict:
    """The verdict over all rows of the evidence. `against`: its p-value is that of "the limit
    holds" instead."""
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None:
        raise ValueError("a verdict on quality needs answers")
    rows = len(answers[0])
    before, after = (metric.value(each, truth) for each in answers)
    own = own_value(limit.metric)
    if evidence.original and own is not None:
        return _certain(identical(limit, own, rows), against)
    if math.isnan(after) and not math.isnan(before):
        lost = broken(limit, f"{metric.name} of the candidate is not a number", rows)
        return _certain(lost, against)
    relative = limit.bound.kind != "absolute"
    if math.isnan(after) or (relative and not math.isfinite(before)):
        return unknown(limit, f"{metric.name} cannot be computed on these {rows} rows", rows)
    if evidence.original and relative:
        return _certain(identical(limit, before, rows), against)
    sign = 1.0 if limit.higher else -1.0
    share, border = _linear(limit, before)
    found = _compare(metric, evidence, task, sign, share, border, seed)
    if math.isnan(found.interval.estimate):
        return unknown(limit, f"{metric.name} varies too little or too wildly here", rows)
    effect = found if limit.higher else found.negated()
    estimate, low, high = (share * before + x for x in ends(effect.interval))
    figures = Interval(estimate, low, high, found.interval.level)
    verdict = verdict_of(limit, found, figures, limit.bound.resolve(before), alpha, "examples")
    return replace(verdict, p_value=found.below) if against else verdict


def _certain(verdict: Verdict, against: bool) -> Verdict:
    return replace(verdict, p_value=1 - verdict.p_value) if against else verdict


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
    if metric.scale != "whole":
        return _scored(_means(metric, truth, answers, sign, share, sign * border))
    weights = class_weights(metric, truth, answers, task, share)
    if weights is None:
        return resampled(metric, truth, answers, task, sign, share, sign * border, seed)
    rows = np.flatnonzero(weights)
    truth, answers = truth.take(rows), (answers[0][rows], answers[1][rows])
    right = find("accuracy", task)
    weights = weights[rows] * (len(rows) / len(weights))
    return _scored(_means(right, truth, answers, sign, share, sign * border), weights)


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
