from __future__ import annotations

import dataclasses
import functools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_onnx import answer, bench_of, build, exported, linear, loaded, operators

from sartor.contracts import Failed, Target
from sartor.lab import alike
from sartor.techniques import _graph_onnx as graphs
from sartor.techniques.graph_onnx import (
    FixShapes,
    FuseTransformer,
    OptimizeOffline,
    SeparateNorm,
    Simplify,
)
from sartor.testing_onnx import toy_batch, toy_models

TOKENS = functools.partial(toy_batch, "transformer")


@pytest.fixture
def transformer(tmp_path):
    return bench_of(exported(toy_models()["transformer"]), tmp_path, TOKENS)


# --- the helpers ----------------------------------------------------------------------------------


def test_constants_are_found_as_initializers_and_as_nodes():
    ones = numpy_helper.from_array(np.ones(3, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=ones),
        helper.make_node("Constant", [], ["s"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Sum", ["x", "c", "s", "w"], ["y"]),
    ]
    weights = {"w": np.full(3, 5, np.float32), "unused": np.zeros(4, np.float32)}
    graph = graphs.Graph(build(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, weights))
    assert graph.constant("c").tolist() == [1, 1, 1]
    assert graph.constant("s").tolist() == [1, 2, 3]
    assert graph.constant("w").tolist() == [5, 5, 5]
    assert graph.constant("x") is None
    graph.set_constant("c", np.zeros(3, np.float32))
    graph.drop_unused()
    assert sorted(graph.tensors) == ["c", "w"]
    assert [node.op_type for node in graph.nodes] == ["Constant", "Sum"]


def test_unnamed_and_equally_named_nodes_get_names_of_their_own():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "Relu_0"),
    ]
    nodes.append(helper.make_node("Relu", ["b"], ["y"], "Relu_0"))
    proto = build(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, {})
    names = [node.name for node in graphs.Graph(proto).nodes]
    assert len(set(names)) == 3
    assert names[1] == "Relu_0"


def test_a_use_inside_a_body_is_a_use():
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["z"])],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["v"])],
        "else",
        [],
        [helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 3])],
    )
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=other)
    weights = {"w": np.ones(3, np.float32), "c": np.array(True)}
    graph = graphs.Graph(build([node], {"x": ["n", 3]}, {"y": ["n", 3]}, weights))
    graph.drop_unused()
    assert [user.name for user in graph.users("w")] == ["if"]
    assert "w" in graph.tensors


def test_initializers_among_the_inputs_become_plain_constants():
    proto = linear(np.ones((4, 2), np.float32))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    proto.ir_version = 3
    graph = graphs.Graph(proto)
    assert [port.name for port in graph.proto.graph.input] == ["x"]
    assert graph.proto.ir_version >= 4


def test_big_weights_go_beside_the_model_and_the_bytes_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "_INLINE", 1000)
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    first = graphs.write(linear(weight), tmp_path / "a")
    again = graphs.write(linear(weight), tmp_path / "a")
    second = graphs.write(linear(weight), tmp_path / "b")
    assert first == again
    assert first.name == second.name
    assert sorted(path.name for path in first.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    for path in first.parent.iterdir():
        assert path.read_bytes() == (second.parent / path.name).read_bytes()
    assert first.stat().st_size < 1000
    assert np.array_equal(numpy_helper.to_array(onnx.load(first).graph.initializer[0]), weight)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.parent.name]


def test_watch_gives_inner_values_and_runs_only_what_they_need(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w"], ["b"], "second"),
        helper.make_node("Reshape", ["b", "impossible"], ["y"], "never"),
    ]
    weights = {"w": np.eye(3, dtype=np.float32) * 2, "impossible": np.array([7, 11])}
    bench = bench_of(build(nodes, {"x": ["n", 3]}, {"y": [7, 11]}, weights), tmp_path)
    graph = graphs.read(bench.toy.model)
    batches = [{"x": np.array([[-1, 2, 3]], np.float32)}]
    (values,) = graphs.watch(graph, ["a", "x", "b"], batches, bench)
    assert values["a"].tolist() == [[0, 2, 3]]
    assert values["b"].tolist() == [[0, 4, 6]]
    assert values["x"].tolist() == [[-1, 2, 3]]
    assert list(bench.scratch.iterdir()) == []


def test_a_part_once_touched_stays_touched():
    parts = graphs.Parts()
    parts.touch("a")
    parts.skip("a", "late")
    parts.skip("b", "small")
    parts.skip("b", "smaller")
    assert parts.touched == ("a",)
    assert parts.skipped == (("b", "smaller"),)


# --- the techniques -------------------------------------------------------------------------------


def test_simplify_folds_constants_and_names_what_went(tmp_path):
    nodes = [
        helper.make_node("Add", ["p", "q"], ["w"], "folded"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "kept"),
    ]
    weights = {"p": np.ones((3, 3), np.float32), "q": np.ones((3, 3), np.float32)}
    bench = bench_of(build(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, weights), tmp_path)
    made = Simplify().apply(bench.toy.model, bench)
    assert made.lineage[-1].touched == ("folded",)
    assert operators(made) == {"MatMul": 1}
    with pytest.raises(Failed, match="nothing to simplify"):
        Simplify().apply(made, bench)


