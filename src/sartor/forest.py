"""A forest of decision trees as plain arrays, whatever library it comes from.

Readers (`forest_xgboost`, `forest_lightgbm`, `forest_catboost`, `forest_sklearn`) make one,
`forest_packing` turns it into what the kernel runs. A raw prediction (margin) is

    (base + leaf of tree 0 + leaf of tree 1 + ...) * factor + offset

added in the trees' order, in the precision of `sums`, which is the order and precision of the
library that the forest comes from. A prediction is the link of that; before it, forests that
average divide the sum by `divide`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sartor.contracts import WrongRequest

LEAF = -1
MOST_NODES = 1 << 30
MOST_TREES = 1 << 22
MOST_CATEGORY = 1 << 20

# Where a numeric node sends NaN; the last two send what LightGBM calls zero the same way.
LEFT, RIGHT, AS_ZERO, ZERO_LEFT, ZERO_RIGHT = range(5)

# What a categorical feature's values are: whole numbers after cutting (LightGBM: -0.5 is 0), the
# same but nothing below zero (XGBoost), or whole numbers only, all others being missing.
CUT, CUT_POSITIVE, EXACT = range(3)

LINKS = {
    "identity": 0, "sigmoid": 1, "softmax": 2, "exp": 3, "argmax": 4,
    "log1p-exp": 6, "signed-square": 7, "two-classes": 8, "positive": 9,
}  # fmt: skip
Precision = Literal["float32", "float64"]


@contextmanager
def reading(library: str) -> Iterator[None]:
    """What a reader of a library's file stumbles over becomes one sentence: WrongRequest."""
    try:
        yield
    except WrongRequest:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise WrongRequest(
            f"the {library} model is damaged, or of a version that is not known here: "
            f"{type(error).__name__} {error}"
        ) from None


@dataclass(frozen=True)
class Forest:
    """`starts` [T+1]: tree t has the nodes starts[t] to starts[t+1], its root first. By node [N]:
    `feature` (-1: a leaf), `threshold`, `left` and `right` (counted from the tree's root),
    `missing` (one of the five above), `category` (-1, or which of `sets` a value must be in to go
    left; its NaN goes left where `missing` is LEFT), `leaf` [N, width] (rows of inner nodes are
    ignored). Width 1: tree t adds to output `output[t]`; else a leaf has a number for each output.

    A numeric node sends x to the left where x <= threshold, or x < threshold where `strict`.
    `inputs` is the precision in which values are compared, `sums` that in which leaves are added.
    """

    features: int
    starts: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing: np.ndarray
    leaf: np.ndarray
    output: np.ndarray
    base: np.ndarray
    inputs: Precision
    sums: Precision
    strict: bool = False
    category: np.ndarray | None = None
    sets: tuple[np.ndarray, ...] = ()
    categories: int = CUT
    known: tuple[tuple[int, np.ndarray], ...] = ()
    factor: float = 1.0
    divide: float = 1.0
    offset: np.ndarray | None = None
    link: str = "identity"
    steepness: float = 1.0
    names: tuple[str, ...] = ()
    classes: tuple[str | int | float, ...] = field(default=())

    @property
    def trees(self) -> int:
        return len(self.starts) - 1

    @property
    def outputs(self) -> int:
        return len(self.base)


def checked(forest: Forest) -> Forest:
    """The forest, every index of it looked at. Raises WrongRequest with a sentence."""
    nodes = len(forest.feature)
    if not 0 < forest.trees <= MOST_TREES or not 0 < nodes <= MOST_NODES:
        raise WrongRequest(
            f"the forest has {forest.trees} trees and {nodes} nodes; there must be at least one of "
            f"each, and at most {MOST_TREES} trees and {MOST_NODES} nodes"
        )
    _check_shapes(forest, nodes)
    _check_trees(forest)
    _check_numbers(forest)
    return forest


def _check_shapes(forest: Forest, nodes: int) -> None:
    for name in ("threshold", "left", "right", "missing", "leaf"):
        if len(getattr(forest, name)) != nodes:
            raise WrongRequest(f"the forest has {nodes} nodes but not as many entries in {name}")
    if forest.category is not None and len(forest.category) != nodes:
        raise WrongRequest(f"the forest has {nodes} nodes but not as many categories")
    steps = np.diff(forest.starts)
    if forest.starts[0] != 0 or forest.starts[-1] != nodes or (steps < 1).any():
        raise WrongRequest("the forest has a tree without nodes, or nodes that are in no tree")
    width = forest.leaf.shape[1]
    if width not in (1, forest.outputs) or len(forest.output) != forest.trees:
        raise WrongRequest("the forest's leaves do not fit its outputs")
    if ((forest.output < 0) | (forest.output >= forest.outputs)).any():
        raise WrongRequest("a tree of the forest adds to an output that it does not have")


def _check_trees(forest: Forest) -> None:
    """Children inside their tree, and every node reached once from its root at most."""
    size = np.diff(forest.starts)
    tree = np.repeat(np.arange(forest.trees), size)
    inner = forest.feature != LEAF
    if ((forest.feature < LEAF) | (forest.feature >= forest.features)).any():
        raise WrongRequest(
            f"a node of the forest asks for a feature that is none of its {forest.features}"
        )
    parents = np.zeros(len(inner), np.int64)
    for name in ("left", "right"):
        child = getattr(forest, name)
        bad = inner & ((child < 1) | (child >= size[tree]))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise WrongRequest(
                f"node {at - int(forest.starts[tree[at]])} of tree {int(tree[at])} has the child "
                f"{int(child[at])}, which is none of the tree's {int(size[tree[at]])} nodes"
            )
        np.add.at(parents, forest.starts[tree[inner]] + child[inner], 1)
    if (parents > 1).any():
        at = int(np.flatnonzero(parents > 1)[0])
        raise WrongRequest(f"a node of tree {int(tree[at])} has two parents: it is no tree")
    # No child is a root and none has two parents: what is reached from a root is a tree, and
    # what is in a circle is never reached.


def _check_numbers(forest: Forest) -> None:
    inner = forest.feature != LEAF
    numeric = inner if forest.category is None else inner & (forest.category < 0)
    if np.isnan(forest.threshold[numeric]).any():
        raise WrongRequest("a threshold of the forest is NaN: no value is above or below it")
    if not np.isfinite(forest.leaf[~inner]).all():
        raise WrongRequest("a leaf of the forest is not a finite number")
    given = [forest.base, np.array([forest.factor, forest.divide, forest.steepness])]
    if forest.offset is not None:
        given.append(forest.offset)
    if not all(np.isfinite(each).all() for each in given) or forest.divide == 0:
        raise WrongRequest("the forest's base score or scale is not a finite number")
    if ((forest.missing < LEFT) | (forest.missing > ZERO_RIGHT)).any():
        raise WrongRequest("a node of the forest has an unknown rule for missing values")
    if forest.category is not None:
        chosen = forest.category[inner]
        if (chosen >= len(forest.sets)).any():
            raise WrongRequest(
                "a node of the forest asks for a set of categories that is not there"
            )
    for each in forest.sets:
        if len(each) and not 0 <= each.min() <= each.max() < MOST_CATEGORY:
            raise WrongRequest(
                f"a category of the forest is not between 0 and {MOST_CATEGORY - 1}: number the "
                "categories from 0"
            )
    if forest.link not in LINKS:
        raise WrongRequest(f"the forest's link {forest.link!r} is not known")
