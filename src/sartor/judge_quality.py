"""Verdicts on what a model answers: paired comparisons on the same examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sartor import means, paired, stats
from sartor.contracts import Task, WrongRequest
from sartor.evidence import Evidence, broken, ends, identical, together, unknown, verdict_of
from sartor.limits import Limit
from sartor.metrics import Metric, Truth, find
from sartor.records import Interval, Verdict
from sartor.stats import Comparison

FEWEST = 20  # rows below which a segment is not judged


def quality(limit: Limit, evidence: Evidence, task: Task, alpha: float, seed: int) -> Verdict:
    metric = find(limit.metric, task)
    if evidence.answers is None or evidence.truth is None:
        if evidence.same and limit.bound.kind != "absolute":
            return identical(limit, math.nan, 0)
        return unknown(limit, f"{limit.metric} was not measured")
    before, after = evidence.answers
    if len(after) != len(before):
        return unknown(limit, f"{len(after)} answers to {len(before)} examples")
    lost = int(np.count_nonzero(_nan_rows(after) & ~_nan_rows(before)))
    if lost:
        return broken(limit, f"NaN in {lost} of {len(after)} answers", len(after))
    if limit.segment is None:
        return _whole(limit, metric, evidence, alpha, seed)
    return _segments(limit, metric, evidence, alpha, seed)


def _nan_rows(answers: np.ndarray) -> np.ndarray:
    if answers.dtype.kind not in "fc":
        return np.zeros(len(answers), dtype=bool)
    return np.asarray(np.isnan(answers).reshape(len(answers), -1).any(1))


def _segments(limit: Limit, metric: Metric, evidence: Evidence, alpha: float, seed: int) -> Verdict:
    """One verdict per value of the column (per crossing of values of several): met when every one
    is. Parts that are named broken are so after Holm's correction."""
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None:
        raise ValueError("segments need answers")
    parts, against = [], []
    for name, rows in _crossings(limit, truth):
        one = replace(limit, text=f"{limit.text} [{name}]")
        if len(rows) < FEWEST:
            note = f"too few examples: {len(rows)}, {FEWEST - len(rows)} more to look at it at all"
            part = replace(unknown(one, note, len(rows)), needs=FEWEST - len(rows))
            below = 1.0
        else:
            some = (answers[0][rows], answers[1][rows])
            within = replace(evidence, answers=some, truth=truth.take(rows), same=evidence.original)
            part = _whole(one, metric, within, alpha, seed)
            below = _whole(one, metric, within, alpha, seed, against=True).p_value
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


def _crossings(limit: Limit, truth: Truth) -> Iterator[tuple[str, np.ndarray]]:
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
    if math.isnan(after) and not math.isnan(before):
        return broken(limit, f"{metric.name} of the candidate is not a number", rows)
    relative = limit.bound.kind != "absolute"
    if math.isnan(after) or (relative and not math.isfinite(before)):
        return unknown(limit, f"{metric.name} cannot be computed on these {rows} rows", rows)
    if evidence.original and relative:
        return identical(limit, before, rows)
    sign = 1.0 if limit.higher else -1.0
    share, border = _linear(limit, before)
    found = _compare(metric, evidence, sign, share, border, seed)
    if math.isnan(found.interval.estimate):
        return unknown(limit, f"{metric.name} varies too little or too wildly here", rows)
    effect = found if limit.higher else found.negated()
    estimate, low, high = (share * before + x for x in ends(effect.interval))
    figures = Interval(estimate, low, high, found.interval.level)
    verdict = verdict_of(limit, found, figures, limit.bound.resolve(before), alpha, "examples")
    return replace(verdict, p_value=found.below) if against else verdict


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
    metric: Metric, evidence: Evidence, sign: float, share: float, border: float, seed: int
) -> Comparison:
    """sign x (candidate - share x original) against sign x border."""
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None:
        raise ValueError("a comparison needs answers")
    border = sign * border
    if metric.scale == "whole":
        return _resampled(metric, truth, answers, sign, share, border, seed)
    old, new = (metric.scores(each, truth) for each in answers)
    values = sign * (new - share * old)
    if not np.isfinite(values).all():
        return stats.nothing("mean")
    group = truth.group if truth.group is not None and len(truth.group) == len(old) else None
    if group is not None and len(np.unique(group)) < len(group):
        spread = float(np.ptp(np.concatenate([old, new])))
        return means.real_mean(means.by_group(values, group, border), border, spread)
    binary = metric.scale == "binary" and bool(np.isin(np.concatenate([old, new]), (0, 1)).all())
    if binary and share == 1.0:
        gains, losses = int((values > 0).sum()), int((values < 0).sum())
        return paired.compare(gains, losses, len(values), border)
    if binary and share == 0.0:
        found = stats.proportion(float(new.sum()), len(new), sign * border)
        return found if sign > 0 else found.negated()
    if metric.bounds is None:
        spread = float(np.ptp(np.concatenate([old, new])))
        return means.real_mean(values, border, spread)
    low, high = metric.bounds
    if min(old.min(), new.min()) < low - 1e-9 or max(old.max(), new.max()) > high + 1e-9:
        raise WrongRequest(
            f"{metric.name} gives scores outside {low:g} to {high:g}: declare its scale as real"
        )
    corners = [sign * (c - share * b) for c in (low, high) for b in (low, high)]
    return means.bounded_mean(values, min(corners), max(corners), border)


def _resampled(
    metric: Metric,
    truth: Truth,
    answers: tuple[np.ndarray, np.ndarray],
    sign: float,
    share: float,
    border: float,
    seed: int,
) -> Comparison:
    """A figure of the whole set, by the bootstrap over rows, or over groups where there are."""
    units = None
    if truth.group is not None:
        _, index = np.unique(truth.group, return_inverse=True)
        order = np.argsort(index, kind="stable")
        units = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)

    def effect(rows: np.ndarray) -> float:
        some = truth.take(rows)
        old = metric.value(answers[0][rows], some) if share else 0.0
        return sign * (metric.value(answers[1][rows], some) - share * old)

    found = stats.bootstrap(effect, len(answers[0]), border, units=units, seed=seed)
    changed = int((answers[0] != answers[1]).reshape(len(answers[0]), -1).any(1).sum())
    if share and changed < 10:
        # Resampling cannot see changes too rare to have occurred; the share of changed answers
        # bounds what they can do to a figure between 0 and 1.
        unseen = stats.binomial_above(
            len(answers[0]) - changed, len(answers[0]), 1 - min(abs(border), 1.0)
        )
        z = found.z if math.isfinite(found.z) else 0.0
        found = replace(found, above=max(found.above, unseen), below=1.0, z=z)
    return found
