"""Hostile and unusable ONNX files, each with words that the refusal must contain."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from sartor.testing_onnx import toy_models

FLOAT = TensorProto.FLOAT


def _graph(node: onnx.NodeProto, *, opset: int = 17, domain: str = "") -> onnx.ModelProto:
    """A model of one node from x [batch, 4] to y [batch, 4]."""
    ports = [helper.make_tensor_value_info(name, FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([node], "one", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _identity(**facts: int) -> onnx.ModelProto:
    return _graph(helper.make_node("Identity", ["x"], ["y"], name="same"), **facts)


def _external(folder: Path, location: str) -> bytes:
    """The mlp with its weights outside, under a location of our choice."""
    inside = folder / "models"
    inside.mkdir(exist_ok=True)
    path = inside / "made.onnx"
    onnx.save(
        toy_models()["mlp"],
        path,
        save_as_external_data=True,
        location="made.data",
        size_threshold=0,
    )
    (inside / "made.data").replace(folder / "secret")
    proto = onnx.load(path, load_external_data=False)
    path.unlink()
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return proto.SerializeToString()


def _linked(folder: Path) -> bytes:
    data = _external(folder, "link.data")
    os.symlink(folder / "secret", folder / "models" / "link.data")
    return data


def _cut_external(folder: Path) -> bytes:
    data = _external(folder, "short.data")
    whole = (folder / "secret").read_bytes()
    (folder / "models" / "short.data").write_bytes(whole[: len(whole) // 2])
    return data


def _endless_offset(folder: Path) -> bytes:
    proto = onnx.ModelProto.FromString(_external(folder, "long.data"))
    (folder / "models" / "long.data").write_bytes((folder / "secret").read_bytes())
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.external_data.add(key="offset", value="1" * 5000)
    return proto.SerializeToString()


def _external_attribute(folder: Path) -> bytes:
    """External data in the attribute of a node inside a body: where a lazy check would not look."""
    tensor = TensorProto(name="t", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    inner = helper.make_node("Constant", [], ["inner"], value=tensor)
    out = helper.make_tensor_value_info("inner", FLOAT, [4])
    body = helper.make_graph([inner], "body", [], [out])
    proto = _graph(helper.make_node("Add", ["x", "chosen"], ["y"], name="add"))
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    proto.graph.initializer.append(yes)
    choose = helper.make_node("If", ["yes"], ["chosen"], then_branch=body, else_branch=body)
    proto.graph.node.insert(0, choose)
    return proto.SerializeToString()


def _no_inputs(_: Path) -> bytes:
    """The only input is an initializer, as old exporters wrote weights."""
    proto = _identity()
    proto.graph.initializer.append(helper.make_tensor("x", FLOAT, [1, 4], [0.0] * 4))
    return proto.SerializeToString()


def _zipmap(_: Path) -> bytes:
    zipmap = helper.make_node(
        "ZipMap", ["x"], ["y"], name="zip", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]
    )
    proto = _graph(zipmap, domain="ai.onnx.ml")
    kind = helper.make_tensor_type_proto(FLOAT, [])
    map_type = helper.make_map_type_proto(TensorProto.INT64, kind)
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(map_type))
    return proto.SerializeToString()


def _no_shape(_: Path) -> bytes:
    proto = _identity()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    return proto.SerializeToString()


def _brain_float(_: Path) -> bytes:
    proto = _identity()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    return proto.SerializeToString()


def _no_opset(_: Path) -> bytes:
    proto = _identity()
    del proto.opset_import[:]
    return proto.SerializeToString()


def _custom(_: Path) -> bytes:
    node = helper.make_node("FastThing", ["x"], ["y"], name="thing", domain="com.acme")
    return _graph(node, domain="com.acme").SerializeToString()


def _too_new(_: Path) -> bytes:
    node = helper.make_node("Gelu", ["x"], ["y"], name="gelu")
    return _graph(node, opset=17).SerializeToString()


def _truncated(_: Path) -> bytes:
    whole = toy_models()["cnn"].SerializeToString()
    return whole[: len(whole) * 2 // 3]


FILES: dict[str, tuple[Callable[[Path], bytes], tuple[str, ...]]] = {
    "empty": (lambda _: b"", ("is empty",)),
    "random": (lambda _: np.random.default_rng(0).bytes(5000), ("not an ONNX file",)),
    "text": (lambda _: b'{"a": "model"}\n' * 99, ("not an ONNX file",)),
    "truncated": (_truncated, ("cut short",)),
    "another_protobuf": (
        lambda _: helper.make_opsetid("abc", 3).SerializeToString(),
        ("no ONNX model",),
    ),
    "blank_model": (
        lambda _: onnx.ModelProto(ir_version=8).SerializeToString(),
        ("no ONNX model",),
    ),
    "external_climbs": (lambda f: _external(f, "../secret"), ("'../secret'", "outside")),
    "external_absolute": (lambda f: _external(f, str(f / "secret")), ("outside",)),
    "external_nameless": (lambda f: _external(f, ""), ("outside",)),
    "external_link": (_linked, ("'link.data'", "outside")),
    "external_missing": (lambda f: _external(f, "gone.data"), ("'gone.data'", "missing")),
    "external_cut": (_cut_external, ("'short.data'", "cut short")),
    "external_far": (_endless_offset, ("'long.data'", "cut short")),
    "external_attribute": (_external_attribute, ("'../secret'", "outside")),
    "no_inputs": (_no_inputs, ("no inputs",)),
    "no_shape": (_no_shape, ("'x'", "no shape")),
    "zipmap": (_zipmap, ("'y'", "zipmap")),
    "brain_float": (_brain_float, ("'x'", "bfloat16")),
    "no_opset": (_no_opset, ("no operator set",)),
    "future_opset": (lambda _: _identity(opset=999).SerializeToString(), ("999", "older")),
    "custom_operator": (_custom, ("'FastThing'", "'com.acme'", "'thing'")),
    "operator_too_new": (_too_new, ("'Gelu'", "20", "17")),
}


def write(name: str, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The file of that name, in a folder of its own, and the words of its refusal."""
    make, words = FILES[name]
    (folder / "models").mkdir(exist_ok=True)
    path = folder / "models" / f"{name}.onnx"
    path.write_bytes(make(folder))
    return path, words
