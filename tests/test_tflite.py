"""TensorFlow Lite: what is converted and what is refused, what is rounded and what is spared, and
whole runs for a target that takes nothing else."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")
pytest.importorskip("ai_edge_quantizer", reason="the extra tflite is not installed")

from sartor import testing_onnx, testing_tflite, testing_torch
from sartor.contracts import Failed, Model, Target
from sartor.lab import Toy, ToyBench, alike, apply
from sartor.registry import plugins, runtime, techniques
from sartor.tflite_file import read

CONVERTS = not any(each.missing for each in plugins("techniques") if each.name == "tflite_onnx")
needs_converter = pytest.mark.skipif(
    not CONVERTS, reason="litert_torch is not installed: the extra tflite-convert"
)


def toy(name: str, folder: Path) -> Toy:
    path = testing_tflite.save_toys(folder, only=(name,))[name]
    batch = functools.partial(testing_tflite.toy_batch, name)
    return Toy(name, runtime("tflite").open(path), batch)


# -- rounded ---------------------------------------------------------------------------------------


def rounded(name: str, which: str, folder: Path, **settings: Any) -> tuple[Toy, Model]:
    (folder / "toys").mkdir()
    mine = toy(name, folder / "toys")
    made = apply(techniques("tflite")[which](**settings), mine.model, ToyBench(mine, folder / "b"))
    assert isinstance(made, Model), made
    return mine, made


def test_the_operator_whose_rounding_harms_most_is_spared_first(tmp_path: Path) -> None:
    """What the last layer multiplies by a thousand is always zero: it does no harm but that all its
    other weights are lost where they share a scale with it."""
    (tmp_path / "toys").mkdir()
    mine = toy("mlp", tmp_path / "toys")
    from sartor.tflite_write import packed, unpacked

    model = unpacked(Path(mine.model.payload).read_bytes())
    graph = model.subgraphs[0]
    for at, place, first, value in ((1, 2, 1, -1e4), (2, 1, 64, 1e3)):
        buffer = model.buffers[graph.tensors[graph.operators[at].inputs[place]].buffer]
        values = np.frombuffer(bytes(buffer.data), np.float32).copy()
        values[::first][: 1 if first == 1 else None] = value  # a bias; a column of weights
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    path = tmp_path / "toys" / "rough.tflite"
    path.write_bytes(packed(model))
    rough = Toy("rough", runtime("tflite").open(path), mine.batch)
    bench = ToyBench(rough, tmp_path / "b")
    made = apply(techniques("tflite")["weights-only"](bits=4, exceptions=1), rough.model, bench)
    assert isinstance(made, Model), made
    (spared,) = [part for part, why in made.lineage[-1].skipped if "changes the answer" in why]
    assert spared == "fully_connected_2"
    assert len(made.lineage[-1].touched) == 2


def test_four_bits_in_blocks_are_smaller_than_eight(tmp_path: Path) -> None:
    sizes = {}
    for bits in (8, 4):
        place = tmp_path / str(bits)
        place.mkdir()
        block = 32 if bits == 4 else 0
        _, made = rounded("attention", "dynamic-range", place, bits=bits, block=block)
        sizes[bits] = Path(made.payload).stat().st_size
    assert sizes[4] < 0.9 * sizes[8]


def test_integers_at_the_ends_are_in_the_file_and_floats_in_the_session(tmp_path: Path) -> None:
    mine, made = rounded("cnn", "full-int8", tmp_path, interface="integers")
    inside = read(Path(made.payload)).signature
    assert [p.dtype for p in (*inside.inputs, *inside.outputs)] == ["int8", "int8"]
    assert made.settings == {"interface": "float32"}
    assert made.signature == mine.model.signature
    batch = mine.batch(1, 5)
    start = runtime("tflite").start
    with start(mine.model, Target()) as one, start(made, Target()) as two:
        assert alike(one(batch), two(batch)) > 0.99


def test_what_is_rounded_already_is_refused(tmp_path: Path) -> None:
    mine, made = rounded("mlp", "weights-only", tmp_path)
    for name, cls in techniques("tflite").items():
        reason = cls().refuse(made, ToyBench(mine, tmp_path / name))
        assert reason == "no operator has weights in float"


# -- converted -------------------------------------------------------------------------------------


def onnx_bench(name: str, folder: Path, **facts: Any) -> tuple[Toy, ToyBench]:
    path = testing_onnx.save_toys(folder)[name]
    batch = functools.partial(testing_onnx.toy_batch, name)
    mine = Toy(name, runtime("onnx").open(path), batch)
    return mine, ToyBench(mine, folder / "bench", **facts)


@needs_converter
def test_a_free_length_is_refused_by_name_until_the_target_fixes_it(tmp_path: Path) -> None:
    mine, bench = onnx_bench("transformer", tmp_path)
    cls = techniques("onnx")["to-tflite"]
    said = cls().refuse(mine.model, bench)
    assert said is not None
    assert "'input_ids' has a free length" in said
    assert "--fix input_ids=1,N" in said
    _, bench = onnx_bench(
        "transformer", tmp_path,
        target=Target(fixed=(("input_ids", (1, 20)), ("attention_mask", (1, 20)))),
    )  # fmt: skip
    assert cls().refuse(mine.model, bench) is None
    _, bench = onnx_bench("transformer", tmp_path, target=Target(fixed=(("input_ids", (1, 2, 3)),)))
    assert "does not fit its shape" in str(cls().refuse(mine.model, bench))


@needs_converter
def test_an_operator_that_is_lacking_is_refused_by_name(tmp_path: Path) -> None:
    draft = testing_onnx.Draft(0)
    x = draft.gemm("x", 32, 64)
    draft.op("Hardmax", x)
    port = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    ends = [port("x", shape=["batch", 32])], [port("y", shape=["batch", 64])]
    onnx.save(draft.model("odd", *ends), tmp_path / "odd.onnx")
    model = runtime("onnx").open(tmp_path / "odd.onnx")
    mine = Toy("odd", model, functools.partial(testing_onnx.toy_batch, "mlp"))
    said = techniques("onnx")["to-tflite"]().refuse(model, ToyBench(mine, tmp_path / "b"))
    assert "Hardmax" in str(said)


@needs_converter
def test_a_graph_of_onnx_runtimes_integers_is_refused(tmp_path: Path) -> None:
    mine, bench = onnx_bench("mlp", tmp_path)
    whole = techniques("onnx")["static-int8"]().apply(mine.model, bench)
    said = techniques("onnx")["to-tflite"]().refuse(whole, bench)
    assert "convert the floats and round afterwards" in str(said)


@needs_converter
@pytest.mark.slow
def test_answers_that_differ_are_no_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that changes the weights behind the back: the output is named."""
    from sartor import tflite_form

    mine, bench = onnx_bench("mlp", tmp_path)
    honest = tflite_form._named

    def dishonest(*given: Any) -> Any:
        made, found = honest(*given)
        at = max(range(1000, len(made) - 4000, 4), key=lambda at: made[at : at + 64].count(0) == 0)
        return made[:at] + bytes(64) + made[at + 64 :], found

    monkeypatch.setattr(tflite_form, "_named", dishonest)
    with pytest.raises(Failed, match="LiteRT's logits differs from the model's"):
        techniques("onnx")["to-tflite"]().apply(mine.model, bench)


