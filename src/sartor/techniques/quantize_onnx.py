"""Eight-bit arithmetic for ONNX models: dynamic and static quantization by ONNX Runtime's own
quantizers, with our calibration, our exceptions and our account of what was touched."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode, QuantType, add_infer_metadata

from sartor.contracts import Bench, Failed, Model, Technique, Unneeded
from sartor.machine import saturates
from sartor.space import choice
from sartor.techniques._bias_onnx import correct_biases
from sartor.techniques._calibration_onnx import Ranges, ranges, scale_of
from sartor.techniques._graph_onnx import Graph, Parts, finish, read, start, write
from sartor.techniques._integers_onnx import (
    EXCEPTIONS,
    FEW,
    WEIGHTS,
    channel_axes,
    consider,
    count_weights,
    irregular,
    lift_constants,
    look,
    no_examples,
    obstacle,
    rounded,
    spare,
    split_gemms,
    tidy,
    too_few,
    upgraded,
    without_lopsided,
)
from sartor.techniques._sensitivity_onnx import Rounding, worst
from sartor.techniques._smooth_onnx import smooth

# The lowest opset with a scale for each channel in QuantizeLinear and its inverse.
_OPSET = 13

_PRODUCTS = ("Conv", "MatMul", "Gemm")

# Operators that pass int8 on, and which of their inputs carry it (None: all of them).
_CARRY: Mapping[str, int | None] = {
    "Add": 2,
    "AveragePool": 1,
    "Clip": 1,
    "Concat": None,
    "Flatten": 1,
    "GlobalAveragePool": 1,
    "LeakyRelu": 1,
    "MaxPool": 1,
    "Mul": 2,
    "Relu": 1,
    "Reshape": 1,
    "Sigmoid": 1,
    "Squeeze": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}


@dataclass(frozen=True)
class DynamicInt8(Technique):
    """int8 weights; activations become uint8 at run time, with a scale for each call.

    For MatMul, Gemm, LSTM and the fused Attention. Conv only where `conv` says so: ONNX Runtime's
    ConvInteger takes 7 to 15 times as long as the float kernel. `exceptions` nodes stay in float:
    those whose quantization changes the answer most, by measurement on training examples.
    `smooth` is the alpha of SmoothQuant for every MatMul and Attention (0: off)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "precision"
    repair: ClassVar[str | None] = "exceptions"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    per_channel: bool = choice(True, False)
    conv: bool = choice(False, True)
    smooth: float = choice(0.0, 0.5, 0.7, 0.8, 0.9)
    exceptions: int = choice(0, values=EXCEPTIONS)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        graph, reason = look(model, self.kinds)
        if graph is None:
            return reason
        parts = consider(graph, self._against)
        if len(parts.touched) <= self.exceptions:
            return too_few(parts, self.exceptions)
        wants = "exceptions" if self.exceptions else "smooth" if self.smooth else ""
        return no_examples(bench, wants) if wants else None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = upgraded(read(model), _OPSET)
        lift_constants(graph)
        parts = consider(graph, self._against)
        split_gemms(graph, parts.touched)
        if self.smooth:
            smooth(graph, parts.touched, self.smooth, bench)
        parts = without_lopsided(graph, parts)
        if self.exceptions:
            parts = spare(parts, self._worst(graph, parts, bench), self.exceptions)
        return finish(model, self, self._quantized(graph, parts, bench), bench, parts)

    def _against(self, graph: Graph, node: onnx.NodeProto) -> str | None:
        if node.op_type in ("ConvTranspose", "GRU", "RNN"):
            return f"ONNX Runtime has no dynamic int8 {node.op_type}"
        if node.op_type == "Conv" and not self.conv:
            return "ConvInteger is slower than the float kernel; conv=true tries it"
        reason = obstacle(graph, node) or irregular(node)
        if reason or node.op_type == "Conv":
            return reason
        few = count_weights(graph, node)
        return f"{few} weights are too few to pay for rounding its input" if few < FEW else None

    def _worst(self, graph: Graph, parts: Parts, bench: Bench) -> list[str]:
        chosen = set(parts.touched)
        nodes = [node for node in graph.nodes if node.name in chosen]
        roundings = {
            node.name: Rounding(_rounded_weights(graph, node, self.per_channel, bench), "dynamic")
            for node in nodes
        }
        return worst(graph, roundings, bench, f"dynamic {self.per_channel}")

    def _quantized(self, graph: Graph, parts: Parts, bench: Bench) -> Graph:
        add_infer_metadata(graph.proto)
        quantizer = ONNXQuantizer(
            graph.proto,
            self.per_channel,
            saturates(bench.target.features),
            QuantizationMode.IntegerOps,
            static=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=None,
            nodes_to_quantize=list(parts.touched),
            nodes_to_exclude=[],
            op_types_to_quantize=list(WEIGHTS),
            # Types behind contrib operators are unknown to ONNX's inference: all are float32.
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
        )
        quantizer.quantize_model()
        made = tidy(quantizer.model.model)
        left = {node.name for node in made.nodes if node.op_type in WEIGHTS} & set(parts.touched)
        if left:
            raise Failed(f"ONNX Runtime left {len(left)} nodes in float, {min(left)} among them")
        return made


