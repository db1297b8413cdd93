"""Structured pruning: what goes together, exact where what goes is zero, counted, refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from structured_toys import CASES, Case, silenced

from sartor.techniques._axes_groups_onnx import Group, groups, keep
from sartor.techniques._axes_rules_onnx import trace
from sartor.techniques._axes_trace_onnx import Trace
from sartor.techniques._graph_onnx import Graph


def run(proto: onnx.ModelProto, rows: int = 3, tokens: int = 24) -> np.ndarray:
    """The answers to seeded inputs."""
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(5)
    feed = {}
    for port in session.get_inputs():
        named = {"n": rows, "t": tokens}
        shape = [named.get(size, size) for size in port.shape]
        feed[port.name] = rng.standard_normal(shape, np.float32)
    return session.run(None, feed)[0]


def numbers(proto: onnx.ModelProto) -> int:
    return sum(int(np.prod(each.dims)) for each in proto.graph.initializer if each.data_type == 1)


def group_of(traced: Trace, case: Case) -> Group:
    tensor, axis, size = case.member
    return next(
        each for each in groups(traced) if (tensor, axis) in each.members and each.size == size
    )


def thinned(case: Case, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Group]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    traced = trace(Graph(copy))
    group = group_of(traced, case)
    assert group.atom.frozen is None, group.atom.frozen
    keep(traced, {group.atom: np.setdiff1d(np.arange(group.size), case.gone)})
    onnx.checker.check_model(traced.graph.proto, full_check=True)
    return traced.graph.proto, group


@pytest.mark.parametrize("name", CASES)
def test_what_carries_zeros_goes_without_a_trace(name):
    case = CASES[name]()
    before = silenced(case)
    made, _ = thinned(case, before)
    whole, one = run(case.proto), run(before)
    assert np.abs(whole - one).max() > 1e-3  # what was silenced said something before
    assert run(made) == pytest.approx(one, abs=1e-5)
    assert run(made, rows=1, tokens=24)[:1] == pytest.approx(run(before, 1), abs=1e-5)
    assert numbers(made) < numbers(before)
