"""CatBoost's models in JSON (`save_model(..., format="json")`) as a forest, without CatBoost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sartor.contracts import WrongRequest
from sartor.forest import LEAF, LEFT, RIGHT, Forest, checked, reading

DEEPEST = 16
PLAIN = (
    *("RMSE", "MAE", "Quantile", "MultiQuantile", "Lq", "Huber", "Expectile", "MAPE", "LogCosh"),
    *("MultiRMSE", "MultiRMSEWithMissingValues", "QueryRMSE", "QuerySoftMax", "PairLogit"),
    *("PairLogitPairwise", "YetiRank", "YetiRankPairwise", "StochasticRank", "LambdaMart"),
)  # whose predictions are the sums
LINK = {
    "Logloss": "two-classes", "CrossEntropy": "two-classes", "MultiClass": "softmax",
    "MultiClassOneVsAll": "sigmoid", "Poisson": "exp", "Tweedie": "exp",
}  # fmt: skip


def read(data: bytes) -> Forest:
    """The forest in a file's bytes. Its margins are those of
    `predict(prediction_type="RawFormulaVal")`. Raises WrongRequest with a sentence."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WrongRequest(f"the file is no JSON that can be read: {error}") from None
    with reading("CatBoost"):
        return checked(_forest(told))


def _forest(told: Mapping[str, Any]) -> Forest:
    features = told["features_info"]
    treatment = {
        int(each["feature_index"]): (
            int(each["flat_feature_index"]),
            RIGHT if each.get("nan_value_treatment") == "AsTrue" else LEFT,
        )
        for each in features.get("float_features", ())
    }
    flat = [int(e["flat_feature_index"]) for group in features.values() for e in group
            if "flat_feature_index" in e]  # fmt: skip
    scale, bias = told["scale_and_bias"]
    bias = np.atleast_1d(np.asarray(bias, np.float64))
    if "oblivious_trees" in told:
        trees = [_oblivious(each, treatment) for each in told["oblivious_trees"]]
    else:
        trees = [_free(each, treatment) for each in told["trees"]]
    if not trees:
        raise WrongRequest("the CatBoost model has no trees")
    width = trees[0]["leaf"].shape[1]
    whole: dict[str, Any] = {
        name: np.concatenate([each[name] for each in trees]) for name in trees[0]
    }
    return Forest(
        features=max(flat, default=-1) + 1,
        starts=np.concatenate([[0], np.cumsum([len(each["feature"]) for each in trees])]),
        output=np.zeros(len(trees), np.int64), base=np.zeros(width), inputs="float32",
        sums="float64", factor=float(scale), offset=np.broadcast_to(bias, (width,)),
        link=_link(told), **whole,
    )  # fmt: skip


def _link(told: Mapping[str, Any]) -> str:
    params = told.get("model_info", {}).get("params", {})
    if isinstance(params, str):
        params = json.loads(params)
    loss = str(params.get("loss_function", {}).get("type", ""))
    if loss not in LINK and loss not in PLAIN:
        raise WrongRequest(
            f"the CatBoost model was trained for {loss or 'no loss that it names'}, whose "
            f"predictions are not known here; known: {', '.join((*LINK, *PLAIN))}"
        )
    return LINK.get(loss, "identity")


def _split(split: Mapping[str, Any], treatment: Mapping[int, tuple[int, int]]) -> tuple[Any, ...]:
    kind = split["split_type"]
    if kind != "FloatFeature":
        raise WrongRequest(
            f"the CatBoost model splits by {kind}: categorical, text and embedding features, which "
            "CatBoost hashes, are not taken; train with numbers only"
        )
    feature, missing = treatment[int(split["float_feature_index"])]
    return feature, float(split["border"]), missing


def _oblivious(
    tree: Mapping[str, Any], treatment: Mapping[int, tuple[int, int]]
) -> dict[str, np.ndarray]:
    """A tree that asks the same on a whole level, written out: its first split is the lowest bit
    of a leaf's number, which is the question asked last here."""
    splits = [_split(each, treatment) for each in tree.get("splits") or ()][::-1]
    depth = len(splits)
    if depth > DEEPEST:
        raise WrongRequest(f"a tree of the CatBoost model is {depth} deep; at most {DEEPEST}")
    values = np.asarray(tree["leaf_values"], np.float64).reshape(1 << depth, -1)
    inner = (1 << depth) - 1
    level = np.log2(np.arange(inner) + 1).astype(np.int64)
    at = np.arange(inner)
    feature, border, missing = (np.array([each[k] for each in splits] or [0]) for k in range(3))
    pad = np.zeros(1 << depth, np.int64)
    return {
        "feature": np.append(feature[level], pad + LEAF).astype(np.int64),
        "threshold": np.append(border[level], pad.astype(np.float64)),
        "left": np.append(2 * at + 1, pad), "right": np.append(2 * at + 2, pad),
        "missing": np.append(missing[level], pad).astype(np.int64),
        "leaf": np.concatenate([np.zeros((inner, values.shape[1])), values]),
    }  # fmt: skip


def _free(
    tree: Mapping[str, Any], treatment: Mapping[int, tuple[int, int]]
) -> dict[str, np.ndarray]:
    """A tree of nested nodes, level by level."""
    rows: list[tuple[Any, ...]] = []
    leaves: list[np.ndarray] = []
    waiting = [tree]
    for node in waiting:  # grows while it is walked
        if "split" in node:
            feature, border, missing = _split(node["split"], treatment)
            rows.append((feature, border, len(waiting), len(waiting) + 1, missing))
            waiting += [node["left"], node["right"]]
            leaves.append(np.zeros(0))
        else:
            rows.append((LEAF, 0.0, 0, 0, 0))
            leaves.append(np.atleast_1d(np.asarray(node["value"], np.float64)))
    width = max(len(each) for each in leaves)
    leaf = np.zeros((len(rows), width))
    for at, each in enumerate(leaves):
        leaf[at, : len(each)] = each
    columns = list(zip(*rows, strict=True))
    names = ("feature", "threshold", "left", "right", "missing")
    kinds = (np.int64, np.float64, np.int64, np.int64, np.int64)
    arrays = {n: np.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)}
    return {**arrays, "leaf": leaf}
