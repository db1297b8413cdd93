"""Operators and constants of ONNX graphs in torch: what they answer beside ONNX Runtime, what is a
weight and what is not, and what is refused with a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from toy_onnx import answer, bench_of, build

from sartor.contracts import Failed, Training
from sartor.techniques._graph_onnx import Graph, read, write
from sartor.techniques.quantize_onnx import StaticInt8
from sartor.techniques.structured_onnx import StructuredPrune

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from sartor.techniques import _training_onnx as trainer  # noqa: E402
from sartor.techniques._autograd_onnx import GraphModule  # noqa: E402
from sartor.techniques._operators_onnx import OPERATORS  # noqa: E402

N = helper.make_node
RNG = np.random.default_rng(0)
X2, X3, X4 = (RNG.standard_normal(shape, np.float32) for shape in ((3, 8), (2, 5, 6), (2, 4, 7, 7)))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "threads", lambda: 1)


def weight(*shape: int) -> np.ndarray:
    fan = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
    return (RNG.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto],
    feeds: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    opset: int = 13,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in feeds.items()
    ]
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(
        nodes, "g", ports, [onnx.ValueInfoProto(name=name) for name in outputs], stored
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def both(
    nodes: list[onnx.NodeProto],
    feeds: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 13,
    outputs: tuple[str, ...] = ("y",),
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each output, what torch answers and what ONNX Runtime does."""
    proto = model(nodes, feeds, constants or {}, opset, outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    net = GraphModule(Graph(proto)).eval()
    found = net({name: torch.from_numpy(value) for name, value in feeds.items()})
    right = session.run(list(outputs), feeds)
    return [(found[n].detach().numpy(), r) for n, r in zip(outputs, right, strict=True)]


def same(*args: Any, **facts: Any) -> None:
    for found, right in both(*args, **facts):
        assert found.dtype == right.dtype
        assert found.shape == right.shape
        assert found == pytest.approx(right, abs=1e-5)


# -- integers that stand for floats --------------------------------------------------------------

STORED = {"q": RNG.integers(0, 255, 8).astype(np.uint8), "s": np.float32(0.01), "z": np.uint8(3)}


@pytest.mark.parametrize("operator", ["Add", "Div", "Max", "Mul", "Pow", "Where", "Concat"])
def test_rounded_constants_are_floats_again_whatever_reads_them(operator: str) -> None:
    names = {"Where": ["m", "x", "c"]}.get(operator, ["x", "c"])
    facts = {"axis": 0} if operator == "Concat" else {}
    stored = {**STORED, "q": STORED["q"].reshape(1, 8), "m": np.array([True, False] * 4)}
    nodes = [N("DequantizeLinear", ["q", "s", "z"], ["c"]), N(operator, names, ["y"], **facts)]
    same(nodes, {"x": np.abs(X2)}, stored)


def test_a_rounded_number_on_its_own_and_scales_along_an_axis() -> None:
    one = {**STORED, "q": np.uint8(127)}
    same(
        [N("DequantizeLinear", ["q", "s", "z"], ["c"]), N("Mul", ["x", "c"], ["y"])], {"x": X2}, one
    )
    rows = {
        "q": RNG.integers(-100, 100, (3, 8)).astype(np.int8), "s": np.float32([0.01, 0.02, 0.03]),
        "z": np.int8([3, 0, 1]),
    }  # fmt: skip
    for operator, facts in (("Gemm", {"transB": 1}), ("Max", {})):  # a weight, and none
        nodes = [N("DequantizeLinear", ["q", "s", "z"], ["c"], axis=-2)]
        same([*nodes, N(operator, ["x", "c"], ["y"], **facts)], {"x": X2}, rows)


@pytest.mark.parametrize("head", ["Gemm", "Conv"])
def test_static_int8_of_a_net_that_answers_one_number(head: str, tmp_path: Path) -> None:
    nodes = [
        N("Conv", ["x", "w1", "b1"], ["c"], kernel_shape=[3, 3], pads=[1] * 4, name="c1"),
        N("Relu", ["c"], ["r"], name="r1"),
    ]
    weights = {"w1": weight(96, 3, 3, 3), "b1": weight(96, 1)[:, 0], "b2": np.float32([0.5])}
    if head == "Gemm":
        nodes += [
            N("GlobalAveragePool", ["r"], ["g"], name="g1"),
            N("Flatten", ["g"], ["f"], name="f1"),
            N("Gemm", ["f", "w2", "b2"], ["y"], transB=1, name="g2"),
        ]
        weights["w2"], shape = weight(1, 96), ("n", 1)
    else:
        nodes.append(N("Conv", ["r", "w2", "b2"], ["y"], name="c2"))
        weights["w2"], shape = weight(1, 96, 1, 1), ("n", 1, 8, 8)
    made = bench_of(build(nodes, {"x": ("n", 3, 8, 8)}, {"y": shape}, weights), tmp_path)
    rounded = StaticInt8(examples=16).apply(made.toy.model, made)
    batch = made.toy.batch(8, 5)
    right = answer(rounded, batch)["y"]
    net = GraphModule(read(rounded)).eval()
    found = net({"x": torch.from_numpy(batch["x"])})["y"].detach().numpy()
    assert np.abs(found - right).max() < 0.05 * np.ptp(right)


# -- what is a weight ----------------------------------------------------------------------------


def attention(mask: np.ndarray) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    weights = {k: (rng.standard_normal((16, 16)) / 4).astype(np.float32) for k in "qkv"}
    weights |= {"o": rng.standard_normal((16, 4)).astype(np.float32), "mask": mask}
    nodes = [
        *(N("MatMul", ["x", name], [name.upper()]) for name in "qkv"),
        N("Transpose", ["K"], ["T"], perm=[0, 2, 1]), N("MatMul", ["Q", "T"], ["S"]),
        N("Add", ["S", "mask"], ["M"]), N("Softmax", ["M"], ["P"], axis=-1),
        N("MatMul", ["P", "V"], ["C"]), N("ReduceMean", ["C"], ["G"], axes=[1], keepdims=0),
        N("MatMul", ["G", "o"], ["y"]),
    ]  # fmt: skip
    return build(nodes, {"x": ("n", 8, 16)}, {"y": ("n", 4)}, weights)


@pytest.mark.parametrize("closed", [-np.inf, -1e9, -100.0])
def test_a_causal_mask_is_not_trained(closed: float, tmp_path: Path) -> None:
    mask = np.where(np.tril(np.ones((8, 8))) > 0, 0, closed).astype(np.float32)
    made = bench_of(attention(mask), tmp_path, training=Training(120, 0.01, 10**12))
    graph = read(made.toy.model)
    done = trainer.train(graph, trainer.Plan(6), made)
    assert np.isfinite(done.after)
    assert np.array_equal(graph.constant("mask"), mask)
    assert "q" in done.names
    assert "mask" not in done.names


def test_biases_of_zeros_and_gains_of_ones_are_trained() -> None:
    nodes = [
        N("MatMul", ["x", "w"], ["a"]), N("Mul", ["a", "gain"], ["b"]),
        N("Add", ["b", "bias"], ["c"]), N("Sub", ["c", "table"], ["y"]),
    ]  # fmt: skip
    constants = {
        "w": weight(8, 16), "gain": np.ones(16, np.float32), "bias": np.zeros(16, np.float32),
        "table": np.full(16, 2e4, np.float32),
    }  # fmt: skip
    net = GraphModule(Graph(model(nodes, {"x": X2}, constants)))
    assert net.names == ["w", "gain", "bias"]


def test_means_behind_an_identity_are_written_where_they_stand(tmp_path: Path) -> None:
    nodes = [
        N("Identity", ["m"], ["m2"]), N("MatMul", ["x", "w"], ["a"]),
        N("BatchNormalization", ["a", "s", "b", "m2", "v"], ["c"]), N("Relu", ["c"], ["r"]),
        N("MatMul", ["r", "o"], ["y"]),
    ]  # fmt: skip
    weights = {
        "w": weight(16, 32), "s": np.ones(32, np.float32), "b": np.full(32, 0.1, np.float32),
        "m": np.full(32, 0.1, np.float32), "v": np.ones(32, np.float32), "o": weight(32, 4),
    }  # fmt: skip
    made = bench_of(
        build(nodes, {"x": ("n", 16)}, {"y": ("n", 4)}, weights), tmp_path,
        training=Training(120, 0.01, 10**12),
    )  # fmt: skip
    graph = read(made.toy.model)
    graph.set_constant("w", graph.constant("w") + weight(16, 32) / 2)
    trainer.train(graph, trainer.Plan(6, teacher=1.0), made)
    onnxruntime.InferenceSession(graph.proto.SerializeToString())
    assert np.any(graph.constant("m") != weights["m"])


# -- what operators answer -----------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("how", ["asymmetric", "half_pixel"])
def test_resizing_to_the_nearest(how: str, rounds: str) -> None:
    facts = {"coordinate_transformation_mode": how, "nearest_mode": rounds}
    for factor in (0.5, 1.5, 2, 3, 4):
        scales = {"s": np.float32([1, 1, factor, factor])}
        same([N("Resize", ["x", "", "s"], ["y"], mode="nearest", **facts)], {"x": X4}, scales)


@pytest.mark.parametrize("how", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
def test_resizing_linearly(how: str) -> None:
    facts = {"mode": "linear", "coordinate_transformation_mode": how}
    for factor in (0.5, 1.3, 1.5, 2):
        scales = {"s": np.float32([1, 1, factor, factor])}
        same([N("Resize", ["x", "", "s"], ["y"], **facts)], {"x": X4}, scales)
    for size in (1, 3, 10):
        sizes = {"s": np.array([2, 4, size, size])}
        same([N("Resize", ["x", "", "", "s"], ["y"], **facts)], {"x": X4}, sizes)
    sizes = {"s": np.array([10, 9])}
    same([N("Resize", ["x", "", "", "s"], ["y"], axes=[3, 2], **facts)], {"x": X4}, sizes, 18)


def test_resizing_nearest_unless_told_otherwise() -> None:
    same([N("Resize", ["x", "", "s"], ["y"])], {"x": X4}, {"s": np.float32([1, 1, 3, 2])})
    facts = {"coordinate_transformation_mode": "asymmetric"}
    same([N("Resize", ["x", "", "s"], ["y"], **facts)], {"x": X4}, {"s": np.float32([1, 1, 4, 4])})


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_transposed_convolutions(auto: str) -> None:
    constants = {"w": weight(4, 3, 3, 3)}
    facts = {"pads": [1, 0, 0, 1], "output_padding": [1, 0]} if auto == "NOTSET" else {}
    for steps in ([2, 2], [1, 3]):
        node = N("ConvTranspose", ["x", "w"], ["y"], strides=steps, auto_pad=auto, **facts)
        if not (facts and steps[0] == 1):
            same([node], {"x": X4}, constants)


@pytest.mark.parametrize("window", [(2, 2, 1, 1), (3, 2, 1, 1), (2, 3, 0, 1), (3, 2, 0, 0)])
def test_pooling_with_a_last_window_that_is_not_whole(window: tuple[int, ...]) -> None:
    size, step, before, after = window
    facts = {"kernel_shape": [size] * 2, "strides": [step] * 2, "ceil_mode": 1}
    facts["pads"] = [before, before, after, after]
    same([N("MaxPool", ["x"], ["y"], **facts)], {"x": X4})
    for every in (0, 1):
        facts["count_include_pad"] = every
        same([N("AveragePool", ["x"], ["y"], **facts)], {"x": X4}, opset=19)
        same([N("AveragePool", ["x"], ["y"], **{**facts, "ceil_mode": 0})], {"x": X4}, opset=19)


def test_operators_with_attributes_that_are_seldom_written() -> None:
    rms = {"s": np.full(8, 1.5, np.float32)}
    same([N("SimplifiedLayerNormalization", ["x", "s"], ["y"], axis=-1)], {"x": X2 + 1}, rms)
    gain = {"s": weight(6)}
    node = N("LayerNormalization", ["x", "s"], ["y", "m", "d"])
    same([node], {"x": X3}, gain, 17, ("y", "m", "d"))
    same([N("Selu", ["x"], ["y"], alpha=2.0, gamma=3.0)], {"x": X2})
    same([N("Selu", ["x"], ["y"])], {"x": X2})
    ties = {"x": np.float32([[1, 2, 2], [3, 3, 0]])}
    for facts in ({}, {"keepdims": 0}, {"select_last_index": 1}):
        same([N("ArgMax", ["x"], ["y"], axis=1, **facts)], ties)
    whole = {"lo": np.array(0), "hi": np.array(2**62)}
    same([N("Clip", ["x", "lo", "hi"], ["y"])], {"x": np.array([-3, 2**40 + 1])}, whole)
    same([N("Clip", ["x"], ["y"])], {"x": X2})
    same([N("ConstantOfShape", ["n"], ["c"]), N("Add", ["x", "c"], ["y"])],
         {"x": X2, "n": np.zeros(0, np.int64)})  # fmt: skip


@pytest.mark.parametrize("how", ["edge", "reflect"])
def test_padding_on_every_axis(how: str) -> None:
    for x, pads in ((X4, [0, 1, 0, 2, 0, 1, 3, 0]), (X2, [0, 1, 0, 2]), (X3, [1, 0, 0, 0, 2, 0])):
        same([N("Pad", ["x", "p"], ["y"], mode=how)], {"x": x}, {"p": np.array(pads)})


REFUSED = [
    ("Resize", {"mode": "linear", "antialias": 1}, "antialias=1"),
    ("Resize", {"mode": "cubic"}, "mode=cubic"),
    ("Resize", {"keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy=not_larger"),
    ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, r"dilations=\[2, 2\]"),
    ("LSTM", {"hidden_size": 4, "input_forget": 1}, "input_forget=1"),
]


@pytest.mark.parametrize(("operator", "facts", "said"), REFUSED)
def test_attributes_that_cannot_be_followed_are_named(
    operator: str, facts: dict[str, Any], said: str, tmp_path: Path
) -> None:
    inputs = {"Resize": ["h", "", "s"], "LSTM": ["h", "w", "w"]}.get(operator, ["h"])
    nodes = [N("Relu", ["x"], ["h"]), N(operator, inputs, ["y"], name="odd", **facts)]
    constants = {"w": weight(2, 16, 6), "s": np.float32([1, 1, 2, 2])}
    proto = model(nodes, {"x": X4}, constants, 19)
    with pytest.raises(Failed, match=rf"{operator} \(odd\) with {said} is an operator"):
        GraphModule(Graph(proto))


# -- looked at before it is trained --------------------------------------------------------------


def toy(folder: Path, **facts: Any) -> Any:
    nodes = [
        N("Gemm", ["x", "w", "b"], ["a"], name="first"), N("Relu", ["a"], ["r"]),
        N("Gemm", ["r", "o", "c"], ["y"], name="second"),
    ]  # fmt: skip
    weights = {"w": weight(16, 32), "b": weight(32), "o": weight(32, 4), "c": weight(4)}
    proto = build(nodes, {"x": ("n", 16)}, {"y": ("n", 4)}, weights)
    return bench_of(proto, folder, training=Training(120, 0.01, 10**12), **facts)


def test_what_answers_otherwise_in_torch_is_neither_trained_nor_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = toy(tmp_path)
    rounded = read(StaticInt8(examples=16).apply(made.toy.model, made))
    for graph in (read(made.toy.model), rounded):
        trainer.train(graph, trainer.Plan(2), made)
    right = OPERATORS["Gemm"]
    monkeypatch.setitem(OPERATORS, "Gemm", lambda c: 2 * right(c))
    for graph in (read(made.toy.model), rounded):
        with pytest.raises(Failed, match=r"in torch it answers otherwise: y differs by .*4 rows"):
            trainer.train(graph, trainer.Plan(2), made)
    with pytest.raises(Failed, match="in torch it answers otherwise"):
        StructuredPrune(share=0.5, importance="taylor").apply(made.toy.model, made)
    monkeypatch.setitem(OPERATORS, "Gemm", lambda c: right(c) * torch.inf)
    with pytest.raises(Failed, match="otherwise: y differs in shape or values on 4 rows"):
        trainer.train(read(made.toy.model), trainer.Plan(2), made)


def test_answers_and_weights_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    made = toy(tmp_path)
    assert trainer.untrainable(made.toy.model, made, 1.0) is None
    made.task = dataclasses.replace(made.task, form="classes")
    assert "no gradient passes" in str(trainer.untrainable(made.toy.model, made, 1.0))
    made.task = dataclasses.replace(made.task, form="logits")
    graph = read(made.toy.model)
    for name, _ in list(graph.constants()):
        graph.set_constant(name, graph.constant(name).astype(np.float16))
    half = dataclasses.replace(made.toy.model, payload=write(graph.proto, made.scratch))
    assert "no weights in floats of 32 bits" in str(trainer.untrainable(half, made, 1.0))
    with pytest.raises(Failed, match="no weights in floats of 32 bits"):
        trainer.train(graph, trainer.Plan(2), made)


def test_a_second_output_that_is_not_computed_is_named() -> None:
    nodes = [
        N("MaxPool", ["x"], ["p", "where"], kernel_shape=[2, 2]),
        N("Cast", ["where"], ["y"], to=1, name="end"),
    ]
    with pytest.raises(Failed, match=r"where, an input of Cast \(end\), is not computed"):
        both(nodes, {"x": X4})
