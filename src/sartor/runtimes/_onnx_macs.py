"""Multiply-accumulates of one ONNX node, from the shapes of what it reads and writes.

Operators that only move, compare or add numbers count 0; those whose work cannot be told from
shapes (loops, mixtures of experts, unknown contrib operators) count None.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import onnx
from onnx import TensorProto, helper

ShapeOf = Callable[[str], tuple[int, ...] | None]

_BY_WEIGHT = {  # operator -> which input is the kernel [out, in / group, sizes...]
    "Conv": 1,
    "FusedConv": 1,
    "NhwcFusedConv": 1,
    "NhwcConv": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
}
_PRODUCTS = {  # operator -> which inputs are the factors A and B
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "FusedMatMulActivation": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulInteger16": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "Gemm": (0, 1),
    "FusedGemm": (0, 1),
    "GemmFastGelu": (0, 1),
    "GemmFloat8": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
}
_PACKED = {"MatMulNBits", "MatMulBnb4", "MatMulFpQ4"}
_RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM", "AttnLSTM"}
_SELF_ATTENTION = {"Attention": 4, "QAttention": 8}  # operator -> which input is the past
_CROSS_ATTENTION = {"Attention": 4, "MultiHeadAttention": 6, "GroupQueryAttention": 3}
_UNKNOWN = {
    *("If", "Loop", "Scan", "SequenceMap", "MoE", "QMoE", "DFT", "STFT", "DeformConv"),
    *("PackedAttention", "PackedMultiHeadAttention", "SparseAttention", "PagedAttention"),
    *("DecoderAttention", "LongformerAttention", "QOrderedLongformerAttention"),
    "QOrderedAttention",
    *("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch", "SVMClassifier"),
    *("SVMRegressor", "QLinearConvTranspose", "LinearAttention", "CausalConvWithState"),
    *("DecoderMaskedSelfAttention", "DecoderMaskedMultiHeadAttention", "GatedRelativePositionBias"),
    *("MatMulNBitsMlp", "MatMulNBitsQkv", "QOrderedMatMul", "SparseToDenseMatMul"),
}
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}


def macs(node: onnx.NodeProto, shape: ShapeOf) -> int | None:
    """Multiply-accumulates of one call; None where they are unknown."""
    kind = node.op_type
    if node.domain not in _DOMAINS or kind in _UNKNOWN:
        return None
    counter = _counter(kind, node.domain)
    if counter is None:
        return 0
    try:
        return counter(node, shape)
    except (_Unknown, IndexError, ValueError):  # a form of the operator that is not foreseen
        return None


class _Unknown(Exception):
    """A shape is not known."""


def _counter(kind: str, domain: str) -> Callable[[onnx.NodeProto, ShapeOf], int] | None:
    if kind in _BY_WEIGHT:
        return _conv
    if kind in _PRODUCTS:
        return _product
    if kind in _PACKED:
        return _packed_product
    if kind in _RECURRENT:
        return _recurrent
    if kind in _SELF_ATTENTION and domain == "com.microsoft":
        return _self_attention
    special = {
        "ConvTranspose": _conv_transpose,
        "Einsum": _einsum,
        **dict.fromkeys(_CROSS_ATTENTION, _attention),
        "LinearClassifier": _linear,
        "LinearRegressor": _linear,
    }
    return special.get(kind)


def _known(shape: ShapeOf, name: str) -> tuple[int, ...]:
    found = shape(name) if name else None
    if found is None:
        raise _Unknown(name)
    return found


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for each in node.attribute:
        if each.name == name:
            return helper.get_attribute_value(each)
    return default


def _conv(node: onnx.NodeProto, shape: ShapeOf) -> int:
    """Every number of the output takes one kernel of [in / group, sizes...], in any layout."""
    weight = _known(shape, node.input[_BY_WEIGHT[node.op_type]])
    return prod(_known(shape, node.output[0])) * prod(weight[1:])


def _conv_transpose(node: onnx.NodeProto, shape: ShapeOf) -> int:
    weight = _known(shape, node.input[1])  # [in, out / group, sizes...]
    return prod(_known(shape, node.input[0])) * prod(weight[1:])


def _product(node: onnx.NodeProto, shape: ShapeOf) -> int:
    first = _known(shape, node.input[_PRODUCTS[node.op_type][0]])
    inner = first[-2] if _attribute(node, "transA", 0) and len(first) > 1 else first[-1]
    return prod(_known(shape, node.output[0])) * inner


def _packed_product(node: onnx.NodeProto, shape: ShapeOf) -> int:
    return prod(_known(shape, node.output[0])) * int(_attribute(node, "K", 0))


def _recurrent(node: onnx.NodeProto, shape: ShapeOf) -> int:
    steps = prod(_known(shape, node.input[0])[:2])
    weights = (_known(shape, node.input[at]) for at in (1, 2))  # each of [directions, ...]
    return steps * sum(prod(weight) for weight in weights)


def _self_attention(node: onnx.NodeProto, shape: ShapeOf) -> int:
    """Projection to queries, keys and values in one product, then scores and mixture."""
    rows, tokens, width = _known(shape, node.input[0])
    weight = _known(shape, node.input[1])  # [width, queries + keys + values]
    out = _known(shape, node.output[0])[-1]
    past = _past(node, shape, _SELF_ATTENTION[node.op_type])
    scores = 2 * rows * tokens * (tokens + past) * out
    projection: int = rows * tokens * width * weight[-1]
    return projection + scores


def _past(node: onnx.NodeProto, shape: ShapeOf, at: int) -> int:
    given = len(node.input) > at and node.input[at]
    return _known(shape, node.input[at])[-2] if given else 0


def _attention(node: onnx.NodeProto, shape: ShapeOf) -> int:
    """Queries [rows, tokens, width] or [rows, heads, tokens, size] against keys and values."""
    query = _known(shape, node.input[0])
    if len(node.input) < 2 or not node.input[1]:
        raise _Unknown("packed queries, keys and values")
    key = _known(shape, node.input[1])
    if len(query) not in (3, 4) or len(key) not in (3, 4):
        raise _Unknown("packed keys and values")
    tokens = key[-2] + _past(node, shape, _CROSS_ATTENTION[node.op_type])
    return 2 * prod(query) * tokens


def _einsum(node: onnx.NodeProto, shape: ShapeOf) -> int:
    equation = _attribute(node, "equation", b"").decode().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if "..." in equation or len(terms) < 2:
        raise _Unknown(equation)
    sizes = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes.update(dict(zip(term, _known(shape, name), strict=True)))
    return prod(sizes.values()) * (len(terms) - 1)


def _linear(node: onnx.NodeProto, shape: ShapeOf) -> int:
    return _known(shape, node.input[0])[0] * len(_attribute(node, "coefficients", ()))


def packed(node: onnx.NodeProto, tensor: TensorProto) -> int | None:
    """How many parameters a weight of several in a byte holds; None where each has its own."""
    bits = int(_attribute(node, "bits", 4))
    if tensor.data_type != TensorProto.UINT8 or bits >= 8:
        return None
    at = {"MatMulNBits": 1, "MatMulBnb4": 1, "MatMulFpQ4": 1, "GatherBlockQuantized": 0}
    if node.op_type not in at or node.input[at[node.op_type]] != tensor.name:
        return None
    if node.op_type == "GatherBlockQuantized":
        return int(prod(tensor.dims)) * 8 // bits
    return int(_attribute(node, "K", 0)) * int(_attribute(node, "N", 0))
