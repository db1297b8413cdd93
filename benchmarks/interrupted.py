"""A run killed in the middle of its training and gone on with, beside one that was not.

    python benchmarks/interrupted.py [--model build/resnet18] [--budget 6m] [--after 45]

The first run is killed (SIGKILL) so many seconds after its training began, and resumed. The second
begins with the first lines of its journal, so that the same steps are granted, and is left alone.
Printed are the digests of what both trained: they are to be equal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sartor.records import Journal

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
SPEC = """
model = "{model}/model.onnx"
data = "eval.npz"
out = "run"
limits = ["accuracy >= baseline - 0.02"]
budget = "{budget}"

[search]
recipes = [[
    {{ technique = "structured-prune", share = 0.3 }},
    {{ technique = "recover", effort = 1.0, rate = 0.03 }},
]]
"""


def started(place: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sartor.cli", "optimize", "sartor.toml", "--quiet"]
    return subprocess.Popen(command, cwd=place, start_new_session=True)


def until(place: Path, event: str, process: subprocess.Popen[bytes]) -> None:
    journal = Journal(place / "run" / "run.jsonl")
    while not (journal.path.exists() and journal.last(event)):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with status {process.returncode} before {event}")
        time.sleep(0.2)


def trained(place: Path) -> dict[str, Any]:
    """The trial of the recipe that trains."""
    found = Journal(place / "run" / "run.jsonl").events("trial")
    trial = next(each for each in found if "recover(effort=1.0" in each["title"])
    if not trial["model"]:
        raise SystemExit(f"{place.name}: {trial['reason']}; give more --budget")
    return trial


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=BUILD / "resnet18")
    parser.add_argument("--budget", default="6m")
    parser.add_argument("--after", type=float, default=45)
    given = parser.parse_args()
    killed, whole = BUILD / "interrupted" / "killed", BUILD / "interrupted" / "whole"
    for place in (killed, whole):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copy(given.model / "eval.npz", place)
        text = SPEC.format(model=given.model.resolve(), budget=given.budget)
        (place / "sartor.toml").write_text(text)
    process = started(killed)
    until(killed, "training", process)
    time.sleep(given.after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list((killed / "run").rglob("*.partial*"))
    print(f"killed; kept of the training: {[each.name for each in kept]}", flush=True)
    lines = (killed / "run" / "run.jsonl").read_text().splitlines(keepends=True)
    (whole / "run").mkdir()
    (whole / "run" / "run.jsonl").write_text("".join(lines))
    for place in (killed, whole):
        status = started(place).wait()
        trial = trained(place)
        print(place.name, status, trial["model"], json.dumps(trial["seconds"]), flush=True)
    same = trained(killed)["model"] == trained(whole)["model"]
    print("equal" if same else "DIFFERENT")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
