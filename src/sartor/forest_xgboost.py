"""XGBoost's models (`.ubj`, `.json`, versions 1.6 to 3.x) as a forest, without XGBoost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sartor import ubjson
from sartor.contracts import WrongRequest
from sartor.forest import CUT_POSITIVE, LEAF, LEFT, RIGHT, Forest, checked, reading

# Objective -> link from margin to prediction.
LINK = {
    "binary:logistic": "sigmoid", "reg:logistic": "sigmoid", "multi:softprob": "softmax",
    "multi:softmax": "argmax", "count:poisson": "exp", "reg:gamma": "exp", "reg:tweedie": "exp",
    "survival:cox": "exp", "survival:aft": "exp", "binary:hinge": "positive",
    "binary:logitraw": "identity", "reg:squarederror": "identity", "reg:linear": "identity",
    "reg:squaredlogerror": "identity", "reg:pseudohubererror": "identity",
    "reg:absoluteerror": "identity", "reg:quantileerror": "identity",
    "reg:expectileerror": "identity", "rank:pairwise": "identity", "rank:ndcg": "identity",
    "rank:map": "identity",
}  # fmt: skip


def read(data: bytes) -> Forest:
    """The forest in a file's bytes. Its margins are those of `Booster.predict(output_margin=True)`
    over all trees. Raises WrongRequest with a sentence."""
    told = _parsed(data)
    with reading("XGBoost"):
        return checked(_forest(told))


def _parsed(data: bytes) -> Any:
    if data[:1] == b"{" and data[1:2] in (b"L", b"U", b"i", b"I", b"l", b"#", b"$", b"}"):
        return ubjson.read(data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WrongRequest(f"the file is no JSON that can be read: {error}") from None


def _forest(told: Mapping[str, Any]) -> Forest:
    learner = told["learner"]
    booster = learner["gradient_booster"]
    if booster.get("name") == "gblinear":
        raise WrongRequest("the XGBoost model is linear (gblinear): it has no trees")
    dart = booster.get("name") == "dart"
    model = (booster["gbtree"] if dart else booster)["model"]
    trees: Sequence[Mapping[str, Any]] = model["trees"]
    stated = int(model["gbtree_model_param"]["num_trees"])
    if stated != len(trees):
        raise WrongRequest(f"the XGBoost model states {stated} trees and has {len(trees)}")
    told_params = learner["learner_model_param"]
    outputs = max(int(told_params["num_class"]), int(told_params.get("num_target", 1)), 1)
    weights = np.asarray(booster["weight_drop"], np.float32) if dart else None
    if weights is not None and len(weights) != len(trees):
        raise WrongRequest("the XGBoost model has not as many weights as trees")
    objective = str(learner["objective"]["name"])
    if objective not in LINK:
        raise WrongRequest(f"the XGBoost objective {objective!r} is not known here")
    return Forest(
        features=int(told_params["num_feature"]),
        output=np.asarray(model["tree_info"], np.int64),
        base=_base(told_params["base_score"], objective, outputs),
        inputs="float32",
        sums="float32",
        strict=True,
        categories=CUT_POSITIVE,
        link=LINK[objective],
        names=tuple(map(str, learner.get("feature_names", ()))),
        **_nodes(trees, weights, outputs),
    )


def _base(text: str, objective: str, outputs: int) -> np.ndarray:
    """The base score as a margin, in XGBoost's own arithmetic (float)."""
    numbers = np.array([float(each) for each in str(text).strip("[]").split(",")], np.float32)
    score = np.broadcast_to(numbers, (outputs,))
    one = np.float32(1)
    if LINK[objective] == "sigmoid":
        if not ((score > 0) & (score < 1)).all():
            raise WrongRequest(f"the XGBoost model has the base score {text}: no probability")
        score = -np.log(one / score - one)
    elif LINK[objective] == "exp":
        if not (score > 0).all():
            raise WrongRequest(f"the XGBoost model has the base score {text}: not above zero")
        score = np.log(score)
    return np.asarray(score, np.float64)


def _nodes(
    trees: Sequence[Mapping[str, Any]], weights: np.ndarray | None, outputs: int
) -> dict[str, Any]:
    parts: dict[str, list[np.ndarray]] = {
        name: []
        for name in ("feature", "threshold", "left", "right", "missing", "category", "leaf")
    }
    sets: list[np.ndarray] = []
    for number, tree in enumerate(trees):
        weight = np.float32(1) if weights is None else weights[number]
        for name, values in _tree(tree, sets, weight, outputs).items():
            parts[name].append(values)
    sizes = [len(each) for each in parts["feature"]]
    whole: dict[str, Any] = {name: np.concatenate(each) for name, each in parts.items()}
    if not sets:
        whole["category"] = None
    return {**whole, "starts": np.concatenate([[0], np.cumsum(sizes)]), "sets": tuple(sets)}


def _tree(
    tree: Mapping[str, Any], sets: list[np.ndarray], weight: np.float32, outputs: int
) -> dict[str, np.ndarray]:
    left = np.asarray(tree["left_children"], np.int64)
    right = np.asarray(tree["right_children"], np.int64)
    size = len(left)
    inner = left != -1
    condition = np.asarray(tree["split_conditions"], np.float32)
    width = int(tree["tree_param"].get("size_leaf_vector", "1") or 1)
    if width > 1:
        leaf = np.asarray(tree["base_weights"], np.float32).reshape(size, -1)
        if leaf.shape[1] != outputs:
            raise WrongRequest("the XGBoost model's leaves do not fit its targets")
    else:
        leaf = condition[:, None]
    kind = np.asarray(tree.get("split_type", np.zeros(size)), np.int64)
    missing = np.where(np.asarray(tree["default_left"], np.int64) != 0, LEFT, RIGHT)
    found = {
        "feature": np.where(inner, np.asarray(tree["split_indices"], np.int64), LEAF),
        "threshold": condition.astype(np.float64),
        "left": left, "right": right, "missing": missing,
        "category": np.full(size, -1, np.int64), "leaf": leaf * weight,
    }  # fmt: skip
    if (kind == 1).any():
        _categorical(tree, found, inner & (kind == 1), sets)
    if any(len(each) != size for each in found.values()):
        raise WrongRequest("a tree of the XGBoost model has lists of different lengths")
    return found


def _categorical(
    tree: Mapping[str, Any],
    found: dict[str, np.ndarray],
    chosen: np.ndarray,
    sets: list[np.ndarray],
) -> None:
    """XGBoost sends what is in the set to the right; here it goes left, so the sides change."""
    categories = np.asarray(tree["categories"], np.int64)
    nodes = [int(each) for each in tree["categories_nodes"]]
    if sorted(nodes) != np.flatnonzero(chosen).tolist():
        raise WrongRequest("a categorical split of the XGBoost model has no categories")
    segments = zip(nodes, tree["categories_segments"], tree["categories_sizes"], strict=True)
    for node, first, count in segments:
        if not 0 <= first <= first + count <= len(categories):
            raise WrongRequest("a categorical split of the XGBoost model lies outside its list")
        found["category"][node] = len(sets)
        sets.append(categories[int(first) : int(first + count)])
    found["left"], found["right"] = (
        np.where(chosen, found["right"], found["left"]),
        np.where(chosen, found["left"], found["right"]),
    )
    found["missing"] = np.where(
        chosen, np.where(found["missing"] == LEFT, RIGHT, LEFT), found["missing"]
    )
