"""Fault injection: runs whose techniques misbehave and whose driver is killed, as a table.

    python benchmarks/faults.py [--runs 50] [--first 0] [--out build/faults]

Every run is the command line on a network for digits (real data of scikit-learn), with two
techniques of `faulty_onnx.py` among its recipes (they come in by an entry point), at random places.
In turn the driver is also killed (SIGKILL) once or twice at random moments and started again, or
its disk is filled by somebody else while it works. On Linux as root each run has a small disk of
its own (tmpfs), so that the faults can fill it; elsewhere the faults that fill disks are left out.

A run is right when it ends with the answer of the run without any faults (latencies are replayed
from that one), when each faulty trial has failed with the reason that belongs to it, when the
journal and the bundle are whole, and when no process of it and no temporary file is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
HEALTHY: tuple[Any, ...] = (
    ["dynamic-int8"],
    ["weight-only"],
    ["float16-storage"],
    ["simplify", "dynamic-int8"],
)
KNOWN = ("simplify", "dynamic-int8", "weight-only", "float16-storage")
LIMITS = ("accuracy >= baseline - 0.05", "size <= 0.5 x baseline")
REASONS = {
    "segfault": "SIGSEGV",
    "abort": "SIGABRT",
    "exit": "ended with status 3",
    "killed": "SIGKILL",
    "memory": "out of memory",
    "sleep": "hung",
    "spin": "hung",
    "disk": "disk is full",
    "flood": "gives up after 200 MB",
    "orphan": "SIGSEGV",
    "model": "",  # ONNX Runtime's own words
}
DISTURBED = ("nothing", "killed once", "killed twice", "disk filled")
DISK = "64m"
PATIENCE = 900.0  # seconds after which a command counts as hanging
OF_OTHERS = {".ses"}  # ONNX Runtime's, written when it is imported, wherever temporary files go
MARK = "SARTOR_FAULTS"  # an environment variable that every process of a run inherits


@dataclass
class Outcome:
    """What was done to one run, and what was wrong with it."""

    seed: int
    faults: tuple[str, ...]
    disturbed: str
    sessions: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bed:
    """Where the runs take place: `model` and `data` (copied for each), the reference's journal and
    answer, and the folder with the plug-in."""

    model: Path
    data: Path
    place: Path
    plugin: Path
    deadline: int = 25

    @property
    def journal(self) -> Path:
        return self.place / "reference" / "disk" / "run" / "run.jsonl"


def install_plugin(place: Path) -> Path:
    """A folder that, on the path, is an installed package with the faulty technique."""
    facts = place / "sartor_faults-0.1.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "benchmarks" / "faulty_onnx.py", place)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: sartor-faults\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text("[sartor.techniques]\nfaulty_onnx = faulty_onnx\n")
    return place


def write_request(bed: Bed, place: Path, recipes: Sequence[Any], faulty: bool) -> Path:
    shutil.copy(bed.data, place / "eval.npz")
    known = [*KNOWN, "misbehave"] if faulty else list(KNOWN)
    recipe = json.dumps(list(recipes)).replace('": ', '" = ')  # TOML's inline tables
    replay = f"replay = {json.dumps(str(bed.journal))}\n" if faulty else ""
    path = place / "sartor.toml"
    path.write_text(
        f"model = {json.dumps(str(bed.model))}\ndata = 'eval.npz'\nlimits = {list(LIMITS)}\n"
        f"minimize = 'size'\nout = 'disk/run'\n{replay}[search]\ntrials = {1 + len(recipes)}\n"
        f"recipes = {recipe}\ntechniques = {known}\nmemory = '2 GB'\ndeadline = '{bed.deadline}s'\n"
    )
    return path


class Session:
    """The command once, in a process of its own, with our mark on it and on all that it starts."""

    def __init__(self, bed: Bed, request: Path, mark: str, scratch: Path) -> None:
        path = os.pathsep.join([str(bed.plugin), os.environ.get("PYTHONPATH", "")])
        self.journal = request.parent / "disk" / "run" / "run.jsonl"
        with (request.parent / "said.txt").open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sartor.cli", "optimize", str(request)],
                env={**os.environ, "PYTHONPATH": path, MARK: mark, "TMPDIR": str(scratch)},
                stdout=said,
                stderr=said,
            )

    def wait_for(self, lines: int, delay: float) -> bool:
        """Whether the journal came to hold so many lines while the command ran."""
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < until:
            if self.journal.exists() and self.journal.read_bytes().count(b"\n") >= lines:
                time.sleep(delay)
                return self.process.poll() is None
            time.sleep(0.01)
        return False

    def end(self) -> int:
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def disk(place: Path) -> Iterator[bool]:
    """A small disk at `place`; whether there is one."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        small = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        small = False
    try:
        yield small
    finally:
        if small:
            subprocess.run(["umount", "-l", str(place)], check=False)


