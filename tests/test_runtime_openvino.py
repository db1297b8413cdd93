"""The OpenVINO runtime: what it refuses, what it counts, how it runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import openvino_files

from sartor import openvino_ir
from sartor.contracts import Model, Port, Target, WrongRequest

# -- opening: without OpenVINO ------------------------------------------------------------------


@pytest.mark.parametrize("name", openvino_files.FILES)
def test_hostile_files_are_refused_with_one_sentence(name: str, tmp_path: Path) -> None:
    path, words = openvino_files.write(name, tmp_path)
    with pytest.raises(WrongRequest) as refusal:
        openvino_ir.signature(path)
    said = str(refusal.value)
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert len(said) < 700


def whole(folder: Path) -> Path:
    path = folder / "whole.xml"
    path.write_text(openvino_files.WHOLE)
    path.with_suffix(".bin").write_bytes(openvino_files.WEIGHTS)
    return path


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = whole(tmp_path)
    for end in range(1, len(openvino_files.WHOLE.rstrip()), 37):
        path.write_text(openvino_files.WHOLE[:end])
        with pytest.raises(WrongRequest):
            openvino_ir.signature(path)


def test_paths_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongRequest, match="no such file"):
        openvino_ir.signature(tmp_path / "gone.xml")
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(WrongRequest, match="folder"):
        openvino_ir.signature(tmp_path / "folder.xml")


def test_the_signature_is_read_without_openvino(tmp_path: Path) -> None:
    found = openvino_ir.signature(whole(tmp_path))
    assert found.inputs == (Port("x", "float32", (None, 4)),)
    assert found.outputs == (Port("y", "float32", (None, 4)),)


def test_older_files_name_outputs_at_what_makes_them(tmp_path: Path) -> None:
    path = whole(tmp_path)
    named = openvino_files.WHOLE.replace(' output_names="y"', "")
    path.write_text(named.replace('names="y"', 'names="z\\,1,b"'))
    assert openvino_ir.signature(path).outputs[0].name == "b"


def test_a_changed_file_is_looked_through_again(tmp_path: Path) -> None:
    path = whole(tmp_path)
    openvino_ir.signature(path)
    path.with_suffix(".bin").write_bytes(b"short")
    with pytest.raises(WrongRequest, match="cut short"):
        openvino_ir.signature(path)


# -- running ------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Model:
    pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    from sartor.registry import open_model

    return open_model(whole(tmp_path))


def test_it_answers(model: Model) -> None:
    from sartor.registry import runtime

    with runtime("openvino").start(model, Target()) as run:
        found = run({"x": np.ones((2, 4), np.float32)})
    assert found["y"].tolist() == [[2, 3, 4, 5]] * 2


def test_a_known_signature_does_not_let_a_hostile_file_run(model: Model) -> None:
    from sartor.registry import runtime

    Path(model.payload).with_suffix(".bin").write_bytes(b"short")
    with pytest.raises(WrongRequest, match="cut short"):
        runtime("openvino").start(model, Target())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "f8"}, "'f32', 'bf16', 'f16'"),
        ({"threads": 0}, "whole number"),
        ({"stream": 1}, "there are: threads, hint, precision, dynamic_quantization"),
        ({"dynamic_quantization": True}, "0, 32"),
    ],
)
def test_wrong_settings_are_refused(model: Model, settings: dict[str, object], words: str) -> None:
    from sartor.registry import runtime

    with pytest.raises(WrongRequest, match=words):
        runtime("openvino").start(dataclasses.replace(model, settings=settings), Target())


def test_nothing_is_left_to_openvino(model: Model) -> None:
    """Precision, threads and streams are what the model's settings say, on any processor."""
    from sartor.runtimes.openvino import Openvino

    engine = Openvino()
    with engine.start(model, Target(threads=2)) as session:
        ask = session.compiled.get_property
        assert ask("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert (ask("NUM_STREAMS"), ask("INFERENCE_NUM_THREADS")) == (1, 2)
        assert ask("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    less = dataclasses.replace(model, settings={"precision": "bf16", "threads": 4})
    with engine.start(less, Target(threads=1)) as session:
        assert session.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "bf16"
        assert session.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert engine.digest(less) != engine.digest(model)


def test_openvino_tells_nobody(model: Model, tmp_path: Path) -> None:
    """In a process of its own: neither the package that reports nor a file in the user's home."""
    code = (
        "import sys; from sartor.registry import runtime; runtime('openvino').versions();"
        "import openvino.tools.ovc.telemetry_utils as told;"
        "assert sys.modules['openvino_telemetry'] is None;"
        "assert told.tm.__name__.endswith('telemetry_stub')"
    )
    import os

    home = {**os.environ, "HOME": str(tmp_path)}
    before = sorted(tmp_path.iterdir())
    subprocess.run([sys.executable, "-c", code], check=True, env=home)
    assert sorted(tmp_path.iterdir()) == before
