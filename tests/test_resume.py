"""Killed at any moment and started again: the same answer, nothing finished done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Case, Said, command, run

from sartor import bundle
from sartor.records import Journal

PATIENCE = 120.0  # seconds after which a process counts as hanging; not a time that is asserted
LIMITS = ("--limit", "accuracy >= baseline - 0.03", "--limit", "size <= 0.9 x baseline")


@dataclass(frozen=True)
class Request:
    """One request, to be run in several folders, each with data and ledger of its own."""

    case: Case
    trials: int
    replay: Path | None = None

    def arguments(self, folder: Path) -> tuple[Any, ...]:
        data = folder / "eval.npz"
        if not data.exists():
            self.case.data(folder)
        replay = () if self.replay is None else ("--replay", self.replay)
        return (
            *("optimize", self.case.model, "--data", data, *LIMITS, "--trials", self.trials),
            *("--out", folder / "run", "--json", *replay),
        )


def undisturbed(case: Case, trials: int, folder: Path) -> tuple[Request, dict[str, Any]]:
    """A run from start to end; the request that replays its latencies, and its answer."""
    said = run(*Request(case, trials).arguments(folder))
    assert said.status == 0, said.err
    return Request(case, trials, folder / "run" / "run.jsonl"), said.json


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

    def __init__(self, request: Request, folder: Path) -> None:
        self.journal = Journal(folder / "run" / "run.jsonl")
        self.bundle = folder / "run" / "bundle"
        self.process = subprocess.Popen(
            command(*request.arguments(folder)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self, seconds: float) -> bool:
        """Whether it ended by itself within these seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_for(self, event: str, most: float = PATIENCE) -> bool:
        """Whether the journal got another such event before the command ended."""
        before = len(self.journal.events(event))
        until = time.monotonic() + most
        while time.monotonic() < until:
            if len(self.journal.events(event)) > before:
                return True
            if self.process.poll() is not None:
                return False
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


def killed(request: Request, folder: Path, moments: list[float | str]) -> dict[str, Any]:
    """The answer of a run that is killed at these moments of its sessions (seconds after the
    start, or the next event of this name) and started again each time."""
    for moment in moments:
        session = Session(request, folder)
        if isinstance(moment, str):
            ended = not session.wait_for(moment)
        else:
            ended = session.wait(moment)
        if ended:
            break
        assert session.stop(signal.SIGKILL).status == -signal.SIGKILL
        session.check_what_is_left()
    said = run(*request.arguments(folder))
    assert said.status == 0, said.err
    return said.json


def check_whole(folder: Path, trials: int) -> None:
    """The end of a run that was killed now and then."""
    journal = Journal(folder / "run" / "run.jsonl")
    assert [entry["number"] for entry in journal.events("trial")] == list(range(trials))
    recipes = [json.dumps(entry["recipe"], sort_keys=True) for entry in journal.events("trial")]
    assert len(set(recipes)) == trials
    assert len(journal.events("answer")) == 1
    assert len(journal.events("request")) == 1
    assert len(journal.events("early")) <= 1
    facts = bundle.read(folder / "run" / "bundle")
    assert facts["recipe"] == journal.last("answer")["recipe"]  # type: ignore[index]
    beside = {each.name for each in (folder / "run").iterdir()}
    assert beside <= {"run.jsonl", "work", "bundle", "frontier"}
    assert not list((folder / "run" / "work").rglob(".making-*"))


