"""Eight-bit arithmetic: what is quantized, how ranges, exceptions and corrections are found."""

from __future__ import annotations

import functools
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sartor import bundle
from sartor.contracts import Failed, Model, Target
from sartor.lab import Toy, ToyBench
from sartor.machine import saturates
from sartor.registry import runtime
from sartor.runtimes._onnx_tensorrt import command, tensorrt_obstacle
from sartor.techniques import _calibration_onnx as calibration
from sartor.techniques import _sensitivity_onnx as sensitivity
from sartor.techniques._bias_onnx import correct_biases
from sartor.techniques._graph_onnx import Graph, Parts, read
from sartor.techniques._integers_onnx import rounded, split_gemms, upgraded
from sartor.techniques._smooth_onnx import smooth
from sartor.techniques.quantize_onnx import DynamicInt8, StaticInt8, TensorrtInt8
from sartor.techniques.weightonly_onnx import WeightOnly
from sartor.testing_onnx import Draft, save_toys, toy_batch

VNNI = Target(features=frozenset({"avx2", "avx512_vnni"}))


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, Toy]:
    paths = save_toys(tmp_path_factory.mktemp("toys"))
    return {
        name: Toy(name, runtime("onnx").open(path), functools.partial(toy_batch, name))
        for name, path in paths.items()
    }


def bench_of(toy: Toy, folder: Path, **facts) -> ToyBench:
    return ToyBench(toy, folder / "scratch", **{"target": VNNI, **facts})


def toy_of(proto: onnx.ModelProto, folder: Path, batch) -> Toy:
    path = folder / f"{proto.graph.name}.onnx"
    onnx.save(proto, path)
    return Toy(proto.graph.name, runtime("onnx").open(path), batch)


def port(name: str, *shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def run(model: Model | onnx.ModelProto, feeds, outputs=None) -> list[np.ndarray]:
    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model.payload)
    if outputs:
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    feeds = {port.name: feeds[port.name] for port in session.get_inputs()}
    return session.run(outputs, feeds)


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.payload).graph.node)


def error(toy: Toy, model: Model) -> float:
    """Relative error of the first output on rows that calibrated nothing."""
    batch = toy.batch(64, 9)
    right, found = run(toy.model, batch)[0], run(model, batch)[0]
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


# --- dynamic --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "operator", "count"),
    [
        ("mlp", "MatMulInteger", 2),
        ("transformer", "MatMulInteger", 6),
        ("several", "MatMulInteger", 4),
    ],
)
def test_dynamic_quantizes_every_large_product(toys, tmp_path, name, operator, count):
    toy = toys[name]
    made = DynamicInt8().apply(toy.model, bench_of(toy, tmp_path))
    assert operators(made)[operator] == count == len(made.lineage[-1].touched)
    assert error(toy, made) < 0.05


def test_dynamic_quantizes_a_recurrent_layer_and_its_head_stays(toys, tmp_path):
    made = DynamicInt8().apply(toys["lstm"].model, bench_of(toys["lstm"], tmp_path))
    assert operators(made)["DynamicQuantizeLSTM"] == 1
    (step,) = made.lineage
    assert step.touched == ("LSTM_1",)
    assert [name for name, reason in step.skipped if "too few" in reason] == ["Gemm_3"]
    assert error(toys["lstm"], made) < 0.05


def test_dynamic_says_why_it_skips(toys, tmp_path):
    made = DynamicInt8().apply(toys["transformer"].model, bench_of(toys["transformer"], tmp_path))
    reasons = Counter(reason for _, reason in made.lineage[-1].skipped)
    assert reasons["both inputs are computed"] == 2
    nodes = [
        n.name for n in read(toys["transformer"].model).nodes if n.op_type in ("MatMul", "Gemm")
    ]
    step = made.lineage[-1]
    assert sorted([*step.touched, *(name for name, _ in step.skipped)]) == sorted(nodes)


def test_convolutions_are_dynamic_only_where_asked(toys, tmp_path):
    toy, bench = toys["cnn"], bench_of(toys["cnn"], tmp_path)
    reason = DynamicInt8().refuse(toy.model, bench)
    assert reason is not None
    assert "slower" in reason
    assert DynamicInt8(conv=True).refuse(toy.model, bench) is None
    made = DynamicInt8(conv=True).apply(toy.model, bench)
    # The depthwise one has 288 weights but is a convolution: a count is no reason there.
    assert operators(made)["ConvInteger"] == 5
    assert error(toy, made) < 0.05


