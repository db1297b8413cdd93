"""TensorFlow Lite's files: what is read, what is refused, and what a session gives."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")

from hostile import tflite_files

from sartor.contracts import Failed, Model, Target, WrongRequest
from sartor.flat_reader import Damaged, Reader
from sartor.registry import open_model, runtime
from sartor.testing_tflite import save_toys, toy_batch
from sartor.tflite_file import read
from sartor.workers import Pool

ENGINE: Any = runtime("tflite")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    paths = save_toys(tmp_path_factory.mktemp("toys"))
    return {name: ENGINE.open(path) for name, path in paths.items()}


@pytest.mark.parametrize("name", tflite_files.FILES)
def test_hostile_files_are_refused_with_one_sentence(name: str, tmp_path: Path) -> None:
    make, words = tflite_files.FILES[name]
    path = tmp_path / "model.tflite"
    path.write_bytes(make())
    with pytest.raises(WrongRequest) as refusal:
        open_model(path)
    said = str(refusal.value)
    assert words in said, said
    assert "\n" not in said
    assert len(said) < 500


def test_a_known_signature_does_not_let_a_hostile_file_run(
    toys: dict[str, Model], tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_files.FILES["operator's input outside"][0]())
    with pytest.raises(WrongRequest, match="names the number 4000"):
        ENGINE.start(ENGINE.open(path, toys["mlp"].signature), Target())


def _run(path: Path) -> str:
    """In a child: what comes of the file."""
    try:
        with ENGINE.start(ENGINE.open(path), Target()) as run:
            run(tflite_files.zeros(read(path).signature))
    except (WrongRequest, Failed) as error:
        return str(error)
    return "ran"


def test_files_with_bytes_changed_run_or_are_refused_and_never_crash(tmp_path: Path) -> None:
    with Pool() as pool:
        ends = []
        for number, data in enumerate(tflite_files.mutated(120)):
            path = tmp_path / f"{number}.tflite"
            path.write_bytes(data)
            ends.append(pool.call(_run, path, timeout=60))  # a crash would be raised here
    assert all("\n" not in each for each in ends)
    assert "ran" in ends
    assert any("damaged" in each for each in ends)


def test_integers_stay_integers_unless_floats_are_asked_for(toys: dict[str, Model]) -> None:
    model = toys["whole"]
    assert [p.dtype for p in (*model.signature.inputs, *model.signature.outputs)] == ["int8"] * 2
    floats = dataclasses.replace(model, settings={"interface": "float32"})
    floats = dataclasses.replace(floats, signature=ENGINE.facing(floats))
    assert floats.signature.inputs[0].dtype == "float32"
    x = np.linspace(-9, 9, 32, dtype=np.float32)[None]
    with ENGINE.start(model, Target()) as whole, ENGINE.start(floats, Target()) as run:
        steps = np.clip(np.round(x / np.float32(0.05)) + 3, -128, 127).astype(np.int8)
        right = (whole({"x": steps})["y"].astype(np.float32) + 5) * np.float32(0.1)
        assert np.array_equal(run({"x": x})["y"], right)
        with pytest.raises(WrongRequest, match="takes x int8"):
            whole({"x": x})
    assert ENGINE.digest(floats) != ENGINE.digest(model)


def test_a_fixed_batch_is_a_fixed_batch_and_a_free_one_is_free(toys: dict[str, Model]) -> None:
    said = r"takes image float32\[1, 16, 16, 3\]"
    with ENGINE.start(toys["cnn"], Target()) as run, pytest.raises(WrongRequest, match=said):
        run(toy_batch("cnn", 2))
    with ENGINE.start(toys["mlp"], Target()) as run:
        batch = toy_batch("mlp", 5)
        together = run(batch)["logits"]
        alone = run({"x": batch["x"][3:4]})["logits"]
        assert np.allclose(together[3:4], alone, atol=1e-5)
        assert together.shape == (5, 4)


def test_a_closed_session_and_wrong_settings_are_refused(toys: dict[str, Model]) -> None:
    run = ENGINE.start(toys["mlp"], Target())
    run.__exit__()
    with pytest.raises(Failed, match="closed"):
        run(toy_batch("mlp", 1))
    for settings, words in (
        ({"threads": 0}, "whole number from 1"),
        ({"interface": "int8"}, "write 'float32'"),
        ({"arena": True}, "no setting 'arena'"),
    ):
        with pytest.raises(WrongRequest, match=words):
            ENGINE.start(dataclasses.replace(toys["mlp"], settings=settings), Target())
    with pytest.raises(WrongRequest, match="not on 'npu'"):
        ENGINE.start(toys["mlp"], Target(device="npu"))


def test_texts_that_lie_over_one_another_take_no_memory() -> None:
    reader = Reader(memoryview((30_000).to_bytes(4, "little") * 16_384), {}, {})
    assert reader._text(0) is reader._text(0)  # many tables may share one
    for at in range(4, 4 * 17, 4):
        reader._text(at)
    with pytest.raises(Damaged, match="over one another"):
        reader._text(4 * 17)


def test_a_profile_of_any_number_of_rows(toys: dict[str, Model]) -> None:
    model = toys["mlp"]
    batch = {
        port.name: np.ones((8, *(n or 1 for n in port.shape[1:])), port.dtype)
        for port in model.signature.inputs
    }
    found = runtime("tflite").part_seconds(model, Target(batch=8), [batch])
    assert found
    assert all(seconds >= 0 for seconds in found.values())


def test_macs_are_those_of_one_row(toys: dict[str, Model]) -> None:
    parts = {p.operator: p for p in ENGINE.parts(toys["cnn"], toy_batch("cnn", 1))}
    assert parts["CONV_2D"].macs == 16 * 16 * 32 * 27
    assert parts["DEPTHWISE_CONV_2D"].macs == 16 * 16 * 32 * 9
    assert parts["FULLY_CONNECTED"].macs == 32 * 4
    assert parts["MEAN"].macs == 0
    assert parts["CONV_2D"].parameters == 32 * 27 + 32
    assert os.path.getsize(toys["cnn"].payload) > sum(p.bytes for p in parts.values())


def test_a_call_that_fails_leaves_the_next_as_it_was(
    toys: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sartor.tflite_calls import litert

    def fails(self: object) -> None:
        raise RuntimeError("a kernel gave up\n(node 3)")

    batch = toy_batch("mlp", 3)
    with ENGINE.start(toys["mlp"], Target()) as run:
        right = run(batch)["logits"]
        with monkeypatch.context() as broken:
            broken.setattr(litert.Interpreter, "invoke", fails)
            for _ in range(2 * (os.cpu_count() or 1)):  # none is kept that failed, none is lost
                with pytest.raises(Failed, match=r"LiteRT: a kernel gave up \(node 3\)"):
                    run(batch)
        assert np.array_equal(run(batch)["logits"], right)
