"""From a forest to the file that the kernel runs (`kernels/forest.h` says what is in it).

Thresholds become ranks: of each feature the values are sorted at which anything changes, and a
node keeps the number of its own. A value's rank is how many of them it lies beyond. Nothing is
rounded by this, whatever the input. Nodes of a tree are numbered so that siblings are neighbours
and stand behind their parent; a leaf leads to itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartor.contracts import WrongRequest
from sartor.forest import LEAF, LINKS, Forest, checked
from sartor.forest_ranks import Ranked, ranked

WIDE, NARROW, OBLIVIOUS = range(3)
LANES = 16
UPPER = 8  # nodes on the fourth level of a tree, the first that is fetched one by one
WORDS, SECTIONS = 25, 21
DEEPEST_OBLIVIOUS = 16


@dataclass(frozen=True)
class Numbered:
    """Every tree's nodes level by level: of entry e of the packed nodes, `node` is the forest's
    node (or -1 for filling), `pair` half the place of its children, `odd` whether its place is
    odd. By tree: `start`, `entries`, `depth`, `shallow`; `tops` [T, 7] the upper inner nodes."""

    node: np.ndarray
    pair: np.ndarray
    odd: np.ndarray
    start: np.ndarray
    entries: np.ndarray
    depth: np.ndarray
    shallow: np.ndarray
    tops: np.ndarray


def numbered(forest: Forest, layout: int) -> Numbered:
    """Level by level through all trees at once, so that a deep tree costs no recursion."""
    trees, roots = forest.trees, forest.starts[:-1].astype(np.int64)
    tree, node = np.arange(trees), roots
    depth = np.zeros(trees, np.int64)
    shallow = np.full(trees, np.iinfo(np.int32).max)
    tops = np.full((trees, 7), -1, np.int64)
    entries = np.full(trees, UPPER if layout == NARROW else 2, np.int64)
    if layout == NARROW:
        tree, node, tops = _upper(forest, tops)
    place = np.tile(np.arange(UPPER), trees) if layout == NARROW else np.zeros(trees, np.int64)
    found: list[tuple[np.ndarray, ...]] = []
    level = 3 if layout == NARROW else 0
    while len(node):
        if len(found) > len(forest.feature):
            raise WrongRequest("a tree of the forest leads back into itself")
        inner = forest.feature[node] != LEAF
        depth[tree[inner]] = level + 1
        shallow[tree[~inner]] = np.minimum(shallow[tree[~inner]], level)
        # Inner nodes of a tree stand together: their order within it gives their children's pair.
        order = np.cumsum(inner) - inner
        first = np.zeros(trees, np.int64)
        at = np.flatnonzero(np.append(True, tree[1:] != tree[:-1]))
        first[tree[at]] = order[at]
        pair = np.where(inner, entries[tree] // 2 + order - first[tree], place // 2)
        found.append((tree, place, node, pair))
        entries += 2 * np.bincount(tree[inner], minlength=trees)
        parent = np.repeat(np.flatnonzero(inner), 2)
        side = np.tile([0, 1], int(inner.sum()))
        place = pair[parent] * 2 + side
        child = np.where(side, forest.right[node[parent]], forest.left[node[parent]])
        tree = tree[parent]
        node, level = roots[tree] + child, level + 1
    return _assembled(
        found, entries, np.maximum(depth, 3 if layout == NARROW else 0), shallow, tops
    )


def _upper(forest: Forest, tops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The seven upper nodes of each tree, and the eight below them; a leaf above is its own
    child on both sides."""
    roots = forest.starts[:-1].astype(np.int64)
    here = roots[:, None]
    for level in range(3):
        tops[:, 2**level - 1 : 2 ** (level + 1) - 1] = here
        inner = forest.feature[here] != LEAF
        left = np.where(inner, roots[:, None] + forest.left[here], here)
        right = np.where(inner, roots[:, None] + forest.right[here], here)
        here = np.stack([left, right], 2).reshape(len(roots), -1)
    return np.repeat(np.arange(len(roots)), UPPER), here.ravel(), tops