def test_shared_transposed_weights_are_transposed_once_each(tmp_path):
    draft = Draft(3)
    weight, bias = draft.weight(64, 64), draft.bias(64)
    first = draft.op("Relu", draft.op("Gemm", "x", weight, bias, transB=1))
    draft.op("Gemm", first, weight, bias, transB=1)
    proto = draft.model("shared", [port("x", "batch", 64)], [port("y", "batch", 64)])
    x = {"x": np.random.default_rng(0).standard_normal((5, 64), np.float32)}
    (right,) = run(proto, x)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = Graph(copy)
    split_gemms(graph, [node.name for node in graph.nodes])
    assert not any(node.op_type == "Gemm" for node in graph.nodes)
    np.testing.assert_allclose(run(graph.proto, x)[0], right, atol=1e-5)
    toy = toy_of(
        proto,
        tmp_path,
        lambda rows, seed: {
            "x": np.random.default_rng(seed).standard_normal((rows, 64), np.float32)
        },
    )
    assert error(toy, DynamicInt8().apply(toy.model, bench_of(toy, tmp_path))) < 0.05


def test_old_opsets_are_upgraded(toys, tmp_path):
    old = onnx.load(toys["mlp"].model.payload)
    old.opset_import[0].version = 11  # the same operators mean the same there
    toy = toy_of(old, tmp_path, toys["mlp"].batch)
    for technique in (DynamicInt8(), StaticInt8()):
        made = technique.apply(toy.model, bench_of(toy, tmp_path))
        assert {each.domain: each.version for each in onnx.load(made.payload).opset_import}[
            ""
        ] >= 13
        assert error(toy, made) < 0.1


def test_an_opset_that_cannot_be_upgraded_fails_with_a_sentence(toys):
    graph = read(toys["mlp"].model)
    del graph.proto.opset_import[:]
    graph.proto.opset_import.append(helper.make_opsetid("", 0))
    with pytest.raises(Failed, match="opset 0 cannot be upgraded to 13"):
        upgraded(graph, 13)


