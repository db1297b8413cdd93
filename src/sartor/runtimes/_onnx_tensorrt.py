"""Whether TensorRT takes a graph as explicitly quantized, by what its documents ask for, and the
command that builds an engine of it. TensorRT itself was never run on what is said here: it needs a
GPU. The rules are those of TensorRT 10's guide and of its ONNX parser (onnx-tensorrt 10.1).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

OPSETS = range(13, 21)  # a scale for each channel comes with 13; TensorRT 10.0 reads up to 20

# Operators that multiply by weights, and where those stand.
_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}

_INPUTS = ("FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "UINT8", "BOOL")

# Those that onnx-tensorrt's table marks with N, and those whose bodies nothing here looks into.
_UNKNOWN = (
    "AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Col2Im"
    " CenterCropPad Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear"
    " HammingWindow HannWindow If ImageDecoder Loop MatMulInteger MaxRoiPool MaxUnpool"
    " MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement"
    " OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch STFT Scan SequenceAt"
    " SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap"
    " SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit"
    " TfIdfVectorizer Unique"
)


def tensorrt_obstacle(proto: onnx.ModelProto) -> str | None:
    """Why TensorRT would not take it as explicitly quantized to int8; None = it should."""
    return _Reader(proto).obstacle()


def command(file: str, proto: onnx.ModelProto, row: Mapping[str, np.ndarray], batch: int) -> str:
    """The `trtexec` call. Shapes are given where some are free, as TensorRT wants it: from one
    example to `batch` of them, other free sizes as in `row`."""
    parts = ["trtexec", f"--onnx={file}", "--stronglyTyped"]
    free = [port for port in _fed(proto) if any(not s for s in _sizes(port))]
    for flag, examples in (("min", 1), ("opt", batch), ("max", batch)):
        if free:
            told = [f"{_quoted(p.name)}:{_shape(p, row[p.name], examples)}" for p in free]
            parts.append(f"--{flag}Shapes={','.join(told)}")
    return shlex.join(parts)


def _shape(port: onnx.ValueInfoProto, seen: np.ndarray, examples: int) -> str:
    sizes = [stated or size for stated, size in zip(_sizes(port), seen.shape, strict=True)]
    sizes[:1] = [_sizes(port)[0] or examples]
    return "x".join(map(str, sizes))


def _sizes(port: onnx.ValueInfoProto) -> list[int]:
    """Of its axes, 0 where one is free."""
    return [max(axis.dim_value, 0) for axis in port.type.tensor_type.shape.dim]


def _fed(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    own = {tensor.name for tensor in proto.graph.initializer}
    return [port for port in proto.graph.input if port.name not in own]


def _quoted(name: str) -> str:
    """trtexec ends a name at a colon, unless it stands in quotes."""
    return f"'{name}'" if set(name) & set(":,") else name


class _Reader:
    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        self.proto = proto
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.made = {name: node for node in self.nodes for name in node.output}
        self.held = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            values = [each.t for each in node.attribute if each.name == "value"]
            if node.op_type == "Constant" and values:
                self.held[node.output[0]] = values[0]
        self.outputs = {port.name for port in graph.output}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for place, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, place))

    def obstacle(self) -> str | None:
        versions = {each.domain: each.version for each in self.proto.opset_import}
        opset = versions.get("", versions.get("ai.onnx", 1))
        if opset not in OPSETS:
            return f"opset {opset} is not one of {OPSETS[0]} to {OPSETS[-1]}"
        for port in _fed(self.proto):
            held = TensorProto.DataType.Name(port.type.tensor_type.elem_type)
            if held not in _INPUTS:
                return f"the input {port.name} is {held.lower()}"
        for node in self.nodes:
            reason = self._against(node)
            if reason:
                return f"{node.op_type} {node.name or node.output[0]}: {reason}"
        found = {node.op_type for node in self.nodes}
        return None if "QuantizeLinear" in found else "nothing is quantized by QuantizeLinear"

    def _against(self, node: onnx.NodeProto) -> str | None:
        if node.domain not in ("", "ai.onnx"):
            return f"an operator of {node.domain}"
        if node.op_type in _UNKNOWN.split():
            return "TensorRT has no such operator, or what is inside it was not looked into"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return self._against_scale(node) or self._against_place(node)
        if node.op_type in _WEIGHTS and self._dequantized(node.input[1]):
            whole = self._dequantized(node.input[0])
            return None if whole else "its weights are int8, but what it multiplies is not"
        return None

    def _against_scale(self, node: onnx.NodeProto) -> str | None:
        scale, zero = (self._number(name) for name in (*node.input, "", "")[1:3])
        if scale is None or zero is None:
            return "its scale or zero point is no constant in the file"
        if zero.data_type != TensorProto.INT8:
            name = TensorProto.DataType.Name(zero.data_type).lower()
            return f"it is of {name}; TensorRT has int8 alone"
        values, zeros = numpy_helper.to_array(scale), numpy_helper.to_array(zero)
        if zeros.any():
            return "its zero point is not 0; TensorRT is symmetric"
        if values.ndim > 1 or values.size != zeros.size:
            return "its scales are neither one nor one a channel"
        if not (values > 0).all():
            return "its scales are not all above 0"
        if values.size > 1 and not self._constant(node):
            return "it has a scale a channel for what is no weight"
        return None

    def _number(self, name: str) -> onnx.TensorProto | None:
        tensor = self.held.get(name)
        outside = tensor is not None and tensor.data_location == TensorProto.EXTERNAL
        return None if outside else tensor

    def _against_place(self, node: onnx.NodeProto) -> str | None:
        """int8 goes from QuantizeLinear to DequantizeLinear alone, and constants are weights."""
        readers = self.readers.get(node.output[0], [])
        if node.op_type == "QuantizeLinear":
            lonely = [each.op_type for each, _ in readers if each.op_type != "DequantizeLinear"]
            out = node.output[0] in self.outputs
            return "its int8 does not go to DequantizeLinear alone" if lonely or out else None
        maker = self.made.get(node.input[0])
        if self._constant(node):
            weights = all(_WEIGHTS.get(each.op_type) == place for each, place in readers)
            return None if weights else "it holds what is no weight; a bias must stay in float"
        rounded = maker is not None and maker.op_type == "QuantizeLinear"
        return None if rounded else "its int8 does not come from QuantizeLinear"

    def _constant(self, node: onnx.NodeProto) -> bool:
        """Whether what is rounded stands in the file, as a number or rounded already."""
        maker = self.made.get(node.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            return maker.input[0] in self.held
        return node.input[0] in self.held

    def _dequantized(self, name: str) -> bool:
        maker = self.made.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear"
