"""Low rank of convolutions with wide kernels: Tucker-2, weighted by what the layer sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from toy_onnx import answer, bench_of, build, operators

from sartor.contracts import Target, Training
from sartor.lab import alike
from sartor.registry import runtime
from sartor.techniques._factors_onnx import Kernel
from sartor.techniques._graph_onnx import Graph
from sartor.techniques._products_onnx import Layer, split, windows
from sartor.techniques.factorize_onnx import LowRank
from sartor.techniques.quantize_onnx import StaticInt8

# Kernel, size of the input, attributes.
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((5,), (19,), {"pads": [2, 2], "strides": [2]}),
    "plain": ((3, 3), (9, 8), {}),
    "padded": ((3, 3), (9, 8), {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3], "group": 1}),
    "uneven": ((3, 2), (9, 11), {"pads": [0, 1, 2, 0], "strides": [1, 2]}),
    "dilated": ((3, 3), (11, 10), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "same, more behind": ((4, 3), (9, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same, more before": ((4, 3), (9, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    "valid": ((3, 3), (9, 8), {"auto_pad": "VALID", "strides": [2, 2]}),
    "3-D": ((3, 3, 3), (5, 6, 4), {"pads": [1] * 6, "strides": [2, 1, 1]}),
    "1x1, padded": ((1, 1), (6, 5), {"pads": [1, 1, 0, 0], "strides": [2, 1]}),
    "1x1, same": ((1, 1), (7, 5), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
}


def of_ranks(low: int, high: int, into: int, out: int, kernel: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(low + high)
    core = rng.standard_normal((high, low, *kernel))
    last, first = rng.standard_normal((out, high)), rng.standard_normal((low, into))
    found = np.einsum("oh,hl...,li->oi...", last, core, first) / np.sqrt(core.size * into)
    return found.astype(np.float32)


def conv(weight: np.ndarray, size: tuple[int, ...], bias: bool = True, **how: Any) -> Any:
    weights = {"w": weight}
    if bias:
        weights["b"] = np.random.default_rng(0).standard_normal(len(weight), np.float32)
    node = helper.make_node("Conv", ["x", *weights], ["y"], "conv", **how)
    into = weight.shape[1] * how.get("group", 1)
    out = {"y": ["n", len(weight), *[None] * len(size)]}
    return build([node], {"x": ["n", into, *size]}, out, weights)


def macs(model: Any, batch: Any) -> int:
    return sum(part.macs or 0 for part in runtime("onnx").parts(model, batch))


def weights(model: Any) -> list[tuple[int, ...]]:
    """Shapes of the convolutions' weights, in order."""
    graph = Graph(onnx.load(model.payload))
    nodes = [node for node in graph.nodes if node.op_type == "Conv"]
    return [tuple(graph.constant_tensor(node.input[1]).dims) for node in nodes]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_rows_of_a_convolution_are_what_it_sums_over(tmp_path, name):
    kernel, size, how = VARIANTS[name]
    weight = np.random.default_rng(1).standard_normal((6, 4, *kernel), np.float32)
    proto = conv(weight, size, **how)
    bench = bench_of(proto, tmp_path)
    batch = bench.toy.batch(2, 3)
    right = answer(bench.toy.model, batch)["y"]
    node = proto.graph.node[0]
    layer = Layer(node, "w", 4, 6, kernel)
    rows = layer.rows(batch["x"])
    found = rows @ layer.matrix(Graph(proto)) + numpy_helper.to_array(proto.graph.initializer[1])
    places = windows(node, batch["x"], kernel).shape[: 1 + len(kernel)]
    found = np.moveaxis(found.reshape(*places, 6), -1, 1)
    assert found == pytest.approx(right, abs=1e-4)
    assert layer.places(batch["x"])[-1] == len(rows)
    assert layer.places(batch["x"])[0] == batch["x"].size / 4