def test_weights_keep_to_seven_bits_where_products_saturate(toys, tmp_path):
    assert saturates({"avx2"})
    assert not saturates(VNNI.features)
    assert not saturates({"asimd"})
    for technique in (DynamicInt8(), StaticInt8()):
        tops = []
        for target in (Target(features=frozenset({"avx2"})), VNNI):
            made = technique.apply(
                toys["mlp"].model, bench_of(toys["mlp"], tmp_path, target=target)
            )
            tensors = onnx.load(made.payload).graph.initializer
            held = [t for t in tensors if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
            tops.append(max(int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in held))
        assert tops[0] <= 64 < tops[1]


# --- refusals -------------------------------------------------------------------------------------


def test_refusals_are_sentences(toys, tmp_path):
    mlp = toys["mlp"]
    bench, bare = bench_of(mlp, tmp_path), bench_of(mlp, tmp_path, parts=("search",))
    quantized = DynamicInt8().apply(mlp.model, bench)
    for technique in (DynamicInt8(), StaticInt8()):
        assert "quantized already" in technique.refuse(quantized, bench)
        foreign = Model("torch", None, mlp.model.signature)
        assert "torch" in technique.refuse(foreign, bench)
    assert "train split" in StaticInt8().refuse(mlp.model, bare)
    assert "train split" in DynamicInt8(exceptions=1).refuse(mlp.model, bare)
    assert "train split" in DynamicInt8(smooth=0.7).refuse(mlp.model, bare)
    assert DynamicInt8().refuse(mlp.model, bare) is None
    assert "leaves none of the 2" in DynamicInt8(exceptions=2).refuse(mlp.model, bench)
    assert "ops=conv" in StaticInt8(ops="conv").refuse(mlp.model, bench)
    assert "too few" in DynamicInt8().refuse(toys["embedding"].model, bench)


# --- static ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_static_keeps_a_convolutional_net_in_int8(toys, tmp_path, method):
    toy = toys["cnn"]
    made = StaticInt8(calibration=method).apply(toy.model, bench_of(toy, tmp_path))
    found = operators(made)
    # The image, five convolutions (one with its sum), sum, pooling and flattening are written as
    # uint8; the head gives its floats directly.
    assert found["QuantizeLinear"] == 9
    assert found["Relu"] == 0
    onnx.checker.check_model(onnx.load(made.payload), full_check=True)
    assert onnx.load(made.payload).graph.node[-1].op_type == "Gemm"
    assert error(toy, made) < {"minmax": 0.05, "percentile": 0.05, "entropy": 0.15}[method]
    assert {"Add_5", "GlobalAveragePool_11"} <= set(made.lineage[-1].touched)


def test_static_ops_choose_the_family(toys, tmp_path):
    toy = toys["cnn"]
    conv = StaticInt8(ops="conv").apply(toy.model, bench_of(toy, tmp_path))
    assert [name for name, _ in conv.lineage[-1].skipped] == ["Gemm_13"]
    matmul = StaticInt8(ops="matmul").apply(toy.model, bench_of(toy, tmp_path))
    assert matmul.lineage[-1].touched == ("Gemm_13",)


def test_a_relu_that_became_a_range_is_not_lost(tmp_path):
    """MatMul, Relu, then only float readers: the rounding stands for the Relu and must stay."""
    draft = Draft(5)
    draft.op("Tanh", draft.op("Relu", draft.op("MatMul", "x", draft.weight(32, 64))))
    proto = draft.model("relu", [port("x", "batch", 32)], [port("y", "batch", 64)])
    toy = toy_of(
        proto,
        tmp_path,
        lambda rows, seed: {
            "x": np.random.default_rng(seed).standard_normal((rows, 32), np.float32)
        },
    )
    made = StaticInt8().apply(toy.model, bench_of(toy, tmp_path))
    assert run(made, toy.batch(64, 9))[0].min() >= 0
    assert error(toy, made) < 0.05


def test_a_batch_norm_goes_into_its_convolution(tmp_path):
    draft = Draft(7)
    inner = draft.conv("image", 3, 8)
    stats = [
        draft.constant(np.abs(draft.rng.standard_normal(8)).astype(np.float32) + 0.5)
        for _ in range(4)
    ]
    draft.op("Relu", draft.op("BatchNormalization", inner, *stats))
    proto = draft.model("norm", [port("image", "batch", 3, 8, 8)], [port("y", "batch", 8, 8, 8)])
    toy = toy_of(
        proto,
        tmp_path,
        lambda rows, seed: {
            "image": np.random.default_rng(seed).standard_normal((rows, 3, 8, 8), np.float32)
        },
    )
    made = StaticInt8().apply(toy.model, bench_of(toy, tmp_path))
    assert operators(made)["BatchNormalization"] == 0
    assert error(toy, made) < 0.05


def test_same_seed_same_bytes_with_all_settings_in_use(toys, tmp_path):
    techniques = (
        DynamicInt8(smooth=0.7, exceptions=1),
        StaticInt8(calibration="percentile", smooth=0.7, exceptions=1, bias_correction=True),
    )
    for technique in techniques:
        content = {
            technique.apply(
                toys["transformer"].model, bench_of(toys["transformer"], tmp_path / part)
            ).payload.read_bytes()
            for part in "ab"
        }
        assert len(content) == 1


# --- TensorRT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "several", "transformer"])
def test_the_form_for_tensorrt_keeps_to_its_rules(toys, tmp_path, name):
    toy, bench = toys[name], bench_of(toys[name], tmp_path)
    settings = {"calibration": "percentile", "bias_correction": True}
    for technique in (TensorrtInt8(), TensorrtInt8(per_channel=False, **settings)):
        made = technique.apply(toy.model, bench)
        assert tensorrt_obstacle(onnx.load(made.payload)) is None
        assert error(toy, made) < 0.1
    said = tensorrt_obstacle(onnx.load(StaticInt8().apply(toy.model, bench).payload))
    assert re.search(r"^(De)?[Qq]uantizeLinear \S+: it is of u?int(8|32)", said)
    assert "nothing is quantized" in tensorrt_obstacle(onnx.load(toy.model.payload))


def test_sums_are_rounded_on_the_side_of_the_shortcut(tmp_path):
    """A convolution on both sides: the nearer one is what the other's kernel adds."""
    draft = Draft(7)
    first = draft.conv("image", 3, 8)
    second = draft.conv(draft.op("Relu", draft.conv("image", 3, 8)), 8, 8)
    draft.op("Relu", draft.op("Add", second, first))
    proto = draft.model("block", [port("image", "batch", 3, 8, 8)], [port("y", "batch", 8, 8, 8)])

    def rows(count: int, seed: int) -> dict[str, np.ndarray]:
        return {"image": np.random.default_rng(seed).standard_normal((count, 3, 8, 8), np.float32)}

    toy = toy_of(proto, tmp_path, rows)
    made = TensorrtInt8().apply(toy.model, bench_of(toy, tmp_path))
    graph = read(made)
    (add,) = (node for node in graph.nodes if node.op_type == "Add")
    assert [graph.producer(name).op_type for name in add.input] == ["Conv", "DequantizeLinear"]
    assert operators(made)["QuantizeLinear"] == 3  # the image, what the second reads, the shortcut


def _spoil(graph: Graph, kind: str, change) -> onnx.ModelProto:
    change(graph, next(node for node in graph.nodes if node.op_type == kind))
    return graph.proto


def _constant(place: int, change):
    def changed(graph: Graph, node: onnx.NodeProto) -> None:
        graph.set_constant(node.input[place], change(graph.constant(node.input[place])))

    return changed


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("QuantizeLinear", _constant(2, lambda z: z.astype(np.uint8)), "it is of uint8"),
        ("QuantizeLinear", _constant(2, lambda z: z + np.int8(3)), "not 0"),
        ("QuantizeLinear", _constant(1, lambda s: -s), "above 0"),
        ("QuantizeLinear", lambda _, n: n.input.pop(), "no constant"),
        ("Conv", lambda _, n: n.input.__setitem__(0, "image"), "what it multiplies is not"),
        ("Conv", lambda _, n: n.input.__setitem__(2, n.input[1]), "a bias must stay in float"),
        ("Relu", lambda _, n: setattr(n, "op_type", "Det"), "no such operator"),
        ("Relu", lambda _, n: setattr(n, "domain", "com.microsoft"), "com.microsoft"),
        ("Relu", lambda g, _: setattr(g.proto.opset_import[0], "version", 11), "opset 11"),
        ("Relu", lambda g, _: setattr(g.proto.graph.input[0].type.tensor_type, "elem_type", 11),
         "image is double"),
    ],
)  # fmt: skip
def test_what_tensorrt_would_not_take_is_named(toys, tmp_path, kind, change, said):
    made = read(TensorrtInt8().apply(toys["cnn"].model, bench_of(toys["cnn"], tmp_path)))
    assert said in tensorrt_obstacle(_spoil(made, kind, change))


