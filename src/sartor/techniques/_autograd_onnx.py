"""An ONNX graph as a torch module: what training, Taylor importances and distillation run on.

    net = GraphModule(graph)
    answers = net({"image": batch})            tensors by the names of the graph's outputs
    net.weights, net.names                     its parameters, and the constants that they are
    net.write(graph)                           the trained values, back in the graph's constants

Names and layouts of the graph's constants stay, so that whatever changed its structure before
(pruned channels, two thin layers for one) is trained as it is, and whatever is written back is
again a model that every other technique takes. Weights in few bits, behind a DequantizeLinear or
in blocks (see `_blockwise_onnx`), are trained as the floats that they stand for and rounded in
every pass, and a rounding of activations passes its gradient on where it does not clip (the
straight-through estimator: Bengio et al. 2013; Jacob et al., CVPR 2018): training a quantized
graph is quantization-aware training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from sartor.contracts import Failed
from sartor.libraries import first_line
from sartor.techniques import _operators_shapes_onnx  # noqa: F401  (it adds to OPERATORS)
from sartor.techniques._blockwise_onnx import BLOCKWISE, blockwise
from sartor.techniques._graph_onnx import Graph
from sartor.techniques._levels_onnx import Levels
from sartor.techniques._norms_onnx import Norms
from sartor.techniques._operators_onnx import OPERATORS, Call, beyond, called
from sartor.techniques._weights_onnx import Stored, source_of, weights

_MOVING = (3, 4)  # inputs of a BatchNormalization that follow the data in training


@dataclass(frozen=True)
class _Node:
    """One step of the program: what runs, from which slots into which, and what nobody needs
    afterwards."""

    name: str
    operator: str
    run: Callable[[Call], Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    spent: tuple[str, ...]


class GraphModule(nn.Module):
    """The graph in float32, its weights as parameters, with `norms` behind its convolutions.

    Raises Failed with a sentence that names the operator which cannot be trained through."""

    def __init__(self, graph: Graph, norms: Norms | None = None) -> None:
        super().__init__()
        self.norms = norms
        self.opset = graph.opset
        self.innermost = False
        self.inputs = tuple(port.name for port in graph.proto.graph.input)
        self.outputs = graph.outputs
        self.rounded: dict[str, Stored] = {}
        self.constants: dict[str, Tensor] = {}
        self.names: list[str] = []
        self.weights = nn.ParameterList()
        self.moving: list[str] = []
        found = dict(weights(graph, self.rounded))
        gone = {e.stored for e in self.rounded.values() if not isinstance(e, Levels)}
        for name, tensor in graph.constants():
            if name in found or name in gone:
                continue
            self.constants[name] = _tensor(tensor)
        for name, value in found.items():
            self.names.append(name)
            self.weights.append(nn.Parameter(torch.from_numpy(value)))
        for node in graph.nodes:
            if node.op_type == "BatchNormalization":
                sources = [source_of(graph, node.input[at]) for at in _MOVING]
                self.moving += [each for each in sources if each in self.constants]
        self.program = self._compiled(graph)
        self._fold()

    def channels_last(self) -> None:
        """Convolutions with the channels innermost: twice as fast on this kind of machine."""
        for weight in self.weights:
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.innermost = True

    def _compiled(self, graph: Graph) -> list[_Node]:
        last: dict[str, int] = {}
        nodes = [
            node
            for node in graph.nodes
            if node.op_type != "Constant" and node.output[0] not in self.rounded
        ]
        for at, node in enumerate(nodes):
            last.update(dict.fromkeys(node.input, at))
        made = []
        for at, node in enumerate(nodes):
            run = _ROUNDINGS.get(node.op_type) or OPERATORS.get(node.op_type)
            run = BLOCKWISE[node.op_type] if blockwise(node) else run
            if run is None or not followed(node):
                raise Failed(f"{called(node)} is an operator that cannot be trained through")
            spent = tuple(n for n in dict.fromkeys(node.input) if n and last[n] == at)
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            attributes = {
                name: onnx.numpy_helper.to_array(value)
                if isinstance(value, onnx.TensorProto)
                else value
                for name, value in attributes.items()
            }
            attributes["_outputs"] = len(node.output)
            made.append(
                _Node(
                    node.name, node.op_type, run, tuple(node.input), tuple(node.output),
                    attributes, tuple(n for n in spent if n not in self.outputs),
                )
            )  # fmt: skip
        return made

    def _fold(self) -> None:
        """Runs what depends on constants alone once and for all."""
        rest = []
        for node in self.program:
            if all(not name or name in self.constants for name in node.inputs):
                with torch.no_grad():
                    self._run(node, self.constants)
            else:
                rest.append(node)
        self.program = rest

    def settle(self) -> None:
        """Makes constants of the weights and runs what depends on them alone, such as the look-up
        of clustered ones. Nothing can be trained afterwards."""
        for name, weight in zip(self.names, self.weights, strict=True):
            how = self.rounded.get(name)
            with torch.no_grad():
                self.constants[name] = how.rounded(weight) if how else weight.detach()
        self.names, self.weights = [], nn.ParameterList()
        self._fold()

    def _run(self, node: _Node, values: dict[str, Tensor]) -> None:
        for name in node.inputs:
            if name and name not in values:
                raise Failed(f"{name}, an input of {node.operator} ({node.name}), is not computed")
        inputs = [values[name] if name else None for name in node.inputs]
        try:
            made = node.run(Call(inputs, node.attributes, self.opset, self.training))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            said = first_line(error, 200)
            raise Failed(
                f"{node.operator} ({node.name}) cannot be trained through: {said}"
            ) from error
        outputs = made if isinstance(made, tuple) else (made,)
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                values[name] = value

    def forward(
        self, feeds: Mapping[str, Tensor], watched: tuple[str, ...] = ()
    ) -> dict[str, Tensor]:
        """The graph's outputs, and the tensors in `watched`, by name."""
        values = dict(self.constants)
        for name in self.inputs:
            value = feeds[name]
            if self.innermost and value.ndim == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            values[name] = value
        for name, weight in zip(self.names, self.weights, strict=True):
            how = self.rounded.get(name)
            values[name] = how.rounded(weight) if how else weight
        kept = {name: values[name] for name in watched if name in values}
        for node in self.program:
            self._run(node, values)
            if self.norms is not None and node.outputs[0] in self.norms.tensors:
                value = values[node.outputs[0]]
                values[node.outputs[0]] = self.norms.apply_to(node.outputs[0], value, self.training)
            kept.update({n: values[n] for n in node.outputs if n in watched and n in values})
            for name in node.spent:
                if name not in self.constants:
                    values.pop(name, None)
        if missing := [name for name in self.outputs if name not in values]:
            raise Failed(f"the output {missing[0]} is not computed in torch")
        return {name: values[name] for name in self.outputs} | kept

    def write(self, graph: Graph) -> None:
        """Puts the trained values into the constants of the graph that they came from."""
        with torch.no_grad():
            for name, weight in zip(self.names, self.weights, strict=True):
                how, value = self.rounded.get(name), weight.detach().contiguous()
                made = {name: value.numpy()} if how is None else how.written(value)
                for each, array in made.items():
                    before = graph.constant(each)
                    assert before is not None
                    graph.set_constant(each, array.astype(before.dtype))
            for name in self.moving:
                graph.set_constant(name, self.constants[name].numpy())
            if self.norms is not None:
                self.norms.fold(graph)


