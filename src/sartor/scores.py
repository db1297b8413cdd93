"""The formulas behind the quality metrics, on numpy arrays.

Every function takes `(answers, truth, task)` and returns one score per example (per group in
ranking) or one number for the whole set. They are numpy rather than calls into scikit-learn since
a paired bootstrap calls them thousands of times; the tests hold them against scikit-learn.

An answer that is not finite counts as the worst one in scores with bounds and gives NaN in others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sartor.answers import (
    Floats,
    Ints,
    Truth,
    classes_of,
    columns,
    decisions,
    groups_of,
    label_of,
    log_probabilities,
    probabilities,
    reference_of,
)
from sartor.contracts import Task

Formula = Callable[[np.ndarray, Truth, Task], Any]

# --- classification, per example


def accuracy(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    return _per_row(decisions(answers, task) == classes_of(truth))


def _per_row(right: np.ndarray) -> Floats:
    """One number per example: dense answers give their share."""
    return np.asarray(right.reshape(len(right), -1).mean(1, dtype=np.float64))


def top_k(answers: np.ndarray, truth: Truth, task: Task, k: int) -> Floats:
    label, flat = classes_of(truth), columns(answers)
    own = flat[np.arange(len(flat)), label][:, None]
    before = (flat > own) | ((flat == own) & (np.arange(flat.shape[1]) < label[:, None]))
    return np.asarray((before.sum(1) < k) & np.isfinite(flat).all(1), dtype=np.float64)


def log_loss(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    return -log_probabilities(answers, task)[np.arange(len(answers)), classes_of(truth)]


def brier(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Squared distance to the one-hot label, halved for two classes (Brier, 1950): 0 to 1 for two
    classes, 0 to 2 for more."""
    chances = probabilities(answers, task)
    hot = np.eye(chances.shape[1])[classes_of(truth)]
    distance = ((chances - hot) ** 2).sum(1)
    worst = 1.0 if chances.shape[1] == 2 else 2.0
    distance = distance / 2 if chances.shape[1] == 2 else distance
    return np.where(np.isfinite(distance), distance, worst)


# --- classification, whole set


