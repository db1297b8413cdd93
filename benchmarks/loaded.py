"""Latency verdicts on a calm and on a loaded machine, side by side.

    python benchmarks/loaded.py record --state calm --races 24 --to build/loaded
    python benchmarks/loaded.py record --state loaded --races 24 --to build/loaded
    python benchmarks/loaded.py judge build/loaded

`record` races a model beside candidates whose place is known: the original once more (`twin`), an
int8 model (`int8`) and one that does the same work and more (`slower`), for a small CNN and for a
network of the size that digits take. In the state `loaded` two processes spin beside every race.
Each race is one line of numpy arrays on disk; `judge` draws the verdicts and counts them against
the truth: limits at distances from the ratio (or the seconds) that all calm races together give.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sartor import machine
from sartor.contracts import Model, Target, Task
from sartor.data import Part, read
from sartor.evaluate import BLOCKS, Race
from sartor.limits import parse, parse_objective
from sartor.records import Timing
from sartor.registry import open_model
from sartor.verdicts import Evidence, better, judge

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, SECONDS, LEAST = 60, 8.0, 12
CANDIDATES = ("twin", "int8", "slower")
TASK = Task("classification", "logits", "accuracy", classes=10)
FACTORS = (0.7, 0.8, 0.9, 1.1, 1.25, 1.4)
ARRAYS = ("baseline", "candidate", "twin", "queued", "cpu")


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """So many busy loops, at this process' own priority."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@dataclass(frozen=True)
class Subject:
    """A model, its candidates, and rows to answer."""

    name: str
    original: Model
    candidates: dict[str, Model]
    part: Part


def cnn(folder: Path, source: Path) -> Subject:
    """The CNN on images of clothes, as `benchmarks/models/fashion_cnn.py` trains it."""
    return _subject("cnn", source / "model.onnx", source / "eval.npz", folder)


