from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from toy_onnx import answer, bench_of, build, linear, loaded

from sartor.contracts import Failed
from sartor.registry import runtime
from sartor.techniques.prune_onnx import PruneMagnitude, SparseStorage

RNG = np.random.default_rng(0)


def stored(model) -> dict[str, np.ndarray]:
    proto = onnx.load(model.payload)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def two(first: np.ndarray, second: np.ndarray):
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("MatMul", ["h", "second"], ["y"]),
    ]
    weights = {"first": first, "second": second}
    return build(nodes, {"x": ["n", len(first)]}, {"y": ["n", second.shape[1]]}, weights)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_smallest_weights_go_in_the_share_asked_for(tmp_path, density, scope):
    bench = bench_of(two(normal(64, 64), normal(64, 64, scale=9.0)), tmp_path)
    made = PruneMagnitude(density=density, scope=scope).apply(bench.toy.model, bench)
    before, after = stored(bench.toy.model), stored(made)
    kept = [np.count_nonzero(after[name]) / after[name].size for name in after]
    assert np.mean(kept) == pytest.approx(density, abs=0.01)
    for name, value in after.items():
        gone = value == 0
        assert np.array_equal(value[~gone], before[name][~gone])
        assert np.abs(before[name][gone]).max() <= np.abs(value[~gone]).min()


def test_globally_the_layer_with_few_large_weights_loses_more(tmp_path):
    spiky = normal(64, 64) ** 5
    bench = bench_of(two(spiky, normal(64, 64)), tmp_path)
    every = stored(PruneMagnitude(density=0.4, scope="global").apply(bench.toy.model, bench))
    alone = stored(PruneMagnitude(density=0.4, scope="local").apply(bench.toy.model, bench))
    counts = {name: np.count_nonzero(value) for name, value in every.items()}
    assert counts["first"] < 0.3 * counts["second"]
    assert np.count_nonzero(alone["first"]) == np.count_nonzero(alone["second"])


def test_no_layer_goes_entirely(tmp_path):
    outliers = normal(64, 64, scale=1e-6)
    outliers[0, 0] = 1.0
    bench = bench_of(two(outliers, normal(64, 64)), tmp_path)
    made = stored(PruneMagnitude(density=0.3, scope="global").apply(bench.toy.model, bench))
    assert np.count_nonzero(made["first"]) >= 0.02 * 64 * 64


def test_density_one_is_the_same_file(tmp_path):
    bench = bench_of(linear(normal(64, 64)), tmp_path)
    made = PruneMagnitude(density=1.0).apply(bench.toy.model, bench)
    assert made.payload == bench.toy.model.payload
    assert made.lineage[-1].skipped == (("w", "density 1 keeps every weight"),)


def test_a_plain_file_does_not_shrink_and_a_sparse_one_does(tmp_path):
    bench = bench_of(linear(normal(64, 96)), tmp_path)
    model, size = bench.toy.model, runtime("onnx").size
    zeros = PruneMagnitude(density=0.25).apply(model, bench)
    assert size(zeros) == size(model)
    packed = SparseStorage().apply(zeros, bench)
    assert size(packed) < 0.35 * size(model)
    assert loaded(packed, tmp_path) == loaded(model, tmp_path) == {"Gemm": 1}
    batch = bench.toy.batch(5, 9)
    assert np.array_equal(answer(zeros, batch)["y"], answer(packed, batch)["y"])


@pytest.mark.parametrize("shape", [(53, 77), (64, 64), (31, 33)])
@pytest.mark.parametrize("zeros", [0.5, 0.95, 1.0])
def test_the_packed_numbers_come_back_exactly(tmp_path, shape, zeros):
    weight = np.where(RNG.random(shape) < zeros, 0, normal(*shape)).astype(np.float32)
    bench = bench_of(linear(weight), tmp_path)
    made = SparseStorage().apply(bench.toy.model, bench)
    got = answer(made, {"x": np.eye(shape[0], dtype=np.float32)})["y"]
    assert np.array_equal(got, weight)


def test_integer_weights_are_packed_too(tmp_path):
    weight = RNG.integers(-9, 10, (64, 64)).astype(np.int8)
    weight[RNG.random((64, 64)) < 0.8] = 0
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["real"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["y"]),
    ]
    bench = bench_of(build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, {"w": weight}), tmp_path)
    made = SparseStorage().apply(bench.toy.model, bench)
    size = runtime("onnx").size
    assert size(made) < 0.75 * size(bench.toy.model)
    assert loaded(made, tmp_path) == loaded(bench.toy.model, tmp_path)
    batch = bench.toy.batch(5, 9)
    assert np.array_equal(answer(made, batch)["y"], answer(bench.toy.model, batch)["y"])


def test_refusals_say_why(tmp_path):
    bench = bench_of(linear(normal(64, 64)), tmp_path)
    assert "no tensor has so many zeros" in SparseStorage().refuse(bench.toy.model, bench)
    with pytest.raises(Failed, match="saves bytes"):
        SparseStorage().apply(bench.toy.model, bench)
    small = bench_of(linear(normal(8, 8)), tmp_path)
    assert "1024 numbers" in PruneMagnitude().refuse(small.toy.model, small)
