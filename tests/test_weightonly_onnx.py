"""Weights in blocks and embedding tables by rows: exact arithmetic on what was rounded."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sartor.contracts import Model
from sartor.lab import Toy, ToyBench
from sartor.registry import runtime
from sartor.techniques._graph_onnx import read
from sartor.techniques.quantize_onnx import DynamicInt8, StaticInt8
from sartor.techniques.weightonly_onnx import Blocks, WeightOnly
from sartor.testing_onnx import Draft, save_toys, toy_batch


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, Toy]:
    paths = save_toys(tmp_path_factory.mktemp("toys"))
    return {
        name: Toy(name, runtime("onnx").open(path), functools.partial(toy_batch, name))
        for name, path in paths.items()
    }


def open_proto(proto: onnx.ModelProto, folder: Path) -> Model:
    onnx.save(proto, folder / "made.onnx")
    return runtime("onnx").open(folder / "made.onnx")


def bench_of(toy: Toy, folder: Path, **facts) -> ToyBench:
    return ToyBench(toy, folder / "scratch", **facts)


def run(model: Model, feeds) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.payload)
    return session.run(None, {port.name: feeds[port.name] for port in session.get_inputs()})[0]


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.payload).graph.node)


def port(name: str, kind: int, *shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def product(inputs: int, outputs: int, seed: int = 0) -> tuple[onnx.ModelProto, np.ndarray]:
    draft = Draft(seed)
    weight = draft.weight(inputs, outputs)
    draft.op("MatMul", "x", weight)
    proto = draft.model(
        "product",
        [port("x", TensorProto.FLOAT, "batch", inputs)],
        [port("y", TensorProto.FLOAT, "batch", outputs)],
    )
    return proto, onnx.numpy_helper.to_array(draft.weights[0])


def lookup(
    rows: int, width: int, kind: int = TensorProto.INT64
) -> tuple[onnx.ModelProto, np.ndarray]:
    draft = Draft(1)
    draft.op("Gather", draft.weight(rows, width, fan=2), "ids")
    proto = draft.model(
        "lookup",
        [port("ids", kind, "batch", "words")],
        [port("y", TensorProto.FLOAT, "batch", "words", width)],
    )
    return proto, onnx.numpy_helper.to_array(draft.weights[0])


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_is_within_half_a_step(bits, symmetric):
    matrix = np.random.default_rng(0).standard_normal((7, 100)).astype(np.float32)
    blocks = Blocks(matrix, 32, bits, symmetric)
    step = np.repeat(np.abs(blocks.scales), 32, axis=1)[:, :100]
    # Only the value opposite the largest magnitude can lie beyond the last step, by one at most.
    limit = 1.01 * step if symmetric else 0.51 * step
    assert (np.abs(blocks.rounded() - matrix) <= limit).all()
    close = np.abs(blocks.rounded() - matrix) <= 0.51 * step
    assert close.mean() > 0.97


def test_zeros_stay_zeros_and_the_largest_is_exact():
    matrix = np.zeros((2, 64), np.float32)
    matrix[1, 5] = 3.5
    for bits in (4, 8):
        for symmetric in (True, False):
            np.testing.assert_array_equal(Blocks(matrix, 32, bits, symmetric).rounded(), matrix)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("inputs", [64, 100])  # 100 is no whole number of blocks
def test_products_are_those_of_the_rounded_weights(tmp_path, bits, symmetric, inputs):
    proto, weight = product(inputs, 33)
    model = open_proto(proto, tmp_path)
    x = np.random.default_rng(2).standard_normal((5, inputs), np.float32)
    bench = bench_of(Toy("product", model, lambda rows, seed: {"x": x}), tmp_path)
    technique = WeightOnly(matmul=bits, block=32, symmetric=symmetric, accuracy=1)
    made = technique.apply(model, bench)
    assert operators(made)["MatMulNBits"] == 1
    expected = x @ Blocks(weight.T, 32, bits, symmetric).rounded().T
    np.testing.assert_allclose(run(made, {"x": x}), expected, atol=1e-4)
    assert made.payload.stat().st_size < model.payload.stat().st_size * (0.45 if bits == 8 else 0.3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [64, 50])
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_rows_are_those_of_the_rounded_table(tmp_path, bits, symmetric, width, kind):
    proto, table = lookup(40, width, kind)
    model = open_proto(proto, tmp_path)
    ids = np.array([[0, 39, 7], [-1, 3, 3]], helper.tensor_dtype_to_np_dtype(kind))
    bench = bench_of(Toy("lookup", model, lambda rows, seed: {"ids": ids}), tmp_path)
    made = WeightOnly(embeddings=bits, symmetric=symmetric, block=32).apply(model, bench)
    block = {8: 64, 4: 32}[bits]
    expected = Blocks(table, block, bits, symmetric).rounded()[ids]
    np.testing.assert_allclose(run(made, {"ids": ids}), expected, atol=1e-6)
    if bits == 8:
        assert np.abs(expected - table[ids]).max() < 0.02 * np.abs(table).max()


# --- whole models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "transformer", "several", "embedding", "external"])
def test_models_shrink_and_answer_alike(toys, tmp_path, name):
    toy = toys[name]
    made = WeightOnly().apply(toy.model, bench_of(toy, tmp_path))
    batch = toy.batch(16, 9)
    right, found = run(toy.model, batch), run(made, batch)
    assert np.linalg.norm(found - right) < 0.03 * np.linalg.norm(right)
    assert runtime("onnx").size(made) < 0.6 * runtime("onnx").size(toy.model)
    onnx.checker.check_model(onnx.load(made.payload))


def test_tables_alone_then_eight_bit_arithmetic_or_the_reverse(toys, tmp_path):
    toy, bench = toys["transformer"], bench_of(toys["transformer"], tmp_path)
    rows = WeightOnly(matmul=0)
    batch = toy.batch(16, 9)
    right = run(toy.model, batch)
    for quantizer in (DynamicInt8(), StaticInt8()):
        once = rows.apply(quantizer.apply(toy.model, bench), bench)
        other = quantizer.apply(rows.apply(toy.model, bench), bench)
        for made in (once, other):
            assert operators(made)["GatherBlockQuantized"] == 1
            assert np.linalg.norm(run(made, batch) - right) < 0.1 * np.linalg.norm(right)
            assert runtime("onnx").size(made) < 0.45 * runtime("onnx").size(toy.model)


def test_it_takes_what_dynamic_quantization_left(toys, tmp_path):
    toy, bench = toys["transformer"], bench_of(toys["transformer"], tmp_path)
    dynamic = DynamicInt8(exceptions=2).apply(toy.model, bench)
    spared = {name for name, reason in dynamic.lineage[-1].skipped if "exception" in reason}
    made = WeightOnly(embeddings=0).apply(dynamic, bench)
    assert set(made.lineage[-1].touched) == spared
    assert operators(made)["MatMulNBits"] == 2
    assert operators(made)["MatMulInteger"] == 4
    assert operators(made)["Gather"] == 1


def test_exceptions_stay_in_float(toys, tmp_path):
    toy, bench = toys["transformer"], bench_of(toys["transformer"], tmp_path)
    made = WeightOnly(matmul=4, embeddings=0, exceptions=2).apply(toy.model, bench)
    assert operators(made)["MatMulNBits"] == 4
    reasons = [reason for _, reason in made.lineage[-1].skipped if "exception" in reason]
    assert sorted(reasons) == [f"an exception: number {n} in harm to the answer" for n in (1, 2)]
    batch = toy.batch(16, 9)
    right = run(toy.model, batch)
    worse = run(WeightOnly(matmul=4, embeddings=0).apply(toy.model, bench), batch)
    assert np.linalg.norm(run(made, batch) - right) < np.linalg.norm(worse - right)


def test_parts_are_a_partition_of_products_and_tables(toys, tmp_path):
    toy = toys["transformer"]
    (step,) = WeightOnly().apply(toy.model, bench_of(toy, tmp_path)).lineage
    names = [*step.touched, *(name for name, _ in step.skipped)]
    nodes = [n.name for n in read(toy.model).nodes if n.op_type in ("MatMul", "Gemm", "Gather")]
    assert sorted(names) == sorted(nodes)


# --- what stays, and refusals ---------------------------------------------------------------------


def test_a_table_that_others_read_stays(tmp_path):
    draft = Draft(4)
    table = draft.weight(64, 32, fan=2)
    rows = draft.op("Gather", table, "ids")
    turned = draft.op("Transpose", table, perm=[1, 0])
    draft.op("MatMul", rows, turned)
    proto = draft.model(
        "tied",
        [port("ids", TensorProto.INT64, "batch", "words")],
        [port("y", TensorProto.FLOAT, "batch", "words", 64)],
    )
    model = open_proto(proto, tmp_path)
    bench = bench_of(
        Toy("tied", model, lambda rows, seed: {"ids": np.zeros((rows, 3), int)}), tmp_path
    )
    assert WeightOnly().refuse(model, bench).startswith("nothing to quantize")


def test_two_lookups_in_one_table_share_it(tmp_path):
    draft = Draft(4)
    table = draft.weight(64, 32, fan=2)
    draft.op("Add", draft.op("Gather", table, "one"), draft.op("Gather", table, "two"))
    ids = [port(name, TensorProto.INT64, "batch", "words") for name in ("one", "two")]
    proto = draft.model("both", ids, [port("y", TensorProto.FLOAT, "batch", "words", 32)])
    model = open_proto(proto, tmp_path)
    feeds = {"one": np.array([[1, 2]]), "two": np.array([[3, 2]])}
    made = WeightOnly().apply(
        model, bench_of(Toy("both", model, lambda rows, seed: feeds), tmp_path)
    )
    assert operators(made)["GatherBlockQuantized"] == 2
    assert len(onnx.load(made.payload).graph.initializer) == 2
    np.testing.assert_allclose(run(made, feeds), run(model, feeds), atol=0.05)


def test_rows_of_an_odd_width_are_not_packed_in_four_bits(tmp_path):
    model = open_proto(lookup(40, 33)[0], tmp_path)
    bench = bench_of(
        Toy("odd", model, lambda rows, seed: {"ids": np.zeros((rows, 3), int)}), tmp_path
    )
    assert "odd width" in WeightOnly(embeddings=4).refuse(model, bench)
    assert WeightOnly(embeddings=8).refuse(model, bench) is None


def test_refusals_are_sentences(toys, tmp_path):
    toy, bench = toys["transformer"], bench_of(toys["transformer"], tmp_path)
    assert "torch" in WeightOnly().refuse(Model("torch", None, toy.model.signature), bench)
    assert "matmul=0" in WeightOnly(matmul=0, embeddings=0).refuse(toy.model, bench)
    done = WeightOnly().apply(toy.model, bench)
    assert WeightOnly().refuse(done, bench).startswith("nothing to quantize")
    assert "leaves none of the 6" in WeightOnly(exceptions=8).refuse(toy.model, bench)
    bare = bench_of(toy, tmp_path, parts=("search",))
    assert "train split" in WeightOnly(exceptions=1).refuse(toy.model, bare)
    assert WeightOnly().refuse(toy.model, bare) is None
    cnn = toys["cnn"]
    assert "nothing to quantize" in WeightOnly().refuse(cnn.model, bench_of(cnn, tmp_path))