def digits(folder: Path) -> Subject:
    """Two layers of 256 on the digits that come with scikit-learn, trained there."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    net = MLPClassifier((256, 256), tol=1e-3, random_state=0).fit(x, y)
    _save_mlp(net.coefs_, net.intercepts_, folder / "digits.onnx")
    np.savez(folder / "digits.npz", x=x, label=y)
    return _subject("digits", folder / "digits.onnx", folder / "digits.npz", folder)


def _save_mlp(weights: list[np.ndarray], biases: list[np.ndarray], path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, parts, now = [], [], "x"
    for at, (w, b) in enumerate(zip(weights, biases, strict=True)):
        parts += [numpy_helper.from_array(a.astype(np.float32), f"{n}{at}") for n, a in
                  (("w", w), ("b", b))]  # fmt: skip
        last = at == len(weights) - 1
        out = "logits" if last else f"h{at}"
        nodes.append(helper.make_node("Gemm", [now, f"w{at}", f"b{at}"], [out]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{at}"]))
            now = f"r{at}"
    sizes = (("x", len(weights[0])), ("logits", weights[-1].shape[1]))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in sizes
    ]
    graph = helper.make_graph(nodes, "digits", ports[:1], ports[1:], parts)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )


def _subject(name: str, model: Path, data: Path, folder: Path) -> Subject:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    original = open_model(model)
    part = read(data, folder / name, original.signature).search
    int8 = folder / f"{name}-int8.onnx"
    if name == "cnn":
        _static(model, part, original, int8)
    else:
        quantize_dynamic(model, int8, weight_type=QuantType.QInt8, per_channel=True)
    _more_work(model, folder / f"{name}-slower.onnx")
    found = {"twin": original, "int8": open_model(int8)}
    found["slower"] = open_model(folder / f"{name}-slower.onnx")
    return Subject(name, original, found, part)


def _static(model: Path, part: Part, original: Model, to: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(range(64))

        def get_next(self) -> dict[str, np.ndarray] | None:
            at = next(self.left, None)
            return None if at is None else dict(part.inputs(slice(at, at + 1)))

    quantize_static(
        model, to, Rows(), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def _more_work(model: Path, to: Path) -> None:
    """The same answers by more work: the largest product or convolution runs twice, and the
    second result, times zero, is added to the first."""
    import onnx
    from onnx import helper, numpy_helper

    graph = onnx.load(model)
    sizes = {each.name: int(np.prod(each.dims)) for each in graph.graph.initializer}
    heavy = [n for n in graph.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    node = max(heavy, key=lambda n: max(sizes.get(i, 0) for i in n.input))
    at = list(graph.graph.node).index(node)
    result = node.output[0]
    again = onnx.NodeProto()
    again.CopyFrom(node)
    again.name, again.output[0] = f"{node.name}_again", f"{result}_again"
    again.input[0] = f"{result}_moved"
    node.output[0] = f"{result}_first"
    graph.graph.initializer.append(numpy_helper.from_array(np.array(1e-30, np.float32), "tiny"))
    extra = [
        # Not the same input, or the runtime would merge the two.
        helper.make_node("Add", [node.input[0], "tiny"], [f"{result}_moved"]),
        again,
        helper.make_node("Mul", [f"{result}_again", "tiny"], [f"{result}_none"]),
        helper.make_node("Add", [f"{result}_first", f"{result}_none"], [result]),
    ]
    for offset, each in enumerate(extra, 1):
        graph.graph.node.insert(at + offset, each)
    onnx.checker.check_model(graph)
    onnx.save(graph, to)


def record(state: str, races: int, to: Path, fashion: Path) -> None:
    """Races in turn over models and candidates, each into a file of its own."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        subjects = [cnn(Path(place), fashion), digits(Path(place))]
        turns = [(s, name) for s in subjects for name in CANDIDATES]
        for number in range(races):
            subject, name = turns[number % len(turns)]
            before = os.getloadavg()[0]
            began = time.monotonic()
            with (
                spinning(2 if state == "loaded" else 0),
                Race(
                    subject.original, Target(features=machine.features()), subject.part, number
                ) as race,
            ):
                timing = race.time(subject.candidates[name], ROUNDS, SECONDS, LEAST, BLOCKS)
            arrays = {field: getattr(timing, field) for field in ARRAYS}
            facts = {
                "state": state, "model": subject.name, "candidate": name, "load": before,
                "others": timing.others, "blocks": timing.blocks,
                "seconds": time.monotonic() - began,
            }  # fmt: skip
            np.savez_compressed(to / f"{state}-{number:03d}.npz", facts=json.dumps(facts), **arrays)
            print(
                f"{state} {number + 1}/{races} {subject.name} {name}: "
                f"{np.median(timing.candidate) / np.median(timing.baseline):.3f}, others "
                f"{np.mean(timing.others):.2f} cores, disturbed {timing.disturbed:.0%}, "
                f"{facts['seconds']:.0f} s",
                flush=True,
            )  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    facts: dict[str, Any]
    timing: Timing


def recorded(folder: Path) -> list[Recorded]:
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            arrays = {field: file[field] for field in ARRAYS}
        timing = Timing(
            **arrays, blocks=tuple(facts["blocks"]), others=tuple(facts["others"])
        )  # fmt: skip
        found.append(Recorded(facts, timing))
    return found


