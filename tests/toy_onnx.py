"""Small ONNX models with a bench around them, for the tests of ONNX techniques."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from sartor.contracts import Arrays, Model, Target
from sartor.lab import Toy, ToyBench
from sartor.registry import runtime


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
    weights: dict[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked float32 model."""
    ports = [
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in each.items()
        ]
        for each in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "toy", *ports, stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def bench_of(
    proto: onnx.ModelProto,
    folder: Path,
    batch: Callable[[int, int], Arrays] | None = None,
    **facts: Any,
) -> ToyBench:
    """The model in a file, with a bench over normal inputs or those of `batch(rows, seed)`."""
    (folder / "input").mkdir(exist_ok=True)
    path = folder / "input" / "model.onnx"
    onnx.save(proto, path)
    model = runtime("onnx").open(path)

    def normal(rows: int, seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        return {
            port.name: rng.standard_normal((rows, *port.shape[1:]), np.float32)
            for port in model.signature.inputs
        }

    return ToyBench(Toy("toy", model, batch or normal), folder / "scratch", **facts)


def answer(model: Model, batch: Arrays) -> Arrays:
    with runtime("onnx").start(model, Target()) as session:
        return session(batch)


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.payload).graph.node)


def loaded(model: Model, folder: Path) -> Counter[str]:
    """The operators that are left once ONNX Runtime has loaded the model with all its levels."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    onnxruntime.InferenceSession(model.payload, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node)


def linear(
    weight: np.ndarray, bias: np.ndarray | None = None, **attributes: Any
) -> onnx.ModelProto:
    """One Gemm layer; its weight is (inputs, outputs), or turned where `transB` is set."""
    turned = attributes.get("transB", 0)
    into, out = weight.shape[::-1] if turned else weight.shape
    names = ["x", "w", *(["b"] if bias is not None else [])]
    weights = {"w": weight} | ({"b": bias} if bias is not None else {})
    node = helper.make_node("Gemm", names, ["y"], "layer", **attributes)
    return build([node], {"x": ["n", into]}, {"y": ["n", out]}, weights)


def exported(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The toy transformer with its mask written as exporters of `mask[:, None, None, :]` do: the
    form that ONNX Runtime's fusion of attention knows."""
    graph = proto.graph
    axes = {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer if t.dims == [2]}
    node = next(
        n for n in graph.node if n.op_type == "Unsqueeze" and axes.get(n.input[1]) == [1, 2]
    )
    at = list(graph.node).index(node)
    graph.initializer.extend(
        numpy_helper.from_array(np.array([axis]), f"axis_{axis}") for axis in (1, 2)
    )
    new = [
        helper.make_node("Unsqueeze", ["attention_mask", "axis_1"], ["mask_1"], "unsqueeze_1"),
        helper.make_node("Unsqueeze", ["mask_1", "axis_2"], ["mask_2"], "unsqueeze_2"),
        helper.make_node("Cast", ["mask_2"], [node.output[0]], "mask_cast", to=TensorProto.FLOAT),
    ]
    del graph.node[at]
    for offset, each in enumerate(new):
        graph.node.insert(at + offset, each)
    onnx.checker.check_model(proto)
    return proto
