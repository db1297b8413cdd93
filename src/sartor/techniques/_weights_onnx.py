"""Which constants of an ONNX graph are weights, and how those in few bits are stored.

    rounded = {}
    for name, value in weights(graph, rounded): ...
    rounded["w"].rounded(tensor), rounded["w"].written(tensor)

What only says what counts (a causal mask), and numbers on their own, are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from sartor.techniques._blockwise_onnx import Blockwise, blockwise, of_dequantized, of_operator
from sartor.techniques._graph_onnx import Graph, attribute
from sartor.techniques._levels_onnx import Levels
from sartor.techniques._levels_onnx import found as levels_found

# Operator -> the inputs whose float constants are weights; None: all of them.
_WEIGHTS: Mapping[str, tuple[int, ...] | None] = {
    "Add": None, "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2),
    "Einsum": None, "Gather": (0,), "GatherBlockQuantized": (0,), "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "LSTM": (1, 2, 3), "LayerNormalization": (1, 2),
    "MatMul": (0, 1), "MatMulNBits": (1, 5), "Mul": None, "PRelu": (1,),
    "SimplifiedLayerNormalization": (1,), "Sub": None,
}  # fmt: skip
# Those of them whose constants may be no weights but a mask of attention, a table of numbers.
_MIXED = {"Add", "Gather", "Mul", "Sub"}
_LARGEST = 1e4  # of a weight
_FEW = 8  # numbers of which two may be all that occur
# Operators between a stored weight and the layer that reads it.
_PASSING = {"Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"}
_STORED = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8,
    onnx.TensorProto.INT4, onnx.TensorProto.UINT4,
}  # fmt: skip
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
            weight, self.scale, self.zero, self.axis % weight.ndim, self.low, self.high
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


class _Wide(_Rounded):
    """A bias in 32 bits: its rounding is far below what matters."""

    def rounded(self, weight: Tensor) -> Tensor:
        return weight


Stored = _Rounded | Blockwise | Levels


def weighs(graph: Graph) -> bool:
    """Whether it has weights that can be trained: floats of 32 bits, or integers that stand for
    such. Cheap: values are not looked at."""
    for _, _, source in _read(graph):
        maker, tensor = graph.producer(source), graph.constant_tensor(source)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return True
        if tensor is not None and tensor.data_type in _STORED and np.prod(tensor.dims) > 1:
            return True
    return False


def _read(graph: Graph) -> Iterator[tuple[onnx.NodeProto, int, str]]:
    """Each node that may read weights, which of its inputs would be one, and where that comes
    from."""
    for node in graph.nodes:
        places = _WEIGHTS.get(node.op_type, ())
        for at, name in enumerate(node.input):
            if places is None or at in places:
                yield node, at, source_of(graph, name)


def weights(graph: Graph, rounded: dict[str, Stored]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of each weight; for those stored in few bits the name of what the
    DequantizeLinear makes or of what holds them, and how it is stored in `rounded`."""
    seen: set[str] = set()
    for node, at, source in _read(graph):
        if not source or source in seen or levels_found(graph, node):
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
        numbers = value is not None and value.dtype == np.float32 and value.size > 1
        mixed = node.op_type in _MIXED and not isinstance(rounded.get(source), Levels)
        if value is not None and numbers and not (mixed and _mask(value)):
            yield source, np.array(value)
        else:
            rounded.pop(source, None)


def _mask(value: np.ndarray) -> bool:
    """Whether these numbers say what counts, as a causal mask does, and are nothing to train:
    infinite, huge, or two that take turns. (One alone is a bias of zeros, a gain of ones.)"""
    if not np.isfinite(value).all() or np.abs(value).max() > _LARGEST:
        return True
    others = value[value != value.flat[0]]
    return value.size > _FEW and bool(others.size) and bool((others == others[0]).all())


def source_of(graph: Graph, name: str) -> str:
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