def truths(races: list[Recorded]) -> dict[tuple[str, str], dict[str, float]]:
    """Of each model and candidate: the ratio, p50 and p95 in seconds, medians over the calm races
    of what was left when the queue is taken out."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key in {(r.facts["model"], r.facts["candidate"]) for r in races}:
        calm = [
            r.timing.undisturbed()
            for r in races
            if (r.facts["model"], r.facts["candidate"]) == key and r.facts["state"] == "calm"
        ]
        lanes = [(t.baseline, t.candidate) for t in calm]
        found[key] = {
            "latency": float(np.median([np.median(b) / np.median(a) for a, b in lanes])),
            "p50": float(np.median([np.median(b) for _, b in lanes])),
            "p95": float(np.median([np.quantile(b, 0.95) for _, b in lanes])),
        }
        if key[1] == "twin":
            found[key]["latency"] = 1.0
    return found


def judged(
    race: Recorded, truth: dict[str, float], alpha: float, way: str
) -> Iterator[tuple[str, str, str]]:
    """(what is asked, the right answer, the verdict's) of one race, judged as Sartor does or in a
    way that it does not: by the calls as they were `seen`, or by what is `left` of them without
    the time in the queue, and by nothing else."""
    timing = race.timing if way != "left" else race.timing.undisturbed()
    if way != "sartor":
        timing = replace(timing, queued=None, others=())
    evidence = Evidence((1, 1), timing=timing)
    right = "met" if truth["latency"] < 0.97 else "never"
    found = better(parse_objective("latency"), evidence, TASK, alpha)
    yield "better than the original", right, _said(found.outcome, found.note)
    for factor in FACTORS:
        right = "met" if factor > 1 else "broken"
        for name, text in (
            ("ratio", f"latency <= {factor * truth['latency']:.4f} x baseline"),
            ("seconds, p50", f"latency <= {factor * truth['p50'] * 1e6:.2f} us"),
            ("seconds, p95", f"latency.p95 <= {factor * truth['p95'] * 1e6:.2f} us"),
        ):
            found = judge(parse(text), evidence, TASK, alpha)
            yield f"{name}, {abs(factor - 1):.0%} off", right, _said(found.outcome, found.note)


def _said(outcome: str, note: str) -> str:
    return "too noisy" if outcome == "undecided" and "too noisy" in note else outcome


def _graded(right: str, said: str) -> str:
    if said in ("undecided", "too noisy"):
        return said
    if right == "never":
        return "WRONG" if said == "met" else "right"
    return "right" if said == right else "WRONG"


def report(folder: Path, alpha: float, way: str) -> None:
    races = recorded(folder)
    known = truths(races)
    for key, truth in sorted(known.items()):
        print(f"{key[0]} {key[1]}: ratio {truth['latency']:.3f}, p50 {truth['p50'] * 1e6:.0f} us, "
              f"p95 {truth['p95'] * 1e6:.0f} us")  # fmt: skip
    counts: dict[tuple[str, str], Counter[str]] = {}
    for race in races:
        truth = known[race.facts["model"], race.facts["candidate"]]
        for asked, right, said in judged(race, truth, alpha, way):
            grade = _graded(right, said)
            counts.setdefault((asked, race.facts["state"]), Counter())[grade] += 1
            if grade == "WRONG":
                print(f"wrong: {race.facts['state']} {race.facts['model']} "
                      f"{race.facts['candidate']}: {asked}: {said} instead of {right}")  # fmt: skip
    for state in ("calm", "loaded"):
        some = [r for r in races if r.facts["state"] == state]
        if some:
            others = [np.mean(r.timing.others) for r in some]
            away = [r.timing.disturbed for r in some]
            print(f"{state}: {len(some)} races, others kept {np.median(others):.2f} cores busy "
                  f"({min(others):.2f} to {max(others):.2f}), and had the core in "
                  f"{np.median(away):.0%} of the calls' time")  # fmt: skip
    print(
        "| asked | state | right | wrong | too noisy here | undecided |\n|---|---|---|---|---|---|"
    )
    for (asked, state), count in sorted(counts.items()):
        cells = [count[g] for g in ("right", "WRONG", "too noisy", "undecided")]
        print(f"| {asked} | {state} | {' | '.join(map(str, cells))} |")


def main() -> None:
    """Record races, or judge those on disk."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    does = parser.add_subparsers(dest="does", required=True)
    recording = does.add_parser("record")
    recording.add_argument("--state", choices=("calm", "loaded"), required=True)
    recording.add_argument("--races", type=int, default=24)
    recording.add_argument("--to", type=Path, default=ROOT / "build" / "loaded")
    recording.add_argument("--fashion", type=Path, default=ROOT / "build" / "fashion")
    judging = does.add_parser("judge")
    judging.add_argument("folder", type=Path)
    judging.add_argument("--alpha", type=float, default=0.03)
    judging.add_argument("--way", choices=("sartor", "seen", "left"), default="sartor")
    given = parser.parse_args()
    if given.does == "record":
        record(given.state, given.races, given.to, given.fashion)
    else:
        report(given.folder, given.alpha, given.way)


if __name__ == "__main__":
    main()
