from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from toy_onnx import answer, bench_of, build, linear, operators

from sartor.contracts import Failed
from sartor.lab import alike
from sartor.registry import runtime
from sartor.techniques._factors_onnx import factor
from sartor.techniques._products_onnx import Layer
from sartor.techniques.factorize_onnx import LowRank
from sartor.techniques.prune_onnx import PruneMagnitude

RNG = np.random.default_rng(0)


def of_rank(rank: int, into: int, out: int) -> np.ndarray:
    rng = np.random.default_rng(rank)
    left, right = rng.standard_normal((into, rank)), rng.standard_normal((rank, out))
    return (left @ right / np.sqrt(rank * into)).astype(np.float32)


def macs(model, batch) -> int:
    return sum(part.macs or 0 for part in runtime("onnx").parts(model, batch))


@pytest.mark.parametrize(("into", "out"), [(64, 48), (48, 64), (64, 64)])
@pytest.mark.parametrize("turned", [0, 1])
def test_a_layer_of_low_rank_is_reproduced_by_two_thin_ones(tmp_path, into, out, turned):
    weight, bias = of_rank(4, into, out), RNG.standard_normal(out, np.float32)
    given = weight.T.copy() if turned else weight
    bench = bench_of(linear(given, bias, transB=turned, alpha=0.5, beta=2.0), tmp_path)
    made = LowRank(share=0.3).apply(bench.toy.model, bench)
    batch = bench.toy.batch(7, 9)
    one, two = answer(bench.toy.model, batch)["y"], answer(made, batch)["y"]
    assert two == pytest.approx(one, abs=1e-4)
    assert operators(made) == {"MatMul": 1, "Gemm": 1}
    ratio = macs(made, bench.toy.batch(1, 9)) / macs(bench.toy.model, bench.toy.batch(1, 9))
    assert ratio <= 0.3
    assert runtime("onnx").size(made) < 0.5 * runtime("onnx").size(bench.toy.model)


def test_the_error_is_least_where_the_data_are(tmp_path):
    # Inputs live in 8 of 64 directions: any full-rank weight is of rank 8 to them.
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 64)))[0][:8]

    def batch(rows, seed):
        rng = np.random.default_rng(seed)
        return {"x": (rng.standard_normal((rows, 8)) @ basis).astype(np.float32)}

    weight = np.random.default_rng(2).standard_normal((64, 64), np.float32)
    bench = bench_of(linear(weight), tmp_path, batch)
    made = LowRank(share=0.3).apply(bench.toy.model, bench)
    inside = batch(9, 7)
    assert alike(answer(bench.toy.model, inside), answer(made, inside)) > 0.99999
    outside = {"x": np.random.default_rng(3).standard_normal((9, 64), np.float32)}
    assert alike(answer(bench.toy.model, outside), answer(made, outside)) < 0.8


def test_moments_that_rounding_left_below_zero_are_no_failure():
    # One direction far above all others: means kept in float32 cannot tell those from nothing.
    rows = 100 + np.random.default_rng(1).standard_normal((4, 64))
    second = rows.T @ rows / 4 - 0.1 * np.eye(64)
    assert np.linalg.eigvalsh(second)[0] < -1e-6 * np.trace(second) / 64
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    layer, weight = Layer(node, "w", 64, 96, ()), of_rank(4, 64, 96).astype(np.float64)
    known = {layer.key: second.astype(np.float32), f"places:{layer.key}": np.ones(1)}
    made = factor(layer, weight, known, "spatial", 8)
    assert made.ranks[3] == 4
    assert made.losses[3] < 1e-6
    assert made.first[:, :4] @ made.second[:4] == pytest.approx(weight, abs=1e-3)


def test_no_projection_of_the_same_rank_does_better(tmp_path):
    # Against the plain truncated SVD of the weight, on correlated inputs.
    mix = np.diag(np.linspace(3, 0.1, 48)) @ np.random.default_rng(5).standard_normal((48, 48))

    def batch(rows, seed):
        rng = np.random.default_rng(seed)
        return {"x": (rng.standard_normal((rows, 48)) @ mix).astype(np.float32)}

    weight = np.random.default_rng(6).standard_normal((48, 40), np.float32)
    bench = bench_of(linear(weight), tmp_path, batch)
    made = LowRank(share=0.6).apply(bench.toy.model, bench)
    rank = onnx.load(made.payload).graph.initializer[0].dims[1]
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    plain = left[:, :rank] * values[:rank] @ right[:rank]
    given = batch(64, 1)  # the rows of the train part
    truth = answer(bench.toy.model, given)["y"]
    ours = np.linalg.norm(answer(made, given)["y"] - truth)
    assert ours < 0.95 * np.linalg.norm(given["x"] @ plain - truth)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_kernel_one_keeps_stride_and_bias(tmp_path, stride):
    weight = of_rank(4, 48, 32).T.reshape(32, 48, 1, 1).copy()
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], "conv", kernel_shape=[1, 1], strides=[stride, stride]
    )
    weights = {"w": weight, "b": RNG.standard_normal(32, np.float32)}
    proto = build([node], {"x": ["n", 48, 5, 7]}, {"y": ["n", 32, None, None]}, weights)
    bench = bench_of(proto, tmp_path)
    made = LowRank(share=0.4).apply(bench.toy.model, bench)
    batch = bench.toy.batch(3, 9)
    one, two = answer(bench.toy.model, batch)["y"], answer(made, batch)["y"]
    assert one.shape[-1] == (7 if stride == 1 else 4)
    assert two == pytest.approx(one, abs=1e-4)
    assert operators(made) == {"Conv": 2}


