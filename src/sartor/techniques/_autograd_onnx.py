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

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from sartor.contracts import Failed
from sartor.techniques import _operators_shapes_onnx  # noqa: F401  (it adds to OPERATORS)
from sartor.techniques._blockwise_onnx import (
    BLOCKWISE,
    Blockwise,
    blockwise,
    of_dequantized,
    of_operator,
)
from sartor.techniques._graph_onnx import Graph, attribute, first_line
from sartor.techniques._levels_onnx import Levels
from sartor.techniques._levels_onnx import found as levels_found
from sartor.techniques._norms_onnx import Norms
from sartor.techniques._operators_onnx import OPERATORS, Call

# Operator -> the inputs whose float constants are weights; None: all of them.
_WEIGHTS: Mapping[str, tuple[int, ...] | None] = {
    "Add": None, "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2),
    "Einsum": None, "Gather": (0,), "GatherBlockQuantized": (0,), "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "LSTM": (1, 2, 3), "LayerNormalization": (1, 2),
    "MatMul": (0, 1), "MatMulNBits": (1, 5), "Mul": None, "PRelu": (1,),
    "SimplifiedLayerNormalization": (1,), "Sub": None,
}  # fmt: skip
_MOVING = (3, 4)  # inputs of a BatchNormalization that follow the data in training
# Operators between a stored weight and the layer that reads it.
_PASSING = {"Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"}
_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}
_WIDE = (-(2**31), 2**31 - 1)
_BIAS = 5  # input of a MatMulNBits


@dataclass(frozen=True)
class _Rounded:
    """How a weight of eight or fewer bits is stored: the constants with its integers, its scale
    and its zero, the axis of the scales."""

    stored: str
    scale: Tensor
    zero: Tensor
    axis: int | None
    low: int
    high: int

    def rounded(self, weight: Tensor) -> Tensor:
        """The floats that are stored instead, with the gradient of the weight where not clipped."""
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(
                weight, float(self.scale), int(self.zero), self.low, self.high
            )
        return torch.fake_quantize_per_channel_affine(
            weight, self.scale, self.zero, self.axis, self.low, self.high
        )

    def written(self, weight: Tensor) -> dict[str, np.ndarray]:
        """The constants that are stored for this weight, by their names."""
        steps = torch.round(weight / self._spread(self.scale, weight))
        made = (steps + self._spread(self.zero, weight)).clamp(self.low, self.high)
        return {self.stored: made.contiguous().numpy()}

    def beside_zero(self, weight: Tensor) -> float:
        """The share of the weights that stand one step beside zero."""
        steps = weight.detach() / self._spread(self.scale, weight)
        return float((steps.round().abs() == 1).float().mean())

    def _spread(self, values: Tensor, weight: Tensor) -> Tensor:
        shape = [1] * weight.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return values.reshape(shape if self.axis is not None else ())


Stored = _Rounded | Blockwise | Levels


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
        found = dict(_floats(graph, self.rounded))
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
                self.moving += [node.input[at] for at in _MOVING]
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
                raise Failed(
                    f"{node.op_type} ({node.name}) is an operator that cannot be trained through"
                )
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

    def _run(self, node: _Node, values: dict[str, Tensor]) -> None:
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
            kept.update({n: values[n] for n in node.outputs if n in watched})
            for name in node.spent:
                if name not in self.constants:
                    values.pop(name, None)
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
    return blockwise(node) or (known and node.domain in ("", "ai.onnx"))


def _floats(graph: Graph, rounded: dict[str, Stored]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of each weight; for those stored in few bits the name of what the
    DequantizeLinear makes or of what holds them, and how it is stored in `rounded`."""
    seen: set[str] = set()
    for node in graph.nodes:
        places = () if levels_found(graph, node) else _WEIGHTS.get(node.op_type, ())
        for at, name in enumerate(node.input):
            if places is not None and at not in places:
                continue
            source = _source(graph, name)
            if source in seen or not source:
                continue
            seen.add(source)
            maker = graph.producer(source)
            value: np.ndarray | None
            if blockwise(node) and at != _BIAS:
                rounded[source], value = of_operator(graph, node)
            elif few := levels_found(graph, maker):
                rounded[source], value = few
            elif maker is not None and maker.op_type == "DequantizeLinear":
                value = _stored(graph, maker, rounded)
            else:
                value = graph.constant(source)
            # Numbers on their own are part of a formula: 0.5 in a GELU is no weight.
            if value is not None and value.dtype == np.float32 and value.size > 1:
                yield source, np.array(value)
            else:
                rounded.pop(source, None)


def _source(graph: Graph, name: str) -> str:
    """Where a weight comes from: through what only turns it."""
    maker = graph.producer(name)
    while maker is not None and maker.op_type in _PASSING and maker.input:
        name = maker.input[0]
        maker = graph.producer(name)
    return name


def _stored(graph: Graph, maker: onnx.NodeProto, rounded: dict[str, Stored]) -> np.ndarray | None:
    """The floats that a DequantizeLinear makes of a constant; None where it has no constant."""
    integers, scale = graph.constant(maker.input[0]), graph.constant(maker.input[1])
    if integers is None or scale is None:
        return None
    zero = graph.constant(maker.input[2]) if len(maker.input) > 2 else None
    zero = np.zeros_like(scale, dtype=np.int32) if zero is None else zero.astype(np.int32)
    axis, block = attribute(maker, "axis", 1), attribute(maker, "block_size", 0)
    low, high = _RANGES.get(str(integers.dtype), _WIDE)
    if block:
        facts = {"axis": axis, "block": block, "low": low, "high": high}
        how, value = of_dequantized(maker.input[0], integers, scale, zero, facts)
        rounded[maker.output[0]] = how
        return value
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[axis] = -1
    spread = scale.reshape(shape) if integers.ndim else scale.reshape(())
    value = ((integers.astype(np.float32) - zero.reshape(spread.shape)) * spread).astype(np.float32)
    made = _Rounded(
        maker.input[0], torch.from_numpy(np.array(scale, np.float32)), torch.from_numpy(zero),
        axis if scale.size > 1 else None, low, high,
    )  # fmt: skip
    rounded[maker.output[0]] = _Wide(**vars(made)) if (low, high) == _WIDE else made
    return np.asarray(value)


class _Wide(_Rounded):
    """A bias in 32 bits: its rounding is far below what matters."""

    def rounded(self, weight: Tensor) -> Tensor:
        return weight


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


# What undoes a rounding that was done where it is written has nothing to do.
_ROUNDINGS: Mapping[str, Callable[[Call], Any]] = {
    "QuantizeLinear": _round,
    "DequantizeLinear": lambda c: c[0],
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
