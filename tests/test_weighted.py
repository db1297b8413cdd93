"""Figures under weights: the same as those of the rows repeated, and as scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from sartor.answers import log_probabilities
from sartor.bootstrap import bootstrap
from sartor.contracts import Task
from sartor.definitions import DEFINITIONS, known, lookup
from sartor.metrics import Metric, Truth, find

N = 120
WHOLE = [
    name
    for name in (*known(), "neg_rmse", "neg_ece", "precision[0]", "recall[2]")
    if lookup(name).scale == "whole" and lookup(name).weighted  # type: ignore[union-attr]
]


def data(
    name: str, seed: int = 0, n: int = N, classes: int = 3
) -> tuple[Metric, np.ndarray, Truth]:
    """A metric of this name with answers [n, ...] and truth that fit it."""
    rng = np.random.default_rng(seed)
    kind = sorted(lookup(name).kinds)[0]  # type: ignore[union-attr]
    if kind == "regression":
        label = rng.normal(size=(n, 2)) + 5
        return find(name, Task(kind, "y", "mse")), label + rng.normal(size=(n, 2)), Truth(label)
    if name == "mean_iou":
        label = rng.integers(0, classes, (n, 4, 5))
        masks = np.where(rng.random(label.shape) < 0.3, (label + 1) % classes, label)
        return find(name, Task("segmentation", "m", "iou", classes=classes)), masks, Truth(label)
    label = rng.integers(0, classes, n)
    logits = np.round(rng.normal(size=(n, classes)) + np.eye(classes)[label], 1)  # ties
    task = Task("classification", "y", "accuracy", classes=classes, form="logits")
    return find(name, task), logits, Truth(label)


def test_every_figure_of_a_whole_set_has_a_fast_form_or_needs_none() -> None:
    without = {name for name, each in DEFINITIONS.items() if each.scale == "whole"} - set(WHOLE)
    other = {each for each in without if not (lookup(each).groups or lookup(each).parts)}  # type: ignore[union-attr]
    assert other == {"wer", "worst_class_drop"}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", WHOLE)
def test_counts_do_what_repeated_rows_do(name: str, classes: int) -> None:
    if name == "recall[2]" and classes == 2:
        return
    metric, answers, truth = data(name, classes=classes)
    fast = metric.weighted(answers, truth)
    assert fast is not None
    counts = np.random.default_rng(1).multinomial(N, np.full(N, 1 / N), size=20)
    counts[0] = 1
    found = fast(counts)
    assert found.shape == (20,)
    for times, figure in zip(counts, found, strict=True):
        rows = np.repeat(np.arange(N), times)
        assert figure == pytest.approx(metric.value(answers[rows], truth.take(rows)), abs=1e-9)


def test_weights_agree_with_sklearn() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 5, (1, N))
    sure = {"sample_weight": counts[0]}

    def figure(name: str, classes: int = 2) -> tuple[float, np.ndarray, np.ndarray]:
        metric, answers, truth = data(name, classes=classes)
        fast, label = metric.weighted(answers, truth), truth.label
        assert fast is not None
        assert label is not None
        return float(fast(counts)[0]), answers, label

    found, logits, label = figure("average_precision")
    logs = log_probabilities(logits, Task("classification", "y", "auc", form="logits"))
    score = logs[:, 1] - logs[:, 0]
    assert found == pytest.approx(sk.average_precision_score(label, score, **sure))
    found, _, _ = figure("balanced_accuracy")
    assert found == pytest.approx(sk.balanced_accuracy_score(label, logits.argmax(1), **sure))
    found, logits, label = figure("f1_macro", 3)
    decided = logits.argmax(1)
    assert found == pytest.approx(sk.f1_score(label, decided, average="macro", **sure))
    found, _, _ = figure("f1[1]", 3)
    wanted = sk.f1_score(label, decided, average=None, **sure)[1]
    assert found == pytest.approx(wanted)
    found, masks, label = figure("mean_iou", 3)
    weight = np.repeat(counts[0], 20)
    wanted = sk.jaccard_score(label.ravel(), masks.ravel(), average="macro", sample_weight=weight)
    assert found == pytest.approx(wanted)
    found, answers, label = figure("r2")
    assert found == pytest.approx(sk.r2_score(label, answers, **sure))
    found, answers, label = figure("rmse")
    assert found == pytest.approx(sk.root_mean_squared_error(label, answers, **sure))


def test_a_class_that_no_weight_falls_on_is_undefined() -> None:
    metric, answers, truth = data("average_precision", classes=2)
    precision, label = metric.weighted(answers, truth), truth.label
    assert precision is not None
    assert label is not None
    one_class = (label == 1).astype(np.int64)[None]
    assert np.isnan(precision(one_class)).all()
    assert np.isnan(precision(1 - one_class)).all()


def test_the_fast_bootstrap_is_the_slow_one() -> None:
    metric, answers, truth = data("f1_macro", n=300)
    fast = metric.weighted(answers, truth)

    def slow(rows: np.ndarray) -> float:
        return metric.value(answers[rows], truth.take(rows))

    pairs = [np.array([i, i + 1]) for i in range(0, 300, 2)]
    for units in (None, pairs):
        border = slow(np.arange(300)) - 0.03
        one = bootstrap(slow, 300, border, units=units, resamples=4000)
        other = bootstrap(slow, 300, border, units=units, weighted=fast, resamples=4000)
        assert other.interval.low == pytest.approx(one.interval.low, abs=0.006)
        assert other.interval.high == pytest.approx(one.interval.high, abs=0.006)
        assert other.above == pytest.approx(one.above, abs=0.03)
        assert other.n == one.n
