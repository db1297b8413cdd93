"""Fake models tell the truth about themselves, and drive what drives models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sartor import lanes
from sartor.contracts import Failed, Model, Target, WrongRequest
from sartor.fake_model import Facts, answers, labels, read
from sartor.registry import from_json, open_model, recipe, runtime, techniques
from sartor.testing_fake import (
    FakeRace,
    InProcess,
    fake_arrays,
    fake_footprint,
    fake_model,
    fake_part,
)

ROWS = np.arange(40_000)


def _wrong(**facts: float) -> np.ndarray:
    return answers(ROWS, Facts(**facts)).argmax(1) != labels(ROWS)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [0.0, 0.05, 0.3, 1.0])
def test_the_error_rate_is_what_it_says(error: float) -> None:
    for facts in ({"flips": 0.0}, {"flips": 0.3, "salt": 5}):
        assert abs(_wrong(error=error, **facts).mean() - error) < 0.01


def test_errors_are_nested_without_flips_and_cross_with_them() -> None:
    mild, bold = _wrong(error=0.1), _wrong(error=0.13, salt=3)
    assert not (mild & ~bold).any()
    crossed = _wrong(error=0.1, flips=0.2, salt=3)
    expected = 0.2 * 0.1 * 0.9
    assert abs((mild & ~crossed).mean() - expected) < 0.005
    assert abs((~mild & crossed).mean() - expected) < 0.005


def test_labels_are_even_and_the_same_everywhere() -> None:
    assert np.allclose(np.bincount(labels(ROWS)) / len(ROWS), 0.25, atol=0.01)
    assert labels(np.arange(8)).tolist() == [1, 2, 2, 2, 3, 3, 1, 0]


def test_a_session_turns_the_clock_by_what_it_claims(tmp_path: Path) -> None:
    engine = runtime("fake")
    clock = engine.clock  # type: ignore[attr-defined]
    with engine.start(fake_model(tmp_path, seconds=0.5, jitter=0.05), Target()) as run:
        began = clock()
        for _ in range(400):
            run({"row": np.arange(2)})
    took = (clock() - began) / 400
    assert took == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"eror": 0.1}', '{"error": 2}', '{"seconds": 0}', '{"bytes": NaN}']
)
def test_what_is_no_fake_model_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.fake").write_text(text)
    with pytest.raises(WrongRequest):
        open_model(tmp_path / "m.fake")


def test_a_race_finds_the_ratio(tmp_path: Path) -> None:
    original = fake_model(tmp_path, "a", seconds=0.01)
    faster = fake_model(tmp_path, "b", seconds=0.004, salt=1)
    part = fake_part(tmp_path / "part", 50)
    with FakeRace(original, Target(batch=2), part) as race:
        timing = race.time(faster, rounds=20)
        assert timing.baseline.shape == (20, 8)
        assert timing.twin is not None
        ratio = np.median(timing.candidate) / np.median(timing.baseline)
        assert ratio == pytest.approx(0.4, rel=0.02)
        assert np.median(timing.baseline) == pytest.approx(0.02, rel=0.02)
        assert not np.array_equal(timing.baseline, timing.twin)
        assert len(race.time(faster, rounds=1000, seconds=1.0).baseline) == 5
        assert np.array_equal(race.time(faster, rounds=20).candidate, timing.candidate)


def test_answers_come_through_the_real_code(tmp_path: Path) -> None:
    model, part = fake_model(tmp_path, error=0.2), fake_part(tmp_path / "part", 300, first=7)
    rows = np.array([5, 299, 0])
    found = InProcess().call(
        lanes.answer_rows, model, "key", part, rows, "logits", Target(), timeout=1
    )
    assert np.array_equal(found, answers(rows + 7, Facts(error=0.2)))
    assert part.label is not None
    assert np.array_equal(part.label, fake_arrays(300, first=7)["label"])


class Bench:
    """As much of a bench as the toys look at."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch


def _apply(model: Model, entries: list[dict[str, object]], folder: Path) -> Model:
    for technique in recipe("fake", entries):
        bench = Bench(folder)
        assert technique.refuse(model, bench) is None  # type: ignore[arg-type]
        model = technique.apply(model, bench)  # type: ignore[arg-type]
    return model


def test_effects_multiply_and_are_told(tmp_path: Path) -> None:
    model = fake_model(tmp_path, seconds=1.0, bytes=1_000_000, error=0.1)
    made = _apply(
        model,
        [{"technique": "slim", "strength": 0.5}, {"technique": "fuse"}, {"technique": "round"}],
        tmp_path / "made",
    )
    facts = read(made.payload)
    assert facts.seconds == pytest.approx(0.5 * 0.9 * 0.5)
    assert facts.bytes == runtime("fake").size(made) == 125_000
    assert facts.error == pytest.approx(0.1 + 0.025 + 0.006)
    assert fake_footprint(made, Target(), {}) == facts.memory
    assert [type(step.technique).__name__ for step in made.lineage] == ["Slim", "Fuse", "Round"]
    assert read(model.payload).seconds == 1.0


def test_exceptions_buy_back_quality(tmp_path: Path) -> None:
    model = fake_model(tmp_path)
    bold = _apply(model, [{"technique": "round", "bits": 4}], tmp_path)
    mild = _apply(model, [{"technique": "round", "bits": 4, "exceptions": 2}], tmp_path)
    first, second = read(bold.payload), read(mild.payload)
    assert first.error > second.error > read(model.payload).error
    assert first.bytes < second.bytes
    step = mild.lineage[-1]
    assert (step.touched, [name for name, _ in step.skipped]) == (("third",), ["first", "second"])


def test_there_is_one_that_fails_one_that_refuses_one_that_slows(tmp_path: Path) -> None:
    model, bench = fake_model(tmp_path), Bench(tmp_path)
    with pytest.raises(Failed, match="always fails"):
        from_json("fake", {"technique": "broken"}).apply(model, bench)  # type: ignore[arg-type]
    told = from_json("fake", {"technique": "unwilling"}).refuse(model, bench)  # type: ignore[arg-type]
    assert told == "this toy always refuses"
    slow = _apply(model, [{"technique": "sluggish"}], tmp_path)
    assert read(slow.payload).seconds > 2 * read(model.payload).seconds
    twice = from_json("fake", {"technique": "sluggish"}).refuse(slow, bench)  # type: ignore[arg-type]
    assert twice == "was applied already"
    assert {cls.stage for cls in techniques("fake").values()} == {
        "structure", "weights", "graph", "precision", "storage",
    }  # fmt: skip
    assert "toy" not in techniques("fake")
