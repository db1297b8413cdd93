"""The main job on three real models, in one command, as a Markdown table.

    python benchmarks/main_job.py [--only minilm|fashion|fashion-30s|adult] [--budget 2m]
    python benchmarks/main_job.py --only resnet|resnet-torch|resnet-post|resnet-int8|...

Those of the second line take up to an hour each. Models and data are built where they are missing
(`make data` brings the images of Fashion-MNIST). Each run gets a fresh folder and a fresh copy of
its data below build/bench, so that no ledger of an earlier run is charged. Figures are those of the
certificate: measured on the holdout, the latency in rounds interleaved with the original on the
same rows.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
COLUMNS = (
    "model", "budget", "status", "size before / after", "latency ratio (95 %)", "times faster",
    "quality (95 %)", "holdout rows", "first certified", "took", "chosen",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run. `build` makes model.onnx and eval.npz in `source` where they are missing."""

    name: str
    source: Path
    build: Callable[[Path], None]
    limits: tuple[str, ...]
    budget: str
    segments: tuple[str, ...] = ()
    long: bool = False  # only where it is named
    techniques: tuple[str, ...] = ()  # only these; all where none is named
    code: str = ""  # script:factory of the model as PyTorch code, in place of the ONNX file


STATES = {0: "certified", 3: "infeasible", 4: "undecided"}


def build_demo(folder: Path) -> None:
    from sartor.demo import build

    build(folder)


def build_with(script: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        command = [sys.executable, str(ROOT / "benchmarks" / "models" / script)]
        subprocess.run([*command, "--out", str(folder)], check=True, stdout=sys.stderr)

    return run


NEAR = "accuracy >= baseline - 0.01"
JOBS = (
    Job("minilm", BUILD / "demo" / "input", build_demo, (NEAR, "size <= 25 MB"), "10m"),
    Job("fashion", BUILD / "fashion", build_with("fashion_cnn.py"), (NEAR,), "3m"),
    Job("fashion-30s", BUILD / "fashion", build_with("fashion_cnn.py"), (NEAR,), "30s"),
    Job(
        "adult", BUILD / "adult", build_with("adult_mlp.py"),
        (NEAR, "accuracy@sex >= baseline - 0.02"), "1m", ("sex",),
    ),
    Job(
        "resnet", BUILD / "resnet18", build_with("resnet18.py"),
        (NEAR, "size <= 0.1 x baseline"), "30m", long=True,
    ),
    Job(
        "resnet-torch", BUILD / "resnet18", build_with("resnet18.py"),
        (NEAR, "size <= 0.1 x baseline"), "30m", long=True, code="resnet18.py:make",
    ),
    Job(  # too short to train: the best that post-training techniques give under the same limit
        "resnet-post", BUILD / "resnet18", build_with("resnet18.py"), (NEAR,), "4m", long=True,
    ),
    Job(  # what quantizers alone give, as the field's other tools do
        "resnet-int8", BUILD / "resnet18", build_with("resnet18.py"), (NEAR,), "4m", long=True,
        techniques=("static-int8", "dynamic-int8", "simplify", "optimize-offline"),
    ),
    Job(
        "minilm-tuned", BUILD / "minilm", build_with("minilm_tweets.py"),
        (NEAR, "size <= 10 MB"), "60m", long=True,
    ),
    Job(
        "lite0", BUILD / "lite0", build_with("lite0.py"),
        (NEAR, "size <= 0.16 x baseline"), "30m", long=True,
    ),
)  # fmt: skip


def run(job: Job, budget: str) -> dict[str, Any]:
    """The run's answer, as `sartor optimize --json` prints it."""
    if not all((job.source / file).is_file() for file in ("model.onnx", "eval.npz")):
        job.build(job.source)
    model = ROOT / "benchmarks" / "models" / job.code if job.code else job.source / "model.onnx"
    asked = ["--minimize", "latency", "--budget", budget, *flags("--limit", job.limits)]
    asked += [*flags("--segment", job.segments), *flags("--technique", job.techniques)]
    return optimized(model, job.source / "eval.npz", BUILD / "bench" / job.name, asked)


def flags(name: str, values: Sequence[str]) -> list[str]:
    return [each for value in values for each in (name, value)]


def optimized(model: Path, data: Path, place: Path, asked: Sequence[str]) -> dict[str, Any]:
    """The answer of `sartor optimize`, kept in `place`: a fresh folder with its own copy of the
    data, so that no ledger of an earlier run is charged. Progress goes to stderr."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    shutil.copy(data, place / "eval.npz")
    command = [
        sys.executable, "-m", "sartor.cli", "optimize", str(model), *asked,
        "--data", str(place / "eval.npz"), "--out", str(place / "run"), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"{place.name}: sartor optimize ended with status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    (place / "answer.json").write_text(json.dumps(answer, indent=1) + "\n")
    return answer


def row(job: Job, budget: str, answer: Mapping[str, Any]) -> list[str]:
    """The table's row. Where nothing was certified the figures are of what came nearest."""
    figures, metric = answer["figures"], answer["metric"]
    latency = _verdict(answer, "latency better")
    quality = _verdict(answer, metric)
    first = answer["first_certified_seconds"]
    return [
        job.name,
        budget,
        STATES[answer["status"]],
        f"{_mega(figures, 'original.size')} / {_mega(figures, 'size')} MB",
        _ratio(latency),
        f"{latency['bound'] / latency['estimate']:.2f}" if latency else "-",
        _change(quality, metric),
        f"{quality['examples']:,}" if quality else "-",
        "-" if first is None else f"{first:.0f} s",
        f"{answer['elapsed']:.0f} s",
        answer["chosen"] or "-",
    ]


def _verdict(answer: Mapping[str, Any], start: str) -> Mapping[str, Any] | None:
    """The verdict whose limit begins so and was measured."""
    for each in answer["limits"]:
        if each["limit"].startswith(start) and None not in (each["estimate"], each["bound"]):
            found: Mapping[str, Any] = each
            return found
    return None


def _mega(figures: Mapping[str, float], name: str) -> str:
    return f"{figures.get(name, math.nan) / 1e6:.2f}"


def _ratio(verdict: Mapping[str, Any] | None) -> str:
    """Of the candidate's latency to the original's, which is the bound of that verdict."""
    if verdict is None:
        return "-"
    now, low, high = (verdict[name] / verdict["bound"] for name in ("estimate", "low", "high"))
    return f"{now:.3f} ({low:.3f} to {high:.3f})"


def _change(verdict: Mapping[str, Any] | None, metric: str) -> str:
    """Difference from the original's, which lies one point above the bound of NEAR."""
    if verdict is None:
        return "-"
    before = verdict["bound"] + 0.01
    now, low, high = (100 * (verdict[name] - before) for name in ("estimate", "low", "high"))
    return f"{metric} {now:+.2f} points ({low:+.2f} to {high:+.2f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def main() -> None:
    """Run the jobs one after the other; print the table when the last is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=[job.name for job in JOBS], action="append")
    parser.add_argument("--budget", help="instead of each job's own, such as 1m")
    given = parser.parse_args()
    rows = []
    for job in JOBS:
        if job.name not in (given.only or [each.name for each in JOBS if not each.long]):
            continue
        budget = given.budget or job.budget
        print(f"== {job.name}: {', '.join(job.limits)}; {budget}", file=sys.stderr, flush=True)
        rows.append(row(job, budget, run(job, budget)))
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
