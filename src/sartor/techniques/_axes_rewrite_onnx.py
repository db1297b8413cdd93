"""What must follow when axes become shorter: targets of Reshape and Expand, bounds of Slice, sizes
of Split, numbers of groups. Each keeps the node's name and the layouts; sizes come when they are
known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from sartor.techniques._axes_onnx import Atom, Axes, Layout, count, leaves, resolve, size_of
from sartor.techniques._axes_trace_onnx import Item
from sartor.techniques._graph_onnx import Graph

Sizes = Mapping[Atom, int]
Bound = tuple[int, int, int, int, tuple[Layout, Layout, Layout] | None]
"""Start, end, axis and step of a Slice; where it cuts: what lies before, what it takes and what
lies behind, from where negative bounds are counted."""


def node_of(graph: Graph, name: str) -> onnx.NodeProto:
    return next(node for node in graph.nodes if node.name == name)


def set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    for each in [each for each in node.attribute if each.name == name]:
        node.attribute.remove(each)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def rewrite_number(name: str, key: str, layout: Layout, graph: Graph, sizes: Sizes) -> None:
    """An attribute that counts what lies along an axis: `group`, `num_groups`."""
    number = count(layout, sizes)
    if number is not None and number != size_of(layout):
        set_attribute(node_of(graph, name), key, number)


def rewrite_split(name: str, pieces: Axes, graph: Graph, sizes: Sizes) -> None:
    found = [count(piece, sizes) or 0 for piece in pieces]
    if found == [size_of(piece) for piece in pieces]:
        return
    node = node_of(graph, name)
    kept = [each for each in node.attribute if each.name not in ("split", "num_outputs")]
    if graph.opset < 13:
        kept.append(onnx.helper.make_attribute("split", found))
    else:
        del node.input[1:]
        node.input.append(_constant(graph, f"{name}_sizes", found))
    del node.attribute[:]
    node.attribute.extend(kept)


def rewrite_slice(name: str, bounds: Sequence[Bound], graph: Graph, sizes: Sizes) -> None:
    starts, ends = [], []
    for start, end, _, _, pieces in bounds:
        if pieces is not None:
            start = count(pieces[0], sizes) or 0
            end = start + (count(pieces[1], sizes) or 0)
        starts.append(start)
        ends.append(end)
    parts = [pieces for *_, pieces in bounds if pieces is not None]
    if all(count(each, sizes) == size_of(each) for pieces in parts for each in pieces):
        return
    columns = {
        "starts": starts,
        "ends": ends,
        "axes": [each[2] for each in bounds],
        "steps": [each[3] for each in bounds],
    }
    node = node_of(graph, name)
    del node.input[1:]
    node.input.extend(_constant(graph, f"{name}_{key}", each) for key, each in columns.items())


@dataclass(frozen=True)
class Target:
    """The sizes that a Reshape or Expand is given: `items` as they stand in the model, for the
    axes that come out, from those that go in (`given`). `rest` is the axis of a Reshape that takes
    what the others leave."""

    node: str
    items: tuple[Item, ...]
    made: Axes
    given: Axes
    operator: str
    rest: int | None = None

    def rewrite(self, graph: Graph, sizes: Sizes) -> None:
        """New sizes where the old ones, constant or computed, no longer hold."""
        now = [count(each, sizes) for each in self.made]
        if not any(self._stale(at, size, sizes) for at, size in enumerate(now)):
            return
        wanted = [self._size(at, size) for at, size in enumerate(now)]
        node = node_of(graph, self.node)
        if self.operator == "reshape":
            set_attribute(node, "allowzero", 0) if graph.opset >= 14 else None
        node.input[1] = _target(graph, node, wanted)

    def _stale(self, at: int, size: int | None, sizes: Sizes) -> bool:
        item = self.items[at]
        if any(count(use, sizes) != size_of(use) for use in item.uses):
            return True
        if size is None:
            changed = any(leaf in sizes for leaf in leaves(self.made[at]))
            return changed and item.value != -1
        if item.axis is not None:
            return count(item.axis, sizes) != size
        if self.operator == "expand" and item.value == 1:
            return False
        return item.value not in (0, -1, size)

    def _size(self, at: int, size: int | None) -> int | None:
        """The number to write; None for the one that is computed now."""
        if self.operator == "expand" and resolve(self.given[at]) != ((),):
            return 1  # the size it has
        if size is not None:
            return size
        if at == self.rest:
            return -1
        item = self.items[at]
        if item.axis is None and not item.uses:
            return item.value
        same = at < len(self.given) and item.axis is not None
        if same and resolve(self.given[at]) == resolve(item.axis or ()):
            return 0 if self.operator == "reshape" else None
        return None


def _target(graph: Graph, node: onnx.NodeProto, wanted: Sequence[int | None]) -> str:
    """A tensor of these sizes; a single one that is computed is left to the Reshape (-1), of
    several each is taken out of the tensor that was there."""
    if wanted.count(None) == 1 and -1 not in wanted and node.op_type == "Reshape":
        wanted = [-1 if each is None else each for each in wanted]
    if None not in wanted:
        return _constant(graph, f"{node.name}_sizes", [each or 0 for each in wanted])
    parts = []
    for at, each in enumerate(wanted):
        if each is not None:
            parts.append(_constant(graph, f"{node.name}_size_{at}", [each]))
            continue
        index = _constant(graph, f"{node.name}_place_{at}", [at])
        parts.append(graph.fresh(f"{node.name}_computed_{at}"))
        take = onnx.helper.make_node("Gather", [node.input[1], index], [parts[-1]], name=parts[-1])
        graph.insert([take], before=node)
    joined = graph.fresh(f"{node.name}_sizes")
    join = onnx.helper.make_node("Concat", parts, [joined], name=joined, axis=0)
    graph.insert([join], before=node)
    return joined


def _constant(graph: Graph, stem: str, numbers: Sequence[int]) -> str:
    name = graph.fresh(stem)
    graph.set_constant(name, np.array(numbers, np.int64))
    return name
