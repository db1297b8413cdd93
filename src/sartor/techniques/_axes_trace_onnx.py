"""What is known of every tensor while the nodes of a graph are gone through, for the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from sartor.techniques._axes_onnx import Atom, Axes, Layout, axis, freeze, size_of
from sartor.techniques._folding_onnx import fold_sizes
from sartor.techniques._graph_onnx import Graph, attribute

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
POSITION = "it counts positions"
_FEW = 64  # numbers in a tensor of sizes; longer ones are data

Rewrite = Callable[[Graph, Mapping[Atom, int]], None]
"""Puts a node right once some atoms have other sizes."""


class Unknown(Exception):
    """A node is not followed; the sentence is the reason for which its inputs are frozen."""


@dataclass(frozen=True)
class Item:
    """One number in a tensor of sizes: a constant, the length of an `axis`, or computed from the
    lengths of others (`uses`). `value` is None where only a run tells."""

    value: int | None
    axis: Layout | None = None
    uses: Axes = ()


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of a node: the product of these sizes, each (tensor, axis, layout)."""

    node: str
    sizes: tuple[tuple[str, int, Layout], ...]


@dataclass(frozen=True)
class Read:
    """An axis of an activation over which weights sum, and the axis of the weight that goes with
    it; `weight` is "" where not every output sums over all of the axis."""

    tensor: str
    at: int
    weight: str = ""
    weight_at: int = 0


@dataclass
class Trace:
    """A graph with the layout of each axis of each tensor.

    `made`: (node, axis that its weights make); `mixed`: axes that stand beside one another in
    products of two activations (heads); `read`: axes over which weights sum; `fixed`: tensors made
    of constants only; `rewrites`: what must follow when sizes change."""

    graph: Graph
    shapes: dict[str, tuple[int | None, ...]]
    axes: dict[str, Axes] = field(default_factory=dict)
    items: dict[str, list[Item]] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    made: list[tuple[str, Layout]] = field(default_factory=list)
    mixed: list[Layout] = field(default_factory=list)
    read: list[Read] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)

    def of(self, name: str) -> Axes:
        """The axes of a tensor. Raises Unknown where not even their number is known."""
        if name not in self.axes:
            raise Unknown("it comes from an operator that is not known here")
        return self.axes[name]

    def given(self, node: onnx.NodeProto, at: int) -> str:
        """The name of an input; "" where it is left out."""
        return node.input[at] if at < len(node.input) else ""

    def integers(self, name: str) -> list[int] | None:
        """The numbers of a tensor whose value is known before any run."""
        items = self.items.get(name)
        if items is None or any(each.value is None or each.uses or each.axis for each in items):
            return None
        return [each.value or 0 for each in items]

    def option(self, node: onnx.NodeProto, name: str, at: int) -> list[int] | None:
        """Whole numbers that are an attribute in old opsets and an input in later ones; None
        where they are left out. Raises Unknown where they are computed."""
        written: Any = attribute(node, name)
        if written is not None:
            return [written] if isinstance(written, int) else list(written)
        if not self.given(node, at):
            return None
        numbers = self.integers(node.input[at])
        if numbers is None:
            raise Unknown(f"the {name} of {node.op_type} are computed")
        return numbers

    def rest(self, name: str, start: int, reason: str, rank: int) -> Axes:
        """Frozen axes from `start` on, with the sizes that inference found."""
        known = self.shapes.get(name, ())
        return tuple(
            axis(known[at] if len(known) == rank else None, reason) for at in range(start, rank)
        )

    def reads(self, name: str, at: int, weight: str = "", weight_at: int = 0) -> None:
        """Weights sum over this axis of an activation."""
        if name not in self.fixed:
            of = weight_at % len(self.axes[weight]) if weight else 0
            self.read.append(Read(name, at % len(self.axes[name]), weight, of))

    def settle(self, name: str) -> None:
        """The numbers of this tensor go where they are not followed: what they count is frozen."""
        for item in self.items.get(name, ()):
            for each in (*item.uses, *([item.axis] if item.axis else ())):
                freeze(each, "its size enters a computation")


def start(graph: Graph) -> Trace:
    """A trace that knows the inputs and the constants. Free sizes of one name are one atom."""
    fold_sizes(graph)
    trace = Trace(graph, graph.shapes())
    symbols: dict[str, Layout] = {}
    for port in graph.proto.graph.input:
        if not port.type.tensor_type.HasField("shape"):
            continue
        found = []
        for dim in port.type.tensor_type.shape.dim:
            size = dim.dim_value if dim.HasField("dim_value") else None
            made = axis(size, "it is the model's input")
            found.append(symbols.setdefault(dim.dim_param, made) if dim.dim_param else made)
        trace.axes[port.name] = tuple(found)
    for name, tensor in graph.constants():
        frozen = None if tensor.data_type in FLOATS else "it belongs to no float weight"
        trace.axes[name] = tuple(axis(size, frozen) for size in tensor.dims)
        trace.fixed.add(name)
        items = list(_numbers(tensor))
        if items or list(tensor.dims) == [0]:
            trace.items[name] = items
    return trace


def _numbers(tensor: onnx.TensorProto) -> Iterator[Item]:
    outside = tensor.data_location == TensorProto.EXTERNAL  # not in memory when only peeked at
    if outside or tensor.data_type not in _INTEGERS or len(tensor.dims) > 1:
        return
    if not tensor.dims or tensor.dims[0] <= _FEW:
        yield from (Item(int(each)) for each in numpy_helper.to_array(tensor).ravel())


def outer(x: Axes, at: int) -> int:
    """A position among the axes, from the front. Raises Unknown where there is none."""
    if not -len(x) <= at < len(x):
        raise Unknown("an axis is named that there is not")
    return at % len(x)


def sized(layout: Layout) -> int:
    """The length of an axis. Raises Unknown where it is free."""
    size = size_of(layout)
    if size is None:
        raise Unknown("its size is free")
    return size


def positions(trace: Trace, node: onnx.NodeProto, *windows: Axes) -> Axes:
    """The axes behind the channels: an operator that slides over them makes others."""
    for each in windows:
        for layout in each[2:]:
            freeze(layout, POSITION)
    return trace.rest(node.output[0], 2, POSITION, len(windows[0]))