def separable(rank: int, into: int, out: int, kernel: tuple[int, ...]) -> np.ndarray:
    """The first spatial axis apart from the others."""
    rng = np.random.default_rng(rank)
    first = rng.standard_normal((rank, into, kernel[0]))
    second = rng.standard_normal((out, rank, *kernel[1:]))
    found = np.einsum("riy,or...->oiy...", first, second) / np.sqrt(rank * into)
    return found.astype(np.float32)


def reproduced(bench: Any, made: Any) -> None:
    """The same answers for half of the multiply-accumulates or less, counted in the file."""
    batch = bench.toy.batch(3, 9)
    one, two = answer(bench.toy.model, batch)["y"], answer(made, batch)["y"]
    assert two == pytest.approx(one, abs=2e-3 * float(np.abs(one).max()))
    onnx.checker.check_model(onnx.load(made.payload), full_check=True)
    assert macs(made, bench.toy.batch(1, 9)) <= 0.5 * macs(bench.toy.model, bench.toy.batch(1, 9))
    assert runtime("onnx").size(made) < runtime("onnx").size(bench.toy.model)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_kernel_of_few_channels_is_reproduced_by_thin_layers(tmp_path, name):
    kernel, size, how = VARIANTS[name]
    bias = len(name) % 2 == 0
    bench = bench_of(conv(of_ranks(8, 8, 40, 48, kernel), size, bias, **how), tmp_path)
    made = LowRank(share=0.5, kernels="tucker").apply(bench.toy.model, bench)
    reproduced(bench, made)
    flat = (1,) * len(kernel)
    core = [] if kernel == flat else [(8, 8, *kernel)]
    assert weights(made) == [(8, 40, *flat), *core, (48, 8, *flat)]


@pytest.mark.parametrize("name", [name for name in VARIANTS if name[:2] != "1x"])
def test_a_separable_kernel_is_reproduced_axis_by_axis(tmp_path, name):
    kernel, size, how = VARIANTS[name]
    weight = separable(8, 40, 48, kernel) if len(kernel) > 1 else of_ranks(8, 8, 40, 48, kernel)
    bench = bench_of(conv(weight, size, len(name) % 2 == 1, **how), tmp_path)
    made = LowRank(share=0.5, kernels="spatial").apply(bench.toy.model, bench)
    reproduced(bench, made)
    if len(kernel) == 1:  # there is nothing to go over apart
        assert weights(made) == [(8, 40, 1), (8, 8, *kernel), (48, 8, 1)]
    else:
        flat = (1,) * (len(kernel) - 1)
        assert weights(made) == [(8, 40, kernel[0], *flat), (48, 8, 1, *kernel[1:])]


