"""ONNX to OpenVINO and what is done there: cross products, parity, exceptions, settings."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Case
from onnx import TensorProto, helper

pytest.importorskip("openvino", reason="needs openvino: pip install 'sartor[openvino]'")
pytest.importorskip("nncf", reason="needs nncf: pip install 'sartor[openvino]'")

import sartor
from sartor import openvino_ir, registry
from sartor.contracts import Failed, Model, Recipe, Target
from sartor.lab import Lab, Toy, ToyBench, alike
from sartor.prepare import allowed
from sartor.spec import Spec
from sartor.techniques import openvino_onnx
from sartor.techniques.openvino_onnx import ToOpenvino
from sartor.techniques.quantize_openvino import CompressedWeights, PostTrainingInt8
from sartor.techniques.session_openvino import SessionSettings
from sartor.testing_onnx import save_toys, toy_batch

ONNX = registry.techniques("onnx")
VNNI = Target(features=frozenset({"avx2", "avx512f", "avx512_vnni"}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    paths = save_toys(tmp_path_factory.mktemp("toys"))
    engine = registry.runtime("onnx")
    toys = [
        Toy(name, engine.open(paths[name]), functools.partial(toy_batch, name))
        for name in ("cnn", "mlp")
    ]
    with Lab(toys, tmp_path_factory.mktemp("lab")) as made:
        yield made


def made(lab: Lab, name: str, *recipe: Any) -> Model:
    model = lab.make(lab.toys[name], recipe)
    assert isinstance(model, Model), model
    return model


def near(lab: Lab, name: str, model: Model) -> float:
    batch = lab.toys[name].batch(16, 9)
    return alike(lab.answers(lab.toys[name].model, batch), lab.answers(model, batch))


def kinds(model: Model) -> set[str]:
    layers = openvino_ir.layers(Path(model.payload))
    return {each.facts["type"] for each in layers}


@pytest.mark.parametrize("name", ["static-int8", "dynamic-int8", "weight-only", "prune-magnitude"])
def test_what_was_done_to_the_graph_is_kept(lab: Lab, name: str) -> None:
    toy = "mlp" if name in ("weight-only", "dynamic-int8") else "cnn"
    model = made(lab, toy, ONNX[name](), ToOpenvino())
    assert [type(step.technique) for step in model.lineage] == [ONNX[name], ToOpenvino]
    assert near(lab, toy, model) > 0.95


def test_quantized_graphs_stay_quantized(lab: Lab) -> None:
    model = made(lab, "cnn", ONNX["static-int8"](), ToOpenvino())
    assert "FakeQuantize" in kinds(model)
    bench = lab.bench(lab.toys["cnn"])
    assert PostTrainingInt8().refuse(model, bench) == "its activations are quantized already"
    assert registry.portfolio(model, bench) == []


def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, 4]) for name in "xy"
    ]
    node = helper.make_node("Inverse", ["x"], ["y"], name="turned", domain="com.microsoft")
    graph = helper.make_graph([node], "one", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "one.onnx")
    model = registry.open_model(tmp_path / "one.onnx")

    def batch(rows: int, seed: int) -> dict[str, np.ndarray]:
        noise = np.random.default_rng(seed).random((rows, 4, 4), np.float32)
        return {"x": noise + 3 * np.eye(4, dtype=np.float32)}

    bench = ToyBench(Toy("one", model, batch), tmp_path / "bench")
    with pytest.raises(Failed, match="Inverse") as failure:
        ToOpenvino().apply(model, bench)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("scale", [1.02, 30.0])
def test_a_conversion_that_changes_answers_is_seen_and_where(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """The second of three layers is multiplied behind OpenVINO's back."""
    from openvino import opset13 as ops

    right = openvino_onnx.opened

    def wrong(path: Path) -> Any:
        model = right(path)
        for op in model.get_ordered_ops():
            if op.get_friendly_name().startswith("Gemm_2") and op.get_type_name() == "MatMul":
                value = op.output(0)
                readers = list(value.get_target_inputs())
                changed = ops.multiply(value, np.float32(scale))
                for each in readers:
                    each.replace_source_output(changed.output(0))
        return model

    monkeypatch.setattr(openvino_onnx, "opened", wrong)
    toy = lab.toys["mlp"]
    with pytest.raises(Failed, match=r"begins at the Gemm 'Gemm_2'"):
        ToOpenvino().apply(toy.model, lab.bench(toy, seed=1))


def test_exceptions_are_the_layers_whose_rounding_hurts_most(lab: Lab, tmp_path: Path) -> None:
    """In one layer what reads a value that is always zero is a thousand times as large as the rest:
    rounding loses all of the rest."""
    path = tmp_path / "spoilt.onnx"
    proto = onnx.load(lab.toys["mlp"].model.payload)
    nodes = {each.name: each for each in proto.graph.node}
    spoilt = {nodes["Gemm_0"].input[2]: -1e4, nodes["Gemm_2"].input[1]: 1000.0}
    for tensor in proto.graph.initializer:
        if tensor.name in spoilt:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0] = spoilt[tensor.name]
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    toy = Toy("mlp", registry.open_model(path), functools.partial(toy_batch, "mlp"))
    with Lab([toy], tmp_path / "lab") as own:
        model = own.make(toy, (ToOpenvino(), PostTrainingInt8(exceptions=1)))
        assert isinstance(model, Model), model
    ((name, reason),) = model.lineage[-1].skipped
    assert name.startswith("Gemm_2")
    assert "exception" in reason


