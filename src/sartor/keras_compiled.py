"""What `model.compile` said a Keras model is for, read as data: its kind of task, its metric.

Only names are read: those that are text, as `compile("adam", "mse")` has them, and of classes of
Keras. Classes of the user's own say nothing here, nor do functions, whose origin Keras does not
write down. Needs no Keras.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {
    **dict.fromkeys(
        (
            *("binarycrossentropy", "categoricalcrossentropy", "sparsecategoricalcrossentropy"),
            *("binaryfocalcrossentropy", "categoricalfocalcrossentropy"),
            *("hinge", "squaredhinge", "categoricalhinge"),
        ),
        "classification",
    ),
    **dict.fromkeys(
        (
            *("meansquarederror", "meanabsoluteerror", "meanabsolutepercentageerror", "mse"),
            *("meansquaredlogarithmicerror", "mae", "mape", "msle", "huber", "logcosh"),
        ),
        "regression",
    ),
}
_METRICS = {
    **dict.fromkeys(("accuracy", "acc", "binaryaccuracy"), "accuracy"),
    **dict.fromkeys(("categoricalaccuracy", "sparsecategoricalaccuracy"), "accuracy"),
    **dict.fromkeys(("meansquarederror", "mse"), "mse"),
    **dict.fromkeys(("meanabsoluteerror", "mae"), "mae"),
    **dict.fromkeys(("meanabsolutepercentageerror", "mape"), "mape"),
    **dict.fromkeys(("rootmeansquarederror", "rmse"), "rmse"),
    "r2score": "r2",
    "auc": "auc",
    "precision": "precision",
    "recall": "recall",
    "f1score": "f1",
    "fscore": "f1",
}


def purpose(compiled: Any) -> dict[str, str]:
    """`kind` and `metric` as Sartor calls them, where a compile config (a mapping, as Keras writes
    it) names one loss and metrics that are known. Of several metrics the first known counts."""
    if not isinstance(compiled, Mapping):
        return {}
    kinds = [_KINDS.get(_plain(each)) for each in _flat(compiled.get("loss"))]
    if len(kinds) != 1 or kinds[0] is None:  # several outputs, or a loss of the user's own
        return {}
    told = {"kind": kinds[0]}
    named = (_metric(each) for each in _flat(compiled.get("metrics")))
    metric = next((each for each in named if each), None)
    return told | ({"metric": metric} if metric else {})


def _flat(given: Any) -> list[Any]:
    """What is named, however it is nested: by output, in lists."""
    if isinstance(given, list):
        return [each for inner in given for each in _flat(inner)]
    if isinstance(given, Mapping) and "class_name" not in given:
        return [each for inner in given.values() for each in _flat(inner)]
    return [] if given is None else [given]


def _plain(given: Any) -> str:
    """A name without what tells "MeanSquaredError" from "mean_squared_error"."""
    if isinstance(given, Mapping):
        ours = str(given.get("module")).split(".")[0] == "keras"
        given = given.get("class_name") if ours else None
    return given.replace("_", "").lower() if isinstance(given, str) else ""


def _metric(given: Any) -> str | None:
    found = _METRICS.get(_plain(given))
    settings = given.get("config") if isinstance(given, Mapping) else None
    if found == "auc" and isinstance(settings, Mapping) and settings.get("curve") == "PR":
        return "average_precision"
    return found
