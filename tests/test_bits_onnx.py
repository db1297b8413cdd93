"""Training of weights that are stored in four bits and fewer."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from toy_onnx import answer, bench_of, build, linear, loaded

from sartor.contracts import Failed, Model, Step, Training
from sartor.lab import Toy, ToyBench
from sartor.prepare import allowed
from sartor.registry import runtime
from sartor.spec import Spec
from sartor.techniques._graph_onnx import Graph, read, write
from sartor.techniques._integers_onnx import pack_bits, unpack_bits
from sartor.techniques.levels_onnx import FewLevels
from sartor.techniques.prune_onnx import PruneMagnitude
from sartor.techniques.recover_onnx import Tune
from sartor.techniques.weightonly_onnx import WeightOnly
from sartor.testing_onnx import save_toys, toy_batch

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from sartor.techniques import _training_onnx as trainer  # noqa: E402
from sartor.techniques._autograd_onnx import GraphModule  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(trainer, "threads", lambda: 1)


def bench(name: str, folder) -> ToyBench:
    (folder / "toys").mkdir(exist_ok=True)
    path = save_toys(folder / "toys")[name]
    toy = Toy(name, runtime("onnx").open(path), functools.partial(toy_batch, name))
    return ToyBench(toy, folder / "bench", training=Training(60, 0.01, 10**12))


def constants(graph: Graph) -> dict[str, bytes]:
    return {name: tensor.SerializeToString() for name, tensor in graph.constants()}


def worn(made: ToyBench) -> Model:
    """The toy with noise on its matrices, in a file of its own: something to win back."""
    graph, rng = read(made.toy.model), np.random.default_rng(0)
    for name, tensor in list(graph.constants()):
        value = graph.constant(name)
        if tensor.data_type == TensorProto.FLOAT and value.ndim >= 2:
            noise = 0.5 * value.std() * rng.standard_normal(value.shape)
            graph.set_constant(name, (value + noise).astype(np.float32))
    step = Step(PruneMagnitude(), ("noise",))
    path = write(graph.proto, made.scratch, "worn")
    return dataclasses.replace(made.toy.model, payload=path, lineage=(step,))


def gap(made: ToyBench, model: Model) -> float:
    """The mean distance of the model's answers from the toy's, on rows that trained nothing."""
    batch = made.toy.batch(256, 77)
    right = answer(made.toy.model, batch)["logits"]
    return float(np.abs(answer(model, batch)["logits"] - right).mean())


def answered(made: ToyBench, stored: Model):
    """The graph and the module of a model that answers as ONNX Runtime, gradients taken; the rows,
    and its answers to them."""
    graph = read(stored)
    net = GraphModule(graph).eval()
    batch = made.toy.batch(5, 3)
    found = net({key: torch.from_numpy(value) for key, value in batch.items()})["logits"]
    assert found.detach().numpy() == pytest.approx(answer(stored, batch)["logits"], abs=1e-4)
    found.sum().backward()
    return graph, net, batch, found.detach().numpy()


# -- blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_what_was_packed_comes_back(bits):
    numbers = RNG.integers(0, 1 << bits, (3, 5, 7)).astype(np.uint8)
    packed = pack_bits(numbers, bits)
    assert packed.nbytes == 15 * -(-7 * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits)[..., :7], numbers)


@pytest.mark.parametrize(
    "how",
    [
        WeightOnly(matmul=4, embeddings=4, block=32),
        WeightOnly(matmul=4, embeddings=4, block=128, symmetric=False),
        WeightOnly(matmul=8, embeddings=8, block=32, symmetric=False, accuracy=1),
    ],
    ids=["4 bits", "zero points", "8 bits"],
)
@pytest.mark.parametrize("name", ["embedding", "mlp", "transformer"])
def test_blocks_answer_as_onnx_runtime_and_are_written_as_they_were(name, how, tmp_path):
    made = bench(name, tmp_path)
    stored = how.apply(made.toy.model, made)
    graph, net, _, _ = answered(made, stored)
    blocks = [weight for n, weight in zip(net.names, net.weights, strict=True) if n in net.rounded]
    assert len(blocks) == len(stored.lineage[-1].touched)
    assert all(weight.grad.abs().sum() > 0 for weight in blocks)
    before = constants(graph)
    net.write(graph)
    assert constants(graph) == before


@pytest.mark.parametrize("accuracy", [1, 4])
def test_inputs_that_fill_no_block_and_a_bias(accuracy, tmp_path):
    numbers = RNG.integers(0, 16, (12, 2, 32)).astype(np.uint8)
    numbers[:, 1, 18:] = 8  # fills the last block up
    weights = {
        "w": pack_bits(numbers, 4),
        "s": RNG.standard_normal((12, 2), np.float32),
        "b": RNG.standard_normal(12, np.float32),
    }
    facts = {"bits": 4, "block_size": 32, "K": 50, "N": 12, "accuracy_level": accuracy}
    inputs = ["x", "w", "s", "", "", "b"]
    node = helper.make_node("MatMulNBits", inputs, ["y"], "p", domain="com.microsoft", **facts)
    made = bench_of(build([node], {"x": ("n", 50)}, {"y": ("n", 12)}, weights), tmp_path)
    graph = read(made.toy.model)
    net = GraphModule(graph).eval()
    batch = made.toy.batch(9, 1)
    found = net({"x": torch.from_numpy(batch["x"])})["y"].detach().numpy()
    assert found == pytest.approx(answer(made.toy.model, batch)["y"], abs=1e-4)
    before = constants(graph)
    net.write(graph)
    assert constants(graph) == before


def test_a_form_of_blocks_that_is_not_known_is_said(tmp_path):
    weights = {"w": np.zeros((8, 1, 16), np.uint8), "s": np.ones((8, 1), np.float16)}
    facts = {"bits": 4, "block_size": 32, "K": 32, "N": 8}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "odd", domain="com.microsoft", **facts
    )
    proto = build([node], {"x": ("n", 32)}, {"y": ("n", 8)}, weights)
    with pytest.raises(Failed, match=r"MatMulNBits \(odd\) holds its weights in a form"):
        GraphModule(Graph(proto))


@pytest.mark.parametrize("block", [0, 16])
def test_four_bits_behind_a_dequantize_linear(block, tmp_path):
    """Per channel (0), and in blocks along the inputs."""
    shape = (3, 24) if block else (24,)
    facts = {"axis": 0, "block_size": block} if block else {"axis": 1}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], "d", **facts),
        helper.make_node("MatMul", ["x", "w"], ["y"], "p"),
    ]
    whole = RNG.integers(-8, 8, (48, 24))
    four = [
        helper.make_tensor(name, TensorProto.INT4, dims, values)
        for name, dims, values in (
            ("q", (48, 24), whole.ravel()),
            ("z", shape, RNG.integers(-2, 3, shape).ravel()),
        )
    ]
    weights = {"s": RNG.uniform(0.9, 1, shape).astype(np.float32)}
    proto = build(nodes, {"x": ("n", 48)}, {"y": ("n", 24)}, weights, opset=21)
    proto.ir_version = 10
    proto.graph.initializer.extend(four)
    net = GraphModule(graph := Graph(proto)).eval()
    feeds = {"x": RNG.standard_normal((5, 48), np.float32)}
    options = onnxruntime.SessionOptions()  # else it rounds the activations to int8 too
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    right = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)[0]
    found = net({"x": torch.from_numpy(feeds["x"])})["y"]
    assert found.detach().numpy() == pytest.approx(right, abs=1e-4)
    with torch.no_grad():
        net.weights[0].add_(0.4 * float(weights["s"].min()))  # less than half a step
    net.write(graph)
    assert np.array_equal(graph.constant("q").astype(int), whole)
    with torch.no_grad():
        net.weights[0].add_(0.8 * float(weights["s"].max()))
    net.write(graph)
    grown = np.minimum(whole + 1, 7)
    assert np.mean(graph.constant("q").astype(int) == grown) > 0.9
    assert graph.constant_tensor("q").data_type == TensorProto.INT4


@pytest.mark.parametrize("symmetric", [True, False])
def test_trained_four_bits_stay_four_bits_and_answer_better(symmetric, tmp_path):
    made = bench("mlp", tmp_path)
    how = WeightOnly(matmul=4, block=128, symmetric=symmetric)
    stored = how.apply(worn(made), made)
    assert Tune().refuse(stored, made) is None
    trained = Tune(effort=0.3, rate=0.01, teacher=1.0).apply(stored, made)
    before, after = read(stored), read(trained)
    engine, batch = runtime("onnx"), made.toy.batch(1, 0)
    assert [n.op_type for n in before.nodes] == [n.op_type for n in after.nodes]
    assert engine.size(trained) == engine.size(stored)
    assert engine.parts(trained, batch) == engine.parts(stored, batch)
    changed = {n for n, value in constants(after).items() if value != constants(before)[n]}
    assert {name for name in changed if name.endswith("_q4")}
    assert not {name for name in changed if name.endswith(("_scales", "_zeros"))}
    assert gap(made, trained) < 0.8 * gap(made, stored)


def test_zeros_that_rounding_made_are_trained_and_pruned_ones_are_not(tmp_path):
    made = bench("mlp", tmp_path)
    how = WeightOnly(matmul=4, block=128)
    pruned = PruneMagnitude(density=0.4, smallest=1024).apply(made.toy.model, made)
    held = {}
    for name, model in (("whole", made.toy.model), ("pruned", pruned)):
        training = trainer._Training(read(how.apply(model, made)), trainer.Plan(5), made)
        names = zip(training.net.names, training.masks, strict=True)
        held[name] = {each for each, mask in names if mask is not None}
    assert not held["whole"]
    assert {each.removesuffix("_q4") for each in held["pruned"]} >= {"weight_0"}


# -- two and three values --------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["ternary", "binary"])
def test_few_values_are_those_of_the_papers(values, tmp_path):
    weight = RNG.standard_normal((40, 60), np.float32)
    bench = bench_of(linear(weight), tmp_path)
    made = FewLevels(values=values, spared=0.0).apply(bench.toy.model, bench)
    got = answer(made, {"x": np.eye(40, dtype=np.float32)})["y"]
    for channel, expected in zip(got.T, weight.T, strict=True):
        size = np.abs(expected)
        kept = size >= 0 if values == "binary" else size > 0.7 * size.mean()
        right = np.where(kept, np.sign(expected) * size[kept].mean(), 0)
        assert channel == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize(("values", "bits"), [("ternary", 2), ("binary", 1)])
def test_few_values_take_few_bits_and_load_as_a_plain_graph(values, bits, tmp_path):
    bench = bench_of(linear(RNG.standard_normal((256, 256), np.float32)), tmp_path)
    made = FewLevels(values=values, spared=0.0).apply(bench.toy.model, bench)
    codes = next(t for t in onnx.load(made.payload).graph.initializer if "codes" in t.name)
    assert len(codes.raw_data) == 256 * 256 * bits // 8
    assert runtime("onnx").size(made) < 256 * 256 * bits // 8 + 4000
    assert loaded(made, tmp_path) == loaded(bench.toy.model, tmp_path)


@pytest.mark.parametrize("values", ["ternary", "binary"])
@pytest.mark.parametrize("name", ["cnn", "mlp", "transformer"])
def test_few_values_answer_as_onnx_runtime_and_are_written_as_they_were(name, values, tmp_path):
    made = bench(name, tmp_path)
    stored = FewLevels(values=values, spared=0.0).apply(made.toy.model, made)
    graph, net, batch, found = answered(made, stored)
    assert len(net.rounded) == len(stored.lineage[-1].touched)
    assert all(weight.grad is not None for weight in net.weights)
    before = constants(graph)
    net.write(graph)
    after = constants(graph)
    assert all(after[name] == before[name] for name in before if "scale" not in name)
    assert answer(stored, batch)["logits"] == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize("values", ["ternary", "binary"])
def test_trained_few_values_stay_few_and_answer_better(values, tmp_path):
    made = bench("mlp", tmp_path)
    stored = FewLevels(values=values, spared=0.0).apply(made.toy.model, made)
    trained = Tune(effort=1.0, rate=0.01, teacher=1.0).apply(stored, made)
    before, after = read(stored), read(trained)
    assert runtime("onnx").size(trained) == runtime("onnx").size(stored)
    net = GraphModule(after).eval()
    for name, weight in zip(net.names, net.weights, strict=True):
        if name in net.rounded:
            channels = net.rounded[name].rounded(weight).detach().numpy().T
            most = {"ternary": 3, "binary": 2}[values]
            assert all(len(np.unique(np.round(each, 6))) <= most for each in channels)
    scales = [name for name in constants(before) if "scale" in name]
    assert scales
    assert all(constants(before)[name] != constants(after)[name] for name in scales)
    assert gap(made, trained) < gap(made, stored)


@pytest.mark.parametrize("values", ["ternary", "binary"])
def test_what_crossed_a_threshold_is_written_as_another_value(values, tmp_path):
    made = bench("cnn", tmp_path)
    stored = FewLevels(values=values, spared=0.0).apply(made.toy.model, made)
    net = GraphModule(graph := read(stored)).eval()
    with torch.no_grad():
        for name, weight in zip(net.names, net.weights, strict=True):
            if name in net.rounded:
                weight.add_(
                    torch.from_numpy(RNG.standard_normal(weight.shape, np.float32)), alpha=0.1
                )
    before = constants(graph)
    net.write(graph)
    changed = {name for name, value in constants(graph).items() if value != before[name]}
    assert len([name for name in changed if "codes" in name]) == len(net.rounded)
    moved = dataclasses.replace(stored, payload=write(graph.proto, made.scratch, "moved"))
    batch = made.toy.batch(5, 3)
    found = net({key: torch.from_numpy(value) for key, value in batch.items()})["logits"]
    assert answer(moved, batch)["logits"] == pytest.approx(found.detach().numpy(), abs=1e-3)


def test_what_harms_most_is_spared(tmp_path):
    made = bench("mlp", tmp_path)
    stored = FewLevels(spared=0.3).apply(made.toy.model, made)
    assert len(stored.lineage[-1].touched) == 1
    assert any("spared" in reason for _, reason in stored.lineage[-1].skipped)
    whole = FewLevels(spared=0.0).apply(made.toy.model, made)
    assert gap(made, stored) < gap(made, whole)
    assert "more than what spared=0.95 leaves" in FewLevels().refuse(made.toy.model, made)


def test_the_search_takes_it_only_where_it_is_named():
    facts = {"model": "m.onnx", "data": "d.npz"}
    asked = [{"technique": "few-levels"}, {"technique": "tune"}]
    assert "few-levels" not in allowed(Spec(**facts), "onnx")
    assert "few-levels" in allowed(Spec(**facts, techniques=("few-levels", "tune")), "onnx")
    assert "few-levels" in allowed(Spec(**facts, recipes=(tuple(asked),)), "onnx")