def test_the_command_names_inputs_with_free_sizes_alone():
    ports = [port("x:0", "batch", 3, "width"), port("fixed", 1, 4)]
    proto = helper.make_model(helper.make_graph([], "shapes", ports, [port("y", "batch", 4)]))
    rows = {"x:0": np.zeros((8, 3, 7)), "fixed": np.zeros((1, 4))}
    told = shlex.split(command("model.onnx", proto, rows, 16))
    assert told == [
        *("trtexec", "--onnx=model.onnx", "--stronglyTyped", "--minShapes='x:0':1x3x7"),
        *("--optShapes='x:0':16x3x7", "--maxShapes='x:0':16x3x7"),
    ]
    del proto.graph.input[0]
    assert command("model.onnx", proto, rows, 16).endswith("--stronglyTyped")


@pytest.mark.parametrize("technique", [StaticInt8(), TensorrtInt8()])
def test_the_card_of_a_bundle_tells_of_tensorrt_where_it_takes_the_graph(toys, tmp_path, technique):
    made = technique.apply(toys["cnn"].model, bench_of(toys["cnn"], tmp_path))
    place = tmp_path / "bundle"
    fingerprints = np.zeros(0, np.uint32)
    bundle.write(made, place, {}, toys["cnn"].batch(4, 0), fingerprints, Target(), "card\n")
    card = (place / "card.md").read_text()
    line = (
        f"trtexec --onnx={bundle.read(place)['file']} --stronglyTyped --minShapes=image:1x3x16x16"
    )
    assert (line in card) == ("not run" in card) == isinstance(technique, TensorrtInt8)


