"""Every runtime and its eight bits on real trained models, beside what other tools make by default
and what Sartor chooses, as one Markdown table.

    python benchmarks/runtimes.py [--only adult] [--threads 1 2] [--budget 10m] [--without-peers]
    python benchmarks/runtimes.py --budget 3m --page docs/runtimes.md

For each model: a run of `sartor optimize` for each number of threads (at most a point of quality
may be lost, latency is minimized); a recipe of one step for each runtime and way to quantize; the
artifacts of `benchmarks/peers.py`; and one `sartor compare` of all of them with the model as it
came in ONNX Runtime, in interleaved rounds, each in a process of its own, on the search rows: they
chose Sartor's artifact, whose certificate is of the holdout and printed below each table. What was
made or measured is kept in build/runtimes: the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from laboratory import laboratory
from main_job import build_demo, build_with, optimized

from sartor import bundle
from sartor.contracts import Failed
from sartor.registry import recipe
from sartor.trials import Laboratory

ROOT = Path(__file__).resolve().parent.parent
BUILD = (ROOT / "build").resolve()
PLACE = BUILD / "runtimes"
HERE = Path(__file__).resolve().parent
CAME = "ONNX Runtime, as it came"
COLUMNS = ("threads", "what", "quality", "MB", "latency ratio (95 %)", "made in", "")


@dataclass(frozen=True)
class Subject:
    """One model. `code`: its factory, script:function, where it exists as PyTorch code too."""

    name: str
    tells: str
    source: Path
    build: Callable[[Path], None]
    code: str = ""


def _subject(name: str, tells: str, script: str, code: bool = False) -> Subject:
    return Subject(name, tells, BUILD / name, build_with(script), f"{script}:make" * code)


SUBJECTS = (
    _subject("resnet18", "a convolutional network of 18 layers", "resnet18.py", True),
    _subject("lite0", "EfficientNet-Lite0, a depthwise convolutional network", "lite0.py", True),
    _subject("minilm", "a transformer of six layers, tweets", "minilm_tweets.py", True),
    _subject("adult", "a multilayer perceptron on a table", "adult_mlp.py", True),
    _subject("vad", "Silero's recurrent network that hears speech; judged by labels", "vad.py"),
    _subject(
        "keywords",
        "a MobileNetV2 that spots words; judged by agreement with its own answers",
        "keywords.py",
    ),
    _subject(
        "anomaly", "an autoencoder; judged by the relative error to its own answers", "anomaly.py"
    ),
    _subject("fashion", "a small residual network on Fashion-MNIST", "fashion_cnn.py", True),
    Subject("demo", "the model of `sartor demo`", BUILD / "demo" / "input", build_demo),
)
HEAD = """# The runtimes side by side

No runtime wins everywhere. `python benchmarks/runtimes.py --budget {budget} --page
docs/runtimes.md` makes, for each of its trained models, an artifact of every runtime and of its
eight bits, what other tools make by their own documentation (`benchmarks/peers.py`) and what a run
of `sartor optimize` chooses in {budget}, and times all of them in interleaved rounds, each in a
process of its own, beside the model as it came in ONNX Runtime at as many threads. Quality is of
the search rows, and so is "may lose more than a point": the interval (95 %) reaches further. What
Sartor chose was certified on other rows, the holdout; what its certificate says stands below each
table.

