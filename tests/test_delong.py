"""The area under the curve by what each row brings to it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from sartor.contracts import Task
from sartor.delong import _freedom, auc_parts, compare, compare_share
from sartor.metrics import Truth, find

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "statistics"))
import bootstrap_levels

TWO = Task("classification", "y", "auc", classes=2, form="logits")
FOUR = Task("classification", "y", "auc", classes=4, form="logits")


def sample(classes: int, n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    return label, np.round(rng.normal(size=(n, classes)) + np.eye(classes)[label], 1)  # ties


def test_the_variance_is_that_of_the_paper() -> None:
    """By all pairs of a positive and a negative, as the paper writes it."""
    label, logits = sample(2)
    score = logits[:, 1] - logits[:, 0]
    x, y = score[label == 1], score[label == 0]
    pairs = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    wanted = pairs.mean(1).var(ddof=1) / len(x) + pairs.mean(0).var(ddof=1) / len(y)
    parts = auc_parts(logits, Truth(label), TWO)
    assert parts is not None
    found = compare(pairs.mean(), *parts, border=0.5)
    assert ((pairs.mean() - 0.5) / found.z) ** 2 == pytest.approx(wanted)


@pytest.mark.parametrize(("task", "classes"), [(TWO, 2), (FOUR, 4)])
def test_parts_foretell_what_leaving_a_row_out_does(task: Task, classes: int) -> None:
    label, logits = sample(classes, 400)
    parts, auc = auc_parts(logits, Truth(label), task), find("auc", task)
    assert parts is not None
    assert parts[0].sum() == pytest.approx(0, abs=1e-12)
    whole = auc.value(logits, Truth(label))
    for row in range(0, 400, 40):
        kept = np.delete(np.arange(400), row)
        moved = whole - auc.value(logits[kept], Truth(label[kept]))
        assert moved == pytest.approx(parts[0][row], abs=2e-4)


def test_repeated_rows_are_no_evidence_and_groups_are_one_unit() -> None:
    label, logits = sample(2, 200)
    once = auc_parts(logits, Truth(label), TWO)
    twice = auc_parts(np.repeat(logits, 2, 0), Truth(np.repeat(label, 2)), TWO)
    assert once is not None
    assert twice is not None
    one = compare(0.7, *once, border=0.65, units=np.arange(200))
    other = compare(0.7, *twice, border=0.65, units=np.repeat(np.arange(200), 2))
    assert other.z == pytest.approx(one.z, rel=0.02)
    assert other.n == 200
    assert compare(0.7, *twice, border=0.65).z > 1.3 * other.z


def test_what_never_changes_has_no_spread() -> None:
    found = compare(0.0, np.zeros(50), np.arange(50) % 2, border=-0.01)
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)
    assert np.isnan(found.z)


def test_a_class_of_one_row_says_nothing() -> None:
    parts = auc_parts(np.array([0.1, 0.4, 0.8]), Truth(np.array([0, 0, 1])), TWO)
    assert parts is not None
    assert compare(1.0, *parts, border=0.5).above == 1.0


def test_units_of_one_row_are_rows() -> None:
    label, logits = sample(2, 100)
    parts = auc_parts(logits, Truth(label), TWO)
    assert parts is not None
    assert compare(0.7, *parts, 0.6, units=np.arange(100)) == compare(0.7, *parts, 0.6)


def test_an_absolute_limit_errs_no_more_than_its_level_deep_in_the_tail() -> None:
    """200 positives among 2,200, the area exactly on the limit: on its own scale 1.7 % at 1 %."""
    rng, runs, wrong = np.random.default_rng(5), 3000, 0
    label = np.arange(2200) < 200
    for _ in range(runs):
        score = rng.normal(size=2200) + 1.5 * label
        parts = auc_parts(np.stack([-score, score], 1), Truth(label.astype(int)), TWO)
        assert parts is not None
        ranks = np.argsort(np.argsort(score))[label] + 1
        area = (ranks.sum() - 200 * 201 / 2) / (200 * 2000)
        wrong += compare_share(area, *parts, float(ndtr(1.5 / np.sqrt(2)))).above <= 0.01
    assert wrong / runs <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / runs)


def test_intervals_hold_the_truth() -> None:
    """Of the change of an area, with 30 % and with 5 % positives (50 of 1,000 rows)."""
    for name in ("AUC", "AUC, 5 % positives"):
        found = bootstrap_levels.level(name, 1000, 200)
        assert found.met <= 0.08
        assert found.broken <= 0.08
        assert found.covered >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / 200)


def test_variances_are_as_free_as_the_scatter_of_their_values_lets_them() -> None:
    def free(values: np.ndarray) -> float:
        n = np.array([float(len(values))])
        return float(
            _freedom(n, np.sum(values**2, keepdims=True), np.sum(values**4, keepdims=True))[0]
        )

    rng = np.random.default_rng(0)
    normal, heavy = rng.normal(size=10_000), rng.standard_t(5, 10_000)
    assert free(normal) == pytest.approx(9_999, rel=0.1)
    assert free(heavy) < 6_000
    assert free(np.array([1.0, -1, 1, -1])) == 3  # never more than one less than there are
    assert free(np.zeros(9)) == 8
    assert free(np.array([2.0])) == 0
