"""Sums and products by channel taken into the convolution before them.

PyTorch's exporter does so for its own batch norms. Keras writes them out as a difference, a product
and a sum behind a transposition, since its channels stand last.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

_TAKEN = ("Add", "Sub", "Mul", "Div")


@dataclass
class _Chain:
    """What follows a convolution: by how much each channel is multiplied and what is added then."""

    scale: np.ndarray
    shift: np.ndarray
    gone: list[tuple[onnx.NodeProto, str]] = field(default_factory=list)  # node, what it reads

    def take(self, node: onnx.NodeProto, read: str, values: np.ndarray) -> None:
        if node.op_type in ("Mul", "Div"):
            factor = values if node.op_type == "Mul" else 1 / values
            self.scale, self.shift = self.scale * factor, self.shift * factor
        else:
            self.shift = self.shift + (values if node.op_type == "Add" else -values)
        self.gone.append((node, read))


def fold(proto: onnx.ModelProto) -> None:
    """Changes the graph in place; its answers stay the same but for rounding."""
    graph = proto.graph
    if any(each.HasField("g") or each.graphs for node in graph.node for each in node.attribute):
        return  # what bodies of loops read is not looked at
    known = {each.name: each for each in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    readers = {name: node for node in graph.node for name in node.input}
    given = {each.name for each in graph.output}
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        if not all(_is_float(known.get(name)) for name in conv.input[1:]):
            continue
        weight, *bias = (numpy_helper.to_array(known[n]).astype(float) for n in conv.input[1:])
        wide = len(weight)
        chain = _Chain(np.ones(wide), bias[0] if bias else np.zeros(wide))
        name, axis = conv.output[0], 1
        while uses[name] == 1 and name not in given and name in readers:
            node = readers[name]
            if node.op_type == "Transpose" and node.attribute:
                axis = list(node.attribute[0].ints).index(axis)
            else:
                values = _by_channel(node, name, known, axis, weight.ndim, wide)
                if values is None or node.output[0] in given:
                    break
                chain.take(node, name, values)
            name = node.output[0]
        if chain.gone:
            _rewrite(graph, conv, weight, chain, shared=uses[conv.input[1]] > 1)


def _is_float(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT


def _by_channel(
    node: onnx.NodeProto,
    name: str,
    known: dict[str, onnx.TensorProto],
    axis: int,
    rank: int,
    wide: int,
) -> np.ndarray | None:
    """[channels]: the constant that the node adds or multiplies by, where it is one per channel."""
    if node.op_type not in _TAKEN or len(node.input) != 2:
        return None
    at = 1 if node.input[0] == name else 0
    tensor = known.get(node.input[at])
    if tensor is None or not _is_float(tensor) or (at == 0 and node.op_type in ("Sub", "Div")):
        return None
    found = numpy_helper.to_array(tensor).astype(float)
    if found.ndim > rank:
        return None
    found = found.reshape((1,) * (rank - found.ndim) + found.shape)
    if any(size != 1 for place, size in enumerate(found.shape) if place != axis):
        return None
    return np.broadcast_to(found.ravel(), (wide,)) if found.size in (1, wide) else None


def _rewrite(
    graph: onnx.GraphProto, conv: onnx.NodeProto, weight: np.ndarray, chain: _Chain, shared: bool
) -> None:
    """A weight that nothing else reads keeps its name."""
    name = f"{conv.input[1]}_{conv.output[0]}" if shared else conv.input[1]
    scale = chain.scale.reshape(-1, *(1,) * (weight.ndim - 1))
    if not shared:
        graph.initializer.remove(next(e for e in graph.initializer if e.name == name))
    made = {name: weight * scale, f"{name}_{conv.output[0]}_bias": chain.shift}
    for each, array in made.items():
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), each))
    conv.input[1:] = list(made)
    for node, read in reversed(chain.gone):
        for other in graph.node:
            other.input[:] = [read if each == node.output[0] else each for each in other.input]
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(tensor)
