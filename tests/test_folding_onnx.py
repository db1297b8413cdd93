"""Sizes that are computed from constants become constants, and nothing else does."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from sartor.techniques._axes_groups_onnx import groups
from sartor.techniques._axes_rules_onnx import trace
from sartor.techniques._folding_onnx import fold_sizes
from sartor.techniques._graph_onnx import Graph

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402


class Padded(torch.nn.Module):
    """As TensorFlow pads, written in PyTorch: EfficientNet and others of its time."""

    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Conv2d(3, 32, 1)
        self.each = torch.nn.Conv2d(32, 32, 3, stride=2, groups=32)
        self.thin = torch.nn.Conv2d(32, 8, 1)

    def forward(self, image):
        return self.thin(self.each(F.pad(self.wide(image), (0, 1, 0, 1)))).mean((2, 3))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    path = tmp_path_factory.mktemp("padded") / "padded.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Padded().eval(), (torch.zeros(2, 3, 8, 8),), path, dynamo=False, opset_version=17,
            do_constant_folding=False, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "rows"}, "logits": {0: "rows"}},
        )  # fmt: skip
    return onnx.load(path)


def answers(proto, image):
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def test_pads_that_are_computed_do_not_stand_in_the_way(padded):
    graph = Graph(onnx.ModelProto.FromString(padded.SerializeToString()))
    assert any(node.op_type == "ConstantOfShape" for node in graph.nodes)
    found = {each.size: each.reason for each in groups(trace(graph))}
    assert found[32] is None
    assert {node.op_type for node in graph.nodes} <= {"Conv", "Pad", "ReduceMean", "Constant"}
    image = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    assert np.array_equal(answers(graph.proto, image), answers(padded, image))


def _graph(nodes, **constants):
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "g", ports, out, tensors)
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]))


def test_what_is_large_or_no_whole_number_or_of_the_data_is_left():
    node = helper.make_node
    graph = _graph(
        [
            node("ConstantOfShape", ["large"], ["zeros"]),
            node("Add", ["floats", "floats"], ["twice"]),
            node("Shape", ["x"], ["sizes"]),
            node("Gather", ["sizes", "first"], ["rows"]),
            node("Mul", ["two", "three"], ["six"]),
            node("Gather", ["two", "three"], ["beyond"]),
            node("Expand", ["x", "six"], ["y"]),
        ],
        large=np.array([1 << 40]),
        floats=np.ones(2, np.float32),
        first=np.array(0),
        two=np.array([2]),
        three=np.array([3]),
    )
    fold_sizes(graph)
    left = [each.op_type for each in graph.nodes]
    assert left == ["ConstantOfShape", "Add", "Shape", "Gather", "Gather", "Expand"]
    assert graph.constant("six").tolist() == [6]


def test_what_lies_in_another_file_is_not_read(tmp_path):
    node = helper.make_node
    two = [node("Mul", ["two", "two"], ["four"]), node("Expand", ["x", "four"], ["y"])]
    path, whole = tmp_path / "model.onnx", _graph(two, two=np.array([2])).proto
    onnx.save(whole, path, save_as_external_data=True, location="data", size_threshold=0)
    (tmp_path / "data").unlink()
    graph = Graph(onnx.load(path, load_external_data=False))
    fold_sizes(graph)
    assert [each.op_type for each in graph.nodes] == ["Mul", "Expand"]
