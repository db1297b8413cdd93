from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from toy_onnx import answer, bench_of, build, linear, loaded, operators

from sartor.contracts import Failed
from sartor.registry import runtime
from sartor.techniques.float16_onnx import Float16Storage

RNG = np.random.default_rng(0)


def two(first: np.ndarray, second: np.ndarray):
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("MatMul", ["h", "second"], ["y"]),
    ]
    weights = {"first": first, "second": second}
    return build(nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, weights)


def weight(scale: float = 0.1) -> np.ndarray:
    return (scale * RNG.standard_normal((64, 64))).astype(np.float32)


def test_half_the_bytes_the_same_graph_once_loaded(tmp_path):
    bench = bench_of(linear(weight(), np.ones(64, np.float32)), tmp_path)
    made = Float16Storage().apply(bench.toy.model, bench)
    size = runtime("onnx").size
    assert size(made) < 0.53 * size(bench.toy.model)
    assert operators(made) == {"Cast": 1, "Gemm": 1}
    assert loaded(made, tmp_path) == loaded(bench.toy.model, tmp_path) == {"Gemm": 1}
    batch = bench.toy.batch(5, 9)
    one, other = answer(bench.toy.model, batch)["y"], answer(made, batch)["y"]
    assert 0 < np.abs(one - other).max() < 2e-3
    assert dict(made.lineage[-1].skipped) == {"b": "fewer than 1024 numbers"}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda w: np.where(np.arange(64) == 3, 7e4, w), "beyond the range of float16"),
        (lambda w: np.where(np.arange(64) == 3, np.nan, w), "infinities or NaN"),
        (lambda w: w * 1e-7, "too small for float16"),
    ],
)
def test_what_float16_cannot_tell_stays_with_its_reason(tmp_path, spoil, reason):
    bench = bench_of(two(weight(), spoil(weight()).astype(np.float32)), tmp_path)
    made = Float16Storage().apply(bench.toy.model, bench)
    assert made.lineage[-1].touched == ("first",)
    ((name, said),) = made.lineage[-1].skipped
    assert name == "second"
    assert reason in said


def test_it_is_refused_or_fails_where_nothing_is_left(tmp_path):
    bench = bench_of(linear(weight()), tmp_path)
    said = Float16Storage(smallest=8192).refuse(bench.toy.model, bench)
    assert said == "no float32 tensor has 8192 numbers or more"
    again = Float16Storage().apply(bench.toy.model, bench)
    assert "no float32 tensor" in Float16Storage().refuse(again, bench)
    huge = bench_of(linear(weight(1e7)), tmp_path)
    with pytest.raises(Failed, match="beyond the range"):
        Float16Storage().apply(huge.toy.model, huge)
