"""What journals of earlier runs teach."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Tailored, run

from sartor.contracts import WrongRequest
from sartor.priors import correlation, learned, observed
from sartor.records import Journal, Trial, Verdict

CONV = {"bytes:Conv": 0.9, "bytes:Gemm": 0.1, "macs:Conv": 1.0}
DENSE = {"bytes:Gemm": 1.0, "macs:Gemm": 1.0}


def verdict(limit: str, p: float) -> Verdict:
    return Verdict(limit, "undecided", 0.9, 0.8, 1.0, 0.9, p, "score test", 500)


def test_models_are_alike_by_what_they_share() -> None:
    alike, unlike = correlation(CONV, CONV), correlation(CONV, DENSE)
    assert 0 < unlike < 0.3 < 0.9 < alike < 1
    assert correlation(CONV, DENSE) == correlation(DENSE, CONV)


def test_a_trial_tells_its_objective_and_its_margins() -> None:
    verdicts = (verdict("accuracy >= 0.9", 0.5), verdict("accuracy <= 0.99", 0.975))
    trial = Trial(1, (), "done", figures={"objective": 0.5}, verdicts=verdicts)
    told = observed(trial)
    assert told["objective"] == pytest.approx(math.log(0.5))
    assert told["accuracy"] == pytest.approx(-1.96, abs=0.01)  # the worse of the two
    assert observed(Trial(1, (), "failed", figures={"objective": 0.5})) == {}


def test_what_is_counted_tells_how_near_it_is() -> None:
    def told(limit: str, size: float, bound: float) -> float:
        counted = Verdict(limit, "broken", size, size, size, bound, 1.0, "exact", 0)
        return observed(Trial(1, (), "dropped", verdicts=(counted,)))[limit.split()[0]]

    near, far = told("size <= 10 MB", 11e6, 10e6), told("size <= 10 MB", 13e6, 10e6)
    assert -3 < far < near < 0 < told("size <= 10 MB", 9e6, 10e6)
    assert told("throughput >= 100", 90, 100) < 0 < told("throughput >= 100", 110, 100)
    assert told("size <= 1 MB", 90e6, 1e6) == -3


def written(place: Path, **figures: Any) -> Path:
    place.mkdir(parents=True)
    journal = Journal(place / "run.jsonl")
    journal.add("request", request={"kind": "onnx", "objective": "latency"})
    journal.add("features", features=CONV)
    trial = Trial(1, ({"technique": "simplify", "fuse": True},), "done", figures=figures)
    journal.add("trial", **vars(trial))
    return journal.path


def test_journals_are_read_from_files_and_folders_each_once(tmp_path: Path) -> None:
    first = written(tmp_path / "runs" / "a", objective=0.5)
    written(tmp_path / "runs" / "b", objective=0.25)
    places = [str(tmp_path / "runs"), str(first)]
    lessons = learned(places, "onnx", CONV, "latency", tmp_path / "own")
    assert sorted(each.observed["objective"] for each in lessons) == pytest.approx(
        [math.log(0.25), math.log(0.5)]
    )
    assert len({each.source for each in lessons}) == 2
    assert all(each.likeness > 0.9 for each in lessons)
    assert learned(places, "fake", CONV, "latency", tmp_path / "own") == ()
    assert len(learned(places, "onnx", CONV, "latency", tmp_path / "runs" / "a")) == 1


def test_another_objective_is_computed_from_the_figures(tmp_path: Path) -> None:
    figures = {"objective": 0.5, "size": 30.0, "original.size": 100.0}
    path = written(tmp_path / "a", **figures)
    (lesson,) = learned([str(path)], "onnx", CONV, "size", tmp_path / "own")
    assert lesson.observed["objective"] == pytest.approx(math.log(0.3))
    (lesson,) = learned([str(path)], "onnx", CONV, "energy", tmp_path / "own")
    assert "objective" not in lesson.observed


def test_a_path_without_a_journal_is_a_wrong_request(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(WrongRequest, match=r"no run.jsonl there"):
            learned([str(place)], "onnx", CONV, "latency", tmp_path)


def test_the_journal_of_a_real_run_teaches(tailored: Tailored, tmp_path: Path) -> None:
    """As it is written, not as this file writes one."""
    lessons = learned([str(tailored.folder)], "onnx", CONV, "latency", tmp_path)
    assert len(lessons) == tailored.said.json["trials"]
    assert lessons[0].recipe == ()
    assert lessons[0].observed["objective"] == pytest.approx(0)
    assert any(each.observed.get("accuracy") for each in lessons)


def test_a_run_learns_from_another(tailored: Tailored, tmp_path: Path) -> None:
    """After the original and the portfolio are asked, what the earlier run found is known."""
    arguments = tailored.arguments(tmp_path, "--learn-from", tailored.folder, trials=3)
    said = run(*arguments)
    assert said.status == 0, said.err
    journal = Journal(tmp_path / "run" / "run.jsonl")
    told = journal.last("features")
    assert told is not None
    assert sum(v for k, v in told["features"].items() if k.startswith("bytes:")) == pytest.approx(
        1, abs=0.01
    )
    assert json.loads(json.dumps(said.json))["trials"] == 3
