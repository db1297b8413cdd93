"""The bench: batches, the teacher's answers, and what is remembered."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from toy_part import toy_part

from sartor.bench import LocalBench
from sartor.contracts import Target, Task, Training, WrongRequest
from sartor.registry import open_model, runtime
from sartor.testing_onnx import save_toys


@pytest.fixture
def bench(tmp_path: Path) -> LocalBench:
    model = open_model(save_toys(tmp_path)["transformer"])
    return LocalBench(
        model=model,
        teacher=model,
        task=Task("classification", "logits", "accuracy", classes=4),
        limits=(),
        target=Target(),
        train=toy_part(tmp_path / "train", "transformer", 24, seed=1),
        search=toy_part(tmp_path / "search", "transformer", 20, seed=2),
        scratch=tmp_path / "scratch",
        memory=tmp_path / "memory",
    )


def test_batches_are_trimmed_and_labelled(bench: LocalBench) -> None:
    batches = list(bench.batches("train", size=5, most=12) or ())
    assert [len(batch["label"]) for batch in batches] == [5, 5, 2]
    assert all(batch["attention_mask"].any(0).all() for batch in batches)


def test_a_part_that_is_not_there_is_none_and_an_unknown_one_wrong(bench: LocalBench) -> None:
    assert dataclasses.replace(bench, train=None).batches("train") is None
    with pytest.raises(WrongRequest, match="'holdout'"):
        bench.batches("holdout")


def test_the_teacher_answers_labelled_batches(bench: LocalBench) -> None:
    batch = next(iter(bench.batches("search", size=3) or ()))
    taught = bench.teach(batch)["logits"]
    with runtime("onnx").start(bench.teacher, Target()) as run:
        inputs = {port.name: batch[port.name] for port in bench.teacher.signature.inputs}
        assert np.array_equal(run(inputs)["logits"], taught)


def test_what_was_granted_matters_to_what_trains_alone(bench: LocalBench) -> None:
    """Else all that was made before the first training would have to be made again."""
    more = dataclasses.replace(bench, training=Training(500, 0.1, 10**6))
    assert more.facts() == bench.facts()
    assert more.facts(trains=True) != bench.facts(trains=True)


class Counted:
    """How often something was computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Mapping[str, np.ndarray]:
        self.calls += 1
        return {"file": np.arange(3), "/layer/out": np.ones((2, 2), np.float32)}


def test_what_was_computed_is_remembered(bench: LocalBench) -> None:
    compute = Counted()
    first = bench.remember("ranges", compute)
    again = pickle.loads(pickle.dumps(bench)).remember("ranges", compute)
    assert compute.calls == 1
    assert sorted(first) == sorted(again) == ["/layer/out", "file"]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert again["/layer/out"].dtype == np.float32
    bench.remember("ranges of other settings", compute)
    assert compute.calls == 2


def test_another_model_or_other_data_remember_nothing(bench: LocalBench, tmp_path: Path) -> None:
    compute = Counted()
    bench.remember("key", compute)
    other = dataclasses.replace(bench.model, settings={"threads": 1})
    bench.on(other, tmp_path).remember("key", compute)
    dataclasses.replace(bench, train=None).remember("key", compute)
    assert compute.calls == 3


def test_a_damaged_memory_is_computed_anew(bench: LocalBench) -> None:
    compute = Counted()
    bench.remember("key", compute)
    (path,) = bench.memory.iterdir()
    for damaged in (path.read_bytes()[:50], b"", b"noise"):
        path.write_bytes(damaged)
        assert np.array_equal(bench.remember("key", compute)["file"], np.arange(3))
    assert compute.calls == 4
    assert [each.name for each in bench.memory.iterdir()] == [path.name]


def test_a_failed_computation_leaves_nothing(bench: LocalBench) -> None:
    def fail() -> Mapping[str, np.ndarray]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bench.remember("key", fail)
    assert not bench.memory.exists() or not any(bench.memory.iterdir())


def test_facts_are_json_and_hold_what_matters(bench: LocalBench) -> None:
    facts = bench.facts(trains=True)
    assert json.loads(json.dumps(facts)) == facts
    for change in (
        {"seed": 1},
        {"training": Training(7, 0.5, 9)},
        {"target": Target(threads=2)},
        {"train": None},
        {"task": dataclasses.replace(bench.task, metric="f1")},
    ):
        assert dataclasses.replace(bench, **change).facts(trains=True) != facts
    assert bench.on(bench.model, Path("elsewhere"), 7.0).facts(trains=True) == facts
    slower = Training(bench.training.steps, 9.0, bench.training.work)
    told = dataclasses.replace(bench, training=slower).facts(trains=True)
    assert told == facts  # the clock decides nothing
