"""Killed at any moment and started again: the same answer, nothing finished done twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import TRIALS, Case, Said, Tailored, command, run

from sartor import bundle
from sartor.records import Journal

PATIENCE = 120.0  # seconds after which a process counts as hanging; not a time that is asserted
Sartor = Callable[..., Said]
Arguments = tuple[Any, ...]


def essence(answer: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how often a run was killed."""
    names = ("status", "message", "chosen", "recipe", "limits", "files", "figures", "alpha")
    steps = [(each["title"], each["figures"]) for each in answer["steps"]]
    rows = [
        {k: v for k, v in row.items() if k not in ("figures", "p_value")} for row in answer["rows"]
    ]
    return {**{name: answer[name] for name in names}, "steps": steps, "rows": rows}


class Session:
    """The command in a process of its own."""

    def __init__(self, place: Path, arguments: Arguments) -> None:
        self.journal = Journal(place / "run" / "run.jsonl")
        self.bundle = place / "run" / "bundle"
        self.process = subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, lines: int) -> bool:
        """Whether the journal came to hold that many lines before the command ended."""
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < until:
            written = self.journal.path.read_bytes() if self.journal.path.exists() else b""
            if written.count(b"\n") >= lines:
                return True
            time.sleep(0.003)
        return False

    def stop(self, how: signal.Signals) -> Said:
        """Ends it; checks that no process of its own outlives it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=PATIENCE)
        left = psutil.wait_procs(children, timeout=PATIENCE)[1]
        assert not left, f"orphans: {left}"
        return Said(self.process.returncode, out, err)

    def end(self) -> Said:
        out, err = self.process.communicate(timeout=PATIENCE)
        return Said(self.process.returncode, out, err)

    def check_what_is_left(self) -> None:
        """After a kill: the journal can be read but for its last line, no trial is in it twice,
        and the bundle is not there or is whole."""
        if self.journal.path.exists():
            whole = self.journal.path.read_bytes().split(b"\n")
            for line in whole[:-1]:
                json.loads(line)
        numbers = Counter(entry["number"] for entry in self.journal.events("trial"))
        assert all(count == 1 for count in numbers.values()), numbers
        if self.bundle.exists():
            bundle.read(self.bundle)


def killed(place: Path, arguments: Arguments, moments: list[tuple[int, float]]) -> dict[str, Any]:
    """The answer of a run that is killed at these moments, so many seconds after its journal came
    to hold so many lines, and started again each time."""
    for lines, delay in moments:
        session = Session(place, arguments)
        assert session.wait_for(lines), session.end()
        time.sleep(delay)
        assert session.stop(signal.SIGKILL).status == -signal.SIGKILL
        session.check_what_is_left()
    said = run(*arguments)
    assert said.status == 0, said.err
    return said.json


def random_moments(journal: Path, count: int, seed: int) -> list[tuple[int, float]]:
    """Moments anywhere from before the journal begins until shortly before the answer."""
    rng = np.random.default_rng(seed)
    lines = journal.read_bytes().count(b"\n")
    at = np.sort(rng.integers(0, lines - 3, count))
    return [
        (int(line), float(delay))
        for line, delay in zip(at, rng.uniform(0, 0.1, count), strict=True)
    ]


def check_whole(folder: Path, trials: int) -> None:
    """The end of a run that was killed now and then."""
    journal = Journal(folder / "run.jsonl")
    assert [entry["number"] for entry in journal.events("trial")] == list(range(trials))
    recipes = [json.dumps(entry["recipe"], sort_keys=True) for entry in journal.events("trial")]
    assert len(set(recipes)) == trials
    assert len(journal.events("answer")) == 1
    assert len(journal.events("request")) == 1
    assert len(journal.events("early")) <= 1
    facts = bundle.read(folder / "bundle")
    assert facts["recipe"] == journal.last("answer")["recipe"]  # type: ignore[index]
    beside = {each.name for each in folder.iterdir()}
    assert beside <= {"run.jsonl", "work", "bundle", "frontier"}
    assert not list((folder / "work").rglob(".making-*"))


def test_killed_twice(tailored: Tailored, tmp_path: Path) -> None:
    moments = random_moments(tailored.folder / "run.jsonl", 2, seed=0)
    answer = killed(tmp_path, tailored.arguments(tmp_path), moments)
    assert essence(answer) == essence(tailored.said.json)
    check_whole(tmp_path / "run", TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_ten_times(seed: int, tailored: Tailored, tmp_path: Path) -> None:
    """At ten moments at random of a run of twelve trials, and then while it certifies."""
    plain = run(*tailored.arguments(tmp_path / "plain", trials=12))
    journal = tmp_path / "plain" / "run" / "run.jsonl"
    again = tailored.arguments(tmp_path / "killed", "--replay", journal, trials=12)
    moments = random_moments(journal, 10, seed)
    frozen = [each["event"] for each in Journal(journal)].index("frozen") + 1
    answer = killed(tmp_path / "killed", again, [*moments, (frozen, 0.0)])
    assert essence(answer) == essence(plain.json)
    check_whole(tmp_path / "killed" / "run", 12)


def test_a_journal_cut_anywhere_is_continued(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    """As after a crash of the machine, with half a line at the end, or nothing but half of the
    first one."""
    whole = (tailored.folder / "run.jsonl").read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for name, cut in {"first": 30, "middle": ends[3] + 40, "last": ends[-1] - 7}.items():
        place = tmp_path / name
        (place / "run").mkdir(parents=True)
        (place / "run" / "run.jsonl").write_bytes(whole[:cut])
        said = sartor(*tailored.arguments(place))
        assert said.status == 0, said.err
        assert essence(said.json) == essence(tailored.said.json)


def test_ctrl_c_ends_it_and_the_same_command_goes_on(tailored: Tailored, tmp_path: Path) -> None:
    arguments = tailored.arguments(tmp_path, trials=3)
    session = Session(tmp_path, arguments)
    assert session.wait_for(3)
    said = session.stop(signal.SIGINT)
    assert said.status == 130
    assert said.err.splitlines()[-1].startswith("sartor: stopped")
    assert "Traceback" not in said.err
    assert said.out == ""
    session.check_what_is_left()
    assert session.journal.events("trial")
    first = session.journal.path.read_bytes()

    said = run(*arguments)
    assert said.status == 0, said.err
    check_whole(tmp_path / "run", 3)
    assert session.journal.path.read_bytes().startswith(first)


def test_a_finished_run_answers_at_once_and_goes_on_when_asked(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    said = sartor(*tailored.arguments(tmp_path, trials=2))
    assert said.status == 0, said.err
    journal = Journal(tmp_path / "run" / "run.jsonl")
    before = journal.path.read_bytes()
    ledger = next(tmp_path.glob("*.sartor-ledger"))
    spent = ledger.read_bytes()

    again = sartor(*tailored.arguments(tmp_path, trials=4))
    assert again.json == said.json
    assert "--resume" in again.err
    assert journal.path.read_bytes() == before
    assert ledger.read_bytes() == spent

    resumed = sartor(*tailored.arguments(tmp_path, "--resume", trials=4))
    assert resumed.status == 0, resumed.err
    assert journal.path.read_bytes().startswith(before)
    assert [entry["number"] for entry in journal.events("trial")] == [0, 1, 2, 3]
    assert len(journal.events("answer")) == 2
    assert resumed.json["trials"] == 4
    assert resumed.json["error_rate_left"] <= said.json["error_rate_left"]


def chosen(answer: dict[str, Any]) -> dict[str, Any]:
    """The row of what an answer chose."""
    journal = Journal(Path(answer["artifact"]).parent / "run.jsonl")
    recipes = {entry["number"]: entry["recipe"] for entry in journal.events("trial")}
    return next(row for row in answer["rows"] if recipes[row["trial"]] == answer["recipe"])


def test_the_journal_alone_is_enough(
    sartor: Sartor, tailored: Tailored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To render the run again and to continue it from anywhere, with no other flag."""
    said = sartor(*tailored.arguments(tmp_path, trials=2))
    assert said.status == 0, said.err
    out = tmp_path / "run"
    journal = Journal(out / "run.jsonl")
    for name in ("work", "bundle", "frontier"):
        shutil.rmtree(out / name, ignore_errors=True)
    before = journal.path.read_bytes()
    report = sartor("report", out, "--json")
    assert report.json == said.json
    assert said.json["message"] in report.err

    monkeypatch.chdir(out)  # whose folder "." it then is
    for flags, words in {
        (): "say how much more, such as --budget +10m or --trials +20",
        ("--trials", 2): "say how much more",
        ("--trials", "+1", "--seed", 7): "another request (seed differ)",
        ("--trials", "+1", "--limit", "size <= 1 MB"): "another request (limits differ)",
        ("--trials", "+1", "--out", tmp_path): "two folders: name one",
    }.items():
        wrong = sartor("optimize", "--resume", ".", *flags)
        assert wrong.status == 2, (flags, wrong)
        assert words in wrong.err
        assert len(wrong.err.splitlines()) == 1
        assert journal.path.read_bytes() == before

    resumed = sartor("optimize", "--resume", ".", "--trials", "+1", "--json")
    assert resumed.status == 0, resumed.err
    assert journal.path.read_bytes().startswith(before)
    assert [entry["number"] for entry in journal.events("trial")] == [0, 1, 2]
    assert journal.last("budget") == {"event": "budget", "budget": 600.0, "trials": 3}
    assert resumed.json["error_rate_left"] <= said.json["error_rate_left"]
    monkeypatch.chdir(tmp_path)
    bundle.read(out / "bundle")
    # What was certified stays so, at the level that was spent on it; only better may replace it.
    old, new = chosen(said.json), chosen(resumed.json | {"artifact": str(out / "bundle")})
    assert new["digest"] == old["digest"] or new["value"] < old["value"]
    kept = next(row for row in resumed.json["rows"] if row["digest"] == old["digest"])
    assert kept["status"] == "certified"
    assert (kept["alpha"], kept["verdicts"]) == (old["alpha"], old["verdicts"])


