"""Training inside a run: what is granted, what comes of it, what the journal says."""

from __future__ import annotations

import numpy as np
import pytest

import sartor
from sartor import trials
from sartor.contracts import Training, trains
from sartor.granting import EPOCHS, FEWEST, before, granted
from sartor.records import Journal
from sartor.registry import recipe

pytest.importorskip("lightning_fabric")

THIN = {"technique": "structured-prune", "share": 0.3}
TRAIN = {"technique": "recover", "effort": 1.0, "rate": 0.02, "teacher": 0.5}


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """Two runs of the same request: thin, and thin and trained."""
    runs = []
    for name in ("one", "two"):
        place = tmp_path_factory.mktemp(name)
        split = np.repeat(["train", "search", "holdout"], [400, 200, 400])
        runs.append(
            sartor.optimize(
                digits.model,
                digits.data(place, split=split),
                ["accuracy >= baseline - 0.05"],
                trials=3,
                out=place / "run",
                recipes=[[THIN], [THIN, TRAIN]],
            )
        )
    return runs


def test_what_is_trained_is_better_than_what_is_not(finished):
    run = finished[0]
    thin, trained = run.trials[1:3]
    assert trained.recipe[1]["technique"] == "recover"
    assert trained.figures["accuracy"] > thin.figures["accuracy"] or thin.state == "dropped"
    assert trained.figures["accuracy"] >= trained.figures["original.accuracy"] - 0.05
    assert trained.figures["size"] == pytest.approx(thin.figures["size"], rel=0.01)
    assert trained.steps[1]["touched"]


def test_what_was_granted_stands_in_the_journal(finished):
    journal = Journal(finished[0].folder / "run.jsonl")
    (told,) = journal.events("training")
    assert told["steps"] == max(EPOCHS * 400 // 64, FEWEST)
    products, numbers = 64 * 640 + 640 * 640 + 640 * 10, 4 * 640 + 10
    assert told["work"] == products + 80 * numbers
    assert told["seconds"] > 0
    assert granted(journal) == Training(told["steps"], told["seconds"], told["work"])


def test_what_was_not_granted_is_asked_again_where_the_run_is_given_more(tmp_path):
    journal = Journal(tmp_path / "run.jsonl")
    assert granted(journal) is None
    journal.add("training", steps=900, seconds=0.5, macs=3, why="")  # as it was told once
    assert granted(journal) is None
    nothing = {"steps": 0, "seconds": 0.5, "work": 3, "why": "too few"}
    journal.add("training", **nothing)
    assert granted(journal) == Training(0, 0.5, 3, "too few")
    journal.add("budget", budget=7200.0, trials=None)
    assert granted(journal) is None
    journal.add("training", **{**nothing, "steps": 900, "why": ""})
    journal.add("budget", budget=9000.0, trials=None)
    assert granted(journal) == Training(900, 0.5, 3)  # what was trained stays what it is


def test_the_same_request_trains_the_same_model(finished):
    assert finished[0].trials[2].model == finished[1].trials[2].model


def test_what_comes_before_a_training_and_makes_another_kind():
    steps = recipe("onnx", [THIN, TRAIN])
    assert [trains(each) for each in steps] == [False, True]
    assert before(steps) == ()


def test_what_would_be_too_big_is_not_trained(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "LONG", 0.0)
    split = np.repeat(["train", "search", "holdout"], [400, 200, 400])
    run = sartor.optimize(
        digits.model,
        digits.data(tmp_path, split=split),
        ["accuracy >= baseline - 0.05", "size <= 0.2 x baseline"],
        trials=2,
        out=tmp_path / "run",
        recipes=[[THIN, TRAIN]],
    )
    last = run.trials[1]
    assert last.state == "dropped"
    assert "breaks size" in last.reason
    assert "before it was trained" in last.reason
    assert not last.steps
    assert 0.2 < last.figures["size"] / last.figures["original.size"] < 0.9


def test_what_gains_far_less_than_what_is_there_is_not_trained(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "LONG", 0.0)
    monkeypatch.setattr(trials, "WORTH", 1.1)
    monkeypatch.setattr(trials, "LIKELY", 1.0)
    split = np.repeat(["train", "search", "holdout"], [400, 200, 400])
    run = sartor.optimize(
        digits.model,
        digits.data(tmp_path, split=split),
        ["accuracy >= baseline - 0.3"],
        minimize="size",
        trials=3,
        out=tmp_path / "run",
        recipes=[[{"technique": "weight-only"}], [THIN, TRAIN]],
    )
    first, last = run.trials[1:]
    assert first.state == "done", first.reason
    assert last.state == "dropped"
    assert last.reason.startswith("not worth its training: size")
    assert "and trial 1 has" in last.reason
    assert not last.steps