def confusion(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Counts [C, C + 1]: rows are labels, columns decisions, the last one for unusable answers."""
    label, decided = classes_of(truth).ravel(), decisions(answers, task).ravel()
    size = count_classes(label, decided, task)
    decided = np.where(decided < 0, size, decided)
    counts = np.bincount(label * (size + 1) + decided, minlength=size * (size + 1))
    return counts.reshape(size, size + 1).astype(np.float64)


def count_classes(label: Ints, decided: Ints, task: Task) -> int:
    return max(task.classes or 2, int(label.max(initial=0)) + 1, int(decided.max(initial=0)) + 1)


def balanced_accuracy(answers: np.ndarray, truth: Truth, task: Task) -> float:
    counts = confusion(answers, truth, task)
    return float(mean_recall(np.diag(counts), counts.sum(1)))


def mean_recall(right: Floats, labelled: Floats, axis: int = 0) -> Floats:
    """Mean over the classes that occur, which lie along `axis`, the last one."""
    each = np.divide(right, labelled, out=np.zeros_like(right), where=labelled > 0)
    with np.errstate(invalid="ignore"):
        return np.asarray(each.sum(axis) / (labelled > 0).sum(axis))


def precision_recall_f1(
    answers: np.ndarray, truth: Truth, task: Task, which: str, average: str | int
) -> float:
    """As scikit-learn's with zero_division=0. `average`: a class; "macro" or "weighted" over the
    classes that occur; "auto" = of class 1 for two classes and macro for more."""
    counts = confusion(answers, truth, task)
    return float(averaged(np.diag(counts), counts.sum(1), counts[:, :-1].sum(0), which, average))


def averaged(
    right: Floats, labelled: Floats, decided: Floats, which: str, average: str | int
) -> Floats:
    """Precision, recall or F1 from counts [..., C]."""
    below = {"precision": decided, "recall": labelled, "f1": (labelled + decided) / 2}[which]
    each = np.divide(right, below, out=np.zeros_like(right), where=below > 0)
    if average == "auto":
        average = 1 if each.shape[-1] == 2 else "macro"
    if isinstance(average, int):
        return np.asarray(each[..., average])
    weight = labelled if average == "weighted" else (labelled + decided > 0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray((each * weight).sum(-1) / weight.sum(-1))


BINS = 15  # of the calibration error


def calibration(answers: np.ndarray, truth: Truth, task: Task, bins: int = BINS) -> float:
    """Expected calibration error: equal-width bins of the top probability (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017). NaN where an answer is not finite."""
    gap, at = calibration_gaps(answers, truth, task, bins)
    if not len(gap) or not np.isfinite(gap).all():
        return float("nan")
    return float(np.abs(np.bincount(at, gap, minlength=bins)).sum() / len(gap))


def calibration_gaps(
    answers: np.ndarray, truth: Truth, task: Task, bins: int = BINS
) -> tuple[Floats, Ints]:
    """Per example: right (0 or 1) minus the top probability, and the bin of that probability."""
    chances = probabilities(answers, task)
    sure, right = chances.max(1), chances.argmax(1) == classes_of(truth)
    finite = np.where(np.isfinite(sure), sure, 0.0)
    at = np.minimum((finite * bins).astype(np.int64), bins - 1)
    return right.astype(np.float64) - sure, at


def auc(answers: np.ndarray, truth: Truth, task: Task) -> float:
    """Area under the ROC curve; for more than two classes one against the rest, macro-averaged
    over those that occur. NaN where only one class occurs."""
    return _one_against_rest(answers, truth, task, _auc)


def average_precision(answers: np.ndarray, truth: Truth, task: Task) -> float:
    """Area under precision over recall by steps; macro-averaged for more than two classes."""
    return _one_against_rest(answers, truth, task, _average_precision)


def _one_against_rest(
    answers: np.ndarray,
    truth: Truth,
    task: Task,
    area: Callable[[np.ndarray, np.ndarray], float],
) -> float:
    label = classes_of(truth)
    # Logarithms: exp(...) near 1 would make ties that the model does not have.
    logs = log_probabilities(answers, task)
    if not np.isfinite(logs).all():
        return float("nan")
    if logs.shape[1] == 2:
        return area(logs[:, 1] - logs[:, 0], label == 1)
    areas = np.array([area(logs[:, c], label == c) for c in range(logs.shape[1])])
    return float(areas[~np.isnan(areas)].mean()) if not np.isnan(areas).all() else float("nan")


def _auc(score: np.ndarray, positive: np.ndarray) -> float:
    others, own = np.sort(score[~positive]), score[positive]
    if not len(others) or not len(own):
        return float("nan")
    below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
    return float(below.mean() / 2 / len(others))


def _average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any() or positive.all():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(positive[order], dtype=np.float64)
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # the last of equal scores
    gained = np.diff(hits[last], prepend=0.0)
    return float((gained * hits[last] / (last + 1)).sum() / hits[-1])


# --- regression


def _errors(answers: np.ndarray, truth: Truth) -> Floats:
    label = label_of(truth)
    return columns(answers).astype(np.float64) - columns(label).astype(np.float64)


def mse(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    return np.asarray((_errors(answers, truth) ** 2).mean(1))


def mae(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    return np.asarray(np.abs(_errors(answers, truth)).mean(1))


def mape(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    size = np.abs(columns(label_of(truth)).astype(np.float64))
    share = np.abs(_errors(answers, truth)) / np.maximum(size, np.finfo(np.float64).eps)
    return np.asarray(share.mean(1))


def rmse(answers: np.ndarray, truth: Truth, task: Task) -> float:
    """Root of the mean squared error, averaged over outputs as scikit-learn does."""
    return float(np.sqrt((_errors(answers, truth) ** 2).mean(0)).mean())


def r2(answers: np.ndarray, truth: Truth, task: Task) -> float:
    """Share of variance explained, averaged over outputs; NaN where a label is constant."""
    label = columns(label_of(truth)).astype(np.float64)
    spread = ((label - label.mean(0)) ** 2).sum(0)
    missed = (_errors(answers, truth) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(spread > 0, 1 - missed / spread, np.nan).mean())


# --- ranking: one score per group, groups in sorted order


def _ranked(answers: np.ndarray, task: Task) -> Floats:
    flat = columns(answers).astype(np.float64)
    if flat.shape[1] > 1:
        logs = log_probabilities(answers, task)
        flat = (logs[:, -1] - logs[:, 0])[:, None]
    return np.where(np.isfinite(flat[:, 0]), flat[:, 0], -np.inf)


def ndcg(answers: np.ndarray, truth: Truth, task: Task, k: int | None) -> Floats:
    """Normalized discounted cumulative gain of the first k, with the label as gain and equal
    scores averaged, as in scikit-learn (Järvelin and Kekäläinen, 2002). 0 where nothing in the
    group is relevant."""
    group, score = groups_of(truth), _ranked(answers, task)
    gain = label_of(truth).astype(np.float64)
    size = int(group.max(initial=-1)) + 1
    best = _dcg(group, gain, gain, size, k)
    return np.divide(_dcg(group, score, gain, size, k), best, out=np.zeros(size), where=best > 0)


def _dcg(group: Ints, score: Floats, gain: Floats, size: int, k: int | None) -> Floats:
    order = np.lexsort((-score, group))
    group, score, gain = group[order], score[order], gain[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    position = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    discount = 1 / np.log2(position + 2)
    if k is not None:
        discount[position >= k] = 0
    fresh = (position == 0) | (score != np.roll(score, 1))  # where a run of equal scores begins
    run = np.cumsum(fresh) - 1
    mean = np.bincount(run, gain) / np.bincount(run)
    return np.bincount(group, discount * mean[run], minlength=size).astype(np.float64)


def mean_precision(answers: np.ndarray, truth: Truth, task: Task, k: int | None) -> Floats:
    """Average precision of each group (their mean is "mAP"): the precision at the rank of every
    relevant example (label above 0), averaged over them; of the first k ranks, over as many as
    could stand there. 0 where nothing is relevant. Among equal scores the irrelevant come first,
    so that ties gain nothing."""
    group, score = groups_of(truth), _ranked(answers, task)
    relevant = label_of(truth) > 0
    order = np.lexsort((relevant, -score, group))
    group, relevant = group[order], relevant[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(np.append(starts, len(group)))
    rank = np.arange(len(group)) - np.repeat(starts, sizes) + 1
    hits = np.cumsum(relevant)
    hits = hits - np.repeat(hits[starts] - relevant[starts], sizes)
    counted = relevant if k is None else relevant & (rank <= k)
    there = np.add.reduceat(relevant.astype(np.int64), starts) if len(starts) else np.zeros(0)
    most = there if k is None else np.minimum(there, k)
    found = np.bincount(group, counted * hits / rank, minlength=len(starts)).astype(np.float64)
    return np.divide(found, most, out=np.zeros(len(starts)), where=most > 0)


def first_hit(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Rank (from 1) of the best relevant example (label above 0) of each group; infinite where
    there is none. Among equal scores the irrelevant come first, so that ties gain nothing."""
    group, score = groups_of(truth), _ranked(answers, task)
    relevant = label_of(truth) > 0
    size = int(group.max(initial=-1)) + 1
    best = np.full(size, -np.inf)
    np.maximum.at(best, group[relevant], score[relevant])
    above = np.bincount(group[~relevant], (score >= best[group])[~relevant], minlength=size)
    has = np.bincount(group[relevant], minlength=size) > 0
    return np.where(has, above + 1.0, np.inf)


def hit(answers: np.ndarray, truth: Truth, task: Task, k: int) -> Floats:
    return (first_hit(answers, truth, task) <= k).astype(np.float64)


def mrr(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Reciprocal rank of the first relevant example; 0 where there is none."""
    return 1 / first_hit(answers, truth, task)


# --- masks


def iou(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Intersection over union of integer masks, averaged over the classes that occur in the
    example's label or answer."""
    return mean_overlap(*overlaps(answers, truth, task))


def mean_iou(answers: np.ndarray, truth: Truth, task: Task) -> float:
    """Intersection over union of each class, both summed over the whole set, averaged over the
    classes that occur in labels or answers (the mIoU of Pascal VOC and Cityscapes)."""
    both, either = overlaps(answers, truth, task)
    return float(mean_overlap(both.sum(0), either.sum(0)))


def overlaps(answers: np.ndarray, truth: Truth, task: Task) -> tuple[Floats, Floats]:
    """Pixels in intersection and union per example and class [N, C]."""
    label, decided = classes_of(truth), decisions(answers, task)
    label, decided = label.reshape(len(label), -1), decided.reshape(len(label), -1)
    size = max(task.classes or 0, int(label.max(initial=0)) + 1, int(decided.max(initial=0)) + 1)
    both, either = np.zeros((2, len(label), size))
    for c in range(size):
        of_label, of_answer = label == c, decided == c
        both[:, c], either[:, c] = (of_label & of_answer).sum(1), (of_label | of_answer).sum(1)
    return both, either


def mean_overlap(both: Floats, either: Floats) -> Floats:
    each = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    return np.asarray(each.sum(-1) / np.maximum((either > 0).sum(-1), 1))


# --- against the original's answers


def agreement(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    return _per_row(decisions(answers, task) == decisions(reference_of(truth), task))


def flips(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    return 1 - agreement(answers, truth, task)


def negative_flips(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Whether the original was right and the candidate is not (Yan and others, "Positive-Congruent
    Training", CVPR 2021)."""
    label = classes_of(truth)
    before, after = decisions(reference_of(truth), task), decisions(answers, task)
    return _per_row((before == label) & (after != label))


def worst_class_drop(answers: np.ndarray, truth: Truth, task: Task) -> float:
    """The largest drop of a class's recall below the original's; 0 where none drops."""
    label, (before, after) = (
        classes_of(truth),
        (decisions(each, task) for each in (reference_of(truth), answers)),
    )
    counts = np.maximum(np.bincount(label), 1)
    lost = np.bincount(label, (before == label).astype(np.float64) - (after == label))
    return float(max((lost / counts).max(initial=0.0), 0.0))


def cosine(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Cosine between the answer and the original's, flattened; 1 for two zero vectors, 0 for one,
    -1 where the answer is not finite."""
    ours, theirs = _pair(answers, truth)
    bad = np.asarray(~np.isfinite(ours).all(1))
    ours = np.where(bad[:, None], 0.0, ours)
    own, original = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    both_zero = np.asarray(own + original == 0, dtype=np.float64)
    product = own * original
    cosines = np.divide((ours * theirs).sum(1), product, out=both_zero, where=product > 0)
    return np.where(bad, -1.0, np.clip(cosines, -1.0, 1.0))


def relative_error(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Euclidean distance to the original's answer over that answer's length."""
    ours, theirs = _pair(answers, truth)
    length = np.maximum(np.linalg.norm(theirs, axis=1), np.finfo(np.float32).tiny)
    return np.asarray(np.linalg.norm(ours - theirs, axis=1) / length)


def _pair(answers: np.ndarray, truth: Truth) -> tuple[Floats, Floats]:
    ours = answers.reshape(len(answers), -1).astype(np.float64)
    theirs = reference_of(truth)
    return ours, theirs.reshape(len(theirs), -1).astype(np.float64)


def kl(answers: np.ndarray, truth: Truth, task: Task) -> Floats:
    """Kullback-Leibler divergence of the answer's distribution from the original's, in nats."""
    ours, theirs = log_probabilities(answers, task), log_probabilities(reference_of(truth), task)
    return np.asarray(np.maximum((np.exp(theirs) * (theirs - ours)).sum(1), 0.0))


def negated(answers: np.ndarray, truth: Truth, task: Task, formula: Formula) -> Any:
    return -formula(answers, truth, task)