@needs_converter
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "transformer", "several"])
def test_programs_of_pytorch_are_converted_straight(name: str, tmp_path: Path) -> None:
    model = testing_torch.save_toys(tmp_path, only=(name,))[name]
    mine = Toy(name, model, functools.partial(testing_torch.toy_batch, name))
    batch = mine.batch(2, 9)
    fixed = tuple((key, each.shape) for key, each in batch.items())
    if name == "transformer":
        fixed = tuple((key, (2, 20)) for key in batch)
    made = apply(
        techniques("torch")["torch-to-tflite"](), model,
        ToyBench(mine, tmp_path / "b", target=Target(fixed=fixed, batch=2)),
    )  # fmt: skip
    assert isinstance(made, Model), made
    assert made.kind == "tflite"
    assert [p.name for p in made.signature.outputs] == [p.name for p in model.signature.outputs]


@needs_converter
@pytest.mark.slow
def test_a_device_that_takes_tflite_alone_is_given_one(
    digits: Any, tmp_path: Path, sartor: Any
) -> None:
    """Digits from ONNX: a certified .tflite within its limits, verified from its bundle on fresh
    rows; and pruned and trained before it was converted."""
    data = digits.data(tmp_path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    np.savez(fresh / "eval.npz", **digits.fresh)
    asked = (
        *("optimize", digits.model, "--data", data, "--format", "tflite"),
        *("--limit", "accuracy >= baseline - 0.05", "--limit", "size <= 0.5 x baseline"),
    )
    said = sartor(*asked, "--trials", 5, "--out", tmp_path / "run", "--json")
    assert said.status == 0, said.err
    assert list((tmp_path / "run" / "bundle").glob("*.tflite"))
    facts = json.loads((tmp_path / "run" / "bundle" / "sartor.json").read_text())
    assert facts["kind"] == "tflite"
    assert facts["certificate"]["rival"] is False
    said = sartor("verify", tmp_path / "run" / "bundle", "--data", fresh / "eval.npz")
    assert said.status in (0, 4), said.err


# -- taken in --------------------------------------------------------------------------------------


def written(source: Path, path: Path) -> Path:
    """The perceptron in an ONNX file, its trained weights included, as a file of TensorFlow
    Lite's that takes one row at a time: by the schema alone."""
    held = {each.name: numpy_helper.to_array(each) for each in onnx.load(source).graph.initializer}
    draft = testing_tflite.Draft(0)
    x = here = draft.tensor("pixels", "float32", (1, held["w0"].shape[0]))
    last = len(held) // 2 - 1
    for at in range(last + 1):
        given = [
            here,
            draft.constant(f"w{at}", np.ascontiguousarray(held[f"w{at}"].T)),
            draft.constant(f"b{at}", held[f"b{at}"]),
        ]
        here = draft.op(
            "FULLY_CONNECTED", given, (1, held[f"b{at}"].size), options="FullyConnectedOptions",
            fusedActivationFunction=int(at < last),
        )  # fmt: skip
    path.write_bytes(draft.written({"pixels": x}, {"logits": here}))
    return path


@pytest.mark.slow
def test_a_file_that_comes_in_is_rounded_certified_and_verified(
    digits: Any, tmp_path: Path, sartor: Any
) -> None:
    data = digits.data(tmp_path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    np.savez(fresh / "eval.npz", **digits.fresh)
    model = written(digits.model, tmp_path / "digits.tflite")
    said = sartor(
        "optimize", model, "--data", data, "--limit", "accuracy >= baseline - 0.03",
        "--minimize", "size", "--trials", 3, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert said.json["figures"]["size"] < 0.3 * model.stat().st_size
    assert sartor("verify", tmp_path / "run" / "bundle", "--data", fresh / "eval.npz").status in (
        0, 4,
    )  # fmt: skip
    profiled = sartor("profile", model, "--data", data)
    assert profiled.status == 0, profiled.err
    assert "FULLY_CONNECTED" in profiled.out
