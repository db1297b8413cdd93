"""Segments, classes, answers that went from right to wrong: each part judged, the worst named."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sartor.contracts import Task
from sartor.limits import parse
from sartor.metrics import Truth, find
from sartor.records import Verdict
from sartor.verdicts import Evidence, judge

TASK = Task("classification", "answer", "accuracy", classes=4, form="classes")
ROOT = Path(__file__).parents[1]


def spoilt(lost: dict[tuple[str, int], float], n: int = 8000, seed: int = 0) -> Evidence:
    """Four classes in three regions; the candidate gets a share of (region, class) wrong that the
    original has right."""
    rng = np.random.default_rng(seed)
    region, label = rng.choice(["east", "north", "west"], n), rng.integers(0, 4, n)
    before = np.where(rng.random(n) < 0.1, (label + 1) % 4, label)
    after = before.copy()
    for (where, c), share in lost.items():
        hit = (region == where) & (label == c) & (before == label) & (rng.random(n) < share)
        after[hit] = (label[hit] + 2) % 4
    truth = Truth(label, before, segments={"region": region, "half": np.arange(n) % 2})
    return Evidence((2, 1), answers=(before, after), truth=truth)


def verdict(text: str, evidence: Evidence) -> Verdict:
    return judge(parse(text), evidence, TASK)


def test_the_worst_segment_is_named_with_its_interval_and_all_broken_ones() -> None:
    evidence = spoilt({("west", c): 0.3 for c in range(4)} | {("east", 0): 0.5})
    found = verdict("accuracy@region >= baseline - 0.02", evidence)
    assert found.outcome == "broken"
    west = next(part for part in found.parts if part.limit.endswith("[region=west]"))
    assert (found.estimate, found.low, found.high) == (west.estimate, west.low, west.high)
    assert found.note.startswith(f"the worst: region=west, {west.estimate:.4g} (")
    assert "broken: region=east; region=west" in found.note
    assert "north" not in found.note


def test_crossings_and_too_few() -> None:
    evidence = spoilt({})
    assert evidence.truth is not None
    evidence.truth.segments["region"][:9] = "south"  # type: ignore[index]
    found = verdict("accuracy@region,half >= baseline - 0.05", evidence)
    assert len(found.parts) == 8
    assert found.outcome == "undecided"
    assert "too few examples: region=south, half=0 (5); region=south, half=1 (4)" in found.note
    assert found.needs == 16


def test_worst_class_drop() -> None:
    evidence = spoilt({("east", 2): 0.6})
    truth, answers = evidence.truth, evidence.answers
    assert truth is not None
    assert answers is not None
    found = verdict("worst_class_drop <= 0.05", evidence)
    label = np.asarray(truth.label)
    recalls = [[(a[label == c] == c).mean() for c in range(4)] for a in answers]
    assert found.estimate == pytest.approx(max(np.subtract(*recalls)))
    assert found.estimate == pytest.approx(find("worst_class_drop", TASK).value(answers[1], truth))
    assert found.outcome == "broken"
    assert "the worst: class 2" in found.note
    assert verdict("worst_class_drop <= 0.5", evidence).outcome == "met"
    by_region = verdict("worst_class_drop@region <= 0.3", evidence)
    assert "broken: region=east, class 2" in by_region.note
    assert len(by_region.parts) == 12


def test_a_class_of_few_rows_leaves_the_worst_class_open() -> None:
    evidence = spoilt({})
    label = np.asarray(evidence.truth.label)  # type: ignore[union-attr]
    keep = np.flatnonzero((label != 3) | (np.arange(len(label)) < 40))
    answers, truth = evidence.answers, evidence.truth
    assert answers is not None
    assert truth is not None
    few = Evidence((2, 1), answers=(answers[0][keep], answers[1][keep]), truth=truth.take(keep))
    found = verdict("worst_class_drop <= 0.2", few)
    assert found.outcome == "undecided"
    assert "too few examples: class 3" in found.note


def test_negative_flips_are_those_from_right_to_wrong() -> None:
    evidence = spoilt({("east", 0): 0.2})
    truth, answers = evidence.truth, evidence.answers
    assert truth is not None
    assert answers is not None
    label = np.asarray(truth.label)
    share = float(((answers[0] == label) & (answers[1] != label)).mean())
    found = verdict("negative_flips <= 3 %", evidence)
    assert found.outcome == "met"
    assert found.estimate == pytest.approx(share)
    assert found.method == "exact binomial"
    assert verdict("negative_flips <= 1 %", evidence).outcome == "broken"
    same = Evidence((2, 2), answers=(answers[0], answers[0]), truth=truth)
    for text in ("negative_flips <= 0.1 %", "worst_class_drop <= 0.1 %"):
        assert verdict(text, same).outcome == "met"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("sex", ["Female", "Male"])
def test_a_candidate_that_harms_one_sex_of_adult_income_is_broken(tmp_path: Path, sex: str) -> None:
    source = ROOT / "build" / "adult"
    if not (source / "model.onnx").is_file():
        pytest.skip("build it: python benchmarks/models/adult_mlp.py --out build/adult")
    adult = script("adult_segments")
    adult.harmed(source, tmp_path / "harmed.onnx", sex)
    _, segments, flips = adult.judged(source, tmp_path / "harmed.onnx", adult.LIMITS)
    assert segments.outcome == "broken"
    assert f"broken: sex={sex}" in segments.note
    other = "Male" if sex == "Female" else "Female"
    outcomes = {part.limit.split("sex=")[1][:-1]: part.outcome for part in segments.parts}
    assert outcomes == {sex: "broken", other: "met"}
    assert flips.outcome == "broken"
