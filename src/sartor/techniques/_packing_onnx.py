"""Weights packed at rest and unpacked by a few nodes, which ONNX Runtime folds into a plain
constant when it loads the model: smaller files at the same speed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from sartor.techniques._graph_onnx import Graph


def weights(
    graph: Graph, axes: int = 1, types: tuple[int, ...] = (1,)
) -> Iterator[tuple[str, int]]:
    """Name and count of numbers of the constants of these types (ONNX's numbers; 1 is float32)
    with at least so many axes, in order. One that is itself an output of the model is left out."""
    for name, tensor in list(graph.constants()):
        if tensor.data_type in types and len(tensor.dims) >= axes and name not in graph.outputs:
            yield name, int(np.prod(tensor.dims, dtype=np.int64))


def too_old(graph: Graph, what: str) -> str | None:
    """Why `what` cannot be unpacked in this graph; None where it can."""
    if graph.opset < 11:
        return f"opset {graph.opset} lacks the operators to unpack {what}; it takes 11"
    return None


class Unpacking:
    """Nodes under construction that make the tensor `name` out of packed constants."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def keep(self, value: np.ndarray, what: str) -> str:
        """A constant of the file; its name."""
        name = self.graph.fresh(f"{self.name}_{what}_{len(self.constants)}")
        self.constants[name] = value
        return name

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node; the name of its output."""
        name = self.graph.fresh(f"{self.name}_unpack_{len(self.nodes)}")
        self.nodes.append(
            onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        )
        return name

    def bits(self, packed: str, width: int, count: int) -> str:
        """The first `count` fields of `width` bits (1, 2 or 4) in a column of bytes, as int32; the
        highest bits of a byte come first."""
        shifts = np.arange(8 - width, -1, -width, dtype=np.uint8)[None]
        shifted = self.op("BitShift", packed, self.keep(shifts, "shifts"), direction="RIGHT")
        base = self.keep(np.array(1 << width, np.uint8), "base")
        fields = self.op("Mod", shifted, base)
        flat = self.op("Reshape", fields, self.keep(np.array([-1], np.int64), "flat"))
        if count % shifts.size:
            ends = (self.keep(np.array([end], np.int64), "end") for end in (0, count))
            flat = self.op("Slice", flat, *ends)
        return self.op("Cast", flat, to=onnx.TensorProto.INT32)

    def shape(self, flat: str, shape: tuple[int, ...]) -> str:
        return self.op("Reshape", flat, self.keep(np.array(shape, np.int64), "shape"))

    def done(self) -> None:
        """The last node makes the tensor; the plain constant goes."""
        self.nodes[-1].output[0] = self.name
        self.graph.drop_constant(self.name)
        for name, value in self.constants.items():
            self.graph.set_constant(name, value)
        self.graph.insert(self.nodes)


def pack(fields: np.ndarray, width: int) -> np.ndarray:
    """Numbers below 2^width as a column of bytes, for `Unpacking.bits`."""
    each = 8 // width
    flat = fields.ravel().astype(np.uint8)
    rows = np.concatenate([flat, np.zeros(-flat.size % each, np.uint8)]).reshape(-1, each)
    shifts = np.arange(8 - width, -1, -width, dtype=np.uint8)
    packed: np.ndarray = np.bitwise_or.reduce(rows << shifts, axis=1)
    return packed[:, None]
