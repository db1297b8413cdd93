"""Artifacts side by side: whatever they are, on the same rows, the first as the baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Case, Said, Tailored
from onnx import numpy_helper

import sartor as package
from sartor import bundle
from sartor.contracts import WrongRequest

Sartor = Callable[..., Said]


def spoilt(model: Path, folder: Path) -> Path:
    """The model with its last bias turned round: another answer, the same speed, and as exported by
    somebody who called the one output otherwise."""
    proto = onnx.load(model)
    bias = next(each for each in proto.graph.initializer if each.name == "b2")
    values = numpy_helper.to_array(bias) + 30 * np.eye(10, dtype=np.float32)[3]
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "b2"))
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "answer"
    onnx.save(proto, folder / "spoilt.onnx")
    return folder / "spoilt.onnx"


@pytest.fixture(scope="module")
def found(tailored: Tailored, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("compare")
    original = tailored.case.model
    models = [original, original, tailored.folder / "bundle", spoilt(original, folder)]
    return package.compare(models, tailored.case.data(folder))


def test_each_model_is_a_row_in_its_place(found: dict[str, Any], tailored: Tailored) -> None:
    assert [row["model"] for row in found["rows"]][:2] == [str(tailored.case.model)] * 2
    assert found["metric"] == "accuracy"
    assert found["examples"] > 200
    for row in found["rows"]:
        for name in ("size", "memory", "latency", "latency.p95", "throughput", "accuracy"):
            assert row["figures"][name] > 0
            assert row["figures"][f"original.{name}"] > 0


def test_the_original_beside_itself(found: dict[str, Any]) -> None:
    same = found["rows"][1]
    assert same["figures"]["flips"] == 0
    assert same["figures"]["size"] == same["figures"]["original.size"]
    assert same["quality"]["outcome"] == "met"


def test_the_bundle_is_smaller_and_as_good(found: dict[str, Any], tailored: Tailored) -> None:
    row = found["rows"][2]
    assert row["figures"]["size"] < 0.5 * row["figures"]["original.size"]
    assert row["figures"]["accuracy"] >= row["figures"]["original.accuracy"] - 0.03
    assert row["latency"]["low"] <= row["latency"]["estimate"] <= row["latency"]["high"]


def test_another_answer_is_seen(found: dict[str, Any]) -> None:
    row = found["rows"][3]
    assert row["figures"]["flips"] > 0.5
    assert row["figures"]["accuracy"] < 0.3
    assert row["quality"]["outcome"] == "broken"


def test_the_holdout_stays_sealed(found: dict[str, Any], tailored: Tailored) -> None:
    """Comparing spends nothing: rows of the search part only, and no ledger."""
    assert found["examples"] < 0.4 * len(tailored.case.arrays["label"])


def test_on_the_command_line(sartor: Sartor, tailored: Tailored, tmp_path: Path) -> None:
    data = tailored.case.data(tmp_path)
    said = sartor("compare", tailored.case.model, tailored.folder, "--data", data, "--json")
    assert said.status == 0, said.err
    assert len(said.json["rows"]) == 2
    assert "Side by side" in said.err
    assert list(tmp_path.iterdir()) == [Path(data)]


def test_a_model_that_does_not_start_is_a_row_with_its_reason(
    sartor: Sartor, tiny: Case, tmp_path: Path
) -> None:
    proto = onnx.load(tiny.model)
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("transA", 1))
    onnx.save(proto, tmp_path / "broken.onnx")
    data = tiny.data(tmp_path)
    said = sartor("compare", tiny.model, tmp_path / "broken.onnx", "--data", data, "--json")
    assert said.status == 0, said.err
    first, second = said.json["rows"]
    assert "failed" not in first
    assert second["failed"]
    assert "failed" in said.err


def test_what_cannot_be_paired(cancer: Case, tiny: Case, tmp_path: Path) -> None:
    with pytest.raises(WrongRequest, match="other inputs"):
        package.compare([tiny.model, cancer.model], tiny.data(tmp_path))
    with pytest.raises(WrongRequest, match="bundle"):
        package.compare([tiny.model, tmp_path], tiny.data(tmp_path))


def test_a_regression_is_compared_by_its_own_metric(diabetes: Case, tmp_path: Path) -> None:
    found = package.compare([diabetes.model], diabetes.data(tmp_path))
    assert found["metric"] == "mae"
    assert found["rows"][0]["quality"]["outcome"] == "met"


def test_models_that_insist_on_a_batch(digits: Case, tmp_path: Path) -> None:
    """A batch of 8 where the rows are no multiple of it and nobody said --batch."""
    proto = onnx.load(digits.model)
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(proto, tmp_path / "eight.onnx")
    few = {name: each[:203] for name, each in digits.arrays.items()}
    found = package.compare(
        [tmp_path / "eight.onnx", digits.model], digits.data(tmp_path / "data", **few)
    )
    first, second = found["rows"]
    assert first["figures"]["accuracy"] == second["figures"]["accuracy"] > 0.5
    assert second["figures"]["flips"] == 0
    assert second["figures"]["memory"] > 0


# -- artifacts of other tools, by a function ------------------------------------------------------

TOOL = """
from pathlib import Path