def test_folders_that_cannot_be_continued(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    entries = Journal(tailored.folder / "run.jsonl").events("request")
    request = entries[0]
    ways = {
        "no run to continue": None,
        "older version": {k: v for k, v in request.items() if k != "spec"},
        "data of": request | {"spec": request["spec"] | {"data": None}},
        "write --trust": request | {"spec": request["spec"] | {"model": "/x/model.py:make"}},
        "was named from": request | {"spec": request["spec"] | {"metric": "m.py:f", "cwd": "/x"}},
    }
    for number, (words, line) in enumerate(ways.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        if line is not None:
            (folder / "run.jsonl").write_text(json.dumps(line) + "\n")
        trust = ("--trust",) if words == "was named from" else ()
        said = sartor("optimize", "--resume", folder, "--trials", "+1", *trust)
        assert said.status == 2, said
        assert words in said.err
        assert len(said.err.splitlines()) == 1


def test_the_pace_of_earlier_sessions_is_known(tailored: Tailored) -> None:
    """Else too little time would be kept back for certifying."""
    entries = Journal(tailored.folder / "run.jsonl").events("trial")
    paces = {name: pace for entry in entries for name, pace in entry["pace"].items()}
    done = {entry["model"] for entry in entries if entry["state"] == "done"}
    assert done <= set(paces)
    assert all(pace > 0 for pace in paces.values())


def test_two_runs_at_once_in_one_folder(sartor: Sartor, tailored: Tailored, tmp_path: Path) -> None:
    arguments = tailored.arguments(tmp_path, trials=3)
    session = Session(tmp_path, arguments)
    assert session.wait_for(1)
    second = sartor(*arguments)
    assert second.status == 2
    assert second.err.startswith("sartor: ")
    assert "in use by another run" in second.err
    assert len(second.err.splitlines()) == 1
    said = session.end()
    assert said.status == 0, said.err
    check_whole(tmp_path / "run", 3)


def test_killed_before_its_journal_began_it_starts_anew(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    arguments = tailored.arguments(tmp_path, trials=2)
    session = Session(tmp_path, arguments)
    until = time.monotonic() + PATIENCE
    while not (tmp_path / "run" / "work").exists() and time.monotonic() < until:
        time.sleep(0.001)
    session.stop(signal.SIGKILL)
    assert session.journal.last("request") is None
    said = sartor(*arguments)
    assert said.status == 0, said.err


def test_stopped_by_the_system_no_process_is_left(digits: Case, tmp_path: Path) -> None:
    """SIGTERM, as a service manager sends it, in the middle of timing."""
    data = digits.data(tmp_path)
    out = tmp_path / "run"
    session = Session(
        tmp_path, ("optimize", digits.model, "--data", data, "--trials", 3, "--out", out)
    )
    assert session.wait_for(2)  # the request, and the original's own latency
    assert session.stop(signal.SIGTERM).status != 0
    session.check_what_is_left()


SCRIPT = """
import numpy as np, sartor
run = sartor.optimize({model!r}, {data!r}, limits=["accuracy >= baseline - 0.03"], trials=1,
                      out={out!r})
print(run.status, len(run.trials), run.best.predict(np.zeros((1, 64)))["logits"].shape)
"""


def test_from_python_without_a_main_guard(digits: Case, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    out = tmp_path / "run"
    script.write_text(
        SCRIPT.format(model=str(digits.model), data=digits.data(tmp_path), out=str(out))
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "0 1 (1, 10)\n", done.stderr