def followed(node: onnx.NodeProto) -> bool:
    """Whether autograd can follow this operator."""
    known = node.op_type in OPERATORS or node.op_type in _ROUNDINGS
    known = known and node.domain in ("", "ai.onnx") and beyond(node) is None
    return known or blockwise(node)


def _round(c: Call) -> Tensor:
    """QuantizeLinear and its inverse at once: the floats that the integers stand for."""
    scale, zero = c[1], c.optional(2)
    if scale.numel() > 1:
        raise Failed("activations with a scale for each channel cannot be trained through")
    dtype = torch.uint8 if zero is None else zero.dtype
    low, high = (0, 255) if dtype == torch.uint8 else (-128, 127)
    if dtype not in (torch.uint8, torch.int8):
        raise Failed(f"activations rounded to {dtype} cannot be trained through")
    offset = 0 if zero is None else int(zero)
    return torch.fake_quantize_per_tensor_affine(c[0].float(), float(scale), offset, low, high)


def _unround(c: Call) -> Tensor:
    """Of whole numbers, the floats that they stand for; what `_round` made is that already."""
    x, scale, zero = c[0], c[1], c.optional(2)
    if x.is_floating_point():
        return x
    if c.get("block_size", 0):
        raise Failed("a constant rounded in blocks that is no weight cannot be trained through")
    shape = [1] * x.ndim
    if scale.numel() > 1:
        shape[c.get("axis", 1)] = -1
    steps = x.float() if zero is None else x.float() - zero.float().reshape(shape)
    return steps * scale.float().reshape(shape)


_ROUNDINGS: Mapping[str, Callable[[Call], Any]] = {
    "QuantizeLinear": _round,
    "DequantizeLinear": _unround,
}


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    value = onnx.numpy_helper.to_array(tensor)
    if value.dtype.kind in "OU":
        raise Failed(f"the constant {tensor.name} holds text")
    if value.dtype.name in ("uint16", "uint32", "uint64"):
        value = value.astype(np.int64)
    elif value.dtype.name in ("int2", "int4", "uint2", "uint4"):
        value = value.astype(np.int8)
    try:
        return torch.from_numpy(np.array(value))
    except TypeError:
        raise Failed(f"the constant {tensor.name} is of type {value.dtype}") from None