HERE = Path(__file__).parent

def tool():
    import onnxruntime as ort
    session = ort.InferenceSession(str(HERE / "other.onnx"), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["logits"], {"pixels": batch["pixels"]})[0]

tool.files = ["other.onnx"]

def broken():
    def answer(batch):
        raise ValueError("no such luck")
    return answer

def nothing():
    return 7
"""


@pytest.fixture(scope="module")
def tool(tailored: Tailored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tool")
    (folder / "tool.py").write_text(TOOL, encoding="utf-8")
    (folder / "other.onnx").write_bytes(tailored.case.model.read_bytes())
    return folder / "tool.py"


def test_a_function_is_compared_as_any_model(tailored: Tailored, tool: Path) -> None:
    models = [tailored.case.model, f"{tool}:tool", f"{tool}:broken"]
    _, row, broken = package.compare(models, tailored.case.data(tool.parent))["rows"]
    assert row["model"] == f"{tool}:tool"
    assert row["figures"]["flips"] == 0
    assert row["figures"]["size"] > tailored.case.model.stat().st_size
    assert row["quality"]["outcome"] != "broken"
    assert "no such luck" in broken["failed"]


def test_a_function_takes_the_place_of_a_model_only(
    sartor: Sartor, tailored: Tailored, tool: Path, tmp_path: Path
) -> None:
    data = tailored.case.data(tmp_path)
    said = sartor("compare", f"{tool}:tool", tailored.case.model, "--data", data)
    assert said.status == 2
    assert "after a model" in said.err
    said = sartor("compare", tailored.case.model, f"{tool}:nothing", "--data", data)
    assert said.status == 2
    asked = ("--limit", "size <= 1 MB", "--budget", "5s", "--out", tmp_path / "out")
    said = sartor("optimize", f"{tool}:tool", "--data", data, *asked)
    assert said.status == 2
    assert "compared" in said.err


def test_no_file_and_no_bundle_brings_code_with_it(
    sartor: Sartor, tailored: Tailored, tool: Path, tmp_path: Path
) -> None:
    from sartor.registry import open_model, runtime

    model = open_model(tailored.case.model)
    runtime("callable").refer(f"{tool}:tool", model.signature, tmp_path)  # type: ignore[attr-defined]
    data = tailored.case.data(tmp_path)
    said = sartor("compare", tailored.case.model, tmp_path / "tool.callable", "--data", data)
    assert said.status == 2
    assert "file.py:function" in said.err
    folder = tailored.folder / "bundle"
    with pytest.raises(WrongRequest, match="would run code"):
        bundle.open_model(folder, {**bundle.read(folder), "kind": "callable"})