def test_compressed_weights_take_fewer_bits(lab: Lab) -> None:
    recipe: Recipe = (ToOpenvino(), CompressedWeights(mode="int4", group=32, all_layers=True))
    model = made(lab, "mlp", *recipe)
    types = {each.data.get("element_type") for each in openvino_ir.layers(Path(model.payload))}
    assert types & {"u4", "i4"}
    assert near(lab, "mlp", model) > 0.9


def test_settings_are_chosen_only_where_they_can_act(lab: Lab) -> None:
    toy = lab.toys["mlp"]
    plain = made(lab, "mlp", ToOpenvino())
    packed = made(lab, "mlp", ToOpenvino(), CompressedWeights())
    two = lab.bench(toy, target=Target(threads=2))
    assert "no weights are compressed" in str(SessionSettings().refuse(plain, two))
    quiet = dataclasses.replace(SessionSettings(), dynamic_quantization=0)
    assert "that it has" in str(quiet.refuse(plain, two))
    brain = dataclasses.replace(quiet, precision="bf16")
    assert "bf16" in str(brain.refuse(plain, two))
    able = lab.bench(toy, target=Target(features=frozenset({"amx_bf16"})))
    assert brain.refuse(plain, able) is None
    assert brain.apply(plain, able).settings == {"precision": "bf16"}
    many = dataclasses.replace(quiet, threads=4)
    assert "more than the target's 2" in str(many.refuse(plain, two))
    made_so = SessionSettings(hint="throughput", threads=1).apply(packed, two)
    assert made_so.settings == {"dynamic_quantization": 64, "hint": "throughput", "threads": 1}
    engine = registry.runtime("openvino")
    assert engine.digest(made_so) != engine.digest(packed)


def test_the_portfolio_crosses_the_tools(lab: Lab) -> None:
    toy = lab.toys["cnn"]
    bench = lab.bench(toy, target=VNNI)
    found = [[type(s).__name__ for s in each] for each in registry.portfolio(toy.model, bench)]
    assert ["StaticInt8", "ToOpenvino"] in found
    there = registry.portfolio(made(lab, "cnn", ToOpenvino()), bench)
    assert (PostTrainingInt8(),) in there
    plain = lab.bench(toy, target=Target(features=frozenset({"avx2"})))
    assert not any(ToOpenvino() in each for each in registry.portfolio(toy.model, plain))


def test_written_names_are_found_behind_torch() -> None:
    recipe = registry.recipe("torch", [{"technique": "post-training-int8"}])
    names = [type(each).__name__ for each in recipe]
    assert names == ["ToOnnx", "ToOpenvino", "PostTrainingInt8"]


def test_conversions_are_taken_where_they_are_named_or_needed() -> None:
    def names(**facts: Any) -> set[str]:
        return set(allowed(Spec(model="model.onnx", data="eval.npz", **facts), "onnx"))

    assert names(techniques=("static-int8",)) == {"static-int8"}
    assert names(techniques=("half-weights",)) == {"half-weights", "to-openvino"}
    assert "to-openvino" in names()
    assert not {"to-openvino", "static-int8"} & names(without=("to-openvino", "static-int8"))


@pytest.mark.slow
def test_a_run_races_both_runtimes(digits: Case, tmp_path: Path) -> None:
    run = sartor.optimize(
        str(digits.model), digits.data(tmp_path), limits=["accuracy >= baseline - 0.05"],
        techniques=["static-int8", "to-openvino", "post-training-int8"], trials=6,
        out=tmp_path / "run",
    )  # fmt: skip
    lines = map(json.loads, (tmp_path / "run" / "run.jsonl").read_text().splitlines())
    tried = [each for each in lines if each["event"] == "trial"]
    names = [tuple(step["technique"] for step in each["recipe"]) for each in tried]
    assert ("to-openvino",) in names
    assert all(each["state"] in ("done", "dropped") for each in tried), [
        (name, each["reason"]) for name, each in zip(names, tried, strict=True)
    ]
    assert run.status in (0, 3)


@pytest.mark.slow
def test_a_model_of_openvino_is_taken_in_and_its_bundle_runs(digits: Case, tmp_path: Path) -> None:
    from sartor.openvino_core import opened, written

    path = written(opened(digits.model), tmp_path / "given", "model")
    run = sartor.optimize(
        str(path), digits.data(tmp_path), limits=["accuracy >= 0.8"], minimize="size",
        techniques=["half-weights"], trials=2, out=tmp_path / "run",
    )  # fmt: skip
    assert run.status == 0, run.answer["message"]
    with sartor.load(tmp_path / "run") as kept:
        assert kept.facts["kind"] == "openvino"
        assert len([name for name in kept.facts["files"] if name.endswith((".xml", ".bin"))]) == 2
        inputs = {p.name: digits.fresh[p.name] for p in kept.model.signature.inputs}
        found = next(iter(kept.predict(inputs).values())).argmax(1)
    assert (found == digits.fresh["label"]).mean() > 0.8
