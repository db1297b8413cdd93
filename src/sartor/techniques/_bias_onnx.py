"""Bias correction: what rounding the weights adds to the mean output is taken off the bias."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sartor.contracts import Bench
from sartor.techniques._calibration_onnx import mean_inputs
from sartor.techniques._graph_onnx import Graph, attribute, start, write


def correct_biases(
    graph: Graph, weights: Mapping[str, np.ndarray], bench: Bench, most: int
) -> None:
    """Corrects in place the bias of each Conv, Gemm and MatMul (with its Add) named in `weights`.

    The layers are linear, so the mean error of a layer's output is the layer with the error of its
    weights (`weights[name]` are the rounded ones), applied to its mean input over `most` training
    examples: exact, padding included (Nagel et al., "Data-free quantization", ICCV 2019, section
    4.2, with means that are measured)."""
    nodes = [node for node in graph.nodes if node.name in weights]
    axes = {node.input[0]: 1 if node.op_type == "Conv" else -1 for node in nodes}
    means = mean_inputs(graph, axes, bench, most)
    for node in nodes:
        weight = graph.constant(node.input[1])
        if weight is not None and node.input[0] in means:
            error = weights[node.name] - weight
            _add(graph, node, -_mean_error(node, error, means[node.input[0]], graph, bench))
    graph.drop_unused()


def _mean_error(
    node: onnx.NodeProto, error: np.ndarray, mean: np.ndarray, graph: Graph, bench: Bench
) -> np.ndarray:
    """The layer with `error` as its weights on its mean input, averaged over all but channels."""
    moved: np.ndarray
    if node.op_type in ("MatMul", "Gemm"):
        moved = mean @ (error.T if attribute(node, "transB", 0) else error)
        return moved
    if mean.ndim == 1:  # sizes vary from example to example: the inside of a wide image
        kernel = error.reshape(*error.shape[:2], -1).sum(axis=2)
        groups = len(mean) // kernel.shape[1]
        parts = zip(np.split(kernel, groups), np.split(mean, groups), strict=True)
        return np.concatenate([weight @ each for weight, each in parts])
    made = _run(node, error, mean[None], graph, bench)
    moved = made.mean(axis=(0, *range(2, made.ndim)))
    return moved


def _run(
    node: onnx.NodeProto, weight: np.ndarray, x: np.ndarray, graph: Graph, bench: Bench
) -> np.ndarray:
    """One node alone, without its bias, on one input."""
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    del alone.input[:], alone.output[:]
    alone.input.extend(["x", "weight"])
    alone.output.append("y")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    body = helper.make_graph(
        [alone], "alone", ports[:1], ports[1:], [numpy_helper.from_array(weight, "weight")]
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    proto = helper.make_model(body, opset_imports=opsets, ir_version=graph.proto.ir_version)
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        session = start(write(proto, Path(folder)), bench.target.threads)
        return np.asarray(session.run(["y"], {"x": x})[0])


def _add(graph: Graph, node: onnx.NodeProto, change: np.ndarray) -> None:
    """Adds to the node's bias; a Conv or Gemm without one gets one, a bare MatMul stays."""
    if node.op_type == "MatMul":
        users = graph.users(node.output[0])
        sole = len(users) == 1 and users[0].op_type == "Add" and node.output[0] not in graph.outputs
        if not sole:
            return
        place, index = users[0], 1 - list(users[0].input).index(node.output[0])
    else:
        place, index = node, 2
    bias = graph.constant(place.input[index]) if len(place.input) > index else None
    if bias is None and (node.op_type == "MatMul" or len(place.input) > index):
        return
    if bias is not None and bias.shape != change.shape:
        return
    known = np.zeros_like(change) if bias is None else bias
    stem = f"{node.name}_bias" if bias is None else place.input[index]
    name = graph.fresh(f"{stem}_corrected")
    graph.set_constant(name, (known + change).astype(np.float32))
    if len(place.input) > index:
        place.input[index] = name
    else:
        place.input.append(name)
    graph.refresh()