# --- ranges ---------------------------------------------------------------------------------------


def test_ranges_are_those_of_all_examples_however_they_are_grouped(toys, tmp_path, monkeypatch):
    toy, bench = toys["cnn"], bench_of(toys["cnn"], tmp_path)
    graph = read(toy.model)
    names = [node.output[0] for node in graph.nodes if node.op_type in ("Conv", "Relu")]
    whole = calibration.ranges(graph, names, bench, 64, "percentile", 99.0)
    monkeypatch.setattr(calibration, "_BYTES_AT_ONCE", 50_000)  # one or two tensors at a time
    assert len(calibration._groups(graph, names, bench)) > 3
    other = bench_of(toy, tmp_path)
    again = calibration.ranges(graph, names, other, 64, "percentile", 99.0)
    for name in names:
        assert again[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6)
    values = run(toy.model, toy.batch(64, 1), names)
    exact = calibration.ranges(graph, names, other, 64, "minmax", 0)
    for name, value in zip(names, values, strict=True):
        assert exact[name] == pytest.approx((value.min(), value.max()), rel=1e-5, abs=1e-6)
        width = float(np.abs(value).max()) / calibration.HALF
        left, right = np.quantile(value, [0.005, 0.995]).tolist()
        assert whole[name][0] == pytest.approx(left, abs=2 * width)
        assert whole[name][1] == pytest.approx(right, abs=2 * width)


def bins_of(values: np.ndarray) -> np.ndarray:
    top = np.abs(values).max()
    return np.histogram(values, 2 * calibration.HALF, (-top, top))[0]


def test_entropy_clips_outliers_and_leaves_a_uniform_range():
    rng = np.random.default_rng(0)
    values = np.append(rng.standard_normal(100_000), 100.0)
    low, high = calibration.by_entropy(bins_of(values), values.min(), values.max())
    assert low == values.min()
    assert 3 < high < 20
    even = rng.uniform(0, 5, 100_000)
    assert calibration.by_entropy(bins_of(even), 0, 5)[1] > 4.9
    # A Relu's zeros, nine of ten values, must not decide.
    sparse = np.maximum(rng.standard_normal(100_000) - 1.3, 0)
    assert calibration.by_entropy(bins_of(sparse), 0, sparse.max())[1] > 0.6 * sparse.max()


def test_tensors_of_another_type_or_without_values_have_no_range(toys, tmp_path):
    toy, bench = toys["transformer"], bench_of(toys["transformer"], tmp_path)
    found = calibration.ranges(
        read(toy.model), ["input_ids", "Gather_0_out"], bench, 4, "minmax", 0
    )
    assert list(found) == ["Gather_0_out"]


def test_scale_and_zero_point_hold_zero_exactly():
    scale, zero = calibration.scale_of(-1.0, 3.0)
    assert zero == 64
    assert scale == pytest.approx(4 / 255)
    assert calibration.scale_of(0.0, 0.0) == (1, 0)
    assert calibration.scale_of(2.0, 5.0)[1] == 0


# --- sensitivity and exceptions -------------------------------------------------------------------


def fragile(seed: int = 0, harmed: int = 1) -> onnx.ModelProto:
    """Three products; the input of number `harmed` has a channel a thousand times as large as the
    others, which the weights turn back: one uint8 scale for all cannot hold both."""
    draft = Draft(seed)
    x = "x"
    for number in range(3):
        if number == harmed:
            factor = np.ones(64, np.float32)
            factor[7] = 1000
            x = draft.op("Mul", x, draft.constant(factor))
            weight = draft.weight(64, 64)
            values = numpy_helper.to_array(draft.weights[-1]) / factor[:, None]
            draft.weights[-1].CopyFrom(numpy_helper.from_array(values, weight))
            x = draft.op("MatMul", x, weight)
        else:
            x = draft.op("MatMul", x, draft.weight(64, 64))
        x = draft.op("Tanh", x)
    return draft.model("fragile", [port("x", "batch", 64)], [port("y", "batch", 64)])


