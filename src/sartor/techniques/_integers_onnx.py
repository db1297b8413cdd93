"""What the ONNX quantizers share: the nodes with weights, what speaks against one, rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.version_converter import ConvertError, convert_version

from sartor.contracts import Bench, Failed, Model, Unneeded
from sartor.libraries import first_line
from sartor.techniques._graph_onnx import Graph, Parts, attribute, peek

MICROSOFT = "com.microsoft"

FEW = 512
"""Below so many weights, what is added around a quantized node costs more than it saves."""

# Close enough for a bisection to find about the smallest number that meets a limit.
EXCEPTIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

# Operator -> which of its inputs are weights. Input 0 is the activation in all of them.
WEIGHTS = {
    "MatMul": (1,),
    "Gemm": (1,),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Attention": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}

# Where one of these stands, somebody has quantized the arithmetic already. Quantized embedding
# tables (GatherBlockQuantized) are storage only and stand in nobody's way.
_QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
    "MatMulNBits",
    "MatMulBnb4",
)


def already_quantized(graph: Graph) -> str | None:
    """The reason to leave a model alone that somebody has quantized before."""
    for node in graph.nodes:
        if node.op_type in _QUANTIZED:
            return f"the model is quantized already ({node.op_type} {node.name})"
    return None


def look(model: Model, kinds: Iterable[str]) -> tuple[Graph | None, str]:
    """The graph of a model that is not quantized yet, or None and the reason against it."""
    if model.kind not in kinds:
        return None, f"it takes {', '.join(sorted(kinds))} models, not {model.kind}"
    graph = peek(model)
    reason = already_quantized(graph)
    return (None, reason) if reason else (graph, "")


def no_examples(bench: Bench, wanted: str) -> str | None:
    """The reason against a setting that needs calibration examples, where there are none."""
    if bench.batches("train", 1, 1) is None:
        return f"{wanted} needs calibration examples: give the data a train split"
    return None


def weighted(graph: Graph) -> list[onnx.NodeProto]:
    """The nodes of the main graph whose operator multiplies by weights."""
    return [
        node
        for node in graph.nodes
        if node.op_type in WEIGHTS
        and node.domain in ("", "ai.onnx", MICROSOFT)
        and (node.op_type != "Attention" or node.domain == MICROSOFT)
    ]


def consider(graph: Graph, against: Callable[[Graph, onnx.NodeProto], str | None]) -> Parts:
    """Every node with weights, touched, or skipped for the reason that `against` gives."""
    parts = Parts()
    for node in weighted(graph):
        reason = against(graph, node)
        if reason:
            parts.skip(node.name, reason)
        else:
            parts.touch(node.name)
    return parts


def too_few(parts: Parts, exceptions: int) -> str:
    """The reason where nothing would be left to quantize."""
    if not parts.touched:
        return f"nothing to quantize: {parts.most_frequent_reason()}"
    return f"exceptions={exceptions} leaves none of the {len(parts.touched)} nodes to quantize"


def spare(parts: Parts, ranked: Sequence[str], most: int) -> Parts:
    """The parts with the first `most` of the ranked nodes skipped."""
    if len(ranked) <= most:
        raise Failed(too_few(parts, most))
    places = {name: place for place, name in enumerate(ranked[:most], 1)}
    fewer = Parts()
    for name in parts.touched:
        if name in places:
            fewer.skip(name, f"an exception: number {places[name]} in harm to the answer")
        else:
            fewer.touch(name)
    for name, reason in parts.skipped:
        fewer.skip(name, reason)
    return fewer


def obstacle(graph: Graph, node: onnx.NodeProto) -> str | None:
    """Why the weights of this node cannot be quantized; None = they can."""
    for index in WEIGHTS[node.op_type]:
        tensor = graph.constant_tensor(node.input[index]) if len(node.input) > index else None
        if tensor is None:
            return "both inputs are computed" if node.op_type == "MatMul" else "computed weights"
        if tensor.data_type != TensorProto.FLOAT:
            held = TensorProto.DataType.Name(tensor.data_type).lower()
            return f"its weights are {held}, not float32"
        if node.op_type in ("MatMul", "Gemm", "Attention") and len(tensor.dims) != 2:
            return f"its weights have {len(tensor.dims)} axes, not 2"
        if 0 in tensor.dims:
            return "its weights are empty"
    return None


def irregular(node: onnx.NodeProto) -> str | None:
    """Why ONNX Runtime's dynamic or block-wise operators have no place for an attribute."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    for each in node.attribute:
        value = helper.get_attribute_value(each)
        if node.op_type == "Gemm" and value != plain.get(each.name, value):
            return f"a Gemm with {each.name}={value} is no plain product"
        if each.name == "qkv_hidden_sizes" or (each.name == "layout" and value):
            return f"ONNX Runtime's int8 {node.op_type} knows no {each.name}"
    return None


def count_weights(graph: Graph, node: onnx.NodeProto) -> int:
    tensors = [graph.constant_tensor(node.input[index]) for index in WEIGHTS[node.op_type]]
    return sum(int(np.prod(tensor.dims)) for tensor in tensors if tensor is not None)


def channel_axes(node: onnx.NodeProto) -> tuple[int, ...]:
    """The axes of the weights that keep a scale of their own when quantized per channel."""
    if node.op_type == "Conv":
        return (0,)
    if node.op_type == "Gemm":
        return (0,) if attribute(node, "transB", 0) else (1,)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return (0, 1)
    return (1,)


