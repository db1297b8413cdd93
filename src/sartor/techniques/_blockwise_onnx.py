"""Weights in blocks, each with a scale of its own, as training sees them: the floats that they
stand for, rounded in every pass, and the bytes that are written back.

    how, weight = of_operator(graph, node)       a MatMulNBits or GatherBlockQuantized
    how.rounded(weight), how.written(weight)

The operators compute as ONNX Runtime does, a MatMulNBits of accuracy level 4 with its activations
in eight bits, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from sartor.contracts import Failed
from sartor.techniques._graph_onnx import Graph, attribute
from sartor.techniques._integers_onnx import MICROSOFT, pack_bits, unpack_bits
from sartor.techniques._operators_onnx import Call

_INT8 = 4  # the accuracy level at which activations are rounded
_TINY = 1e-30  # for a scale of zero: all that it scales are zeros


@dataclass(frozen=True)
class Blockwise:
    """`scale` and `zero` have the weight's axes, with one number for every `block` along `axis`;
    `bits` where the integers stand packed in bytes of the shape `packed`."""

    stored: str
    scale: Tensor
    zero: Tensor
    axis: int
    block: int
    low: int
    high: int
    bits: int = 0
    packed: tuple[int, ...] = ()

    def rounded(self, weight: Tensor) -> Tensor:
        """The floats that are stored instead, with the gradient of the weight where not clipped."""
        zero, scale = self._of_blocks(self.zero), self._of_blocks(self.scale)
        steps = (self._cut(weight) / scale).clamp(self.low - zero, self.high - zero)
        steps = steps + (steps.round() - steps).detach()
        return (
            (steps * scale)
            .flatten(self.axis, self.axis + 1)
            .narrow(self.axis, 0, weight.shape[self.axis])
        )

    def written(self, weight: Tensor) -> dict[str, np.ndarray]:
        """The constant that is stored for this weight, by its name."""
        steps = self._cut(weight) / self._of_blocks(self.scale)
        numbers = (steps.round() + self._of_blocks(self.zero)).clamp(self.low, self.high)
        whole = numbers.flatten(self.axis, self.axis + 1)
        if not self.bits:
            return {self.stored: whole.narrow(self.axis, 0, weight.shape[self.axis]).numpy()}
        # A table has no bytes for what fills its last block up.
        wide = int(np.prod(self.packed[1:])) * 8 // self.bits
        rows = whole[:, :wide].numpy().astype(np.uint8)
        return {self.stored: pack_bits(rows, self.bits).reshape(self.packed)}

    def beside_zero(self, weight: Tensor) -> float:
        """The share of the weights that stand one step beside zero."""
        steps = self._cut(weight.detach()) / self._of_blocks(self.scale)
        return float((steps.round().abs() == 1).float().mean())

    def _of_blocks(self, values: Tensor) -> Tensor:
        return values.unsqueeze(self.axis + 1)

    def _cut(self, weight: Tensor) -> Tensor:
        """[..., blocks, block, ...], zeros where the last block is not full."""
        short = self.scale.shape[self.axis] * self.block - weight.shape[self.axis]
        if short:
            behind = [0, 0] * (weight.ndim - 1 - self.axis)
            weight = F.pad(weight, [*behind, 0, short])
        return _in_blocks(weight, self.axis, self.block)


def _in_blocks(values: Tensor, axis: int, block: int) -> Tensor:
    return values.reshape([*values.shape[:axis], -1, block, *values.shape[axis + 1 :]])


def of_operator(graph: Graph, node: onnx.NodeProto) -> tuple[Blockwise, np.ndarray]:
    """How a MatMulNBits or GatherBlockQuantized holds its weights, and these as floats, [N, K] or
    the table.

    Raises Failed with a sentence for forms that cannot be trained."""
    product = node.op_type == "MatMulNBits"
    names: list[str] = list(node.input[1:5] if product else [node.input[0], *node.input[2:4]])
    (stored, scale), others = names[:2], names[2:]
    data, scales = graph.constant(stored), graph.constant(scale)
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 128)
    plain = data is not None and scales is not None and data.dtype == np.uint8
    if product:
        plain = plain and not any(others[1:])  # a permutation of the inputs
        rows, columns = attribute(node, "N"), attribute(node, "K")
    else:
        by_rows = attribute(node, "gather_axis", 0) == 0
        plain = plain and by_rows and attribute(node, "quantize_axis", 1) in (1, -1)
        plain = plain and data is not None and data.ndim == 2
        rows, columns = (len(data), data.shape[1] * 8 // bits) if data is not None else (0, 0)
    if not plain or data is None or scales is None or scales.dtype != np.float32:
        raise Failed(f"{node.op_type} ({node.name}) holds its weights in a form not trained here")
    blocks = -(-columns // block)
    zeros = np.full((rows, blocks), 1 << (bits - 1), np.float32)
    if others and others[0]:
        zeros = _zeros(graph, others[0], zeros.shape, bits)
    numbers = unpack_bits(data.reshape(rows, -1), bits)
    spread = [np.repeat(each, block, 1)[:, :columns] for each in (scales.reshape(rows, -1), zeros)]
    value = ((numbers[:, :columns] - spread[1]) * spread[0]).astype(np.float32)
    how = Blockwise(
        stored, _scales(scales.reshape(rows, blocks)), torch.from_numpy(zeros), 1, block,
        0, (1 << bits) - 1, bits, data.shape,
    )  # fmt: skip
    return how, value


def of_dequantized(
    stored: str, integers: np.ndarray, scale: np.ndarray, zero: np.ndarray, facts: Mapping[str, int]
) -> tuple[Blockwise, np.ndarray]:
    """How the weight behind a DequantizeLinear with scales in blocks is held, and the weight.
    `facts`: its axis and block, the lowest and the highest integer."""
    axis, block = facts["axis"] % integers.ndim, facts["block"]
    spread = [np.repeat(each, block, axis) for each in (scale, zero)]
    ends = tuple(slice(size) for size in integers.shape)
    value = (integers.astype(np.float32) - spread[1][ends]) * spread[0][ends]
    zeros = torch.from_numpy(zero.astype(np.float32))
    how = Blockwise(stored, _scales(scale), zeros, axis, block, facts["low"], facts["high"])
    return how, value.astype(np.float32)


def _scales(scale: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(scale == 0, _TINY, scale).astype(np.float32))


def _zeros(graph: Graph, name: str, shape: tuple[int, int], bits: int) -> np.ndarray:
    zeros = graph.constant(name)
    if zeros is None:
        raise Failed(f"the zero points {name} are not constant")
    if zeros.dtype == np.uint8:
        zeros = unpack_bits(zeros.reshape(shape[0], -1), bits)[:, : shape[1]]
    return np.asarray(zeros.reshape(shape).astype(np.float32))


def _product(c: Call) -> Tensor:
    x, bias = c[0], c.optional(5)
    if c.get("accuracy_level", 0) == _INT8:
        x = _in_eight_bits(x.float(), c.get("block_size"))
    made = F.linear(x, c[1])
    return made if bias is None else made + bias


def _in_eight_bits(x: Tensor, block: int) -> Tensor:
    """Rounded as MatMulNBits does, each block by its largest number; the gradient passes on."""
    padded = F.pad(x.detach(), [0, -x.shape[-1] % block])
    cut = _in_blocks(padded, padded.ndim - 1, block)
    scale = (cut.abs().amax(-1, keepdim=True) / 127).clamp_min(_TINY)
    rounded = ((cut / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]
    return x + (rounded - x.detach())


def _lookup(c: Call) -> Tensor:
    rows = torch.where(c[1] < 0, c[1] + len(c[0]), c[1])
    return F.embedding(rows, c[0])


BLOCKWISE: Mapping[str, Callable[[Call], Any]] = {
    "MatMulNBits": _product,
    "GatherBlockQuantized": _lookup,
}


def blockwise(node: onnx.NodeProto) -> bool:
    return node.op_type in BLOCKWISE and node.domain == MICROSOFT