@pytest.mark.parametrize("level", ["basic", "extended"])
def test_offline_optimization_is_not_tied_to_this_machine(tmp_path, level):
    batch = functools.partial(toy_batch, "cnn")
    bench = bench_of(toy_models()["cnn"], tmp_path, batch)
    made = OptimizeOffline(level).apply(bench.toy.model, bench)
    domains = {node.domain for node in onnx.load(made.payload).graph.node}
    assert domains <= {"", "com.microsoft"}
    for rows in (1, 5):
        one, two = (answer(model, batch(rows, 3)) for model in (bench.toy.model, made))
        assert one["logits"] == pytest.approx(two["logits"], abs=1e-5)


def test_offline_optimization_leaves_the_slow_fusion_out(transformer):
    made = OptimizeOffline("extended").apply(transformer.toy.model, transformer)
    assert operators(made)["SkipLayerNormalization"] == 0
    assert operators(made)["Gelu"] + operators(made)["BiasGelu"] == 1


def test_attention_is_fused_with_heads_found_by_running(transformer):
    made = FuseTransformer().apply(transformer.toy.model, transformer)
    assert operators(made)["Attention"] == 1
    assert operators(made)["Softmax"] == operators(made)["Erf"] == 0
    (node,) = [n for n in onnx.load(made.payload).graph.node if n.op_type == "Attention"]
    assert graphs.attribute(node, "num_heads") == 4
    assert len(made.lineage[-1].touched) == 2
    assert made.lineage[-1].skipped == ()


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_fused_attention_is_right_wherever_the_padding_stands(transformer, side):
    # ONNX Runtime's default turns the mask into a count of tokens, which is wrong on the left.
    made = FuseTransformer().apply(transformer.toy.model, transformer)
    batch = dict(TOKENS(6, 5))
    mask = np.ones_like(batch["attention_mask"])
    cut = {"left": slice(0, 3), "right": slice(-3, None), "middle": slice(1, 4)}[side]
    mask[::2, cut] = 0
    batch["attention_mask"] = mask
    one, two = (answer(model, batch)["logits"] for model in (transformer.toy.model, made))
    assert two == pytest.approx(one, abs=1e-4)


def test_what_could_not_be_fused_is_skipped_with_its_reason(tmp_path):
    bench = bench_of(toy_models()["transformer"], tmp_path, TOKENS)  # a mask in another form
    made = FuseTransformer().apply(bench.toy.model, bench)
    assert made.lineage[-1].skipped == (("Softmax_22", "not a form of attention that is known"),)
    alone = FuseTransformer(gelu=False)
    with pytest.raises(Failed, match="nothing was fused"):
        alone.apply(bench.toy.model, bench)


def test_fusing_is_refused_where_there_is_nothing_to_fuse(tmp_path):
    bench = bench_of(toy_models()["mlp"], tmp_path, functools.partial(toy_batch, "mlp"))
    assert "no attention" in FuseTransformer().refuse(bench.toy.model, bench)
    assert "no layer normalization" in SeparateNorm().refuse(bench.toy.model, bench)


def test_a_residual_sum_kept_apart_stays_apart_when_loaded(transformer, tmp_path):
    fused = loaded(transformer.toy.model, tmp_path)
    assert fused["SkipLayerNormalization"] == 2
    made = SeparateNorm().apply(transformer.toy.model, transformer)
    apart = loaded(made, tmp_path)
    assert apart["SkipLayerNormalization"] == 0
    assert apart["LayerNormalization"] == 3
    assert len(made.lineage[-1].touched) == 2


@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_residual_norm_is_taken_apart(tmp_path, bias):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(8, np.float32) for name in ("gamma", "beta", "bias")}
    names = ["x", "z", "gamma", "beta", *(["bias"] if bias else [])]
    node = helper.make_node(
        "SkipLayerNormalization", names, ["y"], "norm", domain="com.microsoft", epsilon=1e-3
    )
    shape = ["n", 4, 8]
    bench = bench_of(build([node], {"x": shape, "z": shape}, {"y": shape}, weights), tmp_path)
    model = bench.toy.model
    made = SeparateNorm().apply(model, bench)
    assert operators(made)["SkipLayerNormalization"] == 0
    batch = {name: rng.standard_normal((2, 4, 8), np.float32) for name in "xz"}
    assert answer(made, batch)["y"] == pytest.approx(answer(model, batch)["y"], abs=1e-5)


def test_shapes_are_fixed_only_where_the_target_asks(transformer):
    model = transformer.toy.model
    assert "asks for no fixed shapes" in FixShapes().refuse(model, transformer)
    fixed = (("input_ids", (1, 12)), ("attention_mask", (1, 12)))
    transformer.target = Target(fixed=fixed)
    made = FixShapes().apply(model, transformer)
    assert [port.shape for port in made.signature.inputs] == [(1, 12), (1, 12)]
    assert made.signature.outputs[0].shape == (1, 4)
    ones = np.ones((1, 12), np.int64)
    batch = {"input_ids": ones * 5, "attention_mask": ones}
    assert alike(answer(model, batch), answer(made, batch)) > 0.9999
    assert "fixed already" in FixShapes().refuse(made, transformer)


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ((("words", (1, 12)),), "'words', which is no input; inputs: input_ids, attention_mask"),
        ((("input_ids", (1, 12, 3)),), "does not fit its shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(transformer, fixed, said):
    transformer.target = Target(fixed=fixed)
    assert said in FixShapes().refuse(transformer.toy.model, transformer)


def test_settings_and_lineage_are_carried_over(transformer):
    model = dataclasses.replace(transformer.toy.model, settings={"graph_level": "extended"})
    made = SeparateNorm().apply(model, transformer)
    assert made.settings == {"graph_level": "extended"}
    with pytest.raises(Failed, match="no residual sum"):
        SeparateNorm().apply(made, transformer)