def marked(mark: str) -> list[int]:
    """The processes that carry the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def orphans(mark: str, seconds: float = 20.0) -> list[int]:
    """Those that are still there when they have had time to go."""
    until = time.monotonic() + seconds
    while (found := marked(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def essence(answer: dict[str, Any]) -> dict[str, Any]:
    """What must be the same, whatever went wrong on the way."""
    names = ("status", "message", "chosen", "recipe", "limits", "files", "figures", "alpha")
    return {name: answer[name] for name in names}


def reference(bed: Bed) -> dict[str, Any]:
    """The answer of the run without faults; run once."""
    from sartor.records import Journal

    place = bed.place / "reference"
    answer = Journal(bed.journal).last("answer")
    if answer is None:
        shutil.rmtree(place, ignore_errors=True)
        (place / "tmp").mkdir(parents=True)
        (place / "disk").mkdir()
        request = write_request(bed, place, HEALTHY, faulty=False)
        Session(bed, request, "reference", place / "tmp").end()
        answer = Journal(bed.journal).last("answer")
    if answer is None or answer["status"] or answer["trials"] != 1 + len(HEALTHY):
        raise RuntimeError(f"the reference went wrong: {(place / 'said.txt').read_text()}")
    return answer


def one(bed: Bed, seed: int) -> Outcome:
    """A run with two faults of this seed's choice, disturbed in this seed's way."""
    rng = np.random.default_rng(seed)
    place = bed.place / f"run-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "tmp").mkdir(parents=True)
    expected = essence(reference(bed))
    mark = f"faults-{uuid.uuid4().hex}"
    with disk(place / "disk") as small:
        kinds = [each for each in REASONS if small or each != "disk"]
        # All kinds come up equally often: in turn, each beside one at random.
        faults = (kinds[seed % len(kinds)], str(rng.choice(kinds)))
        disturbed = DISTURBED[seed % len(DISTURBED)]
        outcome = Outcome(seed, faults, disturbed if small else disturbed.replace("disk", "no"))
        recipes = list(HEALTHY)
        for number, how in enumerate(faults):
            step = {"technique": "misbehave", "how": how, "again": number}
            # A model is run only where its size does not break the limit already.
            before = ["weight-only"] if rng.random() < 0.3 or how == "model" else []
            recipes.insert(int(rng.integers(0, len(HEALTHY))), [*before, step])
        request = write_request(bed, place, recipes, faulty=True)
        began = time.monotonic()
        try:
            status = _carried_out(bed, request, mark, outcome, rng)
            _check(bed, place, outcome, status, expected)
        except subprocess.TimeoutExpired:
            outcome.wrong.append("hangs")
        outcome.seconds = time.monotonic() - began
        left = orphans(mark)
        for process in left:
            os.kill(process, signal.SIGKILL)
        if left:
            outcome.wrong.append(f"{len(left)} orphans")
        if {each.name for each in (place / "tmp").iterdir()} - OF_OTHERS:
            outcome.wrong.append("temporary files are left")
    if not outcome.wrong:
        shutil.rmtree(place, ignore_errors=True)
    return outcome


def _carried_out(
    bed: Bed, request: Path, mark: str, outcome: Outcome, rng: np.random.Generator
) -> int:
    """The exit status of the last session; disturbed before."""

    def start() -> Session:
        outcome.sessions += 1
        return Session(bed, request, mark, request.parent / "tmp")

    lines = bed.journal.read_bytes().count(b"\n")
    for at in sorted(int(each) for each in rng.integers(0, lines, outcome.disturbed.count("killed")
                     + outcome.disturbed.count("twice"))):  # fmt: skip
        session = start()
        if session.wait_for(at, float(rng.uniform(0, 1))):
            session.process.kill()
        session.end()
        if orphans(mark):
            outcome.wrong.append("orphans after a kill")
        _check_whole(request.parent, outcome)
        shutil.rmtree(request.parent / "tmp")  # the driver's own, which it could not remove
        (request.parent / "tmp").mkdir()
    if outcome.disturbed == "disk filled":
        session = start()
        ballast = request.parent / "disk" / "ballast"
        if session.wait_for(int(rng.integers(1, lines)), float(rng.uniform(0, 1))):
            _fill(ballast, session)
        status = session.end()
        ballast.unlink(missing_ok=True)
        _check_whole(request.parent, outcome)
        if status == 0:
            return status
        last = (request.parent / "said.txt").read_text().strip().splitlines()[-1]
        if status != 1 or not last.startswith("sartor: the disk of"):
            outcome.wrong.append(f"a full disk ends in status {status}: {last}")
    return start().end()


def _fill(ballast: Path, session: Session) -> None:
    """Takes what room there is, and what becomes free, until the command has ended."""
    with ballast.open("wb", buffering=0) as file:
        while session.process.poll() is None:
            try:
                file.write(bytes(1 << 16))
            except OSError:
                with contextlib.suppress(OSError):
                    file.write(bytes(1 << 9))
                time.sleep(0.02)


def _check_whole(place: Path, outcome: Outcome) -> None:
    """After any end: whole lines but the last, a bundle that is whole or not there."""
    from sartor import bundle
    from sartor.contracts import WrongRequest

    run = place / "disk" / "run"
    try:
        if (run / "run.jsonl").exists():
            for line in (run / "run.jsonl").read_bytes().split(b"\n")[:-1]:
                json.loads(line)
        if (run / "bundle").exists():
            bundle.read(run / "bundle")
        for each in (run / "frontier").glob("*"):
            bundle.read(each)
    except (ValueError, OSError, WrongRequest) as error:
        outcome.wrong.append(f"half-written: {error}")


def _check(bed: Bed, place: Path, outcome: Outcome, status: int, expected: dict[str, Any]) -> None:
    from sartor.records import Journal

    _check_whole(place, outcome)
    run = place / "disk" / "run"
    journal = Journal(run / "run.jsonl")
    answer = journal.last("answer")
    if answer is None or status != expected["status"]:
        outcome.wrong.append(f"status {status}")
        return
    found = essence(answer)
    outcome.wrong += [f"another {name}" for name in found if found[name] != expected[name]]
    for how, number in zip(outcome.faults, range(len(outcome.faults)), strict=True):
        step = {"technique": "misbehave", "how": how, "again": number}
        trials = [each for each in journal.events("trial") if step in each["recipe"]]
        told = [each["reason"] for each in trials if each["state"] == "failed"]
        if len(trials) != 1 or len(told) != 1:
            outcome.wrong.append(f"{how}: {[each['state'] for each in trials]}")
        elif not told[0] or REASONS[how] not in told[0] or "\n" in told[0]:
            outcome.wrong.append(f"{how}: its reason is {told[0]!r}")
    left = [*run.rglob(".making-*"), *run.rglob(".old-*"), *run.rglob(".reading-*")]
    if left or {each.name for each in run.iterdir()} - {"run.jsonl", "work", "bundle", "frontier"}:
        outcome.wrong.append("litter in the folder of the run")


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: by fault and by disturbance, how many runs and how many of them were right."""
    lines = ["| what went wrong | runs | right |", "|---|---|---|"]
    runs: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for each in outcomes:
        for name in (*dict.fromkeys(each.faults), f"driver: {each.disturbed}"):
            runs[name] += 1
            right[name] += not each.wrong
    order = [*REASONS, *(f"driver: {each}" for each in DISTURBED)]
    lines += [f"| {name} | {runs[name]} | {right[name]} |" for name in order if runs[name]]
    sound = sum(not each.wrong for each in outcomes)
    return "\n".join([*lines, f"| **all** | **{len(outcomes)}** | **{sound}** |"])


def make_bed(model: Path, arrays: dict[str, np.ndarray], place: Path) -> Bed:
    place.mkdir(parents=True, exist_ok=True)
    np.savez(place / "eval.npz", **arrays)
    return Bed(model, place / "eval.npz", place, install_plugin(place / "plugin"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import digit_case

    place = given.out.absolute()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as fresh:
        case = digit_case(Path(fresh) / "digits.onnx", (640, 640), 6)
        model = place / "digits.onnx"
        if not model.exists():  # the reference's journal knows the model by its content
            shutil.copy(case.model, model)
    bed = make_bed(model, case.arrays, place)
    outcomes = []
    for seed in range(given.first, given.first + given.runs):
        outcomes.append(one(bed, seed))
        print(outcomes[-1], file=sys.stderr, flush=True)
    print(table(outcomes))
    return int(any(each.wrong for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
