"""Sizes and pads that exporters write as chains of operators on constants, computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from sartor.techniques._graph_onnx import Graph

_FEW = 64  # numbers in a tensor of sizes; longer ones are data
_OPERATORS = frozenset(
    {
        *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Identity", "Mul"),
        *("Reshape", "Shape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
    }
)


def fold_sizes(graph: Graph) -> None:
    """Puts constants in the place of what is computed from a few constant whole numbers alone.
    PyTorch writes the pads of a padding so; nothing that reads a graph sees through that."""
    known: dict[str, np.ndarray] = {}
    done = []
    for node in graph.nodes:
        given = _given(graph, node, known)
        made = None if given is None else _computed(graph, node, given)
        if made is not None:
            known[node.output[0]] = made
            done.append(node)
    for node in done:
        graph.proto.graph.node.remove(node)
    graph.refresh()
    for name, value in known.items():
        if graph.users(name):
            graph.set_constant(name, value)
    graph.drop_unused()


def _given(
    graph: Graph, node: onnx.NodeProto, known: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """The inputs of a node that may be computed now; None for any other."""
    if node.op_type not in _OPERATORS or node.domain or len(node.output) != 1:
        return None
    if node.output[0] in graph.outputs:
        return None
    found = {}
    for name in filter(None, node.input):
        value = known.get(name)
        if value is None:
            tensor = graph.constant_tensor(name)
            if tensor is None or not _small(tensor):
                return None
            value = graph.constant(name)
        if value is None or value.dtype.kind not in "iub":
            return None
        found[name] = value
    return found


def _small(tensor: onnx.TensorProto) -> bool:
    """Whether it is read: weights that lie in another file are not there where a graph was only
    looked at."""
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    return not outside and bool(np.prod(tensor.dims, dtype=np.int64) <= _FEW)


def _computed(
    graph: Graph, node: onnx.NodeProto, given: dict[str, np.ndarray]
) -> np.ndarray | None:
    if node.op_type == "ConstantOfShape" and np.prod(given[node.input[0]]) > _FEW:
        return None
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in given.items()
    ]
    out = onnx.ValueInfoProto(name=node.output[0])
    alone = helper.make_model(
        helper.make_graph([node], "sizes", ports, [out]), opset_imports=graph.proto.opset_import
    )
    try:
        made: Any = ReferenceEvaluator(alone).run(None, given)
    except Exception:  # whatever it raises on a node that no runtime would run either
        return None
    value = np.asarray(made[0])
    return value if value.dtype.kind in "iub" and value.size <= _FEW else None