def _assembled(
    found: list[tuple[np.ndarray, ...]],
    entries: np.ndarray,
    depth: np.ndarray,
    shallow: np.ndarray,
    tops: np.ndarray,
) -> Numbered:
    tree, place, node, pair = (np.concatenate(each) for each in zip(*found, strict=True))
    start = np.cumsum(entries) - entries
    total = int(entries.sum())
    all_nodes, pairs = np.full(total, -1, np.int64), np.zeros(total, np.int64)
    all_nodes[start[tree] + place] = node
    pairs[start[tree] + place] = pair
    return Numbered(
        all_nodes, pairs, _places_odd(start, entries, total), start, entries, depth, shallow, tops
    )


def _places_odd(start: np.ndarray, entries: np.ndarray, total: int) -> np.ndarray:
    odd: np.ndarray = (np.arange(total) - np.repeat(start, entries)) % 2 == 1
    return odd


def pack(forest: Forest, *, layout: int | None = None) -> bytes:
    """The packed file. `layout` forces one, for tests. Raises WrongRequest with a sentence for a
    forest that is none or that does not fit."""
    checked(forest)
    asked = ranked(forest)
    splits = symmetric(forest, asked) if layout in (None, OBLIVIOUS) else None
    if layout == OBLIVIOUS and splits is None:
        raise WrongRequest("the forest's trees do not ask the same on each of their levels")
    if splits is not None:
        return _file(forest, asked, _oblivious(forest, asked, splits))
    if layout != WIDE:
        made = _walked(forest, asked, NARROW)
        if made is not None:
            return _file(forest, asked, made)
        if layout == NARROW:
            raise WrongRequest("the forest does not fit into nodes of four bytes")
    made = _walked(forest, asked, WIDE)
    if made is None:
        raise WrongRequest("the forest does not fit into nodes of eight bytes")
    return _file(forest, asked, made)


@dataclass(frozen=True)
class Body:
    layout: int
    column_bits: int
    pair_bits: int
    tops: np.ndarray
    start: np.ndarray
    entries: np.ndarray
    depth: np.ndarray
    shallow: np.ndarray
    nodes: np.ndarray
    leaf_node: np.ndarray  # by packed node: the forest's node whose leaf it is, or -1