def normal(rows: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 64), np.float32)}


@pytest.mark.parametrize("technique", [DynamicInt8, StaticInt8])
@pytest.mark.parametrize("harmed", [0, 2])
def test_the_exception_is_the_node_that_hurts(tmp_path, technique, harmed):
    toy = toy_of(fragile(harmed=harmed), tmp_path, normal)
    bench = bench_of(toy, tmp_path)
    products = [node.name for node in read(toy.model).nodes if node.op_type == "MatMul"]
    made = technique(exceptions=1).apply(toy.model, bench)
    assert made.lineage[-1].skipped[0][0] == products[harmed]
    assert "number 1" in made.lineage[-1].skipped[0][1]
    assert error(toy, made) < 0.2 * error(toy, technique().apply(toy.model, bench))


def test_the_imitation_agrees_with_the_real_thing(toys, tmp_path):
    """Each node's imitated error is that of the model in which ONNX Runtime quantizes only it."""
    toy, bench = toys["mlp"], bench_of(toys["mlp"], tmp_path)
    technique = DynamicInt8()
    graph = read(toy.model)
    split_gemms(graph, [node.name for node in graph.nodes if node.op_type == "Gemm"])
    products = [node for node in graph.nodes if node.op_type == "MatMul"]
    roundings = {
        node.name: sensitivity.Rounding(
            {1: rounded(graph.constant(node.input[1]), (1,))}, "dynamic"
        )
        for node in products
    }
    imitated = sensitivity.errors(graph, roundings, bench)
    rows = list(bench.batches("train", 1, 64))
    for name, guess in zip(roundings, imitated, strict=True):
        alone, parts = Graph(onnx.ModelProto.FromString(graph.proto.SerializeToString())), Parts()
        parts.touch(name)
        single = technique._quantized(alone, parts, bench).proto
        kept = [node.name for node in single.graph.node if node.op_type == "MatMul"]
        assert kept == [each.name for each in products if each.name != name]
        session = onnxruntime.InferenceSession(single.SerializeToString())
        right = [run(toy.model, row)[0] for row in rows]
        found = [session.run(None, {"x": row["x"]})[0] for row in rows]
        assert guess == pytest.approx(np.mean(np.square(np.subtract(found, right))), rel=0.05)


def test_the_ranking_is_remembered(toys, tmp_path):
    toy, bench = toys["mlp"], bench_of(toys["mlp"], tmp_path)
    DynamicInt8(exceptions=1).apply(toy.model, bench)
    known = dict(bench._known)
    assert [key.split()[0] for key in known] == ["sensitivity"]
    bench.remember = lambda key, compute: known[key]  # computes nothing any more
    DynamicInt8(exceptions=1).apply(toy.model, bench)


# --- bias correction and smoothing ----------------------------------------------------------------


def test_bias_correction_removes_the_mean_error_exactly(toys, tmp_path):
    """With the rounded weights in place of the right ones, each corrected layer alone has the
    right mean output again."""
    toy, bench = toys["cnn"], bench_of(toys["cnn"], tmp_path)
    graph = read(toy.model)
    name = "Conv_2"
    node = next(each for each in graph.nodes if each.name == name)
    coarse = rounded(graph.constant(node.input[1]), (), levels=3)
    right = run(toy.model, toy.batch(64, 1), [node.output[0]])[0].mean(axis=(0, 2, 3))

    def mean_with(fixed: Graph) -> np.ndarray:
        which = next(each for each in fixed.nodes if each.name == name)
        fixed.set_constant(which.input[1], coarse)
        return run(fixed.proto, toy.batch(64, 1), [which.output[0]])[0].mean(axis=(0, 2, 3))

    before = np.abs(mean_with(read(toy.model)) - right).max()
    correct_biases(graph, {name: coarse}, bench, 64)
    after = np.abs(mean_with(graph) - right).max()
    assert after < 1e-4 < 0.01 < before