def rounded(weight: np.ndarray, axes: tuple[int, ...], levels: int = 127) -> np.ndarray:
    """The weights as symmetric int8 holds them, as floats; a scale for each index of `axes`."""
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    scale = np.abs(weight).max(axis=others, keepdims=True) / levels
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    kept: np.ndarray = np.clip(np.round(weight / scale), -levels, levels) * scale
    return kept


def pack_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers below 2^bits along the last axis, several in a byte, the first in its low bits."""
    each = 8 // bits
    wide = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, -numbers.shape[-1] % each)])
    fields = wide.reshape(*wide.shape[:-1], -1, each)
    shifts = (np.arange(each) * bits).astype(np.uint8)
    made: np.ndarray = np.bitwise_or.reduce(fields << shifts, axis=-1)
    return made


def unpack_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """What `pack_bits` packed, with what filled the last byte up."""
    shifts = (np.arange(8 // bits) * bits).astype(np.uint8)
    fields = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(*packed.shape[:-1], -1)


def without_lopsided(graph: Graph, parts: Parts) -> Parts:
    """The parts without nodes of which a few huge weights would be all that is left: most of the
    others would round to zero beside them, even with a scale for each channel."""
    nodes = {node.name: node for node in graph.nodes}
    kept = Parts()
    for name in parts.touched:
        node, lost = nodes[name], 0.0
        for index in WEIGHTS[node.op_type]:
            weight = graph.constant(node.input[index])
            if weight is not None and weight.any():
                gone = rounded(weight, channel_axes(node))[weight != 0] == 0
                lost = max(lost, float(gone.mean()))
        if lost > 0.5:
            kept.skip(name, f"a few huge weights: {lost:.0%} of the others would round to zero")
        else:
            kept.touch(name)
    for name, reason in parts.skipped:
        kept.skip(name, reason)
    if not kept.touched and parts.touched:
        raise Unneeded(f"nothing to quantize: {kept.most_frequent_reason()}")
    return kept


def upgraded(graph: Graph, version: int) -> Graph:
    """The graph at an opset of at least `version`. Raises Failed where ONNX cannot convert it."""
    if graph.opset >= version:
        return graph
    try:
        return Graph(convert_version(graph.proto, version))
    except (ConvertError, RuntimeError, ValueError) as error:
        said = first_line(error, 200)
        raise Failed(f"opset {graph.opset} cannot be upgraded to {version}: {said}") from error


def lift_constants(graph: Graph) -> None:
    """Weights in Constant nodes become initializers, where ONNX Runtime's quantizers look."""
    for node in weighted(graph):
        for index in WEIGHTS[node.op_type]:
            name = node.input[index] if len(node.input) > index else ""
            if name and name not in graph.tensors:
                value = graph.constant(name)
                if value is not None:
                    graph.set_constant(name, value)


def split_gemms(graph: Graph, names: Iterable[str]) -> None:
    """The Gemms of these names as MatMul (which keeps the name) and Add.

    ONNX Runtime's own replacement transposes a weight in place, which is wrong where two nodes
    share it; here each gets its own."""
    chosen = set(names)
    for node in [each for each in graph.nodes if each.op_type == "Gemm" and each.name in chosen]:
        weight = graph.constant(node.input[1])
        if weight is None:
            continue
        name = node.input[1]
        if attribute(node, "transB", 0):
            name = graph.fresh(f"{name}_transposed")
            graph.set_constant(name, weight.T)
        biased = len(node.input) > 2 and bool(node.input[2])
        made = graph.fresh(f"{node.output[0]}_product") if biased else node.output[0]
        new = [helper.make_node("MatMul", [node.input[0], name], [made], name=node.name)]
        if biased:
            add = graph.fresh(f"{node.name}_bias")
            new.append(helper.make_node("Add", [made, node.input[2]], [node.output[0]], name=add))
        graph.replace(node, new)
    graph.drop_unused()


def tidy(proto: onnx.ModelProto) -> Graph:
    """A graph in lawful order that says nothing of its making: only the operator sets in use, no
    quantizer's name or marks."""
    graph = Graph(proto)
    _sort(graph)
    used = _domains(proto.graph.node)
    versions = {each.domain: each.version for each in proto.opset_import if each.domain in used}
    versions.update({name: 1 for name in used if name not in versions})
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(*each) for each in sorted(versions.items()))
    kept = [each for each in proto.metadata_props if not each.key.startswith("onnx.")]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.producer_name, proto.producer_version = "sartor", ""
    graph.drop_unused()
    return graph


def _sort(graph: Graph) -> None:
    """Every node behind those whose tensors it reads, else in the order they stand in: ONNX
    Runtime's quantizers append what they add."""
    needs: dict[str, list[onnx.NodeProto]] = {node.name: [] for node in graph.nodes}
    for tensor, maker in graph.producers.items():
        for user in graph.users(tensor):
            needs[user.name].append(maker)
    placed: dict[str, onnx.NodeProto] = {}
    for node in graph.nodes:
        waiting = [node]
        while waiting:
            missing = [each for each in needs[waiting[-1].name] if each.name not in placed]
            if missing:
                waiting += missing
            else:
                ready = waiting.pop()
                placed.setdefault(ready.name, ready)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in placed.values()]
    del graph.proto.graph.node[:]
    graph.proto.graph.node.extend(ordered)
    graph.refresh()


def _domains(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    found = {"" if node.domain == "ai.onnx" else node.domain for node in nodes}
    for node in nodes:
        for each in node.attribute:
            for body in (*([each.g] if each.HasField("g") else ()), *each.graphs):
                found |= _domains(body.node)
    return found