def lines(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Channels of very different energy, neighbours alike."""
    rng = np.random.default_rng(seed)
    mix = np.diag(np.linspace(3, 0.1, 32)) @ np.random.default_rng(5).standard_normal((32, 32))
    noise = rng.standard_normal((rows, 32, 8, 10))
    smooth = noise[..., :-2] + noise[..., 1:-1] + noise[..., 2:]
    return {"x": np.einsum("ncyx,cd->ndyx", smooth, mix).astype(np.float32)}


def fitted(
    layer: Layer, graph: Graph, given: np.ndarray, fronts: range = range(1)
) -> tuple[Kernel, np.ndarray]:
    rows = np.concatenate([layer.rows(each[None]) for each in given]).astype(np.float64)
    second = rows.T @ rows / len(rows)
    places = layer.places(given[:1])
    return Kernel(layer, layer.matrix(graph), second, places, fronts, 8), second


@pytest.mark.parametrize(
    ("fronts", "some"),
    [
        (range(1), [(0, 32, 24), (0, 8, 48), (0, 16, 16), (0, 24, 8)]),
        (range(1, 2), [(1, 24, 48), (1, 32, 16), (1, 16, 8)]),
    ],
)
def test_costs_are_those_counted_and_losses_those_measured(tmp_path, fronts, some):
    weight = np.random.default_rng(6).standard_normal((48, 32, 3, 3), np.float32)
    proto = conv(weight, (8, 8), bias=False, pads=[1, 1, 1, 1], strides=[2, 1])
    bench = bench_of(proto, tmp_path, lines)
    given = lines(64, 1)
    layer = Layer(proto.graph.node[0], "w", 32, 48, (3, 3))
    ways, _ = fitted(layer, Graph(proto), given["x"], fronts)
    truth = answer(bench.toy.model, given)["y"]
    one = lines(1, 1)
    assert ways.whole == macs(bench.toy.model, one)
    for ranks in some:
        which = ways.ranks.index(ranks)
        graph = Graph(onnx.load(bench.toy.model.payload))
        split(graph, Layer(graph.nodes[0], "w", 32, 48, (3, 3)), ways.pieces(which))
        graph.drop_unused()
        onnx.save(graph.proto, tmp_path / "thin.onnx")
        made = runtime("onnx").open(tmp_path / "thin.onnx")
        assert macs(made, one) == ways.costs[which]
        lost = np.square(answer(made, given)["y"] - truth).sum() / np.square(truth).sum()
        assert lost == pytest.approx(ways.losses[which], rel=0.01)


def test_more_ranks_cost_more_and_lose_less():
    weight = np.random.default_rng(6).standard_normal((48, 32, 3, 3), np.float32)
    proto = conv(weight, (8, 8), pads=[1, 1, 1, 1])
    layer = Layer(proto.graph.node[0], "w", 32, 48, (3, 3))
    ways, _ = fitted(layer, Graph(proto), lines(64, 1)["x"])
    known = dict(zip(ways.ranks, ways.losses, strict=True))
    assert len(known) > 10
    for (front, low, high), lost in known.items():
        assert lost >= known.get((front, low + 8, high), 0.0) - 1e-9
        assert lost >= known.get((front, low, high + 8), 0.0) - 1e-9


def test_weighted_by_what_the_layer_sees_it_errs_less_than_by_the_kernel_alone():
    weight = np.random.default_rng(6).standard_normal((48, 32, 3, 3), np.float32)
    proto = conv(weight, (8, 8), pads=[1, 1, 1, 1])
    layer, graph = Layer(proto.graph.node[0], "w", 32, 48, (3, 3)), Graph(proto)
    ways, second = fitted(layer, graph, lines(64, 1)["x"])
    places = layer.places(lines(1, 1)["x"])
    plain = Kernel(layer, layer.matrix(graph), np.eye(288), places, range(1), 8)

    def error(which: Kernel, ranks: tuple[int, int]) -> float:
        first, core, last = (each.weight for each in which.pieces(which.ranks.index((0, *ranks))))
        found = np.einsum("il,lhyx,ho->iyxo", first[:, :, 0, 0], core, last[:, :, 0, 0])
        wrong = found.reshape(288, 48) - layer.matrix(graph)
        return float(np.einsum("io,ij,jo->", wrong, second, wrong))

    for ranks in [(16, 16), (8, 24), (24, 24)]:
        assert error(ways, ranks) < 0.7 * error(plain, ranks)


def test_ranks_fill_the_vector_units(tmp_path):
    proto = conv(of_ranks(20, 20, 64, 64, (3, 3)), (7, 7), pads=[1, 1, 1, 1])
    bench = bench_of(proto, tmp_path, target=Target(features=frozenset({"avx512f"})))
    made = LowRank(share=0.5, kernels="tucker").apply(bench.toy.model, bench)
    assert weights(made) == [(32, 64, 1, 1), (32, 32, 3, 3), (64, 32, 1, 1)]


def test_grouped_depthwise_and_narrow_convolutions_are_left_alone(tmp_path):
    rng = np.random.default_rng(0)
    known = {
        "grouped": rng.standard_normal((64, 32, 3, 3), np.float32),
        "depthwise": rng.standard_normal((64, 1, 3, 3), np.float32),
        "wide": rng.standard_normal((16, 64, 24, 24), np.float32),
        "good": of_ranks(8, 8, 64, 64, (3, 3)),
        "narrow": rng.standard_normal((8, 16, 3, 3), np.float32),
    }
    how = {"grouped": {"group": 2}, "depthwise": {"group": 64}, "wide": {"pads": [12, 12, 11, 11]}}
    nodes, at = [], "x"
    for name in ("grouped", "depthwise", "good", "wide", "narrow"):
        end = "y" if name == "narrow" else f"{name}_out"
        given = {"pads": [1, 1, 1, 1]} | how.get(name, {})
        nodes.append(helper.make_node("Conv", [at, name], [end], f"node {name}", **given))
        at = end
    proto = build(nodes, {"x": ["n", 64, 6, 6]}, {"y": ["n", 8, 6, 6]}, known)
    bench = bench_of(proto, tmp_path)
    made = LowRank(share=0.5, kernels="tucker").apply(bench.toy.model, bench)
    assert made.lineage[-1].touched == ("node good",)
    assert dict(made.lineage[-1].skipped) == {
        "node grouped": "it is a grouped convolution",
        "node depthwise": "it is a grouped convolution",
        "node wide": "its outputs are sums over more than 8192 numbers",
        "node narrow": "fewer than 16 inputs or outputs",
    }
    assert operators(made) == {"Conv": 7}


def test_only_depthwise_convolutions_is_refused_with_a_sentence(tmp_path):
    weight = np.random.default_rng(0).standard_normal((64, 1, 3, 3), np.float32)
    bench = bench_of(conv(weight, (6, 6), group=64), tmp_path)
    reason = LowRank().refuse(bench.toy.model, bench)
    assert reason == "no layer can be factorized: it is a grouped convolution"


@pytest.mark.parametrize("kernels", ["spatial", "tucker"])
def test_ranks_survive_training_and_integers(tmp_path, monkeypatch, kernels):
    pytest.importorskip("torch")
    pytest.importorskip("lightning_fabric")
    from sartor.techniques import _training_onnx as trainer
    from sartor.techniques.recover_onnx import Recover

    monkeypatch.setattr(trainer, "threads", lambda: 1)
    rng = np.random.default_rng(3)
    known = {
        "w": rng.standard_normal((32, 32, 3, 3), np.float32) / 12
        + of_ranks(8, 8, 32, 32, (3, 3))
        + separable(8, 32, 32, (3, 3)),
        "b": np.zeros(32, np.float32),
        "head": rng.standard_normal((32, 4), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("ReduceMean", ["r"], ["p"], "pool", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["p", "head"], ["y"], "last"),
    ]
    proto = build(nodes, {"x": ["n", 32, 6, 6]}, {"y": ["n", 4]}, known)
    bench = bench_of(proto, tmp_path, training=Training(60, 0.01, 10**12))
    thin = LowRank(share=0.4, kernels=kernels).apply(bench.toy.model, bench)
    trained = Recover(effort=1.0, teacher=1.0).apply(thin, bench)
    before, after = (onnx.load(each.payload).graph for each in (thin, trained))
    values = [
        {t.name: numpy_helper.to_array(t) for t in each.initializer} for each in (before, after)
    ]
    factors = {name for name in values[0] if name.startswith("w_")}
    assert len(factors) == len(weights(thin)) >= 2
    assert factors <= values[0].keys() <= values[1].keys()
    assert weights(trained) == weights(thin)
    assert all(not np.array_equal(values[0][name], values[1][name]) for name in factors)
    batch = bench.toy.batch(64, 9)
    truth = answer(bench.toy.model, batch)
    assert alike(truth, answer(trained, batch)) > alike(truth, answer(thin, batch))
    integers = StaticInt8().apply(trained, bench)
    assert operators(integers)["Conv"] == len(factors)
    assert alike(truth, answer(integers, batch)) > 0.95
    assert macs(integers, bench.toy.batch(1, 9)) <= 0.4 * macs(
        bench.toy.model, bench.toy.batch(1, 9)
    )
