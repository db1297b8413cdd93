from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_onnx import answer, bench_of, exported, operators

from sartor.contracts import Model, Unneeded
from sartor.lab import ToyBench
from sartor.registry import runtime
from sartor.techniques._blocks_onnx import stacks
from sartor.techniques._graph_onnx import Graph, Parts, finish, read
from sartor.techniques.graph_onnx import FuseTransformer
from sartor.techniques.layers_onnx import DropLayers
from sartor.testing_onnx import Draft, encoder, toy_batch, toy_models

TOKENS = functools.partial(toy_batch, "transformer")


def several(layers: int = 4, pre_norm: bool = False, seed: int = 3) -> onnx.ModelProto:
    return encoder(Draft(seed), "toy", layers=layers, width=32, pre_norm=pre_norm)


def bench_with(proto: onnx.ModelProto, folder, **facts) -> ToyBench:
    return bench_of(proto, folder, TOKENS, **facts)


def silence(proto: onnx.ModelProto, which: int) -> None:
    """Lets the layer add nothing: its last products become zeros. All norms lose their bias, so
    that to norm twice is to norm once."""
    graph = Graph(proto)
    ((*layers,),) = stacks(graph)
    nodes = [node for node in graph.nodes if node.name in layers[which].nodes]
    products = [n for n in nodes if n.op_type == "MatMul" and graph.constant_tensor(n.input[1])]
    for product in (products[3], products[5]):  # of the attention, of the feed-forward part
        (add,) = graph.users(product.output[0])
        for name in (product.input[1], add.input[1]):
            graph.set_constant(name, np.zeros_like(graph.constant(name)))
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            graph.set_constant(node.input[2], np.zeros(32, np.float32))


def with_norms_in_pieces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """LayerNormalization as exporters of older operator sets write it."""
    graph = Graph(proto)
    graph.set_constant("two", np.float32(2))
    graph.set_constant("epsilon", np.float32(1e-5))
    for node in [each for each in graph.nodes if each.op_type == "LayerNormalization"]:
        at, (x, scale, bias) = node.name, node.input
        graph.replace(node, [
            helper.make_node("ReduceMean", [x], [f"{at}_mean"], f"{at}_1", axes=[-1]),
            helper.make_node("Sub", [x, f"{at}_mean"], [f"{at}_centred"], f"{at}_2"),
            helper.make_node("Pow", [f"{at}_centred", "two"], [f"{at}_square"], f"{at}_3"),
            helper.make_node("ReduceMean", [f"{at}_square"], [f"{at}_var"], f"{at}_4", axes=[-1]),
            helper.make_node("Add", [f"{at}_var", "epsilon"], [f"{at}_safe"], f"{at}_5"),
            helper.make_node("Sqrt", [f"{at}_safe"], [f"{at}_root"], f"{at}_6"),
            helper.make_node("Div", [f"{at}_centred", f"{at}_root"], [f"{at}_unit"], f"{at}_7"),
            helper.make_node("Mul", [f"{at}_unit", scale], [f"{at}_scaled"], f"{at}_8"),
            helper.make_node("Add", [f"{at}_scaled", bias], [node.output[0]], f"{at}_9"),
        ])  # fmt: skip
    return graph.proto


def with_computed_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Reshape to sizes that are read from its input, as torch exports it."""
    graph = Graph(proto)
    graph.set_constant("first", np.array([0, 1], np.int64))
    for node in [each for each in graph.nodes if each.op_type == "Reshape"]:
        at, rest = node.name, graph.constant(node.input[1])[2:]
        graph.set_constant(f"{at}_rest", rest)
        graph.insert([
            helper.make_node("Shape", [node.input[0]], [f"{at}_shape"], f"{at}_1"),
            helper.make_node("Gather", [f"{at}_shape", "first"], [f"{at}_free"], f"{at}_2"),
            helper.make_node("Concat", [f"{at}_free", f"{at}_rest"], [f"{at}_to"], f"{at}_3",
                             axis=0),
        ], before=node)  # fmt: skip
        node.input[1] = f"{at}_to"
    graph.drop_unused()
    return graph.proto


def with_shared_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every layer reads the weights of the first, as in ALBERT."""
    graph = Graph(proto)
    ((first, *others),) = stacks(graph)
    named = {node.name: node for node in graph.nodes}
    for layer in others:
        for mine, theirs in zip(layer.nodes, first.nodes, strict=True):
            for at, name in enumerate(named[theirs].input):
                if graph.constant_tensor(name) is not None:
                    named[mine].input[at] = name
    graph.drop_unused()
    return graph.proto


