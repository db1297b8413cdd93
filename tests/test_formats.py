"""Only what the target takes: recipes that end in the kinds asked for, and an original that is no
answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sartor import registry
from sartor.contracts import WrongRequest, to_json
from sartor.finalists import freeze
from sartor.proposals import by_kind, key_of
from sartor.records import Trial
from sartor.search import GuidedSearch
from sartor.spec import from_flags, load


def _done(number: int, objective: float) -> Trial:
    recipe = ({"technique": "to-onnx", "exporter": "auto"},)
    return Trial(
        number=number, recipe=recipe, state="done", model=str(number),
        figures={"objective": objective}, p_value=0.01,
    )  # fmt: skip


def test_without_a_rival_nothing_need_be_gained() -> None:
    trials = [_done(0, 1.2), _done(1, math.nan), _done(2, math.inf)]
    assert freeze(trials) == ()
    assert [each.trial.number for each in freeze(trials, rival=False)] == [0]


def test_what_is_asked_ends_in_the_kinds_asked_for() -> None:
    known = registry.reachable("torch")
    to_onnx = known["to-onnx"]()
    first = [(to_onnx, known["static-int8"]()), (to_onnx,)]
    for ends in (("onnx",), ("torch",), ()):
        searcher = GuidedSearch("torch", known, requested=first, ends=ends, trials=8)
        found: set[str] = set()
        while (asked := searcher.ask()) is not None:
            recipe, _ = asked
            if recipe:
                found.add(by_kind(recipe, "torch")[-1][0])
            entries = tuple(to_json(each) for each in recipe)
            searcher.tell(Trial(number=0, recipe=entries, state="failed"))
            assert key_of(recipe) in searcher.told
        assert found <= set(ends or registry.kinds("torch"))
        assert found or ends == ("torch",)  # nothing changes a program and leaves it one


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("onnx", ("onnx", "")),
        ("tflite", ("tflite", "")),
        ("OpenVINO", ("openvino", "")),
        ("torch", ("torch", "")),
        ("pt2", ("torch", ".pt2")),
        (".ts", ("torch", ".ts")),
        ("torchscript", ("torch", ".ts")),
    ],
)
def test_a_format_is_a_kind_or_a_sort_of_file(name: str, found: tuple[str, str]) -> None:
    assert registry.format_of(name) == found


def test_a_format_that_nothing_makes_is_named_with_those_there_are() -> None:
    with pytest.raises(
        WrongRequest, match=r"--format fake: write one of executorch, onnx, .*pt2.*torchscript"
    ):
        registry.format_of("fake")


def test_formats_are_read_from_flags_and_files(tmp_path: Path) -> None:
    assert from_flags("m.onnx", formats=["tflite", "onnx"]).formats == ("tflite", "onnx")
    (tmp_path / "spec.toml").write_text('[target]\nformats = ["tflite"]\n')
    assert load(tmp_path / "spec.toml").formats == ("tflite",)
    (tmp_path / "spec.toml").write_text('[target]\nformats = "tflite"\n')
    with pytest.raises(WrongRequest, match="formats must be a list"):
        load(tmp_path / "spec.toml")


def test_a_format_that_is_not_known_or_not_reached_is_one_sentence(
    tiny: Any, tmp_path: Path, sartor: Any
) -> None:
    data = tiny.data(tmp_path)
    said = sartor(
        "optimize", tiny.model, "--data", data, "--format", "coreml", "--out", tmp_path / "o"
    )
    assert said.status == 2
    assert "--format coreml: write one of " in said.err
    assert "fake" not in said.err
    said = sartor(
        "optimize", tiny.model, "--data", data, "--format", "torch", "--out", tmp_path / "p"
    )
    assert said.status == 2
    assert "nothing here converts onnx to torch" in said.err


def test_what_is_wrong_with_one_of_several_formats_is_said_before_the_first_runs(
    tiny: Any, tmp_path: Path, sartor: Any
) -> None:
    request = ["optimize", tiny.model, "--data", tiny.data(tmp_path), "--out", tmp_path / "o"]
    said = sartor(*request, "--format", "onnx", "coreml")
    assert said.status == 2
    assert "--format coreml: write one of " in said.err
    said = sartor(*request, "--format", "onnx", "torch")
    assert said.status == 2
    assert "--format torch: nothing here converts onnx to torch" in said.err
    said = sartor(*request, "--format", "onnx", "openvino", "--resume")
    assert said.status == 2
    assert f"--resume {tmp_path / 'o' / 'onnx'} --budget +10m" in said.err
    said = sartor("optimize", "--format", "onnx", tiny.model)
    assert said.status == 2
    assert "name a MODEL (before --format" in said.err


def test_each_of_several_formats_has_a_bundle_and_a_certificate(
    digits: Any, tmp_path: Path, sartor: Any
) -> None:
    import json

    import numpy as np

    import sartor as library

    out, data = tmp_path / "both", digits.data(tmp_path)
    said = sartor(
        "optimize", digits.model, "--data", data, "--limit", "accuracy >= baseline - 0.05",
        "--limit", "size <= 1 x baseline", "--minimize", "size", "--trials", "3", "--json",
        "--out", out, "--format", "onnx", "OpenVINO",
    )  # fmt: skip
    told = json.loads(said.out.splitlines()[-1])["formats"]
    assert list(told) == ["onnx", "openvino"], said.err
    assert said.status == max(each["status"] for each in told.values())
    assert told["onnx"]["status"] == 0, told["onnx"]["message"]
    assert told["onnx"]["alpha"] == pytest.approx(0.02)  # half of what one run takes
    rows = {"pixels": np.load(data)["pixels"][:4]}
    for name, each in told.items():
        if each["status"] == 0:
            assert len(library.load(out / name).predict(rows)) == 1
    again = sartor("report", out)
    assert again.status == 2
    assert "a run for each format lies in it: onnx, openvino" in again.err


@pytest.mark.slow
def test_the_answer_is_of_the_format_asked_for_though_it_gains_nothing(
    tmp_path: Path, sartor: Any
) -> None:
    """A network of PyTorch's on digits, asked for as ONNX under a limit that its conversion meets
    and no rounding: the answer is the conversion, whatever it gains."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    steps = torch.optim.Adam(net.parameters(), 1e-2)
    rows, right = torch.from_numpy(pixels[:700]), torch.from_numpy(label[:700])
    for _ in range(100):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(net(rows), right).backward()
        steps.step()
    sample = (torch.zeros(2, 64),)
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(net.eval(), sample, dynamic_shapes=free)
    torch.export.save(program, tmp_path / "net.pt2")
    np.savez(tmp_path / "eval.npz", input=pixels[700:], label=label[700:])
    said = sartor(
        "optimize", tmp_path / "net.pt2", "--data", tmp_path / "eval.npz", "--format", "onnx",
        "--limit", "accuracy >= baseline - 0.02", "--trials", "3", "--out", tmp_path / "out",
        "--json",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert list((tmp_path / "out" / "bundle").glob("*.onnx"))
    verified = sartor("verify", tmp_path / "out" / "bundle")
    assert verified.status in (0, 2), verified.err