def test_bias_correction_gives_a_bias_where_there_was_none(tmp_path):
    draft = Draft(11)
    draft.op("Conv", "image", draft.weight(8, 3, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)
    proto = draft.model("bare", [port("image", "batch", 3, 8, 8)], [port("y", "batch", 8, 8, 8)])
    toy = toy_of(
        proto,
        tmp_path,
        lambda rows, seed: {
            "image": np.random.default_rng(seed).uniform(0, 1, (rows, 3, 8, 8)).astype(np.float32)
        },
    )
    bench = bench_of(toy, tmp_path)
    gaps = []
    for corrected in (False, True):
        made = StaticInt8(per_channel=False, bias_correction=corrected).apply(toy.model, bench)
        batch = toy.batch(64, 1)
        gaps.append(
            np.abs((run(made, batch)[0] - run(toy.model, batch)[0]).mean(axis=(0, 2, 3))).max()
        )
    assert gaps[1] < 0.7 * gaps[0]


def test_smoothing_keeps_the_outputs_and_evens_the_channels(toys, tmp_path):
    toy, bench = toys["transformer"], bench_of(toys["transformer"], tmp_path)
    graph = read(toy.model)
    names = [
        n.name
        for n in graph.nodes
        if n.op_type == "MatMul" and graph.constant(n.input[1]) is not None
    ]
    before = len(graph.nodes)
    smooth(graph, names, 0.7, bench)
    batch = toy.batch(8, 9)
    np.testing.assert_allclose(run(graph.proto, batch)[0], run(toy.model, batch)[0], atol=1e-4)
    # Query, key and value share one division; every layer norm here is read by others too.
    assert (
        len(graph.nodes) - before == len({n.input[0] for n in graph.nodes if n.name in names}) == 4
    )


def test_smoothing_goes_into_a_layer_norm_that_nobody_else_reads(tmp_path):
    draft = Draft(13)
    draft.linear(draft.norm("x", 64), 64, 64)
    toy = toy_of(
        draft.model("alone", [port("x", "batch", 64)], [port("y", "batch", 64)]), tmp_path, normal
    )
    bench = bench_of(toy, tmp_path)
    graph = read(toy.model)
    before = len(graph.nodes)
    smooth(graph, [n.name for n in graph.nodes], 0.5, bench)
    assert len(graph.nodes) == before
    batch = toy.batch(8, 9)
    np.testing.assert_allclose(run(graph.proto, batch)[0], run(toy.model, batch)[0], atol=1e-4)
    assert not np.allclose(graph.constant(graph.nodes[0].input[1]), 1)


def test_smoothing_saves_a_channel_of_outliers(tmp_path):
    toy = toy_of(fragile(), tmp_path, normal)
    bench = bench_of(toy, tmp_path)
    rough = error(toy, DynamicInt8().apply(toy.model, bench))
    assert error(toy, DynamicInt8(smooth=0.7).apply(toy.model, bench)) < 0.3 * rough


def test_a_few_huge_weights_are_seen_and_said_or_smoothed_away(tmp_path):
    """A channel that is next to nothing in the data, with weights to match: found in a real
    sentence encoder, whose head a standardizer had been folded into."""
    draft = Draft(17)
    factor = np.ones(64, np.float32)
    factor[7] = 1e-30
    weight = draft.weight(64, 64)
    values = numpy_helper.to_array(draft.weights[-1]) / factor[:, None]
    draft.weights[-1].CopyFrom(numpy_helper.from_array(values, weight))
    x = draft.op("Mul", draft.op("Relu", draft.linear("x", 64, 64)), draft.constant(factor))
    draft.op("MatMul", x, weight)
    proto = draft.model("dead", [port("x", "batch", 64)], [port("y", "batch", 64)])
    toy = toy_of(proto, tmp_path, normal)
    bench = bench_of(toy, tmp_path)
    for technique in (DynamicInt8(), StaticInt8(), WeightOnly()):
        made = technique.apply(toy.model, bench)
        (skipped,) = made.lineage[-1].skipped
        assert "huge weights" in skipped[1]
        assert error(toy, made) < 0.05
    for technique in (DynamicInt8(smooth=0.8), StaticInt8(smooth=0.8)):
        made = technique.apply(toy.model, bench)
        assert made.lineage[-1].skipped == ()
        assert error(toy, made) < 0.05