def with_mask_of_the_tokens(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The mask is computed: everything depends on the one input by two ways."""
    graph = Graph(proto)
    graph.set_constant("padding", np.int64(0))
    del proto.graph.input[1]
    graph.insert([
        helper.make_node("Equal", ["input_ids", "padding"], ["padded"], "padded"),
        helper.make_node("Not", ["padded"], ["attention_mask"], "mask"),
    ])  # fmt: skip
    return graph.proto


def with_sums_in_norms(model: Model, bench: ToyBench) -> Model:
    """Sum and norm as one operator with outputs that nobody reads, as ONNX Runtime fuses them."""
    graph = read(model)
    for node in [each for each in graph.nodes if each.op_type == "LayerNormalization"]:
        maker = graph.producer(node.input[0])
        if maker is not None and maker.op_type == "Add":
            inputs, outputs = [*maker.input, *node.input[1:]], [node.output[0], "", "", ""]
            one = helper.make_node("SkipLayerNormalization", inputs, outputs, node.name,
                                   domain="com.microsoft", epsilon=1e-5)  # fmt: skip
            graph.replace(node, [one])
            graph.proto.graph.node.remove(maker)
            graph.refresh()
    return finish(model, FuseTransformer(), graph, bench, Parts())


FORMS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "plain": lambda proto: proto,
    "norms in pieces": with_norms_in_pieces,
    "computed shapes": with_computed_shapes,
    "all of it": lambda proto: with_norms_in_pieces(with_computed_shapes(proto)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_layer_that_adds_nothing_is_found_and_goes_without_a_trace(tmp_path, pre_norm, form):
    proto = several(pre_norm=pre_norm)
    silence(proto, 2)
    bench = bench_with(FORMS[form](proto), tmp_path)
    model = bench.toy.model
    made = DropLayers(keep=0.75, order="importance").apply(model, bench)
    ((*layers,),) = stacks(Graph(onnx.load(model.payload)))
    assert len(layers) == 4
    assert made.lineage[-1].touched == (layers[2].name,)
    batch = TOKENS(5, 9)
    assert answer(made, batch)["logits"] == pytest.approx(answer(model, batch)["logits"], abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_file_is_that_of_a_network_with_fewer_layers(tmp_path, pre_norm, form):
    for folder in ("four", "one"):
        (tmp_path / folder).mkdir()
    bench = bench_with(FORMS[form](several(4, pre_norm)), tmp_path / "four")
    one = bench_with(FORMS[form](several(1, pre_norm)), tmp_path / "one").toy.model
    made = DropLayers(keep=0.25).apply(bench.toy.model, bench)
    assert operators(made) == operators(one)
    assert runtime("onnx").size(made) == pytest.approx(runtime("onnx").size(one), rel=0.01)
    count = sum(each.macs or 0 for each in runtime("onnx").parts(made, TOKENS(1, 9)))
    assert count == sum(each.macs or 0 for each in runtime("onnx").parts(one, TOKENS(1, 9)))
    assert answer(made, TOKENS(3, 9))["logits"].shape == (3, 4)


def test_the_first_layer_alone_is_what_the_first_layer_computes(tmp_path):
    for folder in ("four", "one"):
        (tmp_path / folder).mkdir()
    bench = bench_with(several(4), tmp_path / "four")
    made = DropLayers(keep=0.25, order="last").apply(bench.toy.model, bench)
    proto = several(1)  # the same seed: the same first layer; the head is drawn behind it
    for mine, theirs in zip(
        proto.graph.initializer[-2:], Graph(onnx.load(made.payload)).proto.graph.initializer[-2:],
        strict=True,
    ):  # fmt: skip
        mine.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(theirs), mine.name))
    one = bench_with(proto, tmp_path / "one").toy.model
    batch = TOKENS(4, 9)
    assert answer(made, batch)["logits"] == pytest.approx(answer(one, batch)["logits"], abs=1e-5)


@pytest.mark.parametrize(
    ("keep", "order", "gone"),
    [
        (0.8, "spread", [2, 7]),
        (0.5, "spread", [1, 3, 4, 6, 8]),
        (0.2, "spread", [1, 2, 3, 4, 5, 6, 7, 8]),
        (0.1, "spread", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0.7, "last", [7, 8, 9]),
        (0.7, "first", [0, 1, 2]),
    ],
)
def test_which_layers_go(tmp_path, keep, order, gone):
    bench = bench_with(several(10), tmp_path)
    ((*layers,),) = stacks(Graph(onnx.load(bench.toy.model.payload)))
    made = DropLayers(keep, order).apply(bench.toy.model, bench)
    step = made.lineage[-1]
    assert [at for at, each in enumerate(layers) if each.name in step.touched] == gone
    stay = 10 - len(step.touched)
    assert stay == max(1, round(10 * keep))
    assert {name for name, _ in step.skipped} == {each.name for each in layers} - set(step.touched)
    assert all(f"{stay} of 10 layers that stay by order={order}" in why for _, why in step.skipped)
    if order == "spread" and stay > 1:
        assert {layers[0].name, layers[-1].name}.isdisjoint(step.touched)


def test_layers_that_were_fused_before_go_too(tmp_path):
    bench = bench_with(exported(several(3)), tmp_path)
    fused = with_sums_in_norms(FuseTransformer().apply(bench.toy.model, bench), bench)
    assert operators(fused)["Attention"] == 3
    assert operators(fused)["SkipLayerNormalization"] == 6
    made = DropLayers(keep=0.7).apply(fused, bench)
    assert operators(made)["Attention"] == 2
    assert operators(made)["SkipLayerNormalization"] == 4
    plain = DropLayers(keep=0.7).apply(bench.toy.model, bench)
    one, two = (answer(each, TOKENS(5, 9))["logits"] for each in (plain, made))
    assert two == pytest.approx(one, abs=1e-4)


def test_a_mask_made_of_the_tokens_is_no_hindrance(tmp_path):
    proto = with_mask_of_the_tokens(several(3))
    tokens = bench_of(
        proto, tmp_path, lambda rows, seed: {"input_ids": TOKENS(rows, seed)["input_ids"]}
    )
    made = DropLayers(keep=0.4).apply(tokens.toy.model, tokens)
    assert len(made.lineage[-1].touched) == 2


def test_shared_weights_stay_for_the_layers_that_stay(tmp_path):
    proto = with_shared_weights(several(3))
    bench = bench_with(proto, tmp_path)
    weights = {each.name for each in proto.graph.initializer}
    made = DropLayers(keep=0.4).apply(bench.toy.model, bench)
    assert {each.name for each in onnx.load(made.payload).graph.initializer} == weights
    assert operators(made)["Softmax"] == 1
    # The same layer three times or once: what the third computes is another thing.
    assert np.isfinite(answer(made, TOKENS(3, 9))["logits"]).all()


def resnet(blocks: tuple[int, ...] = (2, 3), last: str = "") -> onnx.ModelProto:
    """Stages of residual blocks, the first of each but one with a projection; `last` is the block
    (counted from the front) whose second convolution is all zeros."""
    draft, width = Draft(5), 8
    x = draft.op("Relu", draft.conv("image", 3, width))
    for stage, count in enumerate(blocks):
        for number in range(count):
            into = width
            width = 8 * 2**stage
            inner = draft.op("Relu", draft.conv(x, into, width))
            deep = draft.conv(inner, width, width)
            beside = x if into == width else draft.conv(x, into, width, size=1)
            x = draft.op("Relu", draft.op("Add", deep, beside))
            if last == f"{stage}.{number}":
                for at in (-2, -1):
                    zeros = np.zeros_like(numpy_helper.to_array(draft.weights[at]))
                    draft.weights[at].CopyFrom(
                        numpy_helper.from_array(zeros, draft.weights[at].name)
                    )
    pooled = draft.op("Flatten", draft.op("GlobalAveragePool", x), axis=1)
    draft.gemm(pooled, width, 4)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
    return draft.model("resnet", [image], [logits])


def test_residual_blocks_of_all_stages_but_no_projection(tmp_path):
    bench = bench_of(resnet((2, 3, 2, 1)), tmp_path)
    graph = Graph(onnx.load(bench.toy.model.payload))
    ((*layers,),) = stacks(graph)
    assert len(layers) == 2 + 2 + 1  # those with a projection stay
    one = DropLayers(keep=0.1).apply(bench.toy.model, bench)
    assert operators(one)["Conv"] == 1 + 3 * 3 + 2
    assert answer(one, bench.toy.batch(3, 9))["logits"].shape == (3, 4)


@pytest.mark.parametrize("block", ["0.0", "0.1", "1.1", "1.2"])
def test_a_residual_block_that_adds_nothing_goes_to_the_bit(tmp_path, block):
    bench = bench_of(resnet(last=block), tmp_path)
    made = DropLayers(order="importance").apply(bench.toy.model, bench)
    (gone,) = made.lineage[-1].touched
    ((*layers,),) = stacks(Graph(onnx.load(bench.toy.model.payload)))
    assert gone == layers[["0.0", "0.1", "1.1", "1.2"].index(block)].name
    batch = bench.toy.batch(5, 9)
    assert np.array_equal(answer(made, batch)["logits"], answer(bench.toy.model, batch)["logits"])


def towers() -> onnx.ModelProto:
    """Two residual stacks side by side, and a head behind them."""
    draft = Draft(7)

    def stack(x: str, layers: int) -> str:
        for _ in range(layers):
            x = draft.op("Add", x, draft.op("Tanh", draft.linear(x, 16, 16)))
        return x

    left, right = stack("left", 4), stack("right", 4)
    draft.linear(draft.op("Mul", left, right), 16, 2)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("left", 16), ("right", 16), ("scores", 2))
    ]
    return draft.model("towers", ports[:2], ports[2:])


def test_every_tower_gives_its_share(tmp_path):
    bench = bench_of(towers(), tmp_path)
    found = stacks(Graph(onnx.load(bench.toy.model.payload)))
    assert [len(layers) for layers in found] == [4, 4]
    assert len({each.name for layers in found for each in layers}) == 8
    made = DropLayers(keep=0.5).apply(bench.toy.model, bench)
    gone = set(made.lineage[-1].touched)
    assert sorted(len(gone & {each.name for each in layers}) for layers in found) == [2, 2]


def hidden_states(body: bool) -> onnx.ModelProto:
    """Three layers; the sum of the last is the output, or what the branches of an If read."""
    draft, x = Draft(9), "x"
    for _ in range(3):
        x = draft.op("Add", x, draft.op("Tanh", draft.linear(x, 16, 16)))
    if body:
        branches = {
            name: helper.make_graph(
                [helper.make_node(operator, [x], [f"{name}_out"])],
                name,
                [],
                [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", 16])],
            )
            for name, operator in (("then_branch", "Neg"), ("else_branch", "Abs"))
        }
        x = draft.op("If", draft.constant(np.array(True)), **branches)
    ports = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 16]) for each in "xy"]
    draft.nodes[-1].output[0] = "y"
    graph = helper.make_graph(draft.nodes, "hidden", ports[:1], ports[1:], draft.weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("body", [False, True])
def test_an_output_keeps_its_name_and_a_body_finds_what_it_reads(tmp_path, body):
    bench = bench_of(hidden_states(body), tmp_path)
    made = DropLayers(keep=0.4, order="last").apply(bench.toy.model, bench)
    assert operators(made)["MatMul"] == 1
    graph = Graph(onnx.load(made.payload))
    weight, bias = (graph.constant(each.name) for each in graph.proto.graph.initializer[:2])
    x = bench.toy.batch(4, 9)["x"]
    one = x + np.tanh(x @ weight + bias)
    assert answer(made, {"x": x})["y"] == pytest.approx(-one if body else one, abs=1e-5)


def test_what_does_not_repeat_is_refused(tmp_path):
    for number, name in enumerate(("mlp", "cnn", "lstm", "transformer", "several", "embedding")):
        (tmp_path / str(number)).mkdir()
        bench = bench_of(toy_models()[name], tmp_path / str(number))
        assert "no layers repeat" in DropLayers().refuse(bench.toy.model, bench)


def test_a_share_that_leaves_all_is_refused_and_unneeded(tmp_path):
    bench = bench_with(several(3), tmp_path, parts=("search",))
    model = bench.toy.model
    assert DropLayers(keep=0.8).refuse(model, bench) is None
    reason = "keep=0.9 leaves all layers: the highest stack has 3"
    assert DropLayers(keep=0.9).refuse(model, bench) == reason
    with pytest.raises(Unneeded, match="leaves all"):
        DropLayers(keep=0.9).apply(model, bench)
    assert "training rows" in DropLayers(order="importance").refuse(model, bench)
    same = DropLayers(keep=1.0).apply(model, bench)
    assert same.payload == model.payload
    assert not same.lineage[-1].touched
    assert len(same.lineage[-1].skipped) == 3


def test_cosines_are_remembered_for_other_shares(tmp_path):
    bench = bench_with(several(4), tmp_path)
    asked = []
    remember = bench.remember

    def spy(key, compute):
        asked.append(key)
        return remember(key, compute)

    bench.remember = spy
    for keep in (0.5, 0.8):
        made = DropLayers(keep, "importance").apply(bench.toy.model, bench)
        for _, reason in made.lineage[-1].skipped:
            assert "(cosine 0." in reason
    DropLayers(0.5, "importance").apply(made, bench)
    assert asked[0] == asked[1] != asked[2]


def test_layers_of_two_kinds_that_take_turns_go_in_pairs(tmp_path):
    draft, x = Draft(4), "x"
    for operator in ("Tanh", "Sigmoid", "Tanh", "Softmax", "Tanh", "Softmax"):
        x = draft.op("Add", x, draft.op(operator, draft.linear(x, 16, 16)))
    ports = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 16]) for each in "xy"]
    bench = bench_of(draft.model("turns", ports[:1], ports[1:]), tmp_path)
    found = stacks(Graph(onnx.load(bench.toy.model.payload)))
    pairs = [sum("MatMul" in name for name in layer.nodes) for layers in found for layer in layers]
    assert pairs == [2, 2]
