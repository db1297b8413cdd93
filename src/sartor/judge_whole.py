"""Comparisons of figures of a whole set: recall, balanced accuracy, F1, AUC, R2 ...

Such a figure may hang on few rows of a rare class, of which a bootstrap knows only what it has
seen. Means within classes are tested as means; for the others the bootstrap (DeLong's
variance for AUC) is held against what rows of each class could do that none of those seen did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from sartor.answers import Ints, classes_of, columns, decisions
from sartor.bootstrap import bootstrap
from sartor.contracts import Task
from sartor.definitions import CLASSIFICATION
from sartor.delong import compare, compare_share
from sartor.metrics import Metric, Truth
from sartor.stats import Comparison, Floats

Pair = tuple[np.ndarray, np.ndarray]

FEW = 10  # changed answers below which a bootstrap has too little to draw from
_CLASSES, _TRIED = 20, 4  # the rarest classes, and rows of each, on which a failure is tried


def class_weights(
    metric: Metric, truth: Truth, answers: Pair, task: Task, share: float
) -> Floats | None:
    """[N] weights of mean 1 with which the figure is the weighted mean of "the class is right";
    None where it is no such mean. Weight 0: the row does not count. `share` of the original's
    figure is held against it: with 0 precision is a mean over the rows decided for, too."""
    if task.kind != CLASSIFICATION:
        return None
    name, label = metric.name, classes_of(truth)
    if name == "recall_weighted":
        return np.ones(len(label))
    binary = _count_classes(truth, answers, task) == 2
    if name == "recall" and binary:
        weights = (label == 1).astype(np.float64)
    elif name == "precision" and binary and share == 0:
        weights = (decisions(answers[1], task) == 1).astype(np.float64)
    elif name == "balanced_accuracy" or name in ("recall", "recall_macro"):
        decided = np.union1d(*(decisions(each, task) for each in answers))
        if name != "balanced_accuracy" and not np.isin(decided[decided >= 0], label).all():
            return None  # a class that is only decided for counts as one of recall 0
        _, index, counts = np.unique(label, return_inverse=True, return_counts=True)
        weights = (1.0 / counts)[index.ravel()]
    else:
        return None
    total = weights.sum()
    return weights * (len(weights) / total) if total > 0 else None


def _count_classes(truth: Truth, answers: Pair, task: Task) -> int:
    top = max(int(decisions(each, task).max(initial=0)) for each in answers)
    return max(task.classes or 2, int(classes_of(truth).max(initial=0)) + 1, top + 1)


def resampled(
    metric: Metric,
    truth: Truth,
    answers: Pair,
    task: Task,
    sign: float,
    share: float,
    border: float,
    seed: int,
) -> Comparison:
    """A figure of the whole set, by what each row brings to it where that is known, else by the
    bootstrap; over units where rows belong together. Where the classes are known, or little was
    seen to change, no surer than unseen failures allow."""
    found = _by_parts(metric, truth, answers, sign, share, border)
    if found is None:
        found = _by_bootstrap(metric, truth, answers, sign, share, border, seed)
    estimate = found.interval.estimate
    if math.isnan(estimate):
        return found
    changed = int((answers[0] != answers[1]).reshape(len(answers[0]), -1).any(1).sum())
    still = math.isnan(found.z)  # nothing varies
    few = still or (share != 0 and changed < FEW)
    if not few and not _classified(truth, task):
        return found
    gap = estimate - border
    if share and border < 0:  # a chance gain does not make up for what was not seen
        gap = min(gap, -border)
    unseen = max(_unseen(abs(gap), *each) for each in _reach(metric, truth, answers[1], task))
    above = max(found.above, unseen if gap > 0 else 1.0) if few or gap > 0 else found.above
    below = 1.0 if few else max(found.below, unseen) if gap < 0 else found.below
    return replace(found, above=above, below=below, z=found.z if math.isfinite(found.z) else 0.0)


def _by_parts(
    metric: Metric, truth: Truth, answers: Pair, sign: float, share: float, border: float
) -> Comparison | None:
    new = metric.parts(answers[1], truth)
    old = metric.parts(answers[0], truth) if share else None
    if new is None or (share and old is None):
        return None
    value = metric.value(answers[1], truth)
    if old is None:
        found = compare_share(value, *new, sign * border, truth.units)
        return found if sign > 0 else found.negated()
    effect = sign * (value - share * metric.value(answers[0], truth))
    return compare(effect, sign * (new[0] - share * old[0]), new[1], border, truth.units)


def _by_bootstrap(
    metric: Metric,
    truth: Truth,
    answers: Pair,
    sign: float,
    share: float,
    border: float,
    seed: int,
) -> Comparison:
    units = None
    if truth.units is not None:
        _, index = np.unique(truth.units, return_inverse=True)
        order = np.argsort(index, kind="stable")
        units = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)

    def effect(rows: np.ndarray) -> float:
        some = truth.take(rows)
        old = metric.value(answers[0][rows], some) if share else 0.0
        return sign * (metric.value(answers[1][rows], some) - share * old)

    fast = _weighted(metric, truth, answers, sign, share)
    return bootstrap(effect, len(answers[0]), border, units=units, weighted=fast, seed=seed)


def _weighted(
    metric: Metric, truth: Truth, answers: Pair, sign: float, share: float
) -> Callable[[np.ndarray], Floats] | None:
    """The effect as a function of counts [R, N]; None where the metric has no such form."""
    new = metric.weighted(answers[1], truth)
    if new is None or not share:
        return new and (lambda counts: sign * new(counts))
    old = metric.weighted(answers[0], truth)
    return old and (lambda counts: sign * (new(counts) - share * old(counts)))


def _unseen(gap: float, count: int, each: float) -> float:
    """The chance that none of `count` rows showed failures that would make up the gap, when one
    row moves the figure by `each`."""
    reach = count * each
    return (1 - gap / reach) ** count if reach > gap else 0.0


def _classified(truth: Truth, task: Task) -> bool:
    label = truth.label
    return task.kind == CLASSIFICATION and label is not None and label.size == len(label)


def _reach(
    metric: Metric, truth: Truth, answers: np.ndarray, task: Task
) -> Iterator[tuple[int, float]]:
    """(independent units, the most that one of them can move the figure) for each of the rarest
    classes, found by giving rows of the class the most different answers there are."""
    label = classes_of(truth) if _classified(truth, task) else np.zeros(len(answers), np.int64)
    scores = _scores(answers, task)
    whole = metric.value(answers, truth)
    names, counts = np.unique(label, return_counts=True)
    for name in names[np.argsort(counts, kind="stable")[:_CLASSES]]:
        rows = np.flatnonzero(label == name)
        count = len(rows) if truth.units is None else len(np.unique(truth.units[rows]))
        worst = 0.0
        for row, other in _swaps(scores, rows, int(name)):
            changed = answers.copy()
            changed[row] = answers[other]
            moved = abs(metric.value(changed, truth) - whole)
            worst = max(worst, moved if math.isfinite(moved) else 0.0)
        yield count, worst * len(rows) / count


def _scores(answers: np.ndarray, task: Task) -> Floats:
    """[N, K]: how much each row speaks for each class."""
    if task.kind == CLASSIFICATION and answers.dtype.kind in "iub":
        decided = decisions(answers, task)
        return np.eye(int(max(decided.max(initial=1), 1)) + 1)[decided]
    flat = columns(answers).astype(np.float64)
    if flat.shape[1] > 1 and task.kind == CLASSIFICATION:
        return flat
    middle = flat.mean(1)
    return np.stack([-middle, middle], 1)


def _swaps(scores: Floats, rows: Ints, name: int) -> Iterator[tuple[int, int]]:
    """Rows of a class and the rows whose answers they are given."""
    own = scores[:, name] if name < scores.shape[1] else -scores.max(1)
    inside = own[rows]
    picked = {int(rows[inside.argmax()]), int(rows[inside.argmin()])}
    picked.add(int(rows[np.argsort(inside)[len(rows) // 2]]))
    sums = scores.sum(0)
    sums[min(name, len(sums) - 1)] = math.inf
    others = [int(scores[:, k].argmax()) for k in np.argsort(sums)[: _TRIED - 2]]
    for row in picked:
        for other in {int(own.argmin()), int(own.argmax()), *others}:
            yield row, other
