"""What a model's answers mean: classes, probabilities, and what they are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sartor.contracts import Task, WrongRequest

Form = Literal["logits", "probabilities", "classes"]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_TINY = float(np.finfo(np.float32).eps)  # answers are float32: a probability of 0 means below this


@dataclass(frozen=True)
class Truth:
    """What answers are held against: labels, and the original's answers (`reference`, of the same
    shape as the candidate's). `group` joins examples that are ranked together; `segments` are
    columns by name; `unit` numbers the independent units where rows repeat, for the statistics
    alone. All arrays have one row per example."""

    label: np.ndarray | None = None
    reference: np.ndarray | None = None
    group: np.ndarray | None = None
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)
    unit: np.ndarray | None = None

    def take(self, rows: np.ndarray | slice) -> Truth:
        """The truth of these rows, in this order."""
        label, reference, group, unit = (
            None if each is None else each[rows]
            for each in (self.label, self.reference, self.group, self.unit)
        )
        segments = {name: column[rows] for name, column in self.segments.items()}
        return Truth(label, reference, group, segments, unit)

    @property
    def units(self) -> np.ndarray | None:
        """[N]: rows that share a number are not independent; None where all are."""
        return self.group if self.unit is None else self.unit


def form_of(answers: np.ndarray) -> Form:
    """What the numbers are: classes (integers, one per row), probabilities (rows non-negative
    with sum 1 within 1e-3; a single column within 0 and 1) or logits (all else)."""
    flat = columns(answers)
    if flat.shape[1] == 1 and answers.dtype.kind in "iub":
        return "classes"
    finite = flat[np.isfinite(flat).all(1)]
    if flat.shape[1] == 1:
        return "probabilities" if ((finite >= 0) & (finite <= 1)).all() else "logits"
    sums_to_one = np.abs(finite.sum(1, dtype=np.float64) - 1) <= 1e-3
    return "probabilities" if (finite >= 0).all() and sums_to_one.all() else "logits"


def columns(answers: np.ndarray) -> np.ndarray:
    """Answers as [N, K]: one column where there is one number per row."""
    return answers.reshape(len(answers), -1) if answers.ndim != 2 else answers


def _form(answers: np.ndarray, task: Task) -> Form:
    # The form is a fact about the model: told once from many answers, it does not change when a
    # small sample of logits happens to lie within 0 and 1.
    return task.form or form_of(answers)


def label_of(truth: Truth) -> np.ndarray:
    if truth.label is None:
        raise WrongRequest(
            "this metric needs labels and the data have none; write: agreement >= 99 %"
        )
    label = truth.label
    return label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label


def reference_of(truth: Truth) -> np.ndarray:
    if truth.reference is None:
        raise ValueError("the truth holds no answers of the original")
    return truth.reference


def groups_of(truth: Truth) -> Ints:
    """Example -> index of its group among the sorted groups."""
    if truth.group is None:
        raise WrongRequest(
            "ranking metrics need to know which rows are ranked together: "
            "add an array or column `group`, or name it with --group"
        )
    return np.unique(truth.group, return_inverse=True)[1].astype(np.int64).ravel()


def classes_of(truth: Truth) -> Ints:
    return label_of(truth).astype(np.int64)


def decisions(answers: np.ndarray, task: Task) -> Ints:
    """The class that each row of answers stands for; -1 where an answer is not finite.

    [N, C] -> [N] by the largest, the first of equals; [N] or [N, 1] -> probability above 0.5 or
    logit above 0. Dense answers [N, C, ...] -> [N, ...]."""
    if answers.ndim > 2:
        return _dense(answers, task)
    flat, form = columns(answers), _form(answers, task)
    if form == "classes":
        return flat[:, 0].astype(np.int64)
    if flat.shape[1] == 1:
        decided = (flat[:, 0] > (0.5 if form == "probabilities" else 0.0)).astype(np.int64)
    else:
        decided = flat.argmax(1).astype(np.int64)
    return np.where(np.isfinite(flat).all(1), decided, -1)


def _dense(answers: np.ndarray, task: Task) -> Ints:
    if answers.dtype.kind in "iub":
        return answers.astype(np.int64)
    axis = 1 if answers.shape[1] == task.classes else answers.ndim - 1
    decided = answers.argmax(axis).astype(np.int64)
    return np.where(np.isfinite(answers).all(axis), decided, -1)


def log_probabilities(answers: np.ndarray, task: Task) -> Floats:
    """Natural logarithms of class probabilities [N, C]; two columns for a single one."""
    flat, form = columns(answers).astype(np.float64), _form(answers, task)
    if form == "classes":
        raise WrongRequest(
            "this metric needs probabilities or logits and the model's output holds classes; "
            "write --output with the name of the output that holds the scores"
        )
    if form == "probabilities":
        if flat.shape[1] == 1:
            flat = np.hstack([1 - flat, flat])
        flat = np.clip(flat, _TINY, 1)
        return np.asarray(np.log(flat / flat.sum(1, keepdims=True)))
    if flat.shape[1] == 1:
        flat = np.hstack([np.zeros_like(flat), flat])
    with np.errstate(invalid="ignore"):
        flat = flat - flat.max(1, keepdims=True)
        return np.asarray(flat - np.log(np.exp(flat).sum(1, keepdims=True)))


def probabilities(answers: np.ndarray, task: Task) -> Floats:
    """Class probabilities [N, C]; two columns for a single one."""
    return np.exp(log_probabilities(answers, task))
