"""Real libraries' models and adversarial rows for the tests of the forest kernel. The rows are made
up: what is tested is equality with the library itself, on purpose where it is hardest."""

from __future__ import annotations

from typing import Any

import numpy as np

from sartor.forest import LEAF, Forest

SPECIAL = (0.0, -0.0, 1e-45, -1e-45, 1e-35, -1e-35, float(np.float32(1e-35)), 3.4e38, -3.4e38, 1e38)
ROWS, FEATURES, CATEGORICAL = 1500, 8, (6, 7)


def table(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on: with missing values, the same without, and a target."""
    draw = np.random.default_rng(seed)
    full = draw.normal(size=(ROWS, FEATURES))
    full[:, 5] = np.where(draw.random(ROWS) < 0.6, 0, full[:, 5])
    full[:, 4] *= 1e-35
    full[:, 7], full[:, 6] = draw.integers(0, 12, ROWS), draw.integers(0, 50, ROWS)
    target = full[:, 0] + full[:, 1] * 2 + full[:, 7] % 3 + 3 * ((full[:, 6] * 7) % 5 > 2)
    target = target + full[:, 5] + full[:, 4] * 1e35
    return np.where(draw.random(full.shape) < 0.1, np.nan, full), full, target


def adversarial(
    forest: Forest, rows: int, seed: int = 0, *, missing: bool = True, infinite: bool = True
) -> np.ndarray:
    """Rows whose values lie on thresholds and beside them, or are zeros, denormals, huge, infinite
    or NaN; [rows, features] in the precision that the library compares in."""
    draw = np.random.default_rng(seed)
    real: Any = np.float32 if forest.inputs == "float32" else np.float64
    special = [*SPECIAL, *([np.nan] if missing else []), *([np.inf, -np.inf] if infinite else [])]
    if real is np.float64:
        special += [5e-324, 1e308, -1e308]
    found = draw.normal(size=(rows, forest.features)).astype(real)
    for feature in range(forest.features):
        chosen = (forest.feature != LEAF) & (forest.feature == feature)
        if not chosen.any():
            continue
        with np.errstate(over="ignore"):
            near = draw.choice(forest.threshold[chosen].astype(real), rows)
        with np.errstate(over="ignore", under="ignore"):
            beside = np.nextafter(near, real(np.inf)), np.nextafter(near, real(-np.inf))
        choice = [
            near, *beside,
            draw.choice(np.array(special, real), rows), found[:, feature],
        ]  # fmt: skip
        values = np.choose(draw.integers(0, len(choice), rows), choice)
        if feature in CATEGORICAL:
            codes = draw.integers(-1, 55, rows).astype(real)
            values = np.where(draw.random(rows) < 0.6, codes, values)
        if not missing:
            values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
        if not infinite:
            values = np.clip(values, -3e38, 3e38)
        found[:, feature] = values
    return found


def grown(draw: np.random.Generator) -> Forest:
    """A random forest of any shape: lopsided, stumps, single leaves, sets, every rule for missing
    values, one or several outputs."""
    trees, outputs = int(draw.integers(1, 36)), int(draw.integers(1, 4))
    features = int(draw.choice([1, 3, 20, 70, 200]))
    wide = outputs > 1 and draw.random() < 0.3
    parts = [_tree(draw, int(draw.choice([1, 2, 3, 9, 40])), features) for _ in range(trees)]
    whole = {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
    sizes = [len(each["feature"]) for each in parts]
    sets = tuple(np.flatnonzero(draw.random(30) < 0.4) for _ in range(9))
    inner = whole["feature"] != LEAF
    categorical = inner & (whole["feature"] % 5 == 4) & (draw.random() < 0.7)
    nodes = len(inner)
    real = "float32" if draw.random() < 0.5 else "float64"
    threshold = np.round(draw.normal(size=nodes), int(draw.integers(0, 9)))
    threshold = np.where(
        draw.random(nodes) < 0.05, draw.choice([0.0, -0.0, np.inf, 1e300], nodes), threshold
    )
    return Forest(
        features=features, starts=np.concatenate([[0], np.cumsum(sizes)]),
        threshold=threshold, missing=draw.integers(0, 2 if draw.random() < 0.5 else 5, nodes),
        leaf=draw.normal(size=(nodes, outputs if wide else 1)).astype(np.float32),
        output=draw.integers(0, outputs, trees), base=draw.normal(size=outputs).astype(np.float32),
        inputs=real, sums="float32" if draw.random() < 0.5 else "float64",
        strict=bool(draw.random() < 0.5),
        category=np.where(categorical, draw.integers(0, 9, nodes), -1), sets=sets,
        categories=int(draw.integers(0, 3)), **whole,
    )  # fmt: skip


def _tree(draw: np.random.Generator, leaves: int, features: int) -> dict[str, np.ndarray]:
    """Leaves split one after another, at random or always the last one (a chain)."""
    size, chain = 2 * leaves - 1, draw.random() < 0.3
    feature = np.full(size, LEAF)
    left, right = np.zeros(size, np.int64), np.zeros(size, np.int64)
    open_, used = [0], 1
    while used < size:
        node = open_.pop(-1 if chain else int(draw.integers(len(open_))))
        feature[node] = draw.integers(features)
        left[node], right[node] = used, used + 1
        open_ += [used, used + 1]
        used += 2
    return {"feature": feature, "left": left, "right": right}


def slowly(forest: Forest, rows: np.ndarray) -> np.ndarray:
    """[N, outputs] margins, node by node as `forest.Forest` says; what the kernel is held against
    where there is no library."""
    real: Any = np.float32 if forest.sums == "float32" else np.float64
    rows = rows.astype(forest.inputs)
    found = np.tile(forest.base.astype(real), (len(rows), 1))
    for row, sums in zip(rows, found, strict=True):
        for tree, start in enumerate(forest.starts[:-1]):
            node = int(start)
            while forest.feature[node] != LEAF:
                side = (
                    forest.left if _left(forest, node, row[forest.feature[node]]) else forest.right
                )
                node = int(start + side[node])
            if forest.leaf.shape[1] > 1:
                sums += forest.leaf[node].astype(real)
            else:
                sums[forest.output[tree]] += real(forest.leaf[node, 0])
    return found


def _left(forest: Forest, node: int, value: Any) -> bool:
    missing, x = int(forest.missing[node]), float(value)
    if forest.category is not None and forest.category[node] >= 0:
        members = set(forest.sets[forest.category[node]].tolist())
        if np.isnan(x) or (forest.categories == 2 and not (x >= 0 and x == np.floor(x))):
            return missing == 0
        if forest.categories == 2:  # whole numbers that are in no split's set are no category
            most = max((int(s.max(initial=-1)) for s in _sets_of(forest, node)), default=-1)
            return missing == 0 if x > most else int(x) in members
        low = x > -1 if forest.categories == 0 else x >= 0
        return bool(low and x < 1 << 30 and int(x) in members)
    if np.isnan(x) and missing < 2:
        return missing == 0
    if missing >= 3 and (np.isnan(x) or abs(x) <= float(np.float32(1e-35))):
        return missing == 3
    x = 0.0 if np.isnan(x) else x
    return bool(x < forest.threshold[node] if forest.strict else x <= forest.threshold[node])


def _sets_of(forest: Forest, node: int) -> list[np.ndarray]:
    assert forest.category is not None
    same = (forest.feature == forest.feature[node]) & (forest.category >= 0)
    return [forest.sets[k] for k in np.unique(forest.category[same])]
