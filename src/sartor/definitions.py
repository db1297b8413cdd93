"""The names of the quality metrics, and what is known of each by its name alone.

`DEFINITIONS` is the one list; `lookup` adds the families "top5_accuracy", "ndcg@10", "map@10",
"hit@10" (any number), "f1[3]" (of class 3; also precision and recall), "wer[0]" (with 0 as padding)
and "neg_" before a loss (higher is better, values below 0).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from sartor import delong, fairness, scores, tokens, weighted
from sartor.contracts import WrongRequest
from sartor.scores import Formula
from sartor.weighted import Prepare

Scale = Literal["binary", "bounded", "real", "whole"]

CLASSIFICATION, REGRESSION, RANKING, SEGMENTATION, FREE = KINDS = (
    "classification",
    "regression",
    "ranking",
    "segmentation",
    "free",
)


@dataclass(frozen=True)
class Definition:
    """What is known of a metric by its name alone. `share`: its values are shares, so that "1 %"
    means 0.01. `bounds`: of one score and of the value (None = unbounded). `relative`: it holds
    answers against the original's, so that the original's own value is the best there is.
    `weighted`: the figure of a whole set under weights, for a fast bootstrap. `ratio`: the figure
    is a ratio of two sums over examples, and this gives their terms [N], [N]. `parts`: what
    each row moves the figure by [N], and the class of each [N]. `groups`: it compares the groups of
    a segment, without which it means nothing."""

    formula: Formula
    scale: Scale
    kinds: frozenset[str]
    higher: bool = True
    labelled: bool = True
    share: bool = False
    bounds: tuple[float, float] | None = None
    relative: bool = False
    weighted: Prepare | None = None
    ratio: Formula | None = None
    parts: Formula | None = None
    groups: bool = False


def _entry(formula: Formula, scale: Scale, kinds: str, **more: Any) -> Definition:
    if scale in ("binary", "bounded"):
        more.setdefault("bounds", (0.0, 1.0))
    return Definition(formula, scale, frozenset(kinds.split()), **more)


def _share(formula: Formula, scale: Scale, kinds: str, **more: Any) -> Definition:
    return _entry(formula, scale, kinds, share=True, bounds=(0.0, 1.0), **more)


def _against(formula: Formula, scale: Scale, kinds: str, **more: Any) -> Definition:
    return _entry(formula, scale, kinds, labelled=False, relative=True, **more)


def _counts(which: str, average: str | int) -> Definition:
    """Precision, recall or F1."""
    how = {"which": which, "average": average}
    formula = partial(scores.precision_recall_f1, **how)  # type: ignore[arg-type]
    fast = partial(weighted.precision_recall_f1, **how)  # type: ignore[arg-type]
    return _share(formula, "whole", CLASSIFICATION, weighted=fast)


def _averages() -> dict[str, Definition]:
    suffixes = (("", "auto"), ("_macro", "macro"), ("_weighted", "weighted"))
    return {
        which + suffix: _counts(which, average)
        for which in ("precision", "recall", "f1")
        for suffix, average in suffixes
    }


def _fair() -> dict[str, Definition]:
    """Differences (0: alike, lower is better) and ratios (1: alike) between groups."""
    return {
        f"{rates}_{how}": _share(
            fairness.unsaid, "whole", CLASSIFICATION,
            higher=how == "ratio", labelled=rates != "demographic_parity", groups=True,
        )
        for rates in fairness.RATES
        for how in ("difference", "ratio")
    }  # fmt: skip


def _wer(padding: int | None) -> Definition:
    return _entry(
        partial(tokens.error_rate, padding=padding), "whole", FREE,
        higher=False, share=True, ratio=partial(tokens.edits, padding=padding),
    )  # fmt: skip


_DECIDED = "classification segmentation"
_ANY = " ".join(KINDS)
_ECE = _share(
    scores.calibration, "whole", CLASSIFICATION, higher=False, weighted=weighted.calibration
)

DEFINITIONS: Mapping[str, Definition] = {
    "accuracy": _share(scores.accuracy, "binary", _DECIDED),
    "balanced_accuracy": _share(
        scores.balanced_accuracy, "whole", _DECIDED, weighted=weighted.balanced_accuracy
    ),
    **_averages(),
    "auc": _share(scores.auc, "whole", CLASSIFICATION, parts=delong.auc_parts),
    "average_precision": _share(
        scores.average_precision, "whole", CLASSIFICATION, weighted=weighted.average_precision
    ),
    "log_loss": _entry(scores.log_loss, "real", CLASSIFICATION, higher=False),
    "brier": _entry(scores.brier, "bounded", CLASSIFICATION, higher=False, bounds=(0.0, 2.0)),
    "ece": _ECE,
    "calibration": _ECE,  # another name of it
    "iou": _share(scores.iou, "bounded", SEGMENTATION),
    "mean_iou": _share(scores.mean_iou, "whole", SEGMENTATION, weighted=weighted.mean_iou),
    "mse": _entry(scores.mse, "real", REGRESSION, higher=False),
    "mae": _entry(scores.mae, "real", REGRESSION, higher=False),
    "rmse": _entry(scores.rmse, "whole", REGRESSION, higher=False, weighted=weighted.rmse),
    "mape": _entry(scores.mape, "real", REGRESSION, higher=False, share=True),
    "r2": _entry(scores.r2, "whole", REGRESSION, share=True, weighted=weighted.r2),
    "ndcg": _share(partial(scores.ndcg, k=None), "bounded", RANKING),
    "map": _share(partial(scores.mean_precision, k=None), "bounded", RANKING),
    "mrr": _share(scores.mrr, "bounded", RANKING),
    "wer": _wer(None),
    **_fair(),
    "agreement": _against(
        scores.agreement, "binary", f"{_DECIDED} {FREE}", share=True, bounds=(0.0, 1.0)
    ),
    "flips": _against(
        scores.flips, "binary", f"{_DECIDED} {FREE}", higher=False, share=True, bounds=(0.0, 1.0)
    ),
    "negative_flips": _share(
        scores.negative_flips, "binary", _DECIDED, higher=False, relative=True
    ),
    "worst_class_drop": _share(
        scores.worst_class_drop, "whole", CLASSIFICATION, higher=False, relative=True
    ),
    "cosine": _against(scores.cosine, "bounded", _ANY, bounds=(-1.0, 1.0)),
    "kl": _against(scores.kl, "real", f"{CLASSIFICATION} {FREE}", higher=False),
    "rel_error": _against(scores.relative_error, "real", _ANY, higher=False, share=True),
}
_OTHER_NAMES = {
    "acc": "accuracy",
    "ap": "average_precision",
    "cross_entropy": "log_loss",
    "expected_calibration_error": "ece",
    "f1_score": "f1",
    "miou": "mean_iou",
    "negative_flip_rate": "negative_flips",
    "nfr": "negative_flips",
    "word_error_rate": "wer",
    "kl_divergence": "kl",
    "logloss": "log_loss",
    "mean_absolute_error": "mae",
    "mean_absolute_percentage_error": "mape",
    "mean_squared_error": "mse",
    "pr_auc": "average_precision",
    "roc_auc": "auc",
    "root_mean_squared_error": "rmse",
}

_TOP = re.compile(r"top(\d+)_accuracy")
_AT = re.compile(r"(ndcg|map|hit)@(\d+)")
_OF = re.compile(r"(precision|recall|f1|wer)\[(\d+)\]")


def lookup(name: str) -> Definition | None:
    """What the name stands for; None for an unknown name and for a function of the user's."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    if found := _TOP.fullmatch(name):
        return _share(partial(scores.top_k, k=int(found[1])), "binary", CLASSIFICATION)
    if (found := _AT.fullmatch(name)) and int(found[2]) > 0:
        k = int(found[2])
        if found[1] == "hit":
            return _share(partial(scores.hit, k=k), "binary", RANKING)
        formula = scores.ndcg if found[1] == "ndcg" else scores.mean_precision
        return _share(partial(formula, k=k), "bounded", RANKING)
    if found := _OF.fullmatch(name):
        which, number = found[1], int(found[2])
        return _wer(number) if which == "wer" else _counts(which, number)
    loss = DEFINITIONS.get(name.removeprefix("neg_"))
    if name.startswith("neg_") and loss and not loss.higher and not (loss.groups or loss.ratio):
        return _negated(loss)
    return None


