"""The profile: totals that agree with independent figures, and text that shows them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy_part import toy_part

from sartor.contracts import Model, Target
from sartor.contracts import Part as Counted
from sartor.profile import Profile, _rows, profile, profile_model, render, to_json
from sartor.registry import open_model, runtime
from sartor.testing_onnx import save_toys, toy_batch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(save_toys(tmp_path_factory.mktemp("toys"))["cnn"])


@pytest.fixture(scope="module")
def found(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    part = toy_part(tmp_path_factory.mktemp("parts") / "images", "cnn", 40)
    return profile(model, part, Target())


def test_totals_are_those_of_the_runtime(found: Profile, model: Model) -> None:
    engine = runtime("onnx")
    parts = engine.parts(model, toy_batch("cnn", 1))
    assert found.size == Path(model.payload).stat().st_size
    assert found.parameters == sum(part.parameters for part in parts)
    assert found.macs == sum(part.macs or 0 for part in parts) > 5e6
    assert found.digest == engine.digest(model)
    assert found.unknown == ()
    assert 2e7 < found.memory < 3e8


def test_the_parts_explain_the_latency(found: Profile) -> None:
    """Their own times, by ONNX Runtime's clock, add up to about what our clock sees."""
    assert 1e-5 < found.latency < 0.1
    assert 0.3 < found.explained < 3
    assert np.isclose(sum(row.share for row in found.rows), 1)
    assert [row.seconds for row in found.rows] == sorted(
        (r.seconds for r in found.rows), reverse=True
    )


def test_operators_sum_up_their_parts(found: Profile) -> None:
    convs = [row for row in found.rows if row.operator == "Conv"]
    (operator,) = [each for each in found.operators if each.operator == "Conv"]
    assert operator.count == len(convs) == 5
    assert operator.macs == sum(row.macs or 0 for row in convs)
    assert np.isclose(operator.seconds, sum(row.seconds for row in convs))
    assert operator.share > 0.3
    assert sum(each.count for each in found.operators) == len(found.rows)


def test_what_the_runtime_fused_is_a_row_of_its_own() -> None:
    parts = [Counted("a", "Gemm", 10, 40, 8), Counted("b", "Loop", 0, 0, None)]
    rows = _rows(parts, {"a": 3e-6, "BiasGelu_token_1": 1e-6})
    assert [(r.name, r.operator, r.share) for r in rows] == [
        ("a", "Gemm", 0.75),
        ("BiasGelu_token_1", "BiasGelu (fused)", 0.25),
        ("b", "Loop", 0.0),
    ]


def _text(found: Profile, top: int, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(found, top))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_text_shows_totals_operators_and_parts(found: Profile) -> None:
    text = _text(found, top=3)
    assert "5.54 M" in text
    assert "of the latency is in the parts below" in text
    assert found.rows[0].name in text
    assert f"and {len(found.rows) - 3} more" in text
    assert max(map(len, _text(found, top=3, width=80).splitlines())) <= 80


def test_json_holds_every_part(found: Profile) -> None:
    entry = to_json(found)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert len(entry["rows"]) == len(found.rows)


def test_a_file_and_data_from_the_command_line(model: Model, tmp_path: Path) -> None:
    label = np.arange(60) % 4
    np.savez(tmp_path / "eval.npz", label=label, image=toy_batch("cnn", 60)["image"])
    found = profile_model(str(model.payload), data=str(tmp_path / "eval.npz"), batch=2)
    assert found.batch == 2
    assert found.macs > 5e6
