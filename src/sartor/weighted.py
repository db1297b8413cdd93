"""Figures of a whole set under weights, many at once: what makes a bootstrap fast.

A resample is a vector of counts, how often each row was drawn. `prepare(answers, truth, task)`
sorts and sums what does not change, once, and returns a function from counts [R, N] to R figures.
With all counts 1 it is the formula of `scores`; the tests hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sartor import scores
from sartor.answers import (
    Floats,
    Ints,
    Truth,
    classes_of,
    columns,
    decisions,
    label_of,
    log_probabilities,
)
from sartor.contracts import Task

Weighted = Callable[[np.ndarray], Floats]
Prepare = Callable[[np.ndarray, Truth, Task], "Weighted | None"]

_SPARSE = 200  # places for one number, from which on sums over the numbers alone are quicker


@dataclass(frozen=True)
class Sparse:
    """A matrix [rows, columns] by its numbers: `values` at (`row`, `column`), which add up where
    they stand at the same place."""

    values: Floats
    row: Ints
    column: Ints
    shape: tuple[int, int]

    def dense(self) -> Floats:
        made = np.zeros(self.shape)
        np.add.at(made, (self.row, self.column), self.values)
        return made


def _sparse(matrix: Floats) -> Sparse:
    row, column = np.nonzero(matrix)
    return Sparse(matrix[row, column], row, column, (matrix.shape[0], matrix.shape[1]))


def _product(features: Floats | Sparse) -> Callable[[np.ndarray], Floats]:
    """From counts [R, N] to counts @ features [R, K]."""
    found = features if isinstance(features, Sparse) else _sparse(features)
    if len(found.values) * _SPARSE > math.prod(found.shape):
        dense = features.dense() if isinstance(features, Sparse) else features
        return lambda counts: np.asarray(counts.astype(np.float64) @ dense)
    order = np.argsort(found.column, kind="stable")
    row, values = found.row[order], found.values[order]
    held, start = np.unique(found.column[order], return_index=True)

    def product(counts: np.ndarray) -> Floats:
        made = np.zeros((len(counts), found.shape[1]))
        if len(held):
            made[:, held] = np.add.reduceat(counts[:, row] * values, start, axis=1)
        return made

    return product


def _sums(features: Floats | Sparse, figure: Callable[[Floats, Floats], Floats]) -> Weighted:
    """A figure of weighted sums of features [N, K] and of the sum of the weights."""
    product = _product(features)

    def figures(counts: np.ndarray) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return figure(product(counts), counts.sum(1, dtype=np.float64))

    return figures


# --- counts of classes


def _class_counts(answers: np.ndarray, truth: Truth, task: Task) -> tuple[Sparse, int]:
    """[N, 3 C]: per class how many cells of the row are rightly decided for it, are labelled so,
    are decided for it."""
    label, decided = classes_of(truth), decisions(answers, task)
    label, decided = label.reshape(len(label), -1), decided.reshape(len(decided), -1)
    size = scores.count_classes(label, decided, task)
    row = np.broadcast_to(np.arange(len(label))[:, None], label.shape)
    right, usable = label == decided, decided >= 0
    at = np.concatenate([label[right], size + label.ravel(), 2 * size + decided[usable]])
    rows = np.concatenate([row[right], row.ravel(), row[usable]])
    return Sparse(np.ones(len(at)), rows, at, (len(label), 3 * size)), size


def balanced_accuracy(answers: np.ndarray, truth: Truth, task: Task) -> Weighted:
    found, size = _class_counts(answers, truth, task)
    return _sums(found, lambda x, _: scores.mean_recall(x[:, :size], x[:, size : 2 * size], axis=1))


def precision_recall_f1(
    answers: np.ndarray, truth: Truth, task: Task, which: str, average: str | int
) -> Weighted:
    found, size = _class_counts(answers, truth, task)

    def figure(x: Floats, _: Floats) -> Floats:
        right, labelled, decided = np.split(x, [size, 2 * size], axis=1)
        return scores.averaged(right, labelled, decided, which, average)

    return _sums(found, figure)


def mean_iou(answers: np.ndarray, truth: Truth, task: Task) -> Weighted:
    both, either = scores.overlaps(answers, truth, task)
    size = both.shape[1]
    return _sums(
        np.hstack([both, either]), lambda x, _: scores.mean_overlap(x[:, :size], x[:, size:])
    )


def calibration(
    answers: np.ndarray, truth: Truth, task: Task, bins: int = scores.BINS
) -> Weighted | None:
    gap, at = scores.calibration_gaps(answers, truth, task, bins)
    if not np.isfinite(gap).all():
        return None
    features = np.zeros((len(gap), bins))
    features[np.arange(len(gap)), at] = gap
    return _sums(features, lambda x, n: np.asarray(np.abs(x).sum(1) / n))


# --- areas under curves


def average_precision(answers: np.ndarray, truth: Truth, task: Task) -> Weighted | None:
    """Of class 1 of two, or the mean over classes against the rest."""
    label, logs = classes_of(truth), log_probabilities(answers, task)
    if not np.isfinite(logs).all():
        return None
    if logs.shape[1] == 2:
        return _average_precision(logs[:, 1] - logs[:, 0], label == 1)
    areas = [
        _average_precision(logs[:, c], label == c)
        for c in range(logs.shape[1])
        if (label == c).any()
    ]

    def figures(counts: np.ndarray) -> Floats:
        each = np.stack([one(counts) for one in areas])
        seen = ~np.isnan(each)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(seen, each, 0.0).sum(0) / seen.sum(0))

    return figures


def _average_precision(score: Floats, positive: np.ndarray) -> Weighted:
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of equal scores
    group: Ints = np.searchsorted(last, np.arange(len(order)))
    at = np.flatnonzero(positive[order])  # places of the positives
    own, ends = order[at], last[group[at]]
    # The positives up to the end of the equal scores that a positive belongs to.
    upto = np.searchsorted(at, ends, "right") - 1
    tied = bool((upto != np.arange(len(at))).any())

    def figures(counts: np.ndarray) -> Floats:
        mine = counts[:, own].astype(np.float64)
        hits = np.cumsum(mine, axis=1)
        seen = np.cumsum(counts[:, order], axis=1)[:, ends]
        reached = hits[:, upto] if tied else hits
        precision = np.divide(reached, seen, out=np.zeros_like(mine), where=seen > 0)
        total = mine.sum(1)
        usable = (total > 0) & (total < counts.sum(1))
        with np.errstate(divide="ignore", invalid="ignore"):
            area = np.einsum("rn,rn->r", mine, precision) / total
        return np.where(usable, area, np.nan)

    return figures


# --- regression


def rmse(answers: np.ndarray, truth: Truth, task: Task) -> Weighted:
    missed = (columns(answers).astype(np.float64) - columns(label_of(truth))) ** 2
    return _sums(missed, lambda x, n: np.asarray(np.sqrt(x / n[:, None]).mean(1)))


def r2(answers: np.ndarray, truth: Truth, task: Task) -> Weighted:
    label = columns(label_of(truth)).astype(np.float64)
    missed = (columns(answers).astype(np.float64) - label) ** 2
    label = label - label.mean(0)  # squares of what lies far from 0 would lose digits
    width = label.shape[1]

    def figure(x: Floats, n: Floats) -> Floats:
        off, sums, squares = np.split(x, [width, 2 * width], axis=1)
        spread = squares - sums**2 / n[:, None]
        usable = spread > 1e-12 * np.maximum(squares, np.finfo(np.float64).tiny)
        return np.asarray(np.where(usable, 1 - off / spread, np.nan).mean(1))

    return _sums(np.hstack([missed, label, label**2]), figure)


def negated(answers: np.ndarray, truth: Truth, task: Task, prepare: Prepare) -> Weighted | None:
    found = prepare(answers, truth, task)
    return None if found is None else lambda counts: -found(counts)