def _negated(loss: Definition) -> Definition:
    bounds = loss.bounds and (-loss.bounds[1], -loss.bounds[0])
    formula = partial(scores.negated, formula=loss.formula)
    fast = loss.weighted and partial(weighted.negated, prepare=loss.weighted)
    scale: Scale = "bounded" if loss.scale == "binary" else loss.scale
    return replace(
        loss, formula=formula, scale=scale, higher=True, bounds=bounds, weighted=fast or None
    )


def needs_groups(name: str) -> bool:
    """Whether the metric compares the groups of a segment."""
    found = lookup(name)
    return found is not None and found.groups


def class_of(name: str) -> int | None:
    """The class that a name such as "f1[3]" is about."""
    found = _OF.fullmatch(name)
    return int(found[2]) if found and found[1] != "wer" else None


def known() -> tuple[str, ...]:
    """Every name, with one of each family."""
    return (
        *DEFINITIONS,
        "top5_accuracy",
        "ndcg@10",
        "map@10",
        "hit@10",
        "f1[1]",
        "neg_log_loss",
        "neg_mse",
        "neg_mae",
    )


def unknown(name: str, others: tuple[str, ...] = ()) -> WrongRequest:
    """The error for a name that is no metric, with the nearest one that is."""
    names = (*known(), *others)
    near = [_OTHER_NAMES[name.lower()]] if name.lower() in _OTHER_NAMES else []
    near = near or difflib.get_close_matches(name.lower(), names, 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}"
    return WrongRequest(f"unknown metric {name!r}; {hint}")
