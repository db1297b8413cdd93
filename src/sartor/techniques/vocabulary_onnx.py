"""Fewer rows: embedding tables without the words that the data never use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from sartor.contracts import Bench, Failed, Model, Technique, Unneeded
from sartor.space import choice, span
from sartor.techniques._graph_onnx import (
    Graph,
    Parts,
    attribute,
    finish,
    foreign,
    peek,
    read,
    unchanged,
    watch,
)

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

# Operators behind which the indices are still some of those that were given: their first input.
_PASSING = frozenset(
    {
        *("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose"),
        *("Slice", "Split", "Gather"),
    }
)

_SMALLEST = 256  # rows: below, a table is no vocabulary
_SHARE = 16  # one row of so many has to go for the step to be worth it
_CHUNK = 4 << 20  # cosines held at once, in numbers


@dataclass(frozen=True)
class TrimVocabulary(Technique):
    """Takes rows out of embedding tables that occur fewer than `occurrences` times in the training
    rows: a vocabulary made for all texts is far larger than what one task reads.

    An embedding is a Gather of rows of a constant table by indices that are given to the model. It
    then looks its indices up in a table of new ones first, so that the model still takes every
    index; answers to data that use only rows that stay are the same to the bit.

    `unknown` says what a row that is gone is read as: "nearest" as the one at the least angle to
    it among those that occur that often, for a word often its plural or another form (by distance
    it would rather be a short one); "mean" as the mean of all that are gone, for items that have
    no neighbours. `spare` is the share of the rows to go that stay after all: those that occur most
    first, then those farthest from what they would be read as. Parts are the constant tables in
    which rows are looked up; the name of one that is touched says how many go."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    stage: ClassVar[str] = "structure"
    repair: ClassVar[str | None] = "spare"
    neutral: ClassVar[Mapping[str, float]] = {"spare": 1.0}
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    occurrences: int = choice(1, values=(1, 2, 4, 8))
    unknown: str = choice("nearest", "mean")
    spare: float = span(0.0, 0.0, 1.0)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        if bench.batches("train", 1, 1) is None:
            return "it counts in training rows which words occur, and there are none"
        tables, parts = _tables(peek(model))
        if not tables:
            return f"no table can lose rows: {parts.most_frequent_reason()}"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        tables, parts = _tables(graph)
        if self.spare == 1.0:
            for table in tables:
                parts.skip(table.name, "spare=1 leaves every row")
            return unchanged(model, self, parts)
        digest = graph.digest()
        counts = _counts(graph, digest, tables, bench)
        for table in tables:
            self._trim(graph, digest, table, counts[table.name], bench, parts)
        if not parts.touched:
            raise Unneeded(f"no table loses rows: {parts.most_frequent_reason()}")
        graph.drop_unused()
        return finish(model, self, graph, bench, parts)

    def _trim(
        self,
        graph: Graph,
        digest: str,
        table: _Table,
        counts: np.ndarray,
        bench: Bench,
        parts: Parts,
    ) -> None:
        """Writes the smaller table and the look-up in front of it; or skips it with a reason."""
        value = graph.constant(table.name)
        if value is None:
            raise Failed(f"the table {table.name} has no value in the file")
        rare = np.flatnonzero(counts < self.occurrences)
        spared = round(self.spare * len(rare))
        gone = len(rare) - spared
        told = f"{gone:,} of {table.rows:,} rows"
        if len(rare) == table.rows:
            parts.skip(table.name, f"none of its rows occurs {self.occurrences} times")
        elif gone * _SHARE < table.rows:
            parts.skip(table.name, f"only {told} occur too rarely")
        elif gone * value[0].nbytes <= 4 * table.rows:
            parts.skip(table.name, "its rows are smaller than what finds them anew")
        elif not np.isfinite(value).all():
            parts.skip(table.name, "it holds infinities or NaN")
        else:
            near = None
            if self.unknown == "nearest":
                key = f"nearest rows {digest} {table.name} {self.occurrences}"
                near = bench.remember(key, lambda: {"near": _neighbours(value, rare)})["near"]
            first = _first_to_stay(value, rare, near, counts)[:spared]
            _look_up_twice(graph, table, *_smaller(value, rare, near, first))
            parts.touch(f"{table.name} ({told} go)")


@dataclass(frozen=True)
class _Table:
    """A constant that one or more nodes look rows up in, by indices from these tensors."""

    name: str
    rows: int
    nodes: tuple[onnx.NodeProto, ...]

    @property
    def indices(self) -> tuple[str, ...]:
        return tuple(node.input[1] for node in self.nodes)


def _tables(graph: Graph) -> tuple[list[_Table], Parts]:
    """The tables that can lose rows; the others that are looked up skipped with reasons."""
    found, parts = [], Parts()
    names = [node.input[0] for node in graph.nodes if node.op_type == "Gather" and not node.domain]
    for name in dict.fromkeys(names):
        tensor = graph.constant_tensor(name)
        if tensor is None or tensor.data_type not in _FLOATS:
            continue
        reason = _unsuitable(graph, name, tuple(tensor.dims))
        if reason:
            parts.skip(name, reason)
        else:
            found.append(_Table(name, tensor.dims[0], tuple(graph.users(name))))
    return found, parts


