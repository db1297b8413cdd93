"""What the nodes of a forest ask, as ranks and columns (`kernels/forest.h` says why)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sartor.contracts import WrongRequest
from sartor.forest import EXACT, LEAF, LEFT, Forest

MOST_TABLE = 1 << 28  # bytes of bits by category


def keys(values: np.ndarray, inputs: str) -> np.ndarray:
    """Whole numbers in the order of the values; -0 and 0 are one. NaN must not be among them."""
    if inputs == "float32":
        bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    bits = np.ascontiguousarray(values, np.float64).view(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFFFFFFFFFF), bits)


def cuts_of(threshold: np.ndarray, forest: Forest) -> np.ndarray:
    """[N] keys c such that x goes right exactly where key(x) > c."""
    if forest.inputs == "float64":
        return keys(threshold, "float64") - forest.strict
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
    # x is float32, the threshold may lie between two such: down to the lower one where x <= t goes
    # left; where x < t goes left, to the lower one too, which then still goes left.
    above = near.astype(np.float64) > threshold
    exact = near.astype(np.float64) == threshold
    found: np.ndarray = keys(near, "float32") - above - (exact & forest.strict)
    return found


@dataclass(frozen=True)
class Ranked:
    """What nodes ask, by column: [N] `column` and `rank` (inner nodes), and the columns."""

    column: np.ndarray
    rank: np.ndarray
    scale_feature: np.ndarray
    scale_start: np.ndarray
    cuts: np.ndarray
    column_scale: np.ndarray
    column_rule: np.ndarray
    families: tuple[tuple[int, int, int, np.ndarray], ...]  # feature, categories, columns, bits
    columns: int


def ranked(forest: Forest) -> Ranked:
    inner = forest.feature != LEAF
    sets = np.full(len(inner), -1) if forest.category is None else forest.category
    numeric = inner & (sets < 0)
    column, rank = np.zeros(len(inner), np.int64), np.zeros(len(inner), np.int64)
    feature = forest.feature[numeric].astype(np.int64)
    cut = cuts_of(forest.threshold[numeric], forest)
    pairs, where = _distinct(feature, cut)
    used, first = np.unique(pairs[:, 0], return_index=True)
    start = np.append(first, len(pairs))
    scale = np.searchsorted(used, feature)
    rank[numeric] = where - start[scale] + 1
    kinds, which = np.unique(scale * 8 + forest.missing[numeric], return_inverse=True)
    column[numeric] = which
    families, total = _families(forest, inner & (sets >= 0), sets, column, len(kinds))
    rank[inner & (sets >= 0)] = 1
    return Ranked(
        column, rank, used, start, pairs[:, 1], kinds // 8, kinds % 8, families, total
    )  # fmt: skip


def _distinct(feature: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted, distinct (feature, cut), and which of them each is."""
    order = np.lexsort((cut, feature))
    pairs = np.stack([feature, cut], 1)[order]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(1)
    where = np.empty(len(pairs), np.int64)
    where[order] = np.cumsum(new) - 1
    return pairs[new], where


def _families(
    forest: Forest, chosen: np.ndarray, sets: np.ndarray, column: np.ndarray, first: int
) -> tuple[tuple[tuple[int, int, int, np.ndarray], ...], int]:
    """The categorical columns, one for each feature, set and way of missing values."""
    families = []
    for feature in np.unique(forest.feature[chosen]):
        nodes = np.flatnonzero(chosen & (forest.feature == feature))
        asked = sets[nodes] * 2 + (forest.missing[nodes] == LEFT)
        distinct, which = np.unique(asked, return_inverse=True)
        column[nodes] = first + which
        known = dict(forest.known).get(int(feature))
        most = max((int(forest.sets[k // 2].max(initial=-1)) for k in distinct), default=-1)
        if known is not None:
            most = max(most, int(known.max(initial=-1)))
        categories = most + 1
        row = (len(distinct) + 7) // 8
        if (categories + 2) * len(distinct) > MOST_TABLE:
            raise WrongRequest(
                f"feature {int(feature)} has {categories} categories in {len(distinct)} different "
                "splits: more than the kernel's tables hold; number its categories from 0, or "
                "merge rare ones"
            )
        # 1: goes right. First what is missing, then what is no category, then the categories.
        bits = np.ones((categories + 2, row * 8), bool)
        for at, key in enumerate(distinct):
            members = forest.sets[key // 2]
            bits[members + 2, at] = False
            bits[0, at] = not key % 2
        if known is not None:
            unknown = np.setdiff1d(np.arange(categories), known)
            bits[unknown + 2] = bits[0]
        if forest.categories == EXACT:
            bits[1] = bits[0]
        bits[:, len(distinct) :] = False
        packed = np.packbits(bits, axis=1, bitorder="little")
        families.append((int(feature), categories, len(distinct), packed))
        first += len(distinct)
    return tuple(families), first