def test_killed_twice(digits: Case, tmp_path: Path) -> None:
    request, expected = undisturbed(digits, 5, tmp_path / "undisturbed")
    rng = np.random.default_rng(0)
    answer = killed(request, tmp_path / "killed", ["trial", float(rng.uniform(1, 3))])
    assert essence(answer) == essence(expected)
    check_whole(tmp_path / "killed", 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_ten_times(seed: int, digits: Case, tmp_path: Path) -> None:
    """Ten moments at random, early ones and late ones, and two where it matters most."""
    request, expected = undisturbed(digits, 12, tmp_path / "undisturbed")
    rng = np.random.default_rng(seed)
    moments: list[float | str] = rng.uniform(0.2, 4.0, 10).tolist()
    moments[4:4] = ["early"]
    moments.append("frozen")
    answer = killed(request, tmp_path / "killed", moments)
    assert essence(answer) == essence(expected)
    check_whole(tmp_path / "killed", 12)


def test_a_journal_cut_anywhere_is_continued(digits: Case, tmp_path: Path) -> None:
    """As after a crash of the machine, with half a line at the end, or nothing but half of the
    first one."""
    request, expected = undisturbed(digits, 2, tmp_path / "undisturbed")
    whole = (tmp_path / "undisturbed" / "run" / "run.jsonl").read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for name, cut in {"first": 30, "middle": ends[1] + 40, "last": ends[-1] - 7}.items():
        folder = tmp_path / name
        (folder / "run").mkdir(parents=True)
        (folder / "run" / "run.jsonl").write_bytes(whole[:cut])
        said = run(*request.arguments(folder))
        assert said.status == 0, said.err
        assert essence(said.json) == essence(expected)


def test_ctrl_c_ends_it_and_the_same_command_goes_on(digits: Case, tmp_path: Path) -> None:
    request = Request(digits, 3)
    session = Session(request, tmp_path)
    assert session.wait_for("trial")
    said = session.stop(signal.SIGINT)
    assert said.status == 130
    assert said.err.splitlines()[-1].startswith("sartor: stopped")
    assert "Traceback" not in said.err
    assert said.out == ""
    session.check_what_is_left()
    done = len(session.journal.events("trial"))
    assert done >= 1
    first = session.journal.path.read_bytes()

    said = run(*request.arguments(tmp_path))
    assert said.status == 0, said.err
    check_whole(tmp_path, 3)
    assert session.journal.path.read_bytes().startswith(first)


def test_a_finished_run_answers_at_once_and_goes_on_when_asked(
    digits: Case, tmp_path: Path
) -> None:
    first, more = Request(digits, 2), Request(digits, 4)
    said = run(*first.arguments(tmp_path))
    assert said.status == 0, said.err
    journal = Journal(tmp_path / "run" / "run.jsonl")
    before = journal.path.read_bytes()
    ledger = next(tmp_path.glob("*.sartor-ledger"))
    spent = ledger.read_bytes()

    again = run(*more.arguments(tmp_path))
    assert again.json == said.json
    assert "--resume" in again.err
    assert journal.path.read_bytes() == before
    assert ledger.read_bytes() == spent

    resumed = run(*more.arguments(tmp_path), "--resume")
    assert resumed.status == 0, resumed.err
    assert journal.path.read_bytes().startswith(before)
    assert [entry["number"] for entry in journal.events("trial")] == [0, 1, 2, 3]
    assert len(journal.events("answer")) == 2
    assert resumed.json["trials"] == 4
    # The second answer has an error rate of its own, out of what the first one left.
    assert resumed.json["error_rate_left"] < said.json["error_rate_left"]


def test_two_runs_at_once_in_one_folder(digits: Case, tmp_path: Path) -> None:
    request = Request(digits, 3)
    session = Session(request, tmp_path)
    assert session.wait_for("request")
    second = run(*request.arguments(tmp_path))
    assert second.status == 2
    assert second.err.startswith("sartor: ")
    assert "in use by another run" in second.err
    assert len(second.err.splitlines()) == 1
    said = session.end()
    assert said.status == 0, said.err
    check_whole(tmp_path, 3)


def test_killed_before_its_journal_began_it_starts_anew(digits: Case, tmp_path: Path) -> None:
    request = Request(digits, 1)
    session = Session(request, tmp_path)
    until = time.monotonic() + PATIENCE
    while not (tmp_path / "run" / "work").exists() and time.monotonic() < until:
        time.sleep(0.001)
    session.stop(signal.SIGKILL)
    said = run(*request.arguments(tmp_path))
    assert said.status == 0, said.err


def test_killed_by_the_system_no_process_is_left(digits: Case, tmp_path: Path) -> None:
    """SIGTERM, as a service manager sends it, in the middle of timing."""
    session = Session(Request(digits, 3), tmp_path)
    assert session.wait_for("timing")
    assert session.stop(signal.SIGTERM).status != 0
    session.check_what_is_left()


SCRIPT = """
import sys, sartor
run = sartor.optimize({model!r}, {data!r}, limits=["accuracy >= baseline - 0.03"], trials=1,
                      out={out!r})
print(run.status, len(run.trials), run.best.predict(sys.argv)["logits"] if 0 else "ok")
"""


def test_from_python_without_a_main_guard(digits: Case, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    out = tmp_path / "run"
    script.write_text(
        SCRIPT.format(model=str(digits.model), data=digits.data(tmp_path), out=str(out))
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.stdout == "0 1 ok\n", done.stderr