def _unsuitable(graph: Graph, name: str, dims: tuple[int, ...]) -> str | None:
    if len(dims) < 2:
        return "its rows are single numbers"
    if dims[0] < _SMALLEST:
        return f"fewer than {_SMALLEST} rows"
    if name in graph.outputs:
        return "it is an output of the model"
    for node in graph.users(name):
        looked_up = node.op_type == "Gather" and not node.domain and node.input[0] == name
        if not looked_up or node.input[1] == name:
            return f"it is read by {node.op_type} {node.name} too"
        if attribute(node, "axis", 0) != 0:
            return "it is not looked up by rows"
        if not _given(graph, node.input[1]):
            return "its indices are computed"
    return None


def _given(graph: Graph, name: str) -> bool:
    """Whether the indices are those of an input of the model, moved about at most."""
    node = graph.producer(name)
    while node is not None and node.op_type in _PASSING and not node.domain:
        name = node.input[0]
        node = graph.producer(name)
    return any(port.name == name for port in graph.proto.graph.input)


def _counts(
    graph: Graph, digest: str, tables: list[_Table], bench: Bench
) -> Mapping[str, np.ndarray]:
    """Table -> how often each of its rows occurs in all the training rows, int64. Remembered for
    other settings."""

    def compute() -> Mapping[str, np.ndarray]:
        counts = {table.name: np.zeros(table.rows, np.int64) for table in tables}
        batches = bench.batches("train", 256)
        if batches is None:
            raise Failed("there are no training rows to count words in")
        names = [name for table in tables for name in table.indices]
        for values in watch(graph, names, batches, bench):
            for table in tables:
                for name in table.indices:
                    counts[table.name] += _count(values[name], table)
        return counts

    return bench.remember(f"occurrences of rows {digest}", compute)


def _count(indices: np.ndarray, table: _Table) -> np.ndarray:
    """How often each row is meant; an index below zero counts from the end, as in ONNX."""
    flat = indices.ravel().astype(np.int64)
    flat = np.where(flat < 0, flat + table.rows, flat)
    if flat.size and not 0 <= flat.min() <= flat.max() < table.rows:
        raise Failed(f"training rows hold indices outside the {table.rows} rows of {table.name}")
    return np.bincount(flat, minlength=table.rows)


def _neighbours(value: np.ndarray, rare: np.ndarray) -> np.ndarray:
    """For each of the rare rows the one nearest to it among the others, as indices of the table."""
    flat = value.reshape(len(value), -1).astype(np.float32)
    others = np.setdiff1d(np.arange(len(value)), rare)
    found: np.ndarray = others[nearest(flat[rare], flat[others])]
    return found


def _first_to_stay(
    value: np.ndarray, rare: np.ndarray, near: np.ndarray | None, counts: np.ndarray
) -> np.ndarray:
    """Places in `rare`, in the order in which they are spared: those that occur most, then those
    that would change most (the index of the row decides between equals)."""
    flat = value.reshape(len(value), -1).astype(np.float32)
    stand = flat[rare].mean(axis=0) if near is None else flat[near]
    change = np.linalg.norm(flat[rare] - stand, axis=1)
    return np.lexsort((rare, -change, -counts[rare]))


def _smaller(
    value: np.ndarray, rare: np.ndarray, near: np.ndarray | None, spared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The smaller table and, for each old row, its place there (int32): of one that is gone, that
    of its neighbour, or without neighbours of one more row, the mean of the gone. `spared` are
    places in `rare`."""
    goes = np.ones(len(rare), bool)
    goes[spared] = False
    gone = rare[goes]
    stays = np.ones(len(value), bool)
    stays[gone] = False
    small, places = value[stays], np.empty(len(value), np.int32)
    places[stays] = np.arange(len(small))
    if near is not None:
        places[gone] = places[near[goes]]
        return small, places
    places[gone] = len(small)
    mean = value[gone].mean(axis=0, dtype=np.float64, keepdims=True).astype(value.dtype)
    return np.concatenate([small, mean]), places


def nearest(rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each row [N, W] the index of the one in `among` [M, W] at the least angle to it, int64
    [N]. In chunks of rows: one product of matrices each, 16 MB of cosines at once."""
    units = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-30)
             for each in (rows, among)]  # fmt: skip
    found = np.empty(len(rows), np.int64)
    size = max(1, _CHUNK // len(among))
    for start in range(0, len(rows), size):
        chunk = slice(start, start + size)
        cosines = units[0][chunk] @ units[1].T
        # The first of those that are as near but for rounding, so that of equal rows it is the same
        # one however the product is computed.
        close = cosines >= cosines.max(axis=1, keepdims=True) - 1e-6
        found[chunk] = close.argmax(axis=1)
    return found


def _look_up_twice(graph: Graph, table: _Table, small: np.ndarray, places: np.ndarray) -> None:
    """Old index -> new index -> row."""
    trimmed, moved = graph.fresh(f"{table.name}_trimmed"), graph.fresh(f"{table.name}_places")
    graph.set_constant(trimmed, small)
    graph.set_constant(moved, places)
    for node in table.nodes:
        at = graph.fresh(f"{node.name}_place")
        first = helper.make_node("Gather", [moved, node.input[1]], [at], name=at, axis=0)
        graph.insert([first], before=node)
        node.input[0], node.input[1] = trimmed, at
        graph.refresh()
