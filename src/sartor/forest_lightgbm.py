"""LightGBM's models (`.txt`, versions 3 and 4) as a forest, without LightGBM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sartor.contracts import WrongRequest
from sartor.forest import (
    AS_ZERO,
    CUT,
    LEAF,
    LEFT,
    MOST_CATEGORY,
    RIGHT,
    ZERO_LEFT,
    ZERO_RIGHT,
    Forest,
    checked,
    reading,
)

# What LightGBM takes for zero: it drops such values from a row before its trees see them.
ZERO = float(np.float32(1e-35))
LINK = {
    "binary": "sigmoid", "multiclass": "softmax", "multiclassova": "sigmoid",
    "cross_entropy": "sigmoid", "xentropy": "sigmoid", "cross_entropy_lambda": "log1p-exp",
    "xentlambda": "log1p-exp", "poisson": "exp", "gamma": "exp", "tweedie": "exp",
    "regression": "identity", "regression_l1": "identity", "huber": "identity", "fair": "identity",
    "quantile": "identity", "mape": "identity", "lambdarank": "identity",
    "rank_xendcg": "identity", "custom": "identity", "none": "identity",
}  # fmt: skip
CATEGORICAL, DEFAULT_LEFT = 1, 2


def read(data: bytes) -> Forest:
    """The forest in a file's bytes. Its margins are those of `Booster.predict(raw_score=True)`
    over all trees. Raises WrongRequest with a sentence."""
    with reading("LightGBM"):
        head, blocks = _split(data.decode())
        return checked(_forest(head, blocks))


def _split(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The lines before the first tree, and those of each tree."""
    if not text.startswith("tree"):
        raise WrongRequest("the file is no LightGBM model: its first line is not 'tree'")
    parts, ended, _ = text.partition("\nend of trees")
    if not ended:
        raise WrongRequest("the LightGBM model was cut short: 'end of trees' is missing")
    head, *trees = parts.split("\nTree=")
    if not trees:
        raise WrongRequest("the LightGBM model has no trees")
    return _lines(head), [_lines(each) for each in trees]


def _lines(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        found[name.strip()] = value
    return found


def _forest(head: Mapping[str, str], blocks: list[dict[str, str]]) -> Forest:
    outputs = int(head["num_tree_per_iteration"])
    if outputs < 1 or len(blocks) % outputs:
        raise WrongRequest(
            f"the LightGBM model has {len(blocks)} trees, {outputs} for each iteration: it was cut "
            "short"
        )
    sizes = head.get("tree_sizes", "").split()
    if sizes and len(sizes) != len(blocks):
        raise WrongRequest(f"the LightGBM model states {len(sizes)} trees and has {len(blocks)}")
    link, steepness = _link(head.get("objective", "none"))
    rounds = len(blocks) // outputs
    return Forest(
        features=int(head["max_feature_idx"]) + 1,
        output=np.tile(np.arange(outputs), rounds),
        base=np.zeros(outputs),
        inputs="float64",
        sums="float64",
        categories=CUT,
        divide=float(rounds) if "average_output" in head else 1.0,
        link=link,
        steepness=steepness,
        names=tuple(head.get("feature_names", "").split()),
        **_nodes(blocks),
    )


def _link(objective: str) -> tuple[str, float]:
    name, *settings = objective.split() or ["none"]
    if name not in LINK:
        raise WrongRequest(f"the LightGBM objective {name!r} is not known here")
    told = dict(each.partition(":")[::2] for each in settings)
    if "sqrt" in told:
        return "signed-square", 1.0
    return LINK[name], float(told.get("sigmoid", 1.0))


def _nodes(blocks: list[dict[str, str]]) -> dict[str, Any]:
    sets: list[np.ndarray] = []
    trees = [_tree(block, sets) for block in blocks]
    starts = np.concatenate([[0], np.cumsum([len(each["feature"]) for each in trees])])
    whole: dict[str, Any] = {
        name: np.concatenate([each[name] for each in trees]) for name in trees[0]
    }
    if not sets:
        whole["category"] = None
    return {**whole, "starts": starts, "sets": tuple(sets)}


def _numbers(block: Mapping[str, str], name: str, count: int, kind: Any) -> np.ndarray:
    words = block[name].split()
    if len(words) != count:
        raise WrongRequest(
            f"a tree of the LightGBM model has {len(words)} entries in {name}; its leaves ask for "
            f"{count}: the file was cut short or changed"
        )
    return np.array([kind(each) for each in words], np.float64 if kind is float else np.int64)


def _tree(block: Mapping[str, str], sets: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Inner nodes first, as LightGBM numbers them, then the leaves."""
    leaves = int(block["num_leaves"])
    if leaves < 1 or leaves > len(block["leaf_value"]):
        raise WrongRequest(f"a tree of the LightGBM model states {leaves} leaves and has fewer")
    if block.get("is_linear", "0") != "0" and any(
        each != "0" for each in block.get("num_features", "").split()
    ):
        raise WrongRequest(
            "the LightGBM model has linear functions in its leaves, which the kernel does not "
            "compute; train it with linear_tree=false"
        )
    inner = leaves - 1
    values = _numbers(block, "leaf_value", leaves, float)
    size = inner + leaves
    found = {
        "feature": np.full(size, LEAF, np.int64), "threshold": np.zeros(size),
        "left": np.zeros(size, np.int64), "right": np.zeros(size, np.int64),
        "missing": np.zeros(size, np.int64), "category": np.full(size, -1, np.int64),
        "leaf": np.concatenate([np.zeros(inner), values])[:, None],
    }  # fmt: skip
    if inner:
        for name in ("left", "right"):
            child = _numbers(block, f"{name}_child", inner, int)
            found[name][:inner] = np.where(child < 0, inner + ~child, child)
        found["feature"][:inner] = _numbers(block, "split_feature", inner, int)
        _decisions(block, inner, found, sets)
    return found


def _decisions(
    block: Mapping[str, str], inner: int, found: dict[str, np.ndarray], sets: list[np.ndarray]
) -> None:
    threshold = _numbers(block, "threshold", inner, float)
    decision = _numbers(block, "decision_type", inner, int)
    left = decision & DEFAULT_LEFT != 0
    kind = decision >> 2 & 3
    rules = np.choose(
        np.minimum(kind, 2),
        [AS_ZERO, np.where(left, ZERO_LEFT, ZERO_RIGHT), np.where(left, LEFT, RIGHT)],
    )
    chosen = decision & CATEGORICAL != 0
    found["missing"][:inner] = np.where(chosen, RIGHT, rules)
    # A value that counts as zero is zero: it lies on the side of zero of every threshold.
    below = (threshold >= -ZERO) & (threshold < 0)
    above = (threshold >= 0) & (threshold < ZERO)
    moved = np.where(below, np.nextafter(-ZERO, -np.inf), np.where(above, ZERO, threshold))
    found["threshold"][:inner] = np.where(chosen, 0.0, moved)
    if chosen.any():
        bounds = [int(each) for each in block["cat_boundaries"].split()]
        words = np.array([int(each) for each in block["cat_threshold"].split()], np.uint32)
        for node in np.flatnonzero(chosen):
            which = int(threshold[node])
            first, last = bounds[which], bounds[which + 1]
            if not 0 <= first <= last <= len(words) or (last - first) * 32 > MOST_CATEGORY:
                raise WrongRequest("a categorical split of the LightGBM model is out of bounds")
            bits = np.unpackbits(words[first:last].view(np.uint8), bitorder="little")
            found["category"][node] = len(sets)
            sets.append(np.flatnonzero(bits))
