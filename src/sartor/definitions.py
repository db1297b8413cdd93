"""The names of the quality metrics, and what is known of each by its name alone.

`DEFINITIONS` is the one list; `lookup` adds the families "top5_accuracy", "ndcg@10", "hit@10" (any
number) and "neg_" before a loss (higher is better, values below 0).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from sartor import scores
from sartor.contracts import WrongRequest
from sartor.scores import Formula

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
    means 0.01. `bounds`: of one score and of the value (None = unbounded)."""

    formula: Formula
    scale: Scale
    kinds: frozenset[str]
    higher: bool = True
    labelled: bool = True
    share: bool = False
    bounds: tuple[float, float] | None = None


def _entry(formula: Formula, scale: Scale, kinds: str, **more: Any) -> Definition:
    if scale in ("binary", "bounded"):
        more.setdefault("bounds", (0.0, 1.0))
    return Definition(formula, scale, frozenset(kinds.split()), **more)


def _share(formula: Formula, scale: Scale, kinds: str, **more: Any) -> Definition:
    return _entry(formula, scale, kinds, share=True, bounds=(0.0, 1.0), **more)


def _averages() -> dict[str, Definition]:
    found = {}
    for which in ("precision", "recall", "f1"):
        for suffix, average in (("", "auto"), ("_macro", "macro"), ("_weighted", "weighted")):
            formula = partial(scores.precision_recall_f1, which=which, average=average)
            found[which + suffix] = _share(formula, "whole", CLASSIFICATION)
    return found


_DECIDED = "classification segmentation"
_ANY = " ".join(KINDS)

DEFINITIONS: Mapping[str, Definition] = {
    "accuracy": _share(scores.accuracy, "binary", _DECIDED),
    "balanced_accuracy": _share(scores.balanced_accuracy, "whole", _DECIDED),
    **_averages(),
    "auc": _share(scores.auc, "whole", CLASSIFICATION),
    "average_precision": _share(scores.average_precision, "whole", CLASSIFICATION),
    "log_loss": _entry(scores.log_loss, "real", CLASSIFICATION, higher=False),
    "brier": _entry(scores.brier, "bounded", CLASSIFICATION, higher=False, bounds=(0.0, 2.0)),
    "calibration": _share(scores.calibration, "whole", CLASSIFICATION, higher=False),
    "iou": _share(scores.iou, "bounded", SEGMENTATION),
    "mse": _entry(scores.mse, "real", REGRESSION, higher=False),
    "mae": _entry(scores.mae, "real", REGRESSION, higher=False),
    "rmse": _entry(scores.rmse, "whole", REGRESSION, higher=False),
    "mape": _entry(scores.mape, "real", REGRESSION, higher=False, share=True),
    "r2": _entry(scores.r2, "whole", REGRESSION, share=True),
    "ndcg": _share(partial(scores.ndcg, k=None), "bounded", RANKING),
    "mrr": _share(scores.mrr, "bounded", RANKING),
    "agreement": _share(scores.agreement, "binary", f"{_DECIDED} {FREE}", labelled=False),
    "flips": _share(scores.flips, "binary", f"{_DECIDED} {FREE}", labelled=False, higher=False),
    "cosine": _entry(scores.cosine, "bounded", _ANY, labelled=False, bounds=(-1.0, 1.0)),
    "kl": _entry(scores.kl, "real", f"{CLASSIFICATION} {FREE}", labelled=False, higher=False),
    "rel_error": _entry(
        scores.relative_error, "real", _ANY, labelled=False, higher=False, share=True
    ),
}

_OTHER_NAMES = {
    "acc": "accuracy",
    "ap": "average_precision",
    "cross_entropy": "log_loss",
    "ece": "calibration",
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
_AT = re.compile(r"(ndcg|hit)@(\d+)")


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
        return _share(partial(scores.ndcg, k=k), "bounded", RANKING)
    loss = DEFINITIONS.get(name.removeprefix("neg_"))
    if name.startswith("neg_") and loss and not loss.higher:
        bounds = loss.bounds and (-loss.bounds[1], -loss.bounds[0])
        formula = partial(scores.negated, formula=loss.formula)
        scale: Scale = "bounded" if loss.scale == "binary" else loss.scale
        return replace(loss, formula=formula, scale=scale, higher=True, bounds=bounds)
    return None


def known() -> tuple[str, ...]:
    """Every name, with one of each family."""
    return (
        *DEFINITIONS,
        "top5_accuracy",
        "ndcg@10",
        "hit@10",
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
