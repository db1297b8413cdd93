from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from sklearn.cluster import KMeans
from toy_onnx import answer, bench_of, linear, loaded

from sartor.lab import alike
from sartor.registry import runtime
from sartor.techniques.cluster_onnx import ClusterWeights, cluster

RNG = np.random.default_rng(0)


def squared_error(values: np.ndarray, count: int) -> float:
    centres, indices = cluster(values, count)
    return float(np.mean((centres[indices].astype(np.float64) - values) ** 2))


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize("count", [16, 256])
def test_clusters_are_as_good_as_those_of_scikit_learn(draw, count):
    rng = np.random.default_rng(3)
    values = getattr(rng, draw)(size=6000).astype(np.float32)
    theirs = KMeans(count, n_init=2, random_state=0, max_iter=60).fit(values[:, None])
    assert squared_error(values, count) <= 1.1 * theirs.inertia_ / values.size


def test_the_error_at_256_clusters_is_that_of_the_theory():
    # Panter and Dite: sqrt(3) pi / 2 x variance / count^2 for a normal density.
    values = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    assert squared_error(values, 256) == pytest.approx(np.sqrt(3) * np.pi / 2 / 256**2, rel=0.1)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200), st.sampled_from([16, 256])
)
@settings(max_examples=60, deadline=None)
def test_every_value_goes_to_its_nearest_centre(numbers, count):
    values = np.array(numbers, np.float32)
    centres, indices = cluster(values, count)
    assert len(centres) <= count
    assert (np.diff(centres) > 0).all()
    wide = np.abs(centres[:, None].astype(np.float64) - values)
    assert np.abs(centres[indices].astype(np.float64) - values) == pytest.approx(wide.min(axis=0))
    if len(np.unique(values)) <= count:
        assert np.array_equal(centres[indices], values)


@pytest.mark.parametrize(
    ("clusters", "shape", "share", "close"),
    [(256, (96, 64), 0.33, 0.9999), (16, (53, 77), 0.2, 0.99)],
)
def test_bytes_are_saved_at_rest_and_the_loaded_graph_is_the_same(
    tmp_path, clusters, shape, share, close
):
    bench = bench_of(linear(RNG.standard_normal(shape, np.float32)), tmp_path)
    model = bench.toy.model
    made = ClusterWeights(clusters).apply(model, bench)
    assert runtime("onnx").size(made) < share * runtime("onnx").size(model)
    assert loaded(made, tmp_path) == loaded(model, tmp_path) == {"Gemm": 1}
    batch = bench.toy.batch(9, 9)
    assert alike(answer(model, batch), answer(made, batch)) > close


def test_what_is_loaded_is_what_was_clustered(tmp_path):
    weight = RNG.standard_normal((51, 51), np.float32)
    bench = bench_of(linear(weight), tmp_path)
    for clusters in (16, 256):
        made = ClusterWeights(clusters).apply(bench.toy.model, bench)
        centres, indices = cluster(weight.ravel(), clusters)
        expected = centres[indices].reshape(weight.shape)
        got = answer(made, {"x": np.eye(51, dtype=np.float32)})["y"]
        assert np.array_equal(got, expected)


def test_old_operator_sets_and_small_models_are_refused(tmp_path):
    proto = linear(RNG.standard_normal((64, 64), np.float32))
    small = bench_of(linear(RNG.standard_normal((8, 8), np.float32)), tmp_path)
    assert "2048 numbers or more" in ClusterWeights().refuse(small.toy.model, small)
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", 9))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(64, np.float32), "c"))
    proto.graph.node[0].input.append("c")
    old = bench_of(proto, tmp_path)
    assert ClusterWeights().refuse(old.toy.model, old).startswith("opset 9 lacks")
