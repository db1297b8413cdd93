"""Training of ONNX graphs: the graph as a torch module, the trainer, recovery, integers trained."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from toy_onnx import answer, bench_of, build

from sartor.contracts import Failed, Model, Step, Training
from sartor.lab import Toy, ToyBench
from sartor.pace import Pace
from sartor.registry import runtime
from sartor.techniques._graph_onnx import Graph, read, write
from sartor.techniques.cluster_onnx import ClusterWeights
from sartor.techniques.prune_onnx import PruneMagnitude
from sartor.techniques.quantize_onnx import StaticInt8
from sartor.techniques.recover_onnx import Recover, Tune
from sartor.techniques.sparsify_onnx import GradualPrune
from sartor.testing_onnx import Draft, _port, save_toys, toy_batch, toy_models

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from stopping import stopped  # noqa: E402

from sartor.techniques import _training_onnx as trainer  # noqa: E402
from sartor.techniques._autograd_onnx import GraphModule  # noqa: E402

TOYS = sorted(toy_models())


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(trainer, "threads", lambda: 1)


def bench(name: str, folder, **facts) -> ToyBench:
    (folder / "toys").mkdir(exist_ok=True)
    path = save_toys(folder / "toys")[name]
    toy = Toy(name, runtime("onnx").open(path), functools.partial(toy_batch, name))
    return ToyBench(toy, folder / "bench", training=Training(120, 0.01, 10**12), **facts)


def noisy(made: ToyBench, share: float = 0.3) -> Graph:
    """The toy with noise on its matrices."""
    graph, rng = read(made.toy.model), np.random.default_rng(0)
    for name, tensor in list(graph.constants()):
        value = graph.constant(name)
        if tensor.data_type == 1 and value.ndim >= 2:
            noise = share * value.std() * rng.standard_normal(value.shape)
            graph.set_constant(name, (value + noise).astype(np.float32))
    return graph


# -- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_the_module_answers_as_the_graph_and_every_weight_gets_a_gradient(name):
    proto = toy_models()[name]
    net = GraphModule(Graph(proto)).eval()
    batch = toy_batch(name, 5, 1)
    found = net({key: torch.from_numpy(value) for key, value in batch.items()})
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for port, right in zip(session.get_outputs(), session.run(None, dict(batch)), strict=True):
        assert found[port.name].detach().numpy() == pytest.approx(right, abs=1e-4)
    sum(value.float().sum() for value in found.values()).backward()
    assert all(weight.grad is not None for weight in net.weights)


def test_operators_of_shape_pooling_and_padding_answer_as_onnx_runtime():
    draft = Draft(3)
    x = draft.conv("x", 4, 8)
    uneven = draft.weight(8, 8, 3, 3)
    x = draft.op("Conv", x, uneven, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2])
    x = draft.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    x = draft.op("MaxPool", x, kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[1, 1])
    low, high = (draft.constant(np.float32(each)) for each in (-1, 1.5))
    x = draft.op("Clip", x, low, high)
    pads = draft.constant(np.array([0, 0, 1, 0, 0, 0, 0, 2]))
    x = draft.op("Pad", x, pads, draft.constant(np.float32(0.5)))
    starts, ends, axes, steps = (
        draft.constant(np.array(each)) for each in ([-1, 1], [-100, 6], [1, 2], [-2, 2])
    )
    x = draft.op("Slice", x, starts, ends, axes, steps)
    sizes = draft.constant(np.array([1, 3]))
    draft.op("Split", x, sizes, outputs=("first", "second"), axis=1)
    x = draft.op("Concat", "second", "first", axis=1)
    scales = draft.constant(np.array([1, 1, 2, 2], np.float32))
    x = draft.op(
        "Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel"
    )
    x = draft.op("HardSwish", draft.op("LeakyRelu", x, alpha=0.2))
    first = draft.op("Gather", draft.op("Shape", x), draft.constant(np.array(0)), axis=0)
    x = draft.op("Add", x, draft.op("Cast", first, to=1))
    x = draft.op("ReduceMean", x, axes=[2], keepdims=0)
    draft.op("LogSoftmax", draft.op("Flatten", x), axis=-1)
    proto = draft.model("shapes", [_port("x", "n", 4, 9, 9)], [_port("y", "n", "m")])
    net = GraphModule(Graph(proto)).eval()
    batch = {"x": np.random.default_rng(0).standard_normal((3, 4, 9, 9), np.float32)}
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    right = session.run(None, batch)[0]
    found = net({"x": torch.from_numpy(batch["x"])})["y"].detach().numpy()
    assert found.shape == right.shape
    assert found == pytest.approx(right, abs=1e-5)


def test_an_operator_that_cannot_be_followed_is_named(tmp_path):
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["h"], name="odd", domain="com.microsoft"),
        helper.make_node("Relu", ["h"], ["y"], name="end"),
    ]
    weights = {"w": np.eye(8, dtype=np.float32)}
    made = bench_of(build(nodes, {"x": ("n", 8)}, {"y": ("n", 8)}, weights), tmp_path)
    with pytest.raises(Failed, match=r"FusedMatMul \(odd\)"):
        GraphModule(read(made.toy.model))
    assert "FusedMatMul (odd)" in trainer.untrainable(made.toy.model, made, 1.0)


# -- the trainer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn", "mlp", "several", "transformer"])
def test_training_wins_back_what_noise_took(name, tmp_path):
    made = bench(name, tmp_path)
    clean = trainer._Training(read(made.toy.model), trainer.Plan(60), made).judged()
    graph = noisy(made, 0.6)
    done = trainer.train(graph, trainer.Plan(60), made)
    assert done.after - clean < 0.7 * (done.before - clean)
    again = trainer.train(graph, trainer.Plan(10), made)  # what was written is what was trained
    assert again.before == pytest.approx(done.after, rel=1e-3)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    made = bench("mlp", tmp_path)
    whole, cut = noisy(made), noisy(made)
    trainer.train(whole, trainer.Plan(40), made)
    stopped(lambda: trainer.train(noisy(made), trainer.Plan(40), made), 23)
    step, done = trainer._Training.step, []
    monkeypatch.setattr(
        trainer._Training, "step", lambda self, at: (done.append(at), step(self, at))[1]
    )
    trainer.train(cut, trainer.Plan(40), made)
    assert done == list(range(23, 40))
    assert cut.digest() == whole.digest()


def test_a_loss_that_rises_is_given_up_and_counted_over_an_interruption(tmp_path, monkeypatch):
    made = bench("mlp", tmp_path)
    step = trainer._Training.step
    stops: list[int] = []

    def counted(self, at):
        if at in stops:
            raise KeyboardInterrupt
        self.at = at
        return step(self, at)

    monkeypatch.setattr(trainer._Training, "step", counted)
    monkeypatch.setattr(trainer._Training, "judged", lambda self: getattr(self, "at", -1) + 1.0)
    whole = trainer.train(noisy(made), trainer.Plan(40), made)
    assert (whole.steps, whole.before, whole.after) == (20, 0.0, 0.0)
    monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0.0)
    stops.append(17)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(noisy(made), trainer.Plan(40), made)
    stops.clear()
    assert trainer.train(noisy(made), trainer.Plan(40), made) == whole


def test_a_training_that_is_too_slow_says_how_slow_and_leaves_nothing(tmp_path, monkeypatch):
    made = bench("mlp", tmp_path, patience=0.0)
    monkeypatch.setattr(trainer, "_TELL_SECONDS", 0.0)
    monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0.0)
    with pytest.raises(Failed, match=r"s more, and -?\d+ s may go into it"):
        trainer.train(noisy(made), trainer.Plan(40), made)
    pace = Pace.read(made.scratch)
    assert (pace.done, pace.steps) == (30, 40)
    assert pace.seconds > 0
    assert pace.left == pytest.approx(pace.seconds / 4)
    assert not list(made.scratch.parent.rglob("*.partial"))


def test_a_loss_that_is_no_number_is_said(tmp_path):
    made = bench("mlp", tmp_path)
    graph = read(made.toy.model)
    for name, _ in list(graph.constants()):
        graph.set_constant(name, np.full_like(graph.constant(name), 1e30))
    with pytest.raises(Failed, match=r"the loss is (nan|inf) at step 1 of 20"):
        trainer.train(graph, trainer.Plan(20), made)


def test_zeros_stay_zeros(tmp_path):
    made = bench("cnn", tmp_path)
    pruned = PruneMagnitude(density=0.4, smallest=1024).apply(made.toy.model, made)
    trained = Recover(effort=0.3).apply(pruned, made)
    before, after = read(pruned), read(trained)
    changed = 0
    for name in pruned.lineage[-1].touched:
        zero = before.constant(name) == 0
        assert np.all(after.constant(name)[zero] == 0)
        changed += np.any(after.constant(name) != before.constant(name))
    assert changed


def test_torch_is_left_as_it_was_found(tmp_path):
    made = bench("mlp", tmp_path)
    before = torch.get_num_threads(), torch.get_rng_state(), torch.is_grad_enabled()
    trainer.train(noisy(made), trainer.Plan(5), made)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.is_grad_enabled() == before[2]


# -- the techniques ------------------------------------------------------------------------------


def worn(made: ToyBench, share: float = 0.5) -> Model:
    """The toy with noise on its matrices, in a file of its own: something to win back."""
    noised = write(noisy(made, share).proto, made.scratch, "worn")
    step = Step(PruneMagnitude(), ("noise",))
    return dataclasses.replace(made.toy.model, payload=noised, lineage=(step,))


def gap(made: ToyBench, model: Model) -> float:
    """The mean distance of the model's answers from the toy's, on rows that trained nothing."""
    batch = made.toy.batch(256, 77)
    return float(
        np.abs(answer(model, batch)["logits"] - answer(made.toy.model, batch)["logits"]).mean()
    )


@pytest.mark.parametrize("name", [pytest.param("cnn", marks=pytest.mark.slow), "mlp"])
def test_trained_integers_are_integers_that_answer_better(name, tmp_path):
    made = bench(name, tmp_path)
    rounded = StaticInt8(examples=32).apply(worn(made), made)
    trained = Tune(effort=1.0, rate=0.01, teacher=1.0).apply(rounded, made)
    before, after = read(rounded), read(trained)
    assert [n.op_type for n in before.nodes] == [n.op_type for n in after.nodes]
    whole = [n for n, t in before.constants() if t.data_type == onnx.TensorProto.INT8]
    assert any(np.any(before.constant(n) != after.constant(n)) for n in whole)
    assert all(after.constant(n).dtype == np.int8 for n in whole)
    assert gap(made, trained) < 0.8 * gap(made, rounded)


@pytest.mark.parametrize("count", [16, 256])
def test_trained_centres_stay_centres(count, tmp_path):
    made = bench("mlp", tmp_path)
    stored = ClusterWeights(clusters=count, smallest=1024).apply(worn(made), made)
    trained = Tune(effort=1.0, rate=0.03, teacher=1.0).apply(stored, made)
    assert runtime("onnx").size(trained) == runtime("onnx").size(stored)
    before, after = read(stored), read(trained)
    books = [n for n, t in before.constants() if "codebook" in n]
    assert books
    assert all(np.any(before.constant(n) != after.constant(n)) for n in books)
    assert gap(made, trained) < gap(made, stored)


def test_what_training_needs_is_said(tmp_path):
    made = bench("mlp", tmp_path)
    pruned = PruneMagnitude(density=0.4, smallest=1024).apply(made.toy.model, made)
    assert "nothing was changed" in Recover().refuse(made.toy.model, made)
    assert "static-int8" in Tune().refuse(made.toy.model, made)
    assert Recover().refuse(pruned, made) is None
    made.training = Training()
    assert "too short" in Recover().refuse(pruned, made)
    made.training = Training(120, 100.0, 1)
    assert "its training takes 3600 s, and 900 s may go into it" in Recover().refuse(pruned, made)
    made.training, made.parts = Training(120, 0.01, 1), ("search",)
    assert "and there are 0" in Recover().refuse(pruned, made)


def test_a_smaller_network_gets_more_steps(tmp_path):
    made = bench("mlp", tmp_path)
    graph = read(made.toy.model)
    work = trainer.work(graph, made)
    assert work == 32 * 64 + 64 * 64 + 64 * 4 + 80 * (4 * 64 + 2 * 4)  # what each gives
    made.training = Training(100, 0.01, 2 * work)
    assert trainer.granted(graph, made, 0.3) == 60
    made.training = Training(100, 0.01, 100 * work)
    assert trainer.granted(graph, made, 0.3) == 120  # overhead leaves a quarter of the cost


def test_work_of_a_recurrence_whose_outputs_are_left_out(tmp_path):
    made = bench("lstm", tmp_path)
    proto = onnx.load(made.toy.model.payload)
    lstm = next(each for each in proto.graph.node if each.op_type == "LSTM")
    whole = trainer.work(Graph(proto), made)
    lstm.output[:] = ["", lstm.output[1]]
    assert trainer.work(Graph(proto), made) <= whole


def test_zeros_grow_to_the_density_that_was_asked(tmp_path):
    made = bench("cnn", tmp_path)
    pruned = GradualPrune(density=0.25, effort=1.0).apply(made.toy.model, made)
    graph, step = read(pruned), pruned.lineage[-1]
    values = [graph.constant(name) for name in step.touched]
    kept = sum(np.count_nonzero(v) for v in values) / sum(v.size for v in values)
    assert kept == pytest.approx(0.25, abs=0.01)
    assert dict(step.skipped)


@pytest.mark.parametrize("name", [pytest.param("cnn", marks=pytest.mark.slow), "mlp"])
def test_of_every_four_inputs_two_stay(name, tmp_path):
    made = bench(name, tmp_path)
    pruned = GradualPrune(pattern="2:4", effort=1.0).apply(made.toy.model, made)
    graph = read(pruned)
    for weight in pruned.lineage[-1].touched:
        value = graph.constant(weight)
        inputs = np.moveaxis(value, 1 if value.ndim == 4 else 0, -1)
        assert np.all(np.count_nonzero(inputs.reshape(-1, 4), axis=1) <= 2)
    recovered = Recover(effort=0.3).apply(pruned, made)
    for weight in pruned.lineage[-1].touched:
        assert np.all(read(recovered).constant(weight)[graph.constant(weight) == 0] == 0)