def chain(*weights: np.ndarray) -> onnx.ModelProto:
    nodes, at = [], "x"
    for number in range(len(weights)):
        out = "y" if number == len(weights) - 1 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [at, f"w{number}"], [out], f"layer{number}"))
        at = out
    named = {f"w{number}": weight for number, weight in enumerate(weights)}
    return build(nodes, {"x": ["n", len(weights[0])]}, {"y": ["n", weights[-1].shape[1]]}, named)


def test_the_layer_that_bears_it_gives_way_and_the_other_stays_whole(tmp_path):
    orthogonal = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 64)))[0]
    bench = bench_of(chain(orthogonal.astype(np.float32), of_rank(3, 64, 64)), tmp_path)
    made = LowRank(share=0.7).apply(bench.toy.model, bench)
    assert made.lineage[-1].touched == ("layer1",)
    assert made.lineage[-1].skipped == (
        ("layer0", "its error would cost more than its rank saves"),
    )


def test_a_larger_share_costs_more_and_errs_less(tmp_path):
    rng = np.random.default_rng(4)
    weights = [rng.standard_normal((64, 64), np.float32) / 8 for _ in range(3)]
    bench = bench_of(chain(*weights), tmp_path)
    batch = bench.toy.batch(16, 9)
    one, whole = answer(bench.toy.model, batch), macs(bench.toy.model, bench.toy.batch(1, 9))
    found = []
    for share in (0.2, 0.4, 0.6, 0.8):
        made = LowRank(share=share).apply(bench.toy.model, bench)
        cost = macs(made, bench.toy.batch(1, 9)) / whole
        assert cost <= share + 1e-9
        found.append((cost, alike(one, answer(made, batch))))
    assert found == sorted(found)
    assert found[0][1] < found[-1][1]


def test_layers_are_skipped_for_their_own_reasons(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "narrow": rng.standard_normal((64, 8), np.float32),
        "shared": rng.standard_normal((64, 64), np.float32),
        "stack": rng.standard_normal((4, 64, 64), np.float32),
        "good": of_rank(2, 64, 64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "shared"], ["b"], "second"),
        helper.make_node("MatMul", ["b", "good"], ["c"], "third"),
        helper.make_node("MatMul", ["c", "stack"], ["d"], "fourth"),
        helper.make_node("MatMul", ["d", "narrow"], ["y"], "fifth"),
    ]
    proto = build(nodes, {"x": ["n", 64]}, {"y": [4, "n", 8]}, weights)
    bench = bench_of(proto, tmp_path)
    made = LowRank(share=0.3).apply(bench.toy.model, bench)
    assert made.lineage[-1].touched == ("third",)
    assert dict(made.lineage[-1].skipped) == {
        "first": "its weight is shared with another layer",
        "second": "its weight is shared with another layer",
        "fourth": "its weight is no matrix",
        "fifth": "fewer than 16 inputs or outputs",
    }


def test_moments_are_remembered_for_other_shares_but_not_for_other_models(tmp_path):
    bench = bench_of(chain(of_rank(6, 64, 64), of_rank(6, 64, 64)), tmp_path)
    asked = []
    remember = bench.remember

    def spy(key, compute):
        asked.append(key)
        return remember(key, compute)

    bench.remember = spy
    pruned = PruneMagnitude(density=0.9).apply(bench.toy.model, bench)
    LowRank(share=0.5).apply(bench.toy.model, bench)
    LowRank(share=0.3).apply(bench.toy.model, bench)
    LowRank(share=0.5, examples=64).apply(bench.toy.model, bench)
    LowRank(share=0.5).apply(pruned, bench)
    assert asked[0] == asked[1]
    assert len(set(asked)) == 3


def test_without_training_rows_or_layers_it_is_refused(tmp_path):
    bench = bench_of(linear(of_rank(6, 64, 64)), tmp_path, parts=("search",))
    assert "needs training rows" in LowRank().refuse(bench.toy.model, bench)
    small = bench_of(linear(of_rank(2, 8, 8)), tmp_path)
    assert "fewer than 16 inputs" in LowRank().refuse(small.toy.model, small)


def test_activations_that_are_not_finite_fail_with_a_sentence(tmp_path):
    def batch(rows, seed):
        return {"x": np.full((rows, 64), np.inf, np.float32)}

    bench = bench_of(linear(of_rank(6, 64, 64)), tmp_path, batch)
    with pytest.raises(Failed, match="not finite"):
        LowRank().apply(bench.toy.model, bench)
