"""Adult income, decided per segment, and a candidate that harms one sex alone.

    python benchmarks/adult_segments.py [--budget 60s]

The model is the network of benchmarks/models/adult_mlp.py (built where it is missing). First
`sartor optimize` under limits on the whole and on each sex; then a candidate whose graph adds a
bias to the logits of women only, which leaves the answers to men as they are, beside the original
as `sartor compare` measures it. Both print a verdict for each limit and each part of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sartor import lanes, machine
from sartor.comparing import SAMPLE, TIMEOUT, measure_pair
from sartor.contracts import Model, Target, Task
from sartor.data import Part, read
from sartor.evaluate import Race, answering
from sartor.limits import parse
from sartor.metrics import infer_task
from sartor.records import Verdict, plain
from sartor.registry import adopt
from sartor.verdicts import judge_all
from sartor.workers import Pool

ROOT = Path(__file__).resolve().parent.parent
LIMITS = ("accuracy >= baseline - 0.01", "accuracy@sex >= baseline - 0.02", "flips <= 2 %")
FAIR = ("equalized_odds_difference@sex <= baseline + 0.05", "worst_class_drop <= 0.05")
BIAS = 1.5  # on the logit of the higher income


def column_of(source: Path, sex: str) -> int:
    """The one-hot input that is 1 for the rows of that sex and 0 for all others."""
    with np.load(source / "eval.npz") as data:
        features, rows = data["features"], data["sex"] == sex
    same = ((features == 1) == rows[:, None]).all(0)
    return int(np.flatnonzero(same)[0])


def harmed(source: Path, target: Path, sex: str, bias: float = BIAS) -> None:
    """The model with a bias on the second logit of the rows of one sex."""
    proto = onnx.load(source / "model.onnx")
    graph = proto.graph
    for node in graph.node:
        node.output[:] = ["logits_before" if each == "logits" else each for each in node.output]
    place, amount = np.array([column_of(source, sex)]), np.array([[0.0, bias]], dtype=np.float32)
    graph.initializer.extend(
        [numpy_helper.from_array(place, "harm_column"), numpy_helper.from_array(amount, "harm")]
    )
    graph.node.extend(
        [
            helper.make_node("Gather", ["features", "harm_column"], ["harm_rows"], axis=1),
            helper.make_node("Mul", ["harm_rows", "harm"], ["harm_logits"]),
            helper.make_node("Add", ["logits_before", "harm_logits"], ["logits"]),
        ]
    )
    onnx.checker.check_model(proto)
    onnx.save(proto, target)


def judged(source: Path, candidate: Path, limits: Iterable[str]) -> list[Verdict]:
    """Verdicts on a candidate beside the original, on the search part (the holdout stays shut)."""
    with tempfile.TemporaryDirectory() as name, Pool() as pool:
        folder = Path(name)
        data = Path(shutil.copy(source / "eval.npz", folder))
        original, model = (
            adopt(path, folder / kind)
            for kind, path in (("original", source / "model.onnx"), ("candidate", candidate))
        )
        part = read(data, folder / "data", original.signature, segments=("sex",)).search
        target = Target("cpu", 1, 1, machine.features())
        task = _task(pool, original, target, part)
        with Race(original, target, part, 0) as race:
            evidence = measure_pair(pool, race, model, task, (6, 2.0), TIMEOUT, memory=False)
        return list(judge_all(map(parse, limits), evidence, task))


def _task(pool: Pool, original: Model, target: Target, part: Part) -> Task:
    sample = pool.call(lanes.sample_outputs, original, target, part, SAMPLE, timeout=TIMEOUT)
    return infer_task(answering(original.signature, sample), part, sample)


def optimized(source: Path, folder: Path, budget: str) -> dict[str, Any]:
    """What `sartor optimize` answers, as JSON."""
    data = Path(shutil.copy(source / "eval.npz", folder))
    limits = [text for each in LIMITS for text in ("--limit", each)]
    command = [sys.executable, "-c", "import sys; from sartor.cli import main; sys.exit(main())"]
    command += ["optimize", str(source / "model.onnx"), "--data", str(data), *limits]
    command += ["--segment", "sex", "--budget", budget, "--out", str(folder / "out"), "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def rows(verdicts: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    yield "| limit | verdict | figure (95 %) | asked | examples |\n|---|---|---|---:|---:|"
    for whole in verdicts:
        for each in (whole, *whole.get("parts", ())):
            figures = (each[end] for end in ("estimate", "low", "high", "bound"))
            said = ["-" if value is None else f"{value:.4f}" for value in figures]
            name = each["limit"] if each is whole else f"… {each['limit'].split('[')[-1][:-1]}"
            yield (
                f"| {name} | {each['outcome']} | {said[0]} ({said[1]} to {said[2]}) "
                f"| {said[3]} | {each['examples']:,} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, default=ROOT / "build" / "adult")
    parser.add_argument("--budget", default="60s")
    given = parser.parse_args()
    source: Path = given.source
    if not (source / "model.onnx").is_file():
        script = ROOT / "benchmarks" / "models" / "adult_mlp.py"
        subprocess.run([sys.executable, str(script), "--out", str(source)], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = optimized(source, folder, given.budget)
        print(f"optimize, {given.budget}: status {answer['status']}, {answer['message']}")
        print(f"recipe: {answer['recipe']}\n", *rows(answer["limits"]), "", sep="\n")
        for sex in ("Female", "Male"):
            harmed(source, folder / "harmed.onnx", sex)
            verdicts = judged(source, folder / "harmed.onnx", LIMITS + FAIR)
            print(f"harms {sex} alone (+{BIAS} on one logit):\n")
            print(*rows(plain(each) for each in verdicts), "", sep="\n")
            print(*(f"- {v.limit}: {v.note}" for v in verdicts if v.note), "", sep="\n")


if __name__ == "__main__":
    main()