## What Sartor chose, beside the best of the others within a point
"""
# Name -> recipe: the technique at its defaults; conversions on the way to it are put in.
FORMS: Mapping[str, list[str]] = {
    "ONNX Runtime, static int8": ["static-int8"],
    "ONNX Runtime, dynamic int8": ["fuse-transformer", "separate-norm", "dynamic-int8"],
    "ONNX Runtime, dynamic int8, unfused": ["dynamic-int8"],
    "OpenVINO": ["to-openvino"],
    "OpenVINO, NNCF int8": ["post-training-int8"],
    "OpenVINO of ONNX Runtime's int8": ["static-int8", "to-openvino"],
    "LiteRT": ["to-tflite"],
    "LiteRT, dynamic range": ["dynamic-range"],
    "LiteRT, full int8": ["full-int8"],
}
CODE_FORMS: Mapping[str, list[str]] = {
    "PyTorch": [],
    "PyTorch, frozen": ["freeze-script"],
    "PyTorch, int8 products": ["linear-int8"],
}


def forms(subject: Subject) -> dict[str, dict[str, Any]]:
    """Name -> seconds of the making, and the bundle or why there is none."""
    place = PLACE / subject.name
    told = place / "forms.json"
    made: dict[str, dict[str, Any]] = json.loads(told.read_text()) if told.exists() else {}
    kinds: list[tuple[str, str | None, Mapping[str, list[str]]]] = [("onnx", None, FORMS)]
    if subject.code:
        kinds.append(("torch", str(HERE / "models" / subject.code), CODE_FORMS))
    for kind, model, named in kinds:
        if all(name in made for name in named):
            continue
        _, lab = laboratory(subject.source, place / kind, 1200.0, model)
        with lab:
            for name, techniques in named.items():
                if name not in made:
                    print(f"{subject.name}: {name}", file=sys.stderr, flush=True)
                    made[name] = _made(lab, kind, techniques, place / "forms" / name)
                    told.write_text(json.dumps(made, indent=1))
    return made


def _made(lab: Laboratory, kind: str, techniques: list[str], folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        model = lab.build(recipe(kind, [{"technique": each} for each in techniques]))
        took = time.monotonic() - began
        sample = lab.search.inputs(np.arange(8))
        nobody = np.zeros(0, np.uint32)
        bundle.write(model, folder, {}, sample, nobody, lab.bench.target, "of a benchmark")
    except Failed as failure:
        return {"seconds": time.monotonic() - began, "failed": str(failure)}
    return {"seconds": took, "artifact": str(folder)}


def chosen(subject: Subject, threads: int, budget: str) -> dict[str, Any]:
    """The answer of a run, kept."""
    place = PLACE / subject.name / f"run-{threads}-{budget}"
    if not (place / "answer.json").exists():
        asked = ["--minimize", "latency", "--budget", budget, "--threads", str(threads)]
        optimized(subject.source / "model.onnx", subject.source / "eval.npz", place, asked)
    answer: dict[str, Any] = json.loads((place / "answer.json").read_text())
    return answer


def peers(subject: Subject) -> dict[str, dict[str, Any]]:
    """As `forms`, of the other tools."""
    place = PLACE / subject.name / "peers"
    told = place / "peers.json"
    if not told.exists():
        command = [sys.executable, str(HERE / "peers.py"), str(subject.source), "--out", str(place)]
        if subject.code:
            command += ["--code", str(HERE / "models" / subject.code)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    found = {}
    for each in json.loads(told.read_text())["peers"]:
        if each["state"] != "skipped":
            ended = "artifact" if each["state"] == "made" else "failed"
            said = each["artifact"] if each["state"] == "made" else each["reason"]
            found[each["name"]] = {"seconds": each["seconds"], ended: said}
    return found


def compared(subject: Subject, threads: int, artifacts: Mapping[str, str]) -> dict[str, Any]:
    """Name -> what `sartor compare` found of it; the model as it came is the first."""
    models = [str(subject.source / "model.onnx"), *artifacts.values()]
    told = PLACE / subject.name / f"compared-{threads}.json"
    if not told.exists() or json.loads(told.read_text())["models"] != models:
        data = ["--data", str(subject.source / "eval.npz"), "--threads", str(threads), "--json"]
        command = [sys.executable, "-m", "sartor.cli", "compare", *models, *data]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows = json.loads(done.stdout.splitlines()[-1])
        told.write_text(json.dumps({"models": models, **rows}))
    found = json.loads(told.read_text())
    names = [CAME, *artifacts]
    rows = dict(zip(names, found["rows"], strict=True))
    return {"metric": found["metric"], "rows": rows}


@dataclass(frozen=True)
class Contest:
    """What was found of one model at so many threads: the rows of the table, what the certificate
    says, and the latency ratios of Sartor's artifact and of the best other tool's within the
    limit (None: there is none)."""

    rows: list[list[str]]
    said: str
    ours: float
    rival: tuple[str, float] | None


def contest(subject: Subject, threads: int, budget: str, others: bool) -> Contest:
    theirs = peers(subject) if others else {}
    made = forms(subject) | theirs
    answer = chosen(subject, threads, budget)
    artifacts = {name: each["artifact"] for name, each in made.items() if "artifact" in each}
    ours = f"Sartor: {answer['chosen'] or 'as it came'}"
    if answer["status"] == 0:
        artifacts[ours] = str(PLACE / subject.name / f"run-{threads}-{budget}" / "run" / "bundle")
    found = compared(subject, threads, artifacts)
    whole, rows = found["rows"][CAME], []
    for name, row in found["rows"].items():
        took = "" if name not in made else f"{made[name]['seconds']:.0f} s"
        cells = _cells(row, whole, found["metric"])
        said = _said(row, whole) + (", certified on the holdout" if name == ours else "")
        rows.append([str(threads), name, *cells, took, said.removeprefix(", ")])
    for name, each in made.items():
        if "failed" in each:
            took = f"{each['seconds']:.0f} s"
            rows.append([str(threads), name, "", "", "", took, each["failed"]])
    gained, rival = counted(found["rows"], ours, theirs)
    return Contest(rows, answer["message"], gained, rival)


def counted(
    rows: Mapping[str, Mapping[str, Any]], ours: str, theirs: Collection[str]
) -> tuple[float, tuple[str, float] | None]:
    """The latency ratio of Sartor's artifact, and of the fastest of the others' of which no more
    than a point may be lost. Sartor's counts by its certificate: it is among the rows only when its
    run certified it, and that was on other rows than these. Without one, the model as it came is
    what a user has: 1."""
    ratios = {
        name: each["figures"]["latency.ratio"]
        for name, each in rows.items()
        if "failed" not in each
    }
    rivals = [(name, ratios[name]) for name in theirs if name in ratios and not _loses(rows[name])]
    best = min(rivals, key=lambda each: each[1], default=None)
    return ratios.get(ours, 1.0), best


def standings(found: Mapping[tuple[str, int], Contest]) -> Iterator[str]:
    """A table of Sartor's artifacts beside the best of the other tools', and the mean."""
    gains = []
    yield "| model | threads | Sartor | best other within the limit | times faster |"
    yield "|---|---|---|---|---|"
    for (name, threads), each in found.items():
        rival = "none" if each.rival is None else f"{each.rival[1]:.3f} ({each.rival[0]})"
        gains += [] if each.rival is None else [each.rival[1] / each.ours]
        faster = "" if each.rival is None else f"{gains[-1]:.2f}"
        yield f"| {name} | {threads} | {each.ours:.3f} | {rival} | {faster} |"
    if gains:
        yield f"\nGeometric mean: {math.exp(sum(map(math.log, gains)) / len(gains)):.2f}"


def _cells(row: Mapping[str, Any], whole: Mapping[str, Any], metric: str) -> list[str]:
    if "failed" in row:
        return ["", "", ""]
    figures, bound = row["figures"], row["latency"]["bound"] or 1.0
    low, high = ((row["latency"][end] or math.nan) / bound for end in ("low", "high"))
    change = figures[metric] - whole["figures"][metric]
    return [
        f"{figures[metric]:.4f} ({100 * change:+.2f})",
        f"{figures['size'] / 1e6:.2f}",
        f"{figures['latency.ratio']:.3f} ({low:.3f} to {high:.3f})",
    ]


def _said(row: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """What is wrong with it: it failed, it is slower, more than a point may be lost."""
    if "failed" in row:
        return str(row["failed"])
    latency = row["latency"]
    said = ["may lose more than a point"] if _loses(row) else []
    if row is not whole and latency["low"] and latency["low"] > latency["bound"]:
        said.append("slower")
    return ", ".join(said)


def _loses(row: Mapping[str, Any]) -> bool:
    """Whether its interval (95 %) reaches beyond a point below the original."""
    quality = row["quality"]
    if ">=" in quality["limit"]:
        return bool(quality["low"] < quality["bound"] - 0.01)
    return bool(quality["high"] > quality["bound"] + 0.01)


def tables(subject: Subject, found: Mapping[int, Contest]) -> Iterator[str]:
    """All that was measured of one model; `found` by number of threads."""
    yield f"\n### {subject.name}: {subject.tells}\n"
    yield f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    for contest in found.values():
        for row in contest.rows:
            yield f"| {' | '.join(_plain(cell) for cell in row)} |"
    yield ""
    for threads, contest in found.items():
        yield f"- Sartor, {threads} threads: {contest.said}"


def _plain(cell: str) -> str:
    """On one line of a table, without what Markdown would take for its own."""
    line = cell.splitlines()[0] if cell else ""
    return line[:110].replace("<", "").replace("`", "'").replace("|", "/")


def page(lines: Sequence[str], measured: Sequence[str], budget: str) -> str:
    return "\n".join(
        [HEAD.format(budget=budget), *lines, "\n## All that was measured", *measured, ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=[each.name for each in SUBJECTS], action="append")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--page", type=Path, help="a Markdown file for all of it")
    given = parser.parse_args()
    found, measured = {}, []
    for subject in SUBJECTS:
        if given.only and subject.name not in given.only:
            continue
        if not all((subject.source / file).is_file() for file in ("model.onnx", "eval.npz")):
            subject.build(subject.source)
        contests = {
            threads: contest(subject, threads, given.budget, not given.without_peers)
            for threads in given.threads
        }
        found |= {(subject.name, threads): each for threads, each in contests.items()}
        measured += tables(subject, contests)
        print(*tables(subject, contests), sep="\n", flush=True)
    print("", *standings(found), sep="\n")
    if given.page:
        given.page.write_text(page(list(standings(found)), measured, given.budget))


if __name__ == "__main__":
    main()