@dataclass(frozen=True)
class StaticInt8(Technique):
    """uint8 activations and int8 weights (U8S8) with ranges fixed beforehand from training
    examples, as QuantizeLinear/DequantizeLinear pairs that ONNX Runtime fuses on loading.

    `ops`: "all", or only around "conv" or "matmul". `bias_correction` removes from each bias what
    rounding the weights adds to the mean output (Nagel et al., ICCV 2019). `smooth` and
    `exceptions` as in DynamicInt8."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    stage: ClassVar[str] = "precision"
    repair: ClassVar[str | None] = "exceptions"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    ops: str = choice("all", "conv", "matmul")
    calibration: str = choice("minmax", "percentile", "entropy")
    percentile: float = choice(99.99, 99.9, 99.999)
    examples: int = choice(128, values=(32, 128, 512))
    per_channel: bool = choice(True, False)
    bias_correction: bool = choice(False, True)
    smooth: float = choice(0.0, 0.5, 0.7, 0.8, 0.9)
    exceptions: int = choice(0, values=EXCEPTIONS)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        graph, reason = look(model, self.kinds)
        if graph is None:
            return reason
        parts = consider(graph, self._against)
        if len(parts.touched) <= self.exceptions:
            return too_few(parts, self.exceptions)
        return no_examples(bench, "static quantization")

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = _folded(upgraded(read(model), _OPSET), bench)
        parts = consider(graph, self._against)
        if not parts.touched:
            raise Unneeded(f"nothing to quantize: {parts.most_frequent_reason()}")
        if self.smooth:
            smooth(graph, parts.touched, self.smooth, bench)
        parts = without_lopsided(graph, parts)
        found = self._ranges(graph, self._chosen(graph, parts.touched), bench)
        parts = _seen(graph, parts, found)
        if self.exceptions:
            parts = spare(parts, self._worst(graph, parts, found, bench), self.exceptions)
        if self.bias_correction:
            nodes = {node.name: node for node in graph.nodes}
            weights = {
                name: _rounded_weights(graph, nodes[name], self.per_channel, bench)[1]
                for name in parts.touched
            }
            correct_biases(graph, weights, bench, self.examples)
            # The corrected outputs lie elsewhere.
            found = self._ranges(graph, self._chosen(graph, parts.touched), bench)
        chosen = self._chosen(graph, parts.touched)
        for name in chosen:
            parts.touch(name)
        return finish(model, self, self._quantized(graph, chosen, found, bench), bench, parts)

    def _against(self, graph: Graph, node: onnx.NodeProto) -> str | None:
        if node.op_type not in _PRODUCTS:
            return f"ONNX Runtime has no static int8 {node.op_type}"
        if self.ops != "all" and (node.op_type == "Conv") != (self.ops == "conv"):
            return f"ops={self.ops} leaves {node.op_type} in float"
        return obstacle(graph, node) or irregular(node)

    def _chosen(self, graph: Graph, weighty: tuple[str, ...]) -> list[str]:
        """The nodes to quantize: those with weights, and what passes int8 on behind them."""
        chosen: list[str] = []
        held: set[str] = set()
        first = set(weighty)
        for node in graph.nodes:
            reads = list(node.input[: _CARRY.get(node.op_type, 0)])
            if node.name in first or (node.op_type in _CARRY and held.issuperset(reads)):
                chosen.append(node.name)
                held.add(node.output[0])
        return chosen

    def _ranges(self, graph: Graph, chosen: list[str], bench: Bench) -> Ranges:
        picked = set(chosen)
        names: dict[str, None] = {}
        for node in graph.nodes:
            if node.name in picked:
                ports = [*node.input[: _CARRY.get(node.op_type, 1)], node.output[0]]
                names |= dict.fromkeys(name for name in ports if name not in graph.tensors)
        return ranges(graph, list(names), bench, self.examples, self.calibration, self.percentile)

    def _worst(self, graph: Graph, parts: Parts, found: Ranges, bench: Bench) -> list[str]:
        chosen = set(parts.touched)
        roundings = {
            node.name: Rounding(
                _rounded_weights(graph, node, self.per_channel, bench),
                scale_of(*found[node.input[0]]),
            )
            for node in graph.nodes
            if node.name in chosen
        }
        how = f"static {self.calibration} {self.percentile} {self.examples} {self.per_channel}"
        return worst(graph, roundings, bench, how)

    def _quantized(self, graph: Graph, chosen: list[str], found: Ranges, bench: Bench) -> Graph:
        _tell_types(graph, found)
        before = {node.name: node.output[0] for node in graph.nodes}
        limits = {name: tuple(map(np.float32, pair)) for name, pair in found.items()}
        quantizer = QDQQuantizer(
            graph.proto,
            self.per_channel,
            saturates(bench.target.features),
            weight_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            nodes_to_quantize=chosen,
            nodes_to_exclude=[],
            **self._form(bench),
        )
        for name in filter(found.__contains__, self._apart(graph, chosen)):
            quantizer.quantize_activation_tensor(name)
        quantizer.quantize_model()
        made = tidy(quantizer.model.model)
        _free_outputs(made, before, set(chosen))
        return made

    def _form(self, bench: Bench) -> dict[str, Any]:
        """What the quantizer is told of operators and of activations."""
        arm = "asimd" in bench.target.features
        return {
            "activation_qType": QuantType.QInt8 if arm else QuantType.QUInt8,
            "op_types_to_quantize": [*_PRODUCTS, *_CARRY],
            "extra_options": {},
        }

    def _apart(self, graph: Graph, chosen: list[str]) -> list[str]:
        """Tensors that are rounded besides those at the operators named by `_form`."""
        return []


@dataclass(frozen=True)
class TensorrtInt8(StaticInt8):
    """int8 for NVIDIA's TensorRT: symmetric, biases in float, and rounding only before what
    multiplies by weights and on the other input of a sum behind it, so that product, sum and
    activation become one kernel there. Where a request names it: ONNX Runtime has no kernels for
    this form, so that a CPU is no faster by it. Settings as in StaticInt8."""

    experimental: ClassVar[bool] = True

    def _chosen(self, graph: Graph, weighty: tuple[str, ...]) -> list[str]:
        first = set(weighty)
        return [n.name for n in graph.nodes if n.name in first or _shortcut(graph, n, first)]

    def _ranges(self, graph: Graph, chosen: list[str], bench: Bench) -> Ranges:
        found = super()._ranges(graph, chosen, bench)
        tops = {name: max(abs(low), abs(high)) for name, (low, high) in found.items()}
        return {name: (-top, top) for name, top in tops.items()}

    def _form(self, bench: Bench) -> dict[str, Any]:
        return {
            "activation_qType": QuantType.QInt8,
            "op_types_to_quantize": [*_PRODUCTS],
            "extra_options": {
                "ActivationSymmetric": True,
                "QuantizeBias": False,
                "QDQDisableWeightAdjustForInt32Bias": True,
                "OpTypesToExcludeOutputQuantization": [*_PRODUCTS],
            },
        }

    def _apart(self, graph: Graph, chosen: list[str]) -> list[str]:
        names = set(chosen)
        found = [_shortcut(graph, node, names) for node in graph.nodes if node.name in names]
        return [name for name in found if name]


def _shortcut(graph: Graph, node: onnx.NodeProto, weighty: set[str]) -> str | None:
    """Which input of a sum of two computed tensors to round, where a node with weights makes one of
    them: the other, or where such nodes make both, the one with the shorter way behind it."""
    if node.op_type != "Add" or any(graph.constant_tensor(name) for name in node.input):
        return None
    depth: dict[str, int] = {}
    products: set[str] = set()
    for each in graph.nodes:
        behind = 1 + max((depth.get(name, 0) for name in each.input), default=0)
        depth.update(dict.fromkeys(each.output, behind))
        if each.op_type in _PRODUCTS and each.name in weighty:
            products.add(each.output[0])
    if products.isdisjoint(node.input):
        return None
    return str(min(node.input, key=lambda name: (name in products, depth.get(name, 0))))


def _seen(graph: Graph, parts: Parts, found: Ranges) -> Parts:
    """The parts without nodes for whose input or output there is no range."""
    skipped = dict(parts.skipped)

    def against(graph: Graph, node: onnx.NodeProto) -> str | None:
        unseen = not {node.input[0], node.output[0]} <= found.keys()
        return skipped.get(node.name) or ("it was never seen to make float32" if unseen else None)

    return consider(graph, against)


def _rounded_weights(
    graph: Graph, node: onnx.NodeProto, per_channel: bool, bench: Bench
) -> dict[int, np.ndarray]:
    levels = 63 if saturates(bench.target.features) else 127
    axes = channel_axes(node) if per_channel else ()
    found = {index: graph.constant(node.input[index]) for index in WEIGHTS[node.op_type]}
    return {index: rounded(w, axes, levels) for index, w in found.items() if w is not None}


def _folded(graph: Graph, bench: Bench) -> Graph:
    """Constants folded and batch norms inside their convolutions, by ONNX Runtime's basic level:
    what stays outside would break the chain of int8."""
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        start(write(graph.proto, Path(folder)), bench.target.threads, options)
        return tidy(onnx.load(options.optimized_model_filepath))


def _tell_types(graph: Graph, found: Ranges) -> None:
    """Calibration saw these tensors as float32: the quantizer needs no inference to know it."""
    known = {each.name for each in graph.proto.graph.value_info}
    known |= {each.name for each in (*graph.proto.graph.input, *graph.proto.graph.output)}
    graph.proto.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in found
        if name not in known
    )
    add_infer_metadata(graph.proto)


def _free_outputs(graph: Graph, before: Mapping[str, str], chosen: set[str]) -> None:
    """Takes away the rounding behind a MatMul or Gemm whose result only float nodes read, or the
    caller: int8 kernels give float32 there, which is as fast and exact.

    `before`: node -> the tensor it made before. Where the quantizer let a rounding take the place
    of a Relu, the node makes the Relu's tensor, and the rounding must stay."""
    for node in [each for each in graph.nodes if each.op_type == "DequantizeLinear"]:
        rounding = graph.producer(node.input[0])
        maker = graph.producer(rounding.input[0]) if rounding is not None else None
        if rounding is None or maker is None or maker.op_type not in ("MatMul", "Gemm"):
            continue
        made = maker.output[0].removesuffix("_QuantizeLinear_Input")
        readers = graph.users(node.output[0])
        whole = len(graph.users(node.input[0])) == len(graph.users(rounding.input[0])) == 1
        if made != before.get(maker.name) or not whole:
            continue
        if chosen.isdisjoint(reader.name for reader in readers):
            maker.output[0] = node.output[0]
            graph.replace(rounding, [])
            graph.replace(node, [])
    graph.drop_unused()