def _walked(forest: Forest, asked: Ranked, layout: int) -> Body | None:
    """Trees as nodes of four or eight bytes; None where the fields of a node do not suffice."""
    order = numbered(forest, layout)
    bits = 32 if layout == NARROW else 64
    column_bits = max(asked.columns - 1, 0).bit_length()
    pair_bits = max(int(order.entries.max()) // 2 - 1, 1).bit_length()
    most = int(np.diff(asked.scale_start).max(initial=1))
    room = bits - column_bits - pair_bits
    if (most + 1).bit_length() > min(room, 32) or (layout == NARROW and most > 65534):
        return None
    never = (1 << min(room, 32)) - 1
    rank, column = _asks(forest, asked, order.node, order.odd, never)
    shift = pair_bits + column_bits
    nodes = rank << np.uint64(shift) | column << np.uint64(pair_bits) | order.pair.astype(np.uint64)
    lanes = -(-forest.trees // LANES) * LANES
    filler = UPPER if layout == NARROW else 2
    odd = np.arange(filler) % 2 == 1
    empty = np.where(odd, 0, never).astype(np.uint64) << np.uint64(shift)
    nodes = np.concatenate([nodes, empty | (np.arange(filler) // 2).astype(np.uint64)])
    start, entries = (
        _padded(order.start, lanes, len(order.node)),
        _padded(order.entries, lanes, filler),
    )
    tops: np.ndarray = np.zeros(0, np.uint32)
    if layout == NARROW:
        top_rank, top_column = _asks(forest, asked, order.tops, False, never)
        top = top_rank << np.uint64(shift) | top_column << np.uint64(pair_bits)
        tops = _padded(top, lanes, never << shift).reshape(-1, LANES, 7).transpose(0, 2, 1)
    depth = _padded(order.depth, lanes, 0).reshape(-1, LANES).max(1)
    shallow = _padded(order.shallow, lanes, 1 << 30).reshape(-1, LANES).min(1)
    where = np.append(order.node, np.full(filler, -1))
    return Body(layout, column_bits, pair_bits, tops, start, entries, depth, shallow,
                nodes.astype(np.uint32 if layout == NARROW else np.uint64), where)  # fmt: skip


def _asks(
    forest: Forest, asked: Ranked, node: np.ndarray, odd: Any, never: int
) -> tuple[np.ndarray, np.ndarray]:
    """What each place asks: leaves and filling go to their own place, whatever the row."""
    inner = (node >= 0) & (forest.feature[node] != LEAF)
    rank = np.where(inner, asked.rank[node], np.where(odd, 0, never))
    return rank.astype(np.uint64), np.where(inner, asked.column[node], 0).astype(np.uint64)


def _padded(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    missing = length - len(values)
    extra = np.full((missing, *values.shape[1:]), fill, values.dtype)
    return np.concatenate([values, extra])


def symmetric(forest: Forest, asked: Ranked) -> np.ndarray | None:
    """[T, D, 2] the column and rank that all nodes of each level ask, from the root down, where
    every tree is complete and asks one thing a level (CatBoost's are); else None."""
    size = np.diff(forest.starts)
    depth = np.log2(size + 1).astype(np.int64) - 1
    most = int(depth.max())
    if (2 ** (depth + 1) - 1 != size).any() or not 1 <= most <= DEEPEST_OBLIVIOUS:
        return None
    if asked.columns > 65535 or np.diff(asked.scale_start).max(initial=1) > 65534:
        return None
    found = np.zeros((forest.trees, most, 2), np.int64)
    found[:, :, 1] = 65535
    roots = forest.starts[:-1].astype(np.int64)
    here = roots[:, None]
    for level in range(most):
        deep = depth > level
        nodes = here[deep]
        if (forest.feature[nodes] == LEAF).any():
            return None
        columns, ranks = asked.column[nodes], asked.rank[nodes]
        if (columns != columns[:, :1]).any() or (ranks != ranks[:, :1]).any():
            return None
        found[deep, level] = np.stack([columns[:, 0], ranks[:, 0]], 1)
        here = np.repeat(here, 2, axis=1)
        step = np.tile([0, 1], here.shape[1] // 2)
        below = np.where(step, forest.right[here[deep]], forest.left[here[deep]])
        here[deep] = roots[deep][:, None] + below
    return found


def _oblivious(forest: Forest, asked: Ranked, splits: np.ndarray) -> Body:
    """Leaves stand where the answers' bits say, the first question the highest of them (a shallower
    tree of a group has its questions at the lower bits, and none behind)."""
    depth = (splits[:, :, 1] != 65535).sum(1)
    lanes = -(-forest.trees // LANES) * LANES
    entries = _padded(2**depth, lanes, 1)
    start = np.cumsum(entries) - entries
    words = (splits[:, :, 1] << 16 | splits[:, :, 0]).astype(np.uint32)
    groups = _padded(depth, lanes, 0).reshape(-1, LANES).max(1)
    tops = []
    flipped = np.full_like(words, 0xFFFF0000)
    for tree, levels in enumerate(depth):
        flipped[tree, :levels] = words[tree, :levels][::-1]  # bit d is question levels - 1 - d
    flipped = _padded(flipped, lanes, 0xFFFF0000)
    for group, deepest in enumerate(groups):
        tops.append(flipped[group * LANES : (group + 1) * LANES, :deepest].T.ravel())
    leaves = _leaves_in_order(forest, depth, start, int(entries.sum()))
    return Body(OBLIVIOUS, 0, 0, np.concatenate(tops), start, entries, groups, groups,
                np.zeros(0, np.uint32), leaves)  # fmt: skip


def _leaves_in_order(
    forest: Forest, depth: np.ndarray, start: np.ndarray, total: int
) -> np.ndarray:
    """By place: the node of the leaf that the path (left 0, right 1, root first) leads to."""
    found = np.full(total, -1, np.int64)
    roots = forest.starts[:-1].astype(np.int64)
    for levels in np.unique(depth):
        trees = np.flatnonzero(depth == levels)
        here = roots[trees][:, None]
        for _ in range(levels):
            left = roots[trees][:, None] + forest.left[here]
            right = roots[trees][:, None] + forest.right[here]
            here = np.stack([left, right], 2).reshape(len(trees), -1)
        found[start[trees][:, None] + np.arange(2**levels)] = here
    return found


def _file(forest: Forest, asked: Ranked, body: Body) -> bytes:
    real = np.float64 if forest.sums == "float64" else np.float32
    exact = np.int64 if forest.inputs == "float64" else np.int32
    leaves, table = _leaves(forest, body.leaf_node, real)
    bits = b"".join(each[3].tobytes() for each in asked.families)
    offset = np.zeros(forest.outputs) if forest.offset is None else forest.offset
    u32 = np.uint32
    sections: list[Any] = [
        asked.scale_feature.astype(u32), asked.scale_start.astype(u32), asked.cuts.astype(exact),
        asked.column_scale.astype(u32), asked.column_rule.astype(u32),
        np.array([each[0] for each in asked.families], u32),
        np.array([forest.categories] * len(asked.families), u32),
        np.array([each[1] for each in asked.families], u32),
        np.array([each[2] for each in asked.families], u32),
        np.frombuffer(bits, np.uint8),
        body.tops.astype(u32), body.start.astype(u32), body.entries.astype(u32),
        body.depth.astype(u32), np.minimum(body.shallow, 1 << 30).astype(u32), body.nodes, leaves,
        table, forest.output.astype(u32), forest.base.astype(np.float64), offset.astype(np.float64),
    ]  # fmt: skip
    counts = [
        forest.features, int(forest.inputs == "float64"), len(asked.scale_feature),
        len(asked.cuts), len(asked.column_scale), len(asked.families), asked.columns, body.layout,
        forest.trees, len(body.depth), forest.outputs, forest.leaf.shape[1],
        int(forest.sums == "float64"), LINKS[forest.link], body.column_bits, body.pair_bits,
        len(body.leaf_node), len(table),
        *(_word(each) for each in (forest.divide, forest.factor, forest.steepness)),
        len(bits), body.tops.size,
    ]  # fmt: skip
    return _joined(counts, sections)


def _leaves(
    forest: Forest, node: np.ndarray, real: type[np.floating[Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """By packed node its number, or where leaves have several, which row of the table."""
    leaf = (node >= 0) & (forest.feature[node] == LEAF)
    if forest.leaf.shape[1] == 1:
        return np.where(leaf, forest.leaf[node, 0], 0).astype(real), np.zeros((0, 1), real)
    nodes = np.flatnonzero(forest.feature == LEAF)
    ordinal = np.zeros(len(forest.feature), np.int64)
    ordinal[nodes] = np.arange(len(nodes))
    return (
        np.where(leaf, ordinal[node], 0).astype(np.uint32),
        np.ascontiguousarray(forest.leaf[nodes].astype(real)),
    )


def _word(number: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])


def _joined(counts: list[int], sections: list[Any]) -> bytes:
    at = -(-(WORDS + SECTIONS) * 8 // 64) * 64
    places, parts = [], []
    for each in sections:
        data = np.ascontiguousarray(each).tobytes()
        places.append(at)
        parts.append(data + bytes(-len(data) % 64))
        at += len(parts[-1])
    words = [*counts, *places]
    head = b"SARTORF1" + struct.pack(f"<{len(words) + 1}Q", at, *words)
    return head + bytes(-len(head) % 64) + b"".join(parts)
