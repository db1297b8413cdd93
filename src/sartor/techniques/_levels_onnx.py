"""Weights of two or three values a channel: how they are stored, found again and trained.

A weight is (code - middle) * scale, with a code of one or two bits for each number and a scale for
each index of one axis. A few nodes unpack it, which ONNX Runtime folds into a plain constant when
it loads the model.

    store(graph, "w", 0, binary)                  in place of the constant
    how, weight = found(graph, maker)             of the node that makes a weight, or None
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from sartor.techniques._graph_onnx import Graph
from sartor.techniques._packing_onnx import Unpacking, pack

THRESHOLD = 0.7  # of the mean magnitude, below which a ternary weight is zero
_UNPACKING = ["Mul", "Reshape", "Sub", "Cast"]  # from the weight towards the codes
_PRUNED = 2 / 3  # share of zeros in a ternary weight beyond which they were there before


def levels(weight: Any, axis: int, binary: bool) -> tuple[Any, Any]:
    """Signs (-1, 0, 1) and their scales, of an array or a tensor, in their own kind.

    `axis`: of the channels, -1 where there is one scale for all. Ternary: zero below 0.7 of the
    channel's mean magnitude, the mean magnitude of the others as the scale (Li, Zhang and Liu,
    "Ternary weight networks", 2016); binary: the sign and the mean magnitude of all (Rastegari and
    others, "XNOR-Net", ECCV 2016). Done twice it changes nothing."""
    others = tuple(at for at in range(weight.ndim) if at != axis)
    size = abs(weight)
    kept = size >= 0
    if not binary:
        kept = size > THRESHOLD * size.mean(axis=others, keepdims=True)
    count = kept.sum(axis=others, keepdims=True).clip(1)
    scale = (size * kept).sum(axis=others, keepdims=True) / count
    return ((weight >= 0) * 2.0 - 1.0) * kept, scale


@dataclass(frozen=True)
class Levels:
    """How a weight of few values is stored: the constants with its codes and its scales, the axis
    of these."""

    stored: str
    scale: str
    axis: int
    binary: bool

    def rounded(self, weight: Any) -> Any:
        """The values that are stored instead, with the gradient of the weight (the straight-through
        estimator); weights that are far out of range already are not pushed on."""
        signs, scale = levels(weight.detach(), self.axis, self.binary)
        bounded = weight.clamp(-2 * scale, 2 * scale)
        return bounded + (signs * scale - bounded).detach()

    def written(self, weight: Any) -> dict[str, np.ndarray]:
        signs, scale = (each.numpy() for each in levels(weight, self.axis, self.binary))
        codes, scale = _coded(signs, scale, self.binary)
        return {self.stored: codes, self.scale: scale}

    def beside_zero(self, weight: Any) -> float:
        return _PRUNED


def _coded(signs: np.ndarray, scale: np.ndarray, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """The codes packed, and the distance of two neighbouring values."""
    codes = signs > 0 if binary else signs + 1
    return pack(codes, 1 if binary else 2), ((2 if binary else 1) * scale).astype(np.float32)


def store(graph: Graph, name: str, axis: int, binary: bool) -> None:
    """The constant in few values, a scale for each index of `axis`."""
    weight = graph.constant(name)
    assert weight is not None
    codes, scale = _coded(*levels(weight, axis, binary), binary)
    unpacking = Unpacking(graph, name)
    width = 1 if binary else 2
    flat = unpacking.bits(unpacking.keep(codes, "codes"), width, weight.size)
    plain = unpacking.op("Cast", flat, to=TensorProto.FLOAT)
    middle = np.array(0.5 if binary else 1, np.float32)
    signs = unpacking.op("Sub", plain, unpacking.keep(middle, "middle"))
    shaped = unpacking.shape(signs, weight.shape)
    unpacking.op("Mul", shaped, unpacking.keep(scale, "scale"))
    unpacking.done()


def found(graph: Graph, maker: onnx.NodeProto | None) -> tuple[Levels, np.ndarray] | None:
    """How the weight that this node makes is stored, and the weight; None where `store` did not
    store it."""
    chain: list[onnx.NodeProto] = []
    node = maker
    while node is not None and len(chain) < len(_UNPACKING):
        chain.append(node)
        node = graph.producer(node.input[0]) if node.input else None
    if [each.op_type for each in chain] != _UNPACKING:
        return None
    while node is not None and node.op_type != "BitShift":
        node = graph.producer(node.input[0]) if node.input else None
    if node is None:
        return None
    scale, shape, middle = (graph.constant(each.input[1]) for each in chain[:3])
    codes, shifts = (graph.constant(name) for name in node.input)
    if scale is None or shape is None or middle is None or codes is None or shifts is None:
        return None
    width = {0.5: 1, 1.0: 2}.get(float(middle.ravel()[0]))
    if width is None or not np.array_equal(shifts.ravel(), np.arange(8 - width, -1, -width)):
        return None
    fields = ((codes >> shifts) % (1 << width)).ravel()[: int(np.prod(shape))]
    axis = int(np.argmax(scale.shape)) if scale.size > 1 else -1
    how = Levels(node.input[0], chain[0].input[1], axis, width == 1)
    return how, ((fields.reshape(shape) - middle) * scale).astype(np.float32)
