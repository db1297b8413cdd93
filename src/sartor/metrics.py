"""Quality metrics by name, and what a model's task is.

    task = infer_task(signature, part, answers)
    metric = find("accuracy", task)
    metric.value(answers, Truth(label=labels))

The names stand in `definitions`; a function of the user's is `file.py:function` or
`package.module:function`: see `find`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sartor.answers import Floats, Truth, columns, form_of, groups_of
from sartor.contracts import Signature, Task, WrongRequest
from sartor.definitions import (
    CLASSIFICATION,
    DEFINITIONS,
    FREE,
    KINDS,
    RANKING,
    REGRESSION,
    SEGMENTATION,
    Scale,
    class_of,
    lookup,
    unknown,
)
from sartor.references import is_reference, load_function
from sartor.user_functions import UserFunction
from sartor.weighted import Weighted

if TYPE_CHECKING:
    from sartor.data import Part

__all__ = ["Metric", "Truth", "check_labels", "default_limit", "find", "infer_task", "primary"]


@dataclass(frozen=True)
class Metric:
    """A quality metric, ready for a task.

    `scale`: "binary" scores are 0 or 1, "bounded" ones lie within `bounds`, "real" ones anywhere;
    "whole" has no scores, only a value for the set."""

    name: str
    higher: bool
    labelled: bool
    scale: Scale
    bounds: tuple[float, float] | None = None
    share: bool = False
    grouped: bool = False
    measure: Callable[[np.ndarray, Truth], Any] = field(kw_only=True, compare=False, repr=False)
    prepare: Callable[[np.ndarray, Truth], Weighted | None] | None = field(
        default=None, kw_only=True, compare=False, repr=False
    )
    terms: Callable[[np.ndarray, Truth], Any] | None = field(
        default=None, kw_only=True, compare=False, repr=False
    )

    moves: Callable[[np.ndarray, Truth], Any] | None = field(
        default=None, kw_only=True, compare=False, repr=False
    )

    def scores(self, answers: np.ndarray, truth: Truth) -> np.ndarray:
        """One float64 score per example, or per group for ranking (`unit`)."""
        if self.scale == "whole":
            raise TypeError(f"{self.name} is a figure of the whole set and has no scores")
        return np.asarray(self.measure(answers, truth), dtype=np.float64)

    def value(self, answers: np.ndarray, truth: Truth) -> float:
        """The mean of the scores, or the figure of the whole set; NaN where it is undefined
        (no rows, one class only)."""
        if not len(answers):
            return float("nan")
        return float(np.asarray(self.measure(answers, truth), dtype=np.float64).mean())

    def weighted(self, answers: np.ndarray, truth: Truth) -> Weighted | None:
        """The figure of the whole set as a function of counts [R, N], how often each row was
        drawn; None where the slow way, `value` of the rows drawn, is the only one."""
        return None if self.prepare is None else self.prepare(answers, truth)

    def ratio(self, answers: np.ndarray, truth: Truth) -> tuple[Floats, Floats] | None:
        """The terms [N], [N] of the two sums whose ratio the figure is; None where it is none."""
        return None if self.terms is None else self.terms(answers, truth)

    def parts(self, answers: np.ndarray, truth: Truth) -> tuple[Floats, np.ndarray] | None:
        """What each row moves the figure by [N], and the class of each [N]; None where that is
        not known."""
        return None if self.moves is None else self.moves(answers, truth)

    def unit(self, truth: Truth) -> np.ndarray | None:
        """Example -> index of its score, where scores belong to groups; None where to examples."""
        return groups_of(truth) if self.grouped else None


def find(name: str, task: Task, sample: tuple[np.ndarray, Truth] | None = None) -> Metric:
    """The metric of that name for a task.

    A function of the user's, `file.py:function` or `package.module:function`, is called with
    (answers, labels) and returns a number for the whole set or an array with one per example. It
    may carry the attributes `higher_is_better = False`, `labelled = False` (then the second
    argument is the original's answers) and `scale` ("binary", "bounded" within 0 and 1, "real",
    "whole"); without the last, `sample` shows what it returns, and without a sample its return
    annotation: an array is "real", all else "whole", which is right in any case but slower.

    Raises WrongRequest for an unknown name (the nearest is named), for a metric of another kind of
    task and for a metric that needs labels where there are none."""
    if is_reference(name):
        return _users(name, task, sample)
    found = lookup(name)
    if found is None:
        raise unknown(name)
    if found.labelled and not task.labelled:
        raise WrongRequest(no_labels(name, task))
    if task.kind in KINDS and task.kind not in found.kinds:
        others = [each for each in DEFINITIONS if task.kind in DEFINITIONS[each].kinds]
        raise WrongRequest(
            f"{name} is a metric of {' and '.join(sorted(found.kinds))}, and this is "
            f"{task.kind}: write one of {', '.join(others)}"
        )
    number = class_of(name)
    if number is not None and task.classes is not None and number >= task.classes:
        raise WrongRequest(
            f"{name}: the model has {task.classes} classes; write a number from 0 to "
            f"{task.classes - 1}"
        )
    if found.groups and task.classes not in (None, 2):
        raise WrongRequest(
            f"{name} compares how often groups get class 1 of two, and the model has "
            f"{task.classes} classes; write accuracy@COLUMN or worst_class_drop instead"
        )
    bounds, scale = found.bounds, found.scale
    if name.endswith("brier") and task.classes == 2:
        bounds = (0.0, 1.0) if name == "brier" else (-1.0, 0.0)
    if scale == "binary" and task.kind == SEGMENTATION:
        scale = "bounded"  # a share of pixels
    return Metric(
        name,
        found.higher,
        found.labelled,
        scale,
        bounds,
        found.share,
        grouped=found.kinds == {RANKING},
        measure=partial(_measure, formula=found.formula, task=task),
        prepare=found.weighted and partial(_measure, formula=found.weighted, task=task),
        terms=found.ratio and partial(_measure, formula=found.ratio, task=task),
        moves=found.parts and partial(_measure, formula=found.parts, task=task),
    )


def no_labels(name: str, task: Task) -> str:
    hint = (
        "agreement >= 99 %" if task.kind in (CLASSIFICATION, SEGMENTATION) else default_limit(task)
    )
    return (
        f"{name} needs labels and the data have none (an array or column `label`, or the one "
        f"named with --label); write a limit against the original's own answers: {hint}"
    )


def _measure(answers: np.ndarray, truth: Truth, formula: Callable[..., Any], task: Task) -> Any:
    return formula(answers, truth, task)


def primary(kind: str, labelled: bool, single: bool = False) -> str:
    """The metric taken where none is asked for. `single`: one number per row, whose direction
    alone (cosine) says nothing. The mean absolute error rather than R2 for regression since it is
    a mean over examples: sharper tests on fewer rows."""
    if not labelled:
        if kind in (CLASSIFICATION, SEGMENTATION):
            return "agreement"
        return "rel_error" if single else "cosine"
    return {
        CLASSIFICATION: "accuracy",
        SEGMENTATION: "iou",
        RANKING: "ndcg@10",
        REGRESSION: "mae",
    }.get(kind, "cosine")


def default_limit(task: Task) -> str:
    """The limit on quality that a request without one gets: one point, or one percent where the
    metric has no natural unit."""
    name = task.metric
    fixed = {
        "agreement": "agreement >= 99 %",
        "flips": "flips <= 1 %",
        "cosine": "cosine >= 0.99",
        "rel_error": "rel_error <= 1 %",
        "kl": "kl <= 0.01",
    }
    if name in fixed:
        return fixed[name]
    found = lookup(name)
    higher = found.higher if found else find(name, task).higher
    if found and found.share:
        return f"{name} >= baseline - 0.01" if higher else f"{name} <= baseline + 0.01"
    return f"{name} >= 99 % of baseline" if higher else f"{name} <= 101 % of baseline"


def _users(name: str, task: Task, sample: tuple[np.ndarray, Truth] | None) -> Metric:
    function = load_function(name)
    labelled = bool(getattr(function, "labelled", True))
    if labelled and not task.labelled:
        raise WrongRequest(no_labels(name, task))
    measure = UserFunction(name, function, labelled)
    scale: Any = getattr(function, "scale", None)
    if scale is None and sample is not None:
        scale = "real" if np.ndim(measure(*sample)) else "whole"
    if scale is None:
        returns = getattr(function, "__annotations__", {}).get("return", "")
        scale = "real" if "ndarray" in str(returns) else "whole"
    if scale not in ("binary", "bounded", "real", "whole"):
        raise WrongRequest(f"{name}: scale {scale!r} must be binary, bounded, real or whole")
    bounds = (0.0, 1.0) if scale in ("binary", "bounded") else None
    higher = bool(getattr(function, "higher_is_better", True))
    return Metric(name, higher, labelled, scale, bounds, measure=measure)


def infer_task(
    signature: Signature,
    part: Part,
    answers: Mapping[str, np.ndarray],
    *,
    metric: str | None = None,
    output: str | None = None,
    kind: str | None = None,
) -> Task:
    """What the model is for, told from its outputs, the labels and the group.

    `answers` are the original's on a sample of rows, by output name. The first output that fits
    answers, numbers before classes (scikit-learn's exports have `label` and `probabilities`);
    `output`, `kind` and `metric` overrule. Raises WrongRequest where nothing fits."""
    names = [port.name for port in signature.outputs]
    if output is not None and output not in names:
        raise WrongRequest(f"the model has no output {output!r}; it has: {', '.join(names)}")
    if kind is not None and kind not in KINDS:
        raise WrongRequest(f"unknown kind of task {kind!r}; write one of {', '.join(KINDS)}")
    label = _usable(part.label)
    kinds = _wanted(kind, metric)
    if CLASSIFICATION in kinds and label is not None and _one_hot(label, answers):
        raise WrongRequest(
            "each row of the labels is a 1 among zeros: write label.argmax(1), the number of the "
            "class, or --task regression where the zeros and ones are numbers to be met"
        )
    grouped = part.group is not None
    said = kind is not None or metric in ("agreement", "flips", "kl")
    tried = [output] if output else sorted(names, key=lambda each: _rank(answers[each]))
    for name in tried:
        for each in kinds:
            if _fits(each, answers[name], label, grouped, said or _says_classes(name)):
                return _task(each, name, answers[name], label, metric)
    shapes = ", ".join(f"{name} {_shape(answers[name])}" for name in tried)
    what = "no labels" if label is None else f"labels {_shape(label)}"
    raise WrongRequest(
        f"outputs {shapes} and {what} do not go together"
        f"{f' as {kinds[0]}' if len(kinds) == 1 else ''}; classification takes [N, C] and integers "
        "0..C-1, regression as many numbers as labels, ranking one number and a group"
    )


def _wanted(kind: str | None, metric: str | None) -> list[str]:
    """The kinds to be tried, in this order. The loose ones come last."""
    if kind is not None:
        return [kind]
    order = [RANKING, CLASSIFICATION, REGRESSION, SEGMENTATION, FREE]
    if metric is None or is_reference(metric):
        return order
    found = lookup(metric)
    if found is None:
        raise unknown(metric)
    if found.groups:
        raise WrongRequest(f"{metric} can be a limit ({metric}@COLUMN), and not the task's metric")
    return [each for each in order if each in found.kinds]


def _rank(answers: np.ndarray) -> tuple[bool, bool]:
    """Floating point before integers, one row per example before all else."""
    return answers.dtype.kind != "f", answers.ndim > 2


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype.name} [{', '.join(['N', *map(str, array.shape[1:])])}]"


def _usable(label: np.ndarray | None) -> np.ndarray | None:
    if label is not None and label.dtype.kind in "USO":
        some = ", ".join(repr(str(each)) for each in np.unique(label[:1000])[:3])
        raise WrongRequest(
            f"labels are text ({some} ...); write integers 0..C-1, in the order of the model's "
            "classes"
        )
    return label[:, 0] if label is not None and label.ndim == 2 and label.shape[1] == 1 else label


def _one_hot(label: np.ndarray, answers: Mapping[str, np.ndarray]) -> bool:
    """Whether each row is a 1 among zeros, one place for each column of some output: so Keras'
    categorical losses take classes."""
    if label.ndim != 2 or label.dtype.kind not in "fiub":
        return False
    fits = any(each.shape[1:] == label.shape[1:] for each in answers.values())
    return fits and bool(np.isin(label, (0, 1)).all() and (label.sum(1) == 1).all())


def _integral(label: np.ndarray) -> bool:
    return label.dtype.kind in "iub" or bool((label == np.floor(label)).all())


def _fits(
    kind: str, answers: np.ndarray, label: np.ndarray | None, grouped: bool, said: bool
) -> bool:
    if answers.dtype.kind not in "fiub":
        return False
    if label is None:
        return _fits_unlabelled(kind, answers, said)
    width = columns(answers).shape[1] if answers.ndim <= 2 else 0
    if kind == RANKING:
        return grouped and label.ndim == 1 and width == 1
    if kind == CLASSIFICATION:
        if label.ndim != 1 or not width or not _integral(label):
            return False
        if width == 1 and answers.dtype.kind == "f":
            return bool(np.isin(label, (0, 1)).all())
        return width > 1 or answers.dtype.kind != "f"
    if kind == REGRESSION:
        return label.ndim <= 2 and width == columns(label).shape[1]
    if kind == SEGMENTATION:
        return label.ndim > 1 and _integral(label) and _dense_over(answers, label)
    return True


def _says_classes(name: str) -> bool:
    return any(word in name.lower() for word in ("logit", "prob", "class", "softmax"))


def _fits_unlabelled(kind: str, answers: np.ndarray, said: bool) -> bool:
    """Without labels many columns are taken for classes only where someone says so or they sum to
    one: the largest number of an embedding means nothing."""
    if kind == CLASSIFICATION and answers.ndim <= 2:
        if columns(answers).shape[1] == 1:
            return said or answers.dtype.kind != "f"
        return said or form_of(answers) == "probabilities"
    if kind == REGRESSION:
        return answers.ndim <= 2 and columns(answers).shape[1] == 1
    if kind == SEGMENTATION:
        return said and answers.ndim > 2
    return kind == FREE


def _dense_over(answers: np.ndarray, label: np.ndarray) -> bool:
    inner = label.shape[1:]
    if answers.dtype.kind != "f":
        return answers.shape[1:] == inner
    return answers.shape[2:] == inner or answers.shape[1:-1] == inner


def _task(
    kind: str, output: str, answers: np.ndarray, label: np.ndarray | None, metric: str | None
) -> Task:
    bad = ~np.isfinite(columns(answers)).all(1) if answers.dtype.kind == "f" else np.zeros(0)
    if bad.any():
        raise WrongRequest(
            f"the model's own output {output} is not finite for {int(bad.sum())} of {len(bad)} "
            "rows: check the inputs (scale, order of the columns) and the model"
        )
    single = columns(answers).shape[1] == 1
    classes, form = None, None
    if kind == CLASSIFICATION:
        form = form_of(answers)
        top = 0 if label is None else int(label.max())
        seen = max(int(answers.max()), top) + 1 if form == "classes" else 2
        classes = max(seen, 2) if single else answers.shape[1]
    if kind == SEGMENTATION and label is not None:
        dense = answers.shape[2:] == label.shape[1:]
        masks = answers.dtype.kind != "f"
        classes = (
            int(max(answers.max(), label.max())) + 1 if masks else answers.shape[1 if dense else -1]
        )
    name = metric or primary(kind, label is not None, single)
    task = Task(kind, output, name, label is not None, classes, form)
    if not is_reference(name):
        find(name, task)  # raises where it does not go with the task
    return task


def check_labels(task: Task, label: np.ndarray, where: str = "the data") -> None:
    """Raises WrongRequest where the labels cannot be those of the task: not finite, text, outside
    the classes, or all the same. `where` names the part in the sentence."""
    label = _usable(label)  # type: ignore[assignment]
    if len(label) == 0:
        raise WrongRequest(f"{where} has no rows")
    if label.dtype.kind == "f" and not np.isfinite(label).all():
        bad = ~np.isfinite(columns(label)).all(1)
        raise WrongRequest(
            f"{int(bad.sum())} labels of {where} are not numbers (NaN or infinite), the first in "
            f"row {int(bad.argmax())}"
        )
    if task.kind == RANKING:
        if (label < 0).any() or not (label > 0).any():
            raise WrongRequest(
                f"labels of {where} must be relevances, 0 or more, some above 0; they run from "
                f"{label.min()} to {label.max()}"
            )
        return
    if task.kind in (CLASSIFICATION, SEGMENTATION):
        _check_classes(task, label, where)


def _check_classes(task: Task, label: np.ndarray, where: str) -> None:
    if not _integral(label):
        raise WrongRequest(f"labels of {where} are not integers; write integers 0..C-1")
    low, high = int(label.min()), int(label.max())
    if task.classes is not None and (low < 0 or high >= task.classes):
        outside = (label < 0) | (label >= task.classes)
        hint = "; subtract 1 from each" if (low, high) == (1, task.classes) else ""
        hint = "; write 0 instead of -1" if (low, high, task.classes) == (-1, 1, 2) else hint
        raise WrongRequest(
            f"labels of {where} run from {low} to {high}, but the model's output {task.output} has "
            f"{task.classes} classes (0 to {task.classes - 1}); {int(outside.sum())} are "
            f"outside{hint}"
        )
    if low == high and task.kind == CLASSIFICATION:
        raise WrongRequest(
            f"every label of {where} is {low}: with one class only, quality says nothing; add "
            "rows of the others"
        )
