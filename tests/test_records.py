"""Records: strict JSON there and back; a journal that a kill cannot spoil."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.records import (
    Journal,
    Trial,
    Verdict,
    allocate,
    disk_full,
    plain,
    trial_from_json,
    verdict_from_json,
)

RECIPE = ({"technique": "static-int8", "exceptions": 2},)


def _through_json(value: object) -> dict[str, object]:
    found = json.loads(json.dumps(plain(value), allow_nan=False))
    assert isinstance(found, dict)
    return found


def test_a_trial_comes_back_equal() -> None:
    part = Verdict("accuracy@sex=f", "met", 0.9, 0.8, 0.95, 0.7, 0.01, "exact", 100)
    whole = Verdict("accuracy@sex", "met", 0.9, 0.8, 0.95, 0.7, 0.01, "exact", 100, 7, "n", (part,))
    trial = Trial(
        3, RECIPE, "dropped", "no gain", {"size": 1.5, "objective": 0.1 + 0.2}, (whole,), 0.04, 0.5,
        100, 2.25, "static-int8", "abc", ({"touched": ["a"]},),
    )  # fmt: skip
    assert trial_from_json(_through_json(trial)) == trial


def test_numbers_that_json_lacks_come_back_as_numbers() -> None:
    nan, inf = math.nan, math.inf
    verdict = Verdict("latency <= 1 ms", "undecided", nan, -inf, inf, nan, 1.0, "", 0)
    back = verdict_from_json(_through_json(verdict))
    assert (back.low, back.high) == (-inf, inf)
    assert math.isnan(back.estimate)
    assert math.isnan(back.bound)
    # A trial dropped for its size has no objective yet; code compares it with numbers.
    trial = Trial(1, RECIPE, "dropped", figures={"objective": nan, "size": 9.0})
    figures = trial_from_json(_through_json(trial)).figures
    assert math.isnan(figures["objective"])
    assert not figures["objective"] < 1.0
    assert figures["size"] == 9.0


def test_plain_takes_what_records_hold() -> None:
    told = plain(
        {
            "array scalar": np.float32(0.5),
            "count": np.int64(7),
            "flag": np.bool_(True),
            "set": frozenset({"b", "a"}),
            "tuple": (1, (2, 3)),
            "path": Path("a/b"),
            "nan": np.float64("nan"),
            "record": Verdict("x", "met", 1.0, 1.0, math.inf, 1.0, 0.0, "exact", 0),
            1: "number as a key",
        }
    )
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text) == told
    assert told["set"] == ["a", "b"]
    assert told["tuple"] == [1, [2, 3]]
    assert told["nan"] is None
    assert told["record"]["high"] is None
    assert told["1"] == "number as a key"


def test_the_key_of_a_trial_is_that_of_its_recipe() -> None:
    one = Trial(0, ({"technique": "a", "names": ("x", "y")},), "done")
    other = Trial(5, ({"names": ["x", "y"], "technique": "a"},), "failed")
    assert one.key == other.key


def test_a_journal_cut_anywhere_keeps_what_was_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run.jsonl")
    for number in range(3):
        journal.add("trial", number=number, reason="é\n\u2028 twice")
    whole = journal.path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    for cut in range(len(whole) + 1):
        journal.path.write_bytes(whole[:cut])
        # The last line is whole without its end of line too.
        expected = sum(cut >= end - 1 for end in ends)
        assert [each["number"] for each in journal] == list(range(expected))
        journal.add("trial", number=99)
        assert [each["number"] for each in journal] == [*range(expected), 99]


def test_a_journal_survives_damage_in_the_middle(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run.jsonl")
    journal.add("request", run="a")
    with journal.path.open("ab") as file:
        file.write(b'\xff\xfe\x00 half a line\n[1, 2]\n{"no": "event"}\n"text"\n')
    journal.add("answer", status=0)
    assert [each["event"] for each in journal] == ["request", "answer"]
    assert journal.last("answer") == {"event": "answer", "status": 0}
    assert journal.last("trial") is None


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "none.jsonl")
    assert list(journal) == []
    assert journal.last("answer") is None


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8), st.floats() | st.integers() | st.text() | st.none(), max_size=5
    )
)
def test_a_line_is_strict_json_and_one_line(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "run.jsonl")
    journal.add("trial", values=values)
    text = journal.path.read_bytes()
    assert text.count(b"\n") == 1
    assert b"NaN" not in text.replace(b'"', b"") or "NaN" in str(values)
    assert journal.events("trial")[0]["values"] == plain(values)


def test_a_full_disk_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "run.jsonl")
    journal.add("request", run="a")
    before = journal.path.read_bytes()

    def full(_: int) -> None:
        assert journal.path.stat().st_size > len(before)  # something was written already
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as error:
            journal.add("trial", number=0)
    assert disk_full(error.value)
    assert journal.path.read_bytes() == before
    journal.add("trial", number=0)
    assert [each["event"] for each in journal] == ["request", "trial"]


def test_a_full_disk_is_known_however_it_is_said(tmp_path: Path) -> None:
    assert disk_full(OSError(errno.EDQUOT, "quota"))
    assert disk_full(OSError("1000 requested and 24 written"))  # numpy
    assert not disk_full(OSError(errno.EACCES, "denied"))
    assert not disk_full(ValueError("No space left on device"))
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 20)
    assert sparse.stat().st_blocks * 512 < 1 << 20
    allocate(sparse)
    assert sparse.stat().st_blocks * 512 >= 1 << 20
