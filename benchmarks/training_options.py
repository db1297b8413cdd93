"""What class weights and a user's augmentation bring to `recover`, on scikit-learn's digits.

    python benchmarks/training_options.py [--seeds 10]

Rare class: is it a 3, with 3 % of them among 900 rows; a perceptron of 64-64-64 is trained, thinned
to a fifth of its multiply-accumulates and trained back with and without `balance`. Augmentation:
which digit, a perceptron of 64-128-128 trained on 300 rows, thinned and trained back on two thirds
of them, as they are and shifted by up to a pixel. Measured on all rows that none of this has seen;
means over seeds, with 95 % intervals (t) of the difference on the same seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, average_precision_score, recall_score
from sklearn.neural_network import MLPClassifier

from sartor.bench import LocalBench
from sartor.contracts import Arrays, Target, Task, Training
from sartor.data import read
from sartor.registry import open_model, runtime
from sartor.techniques.recover_onnx import Recover
from sartor.techniques.structured_onnx import StructuredPrune

PIXELS, DIGIT = load_digits(return_X_y=True)
PIXELS = (PIXELS / 16).astype(np.float32)


def saved(path: Path, model: Any) -> Path:
    """The perceptron as an ONNX file."""
    nodes, weights, here = [], [], "pixels"
    layers = list(zip(model.coefs_, model.intercepts_, strict=True))
    for at, (weight, bias) in enumerate(layers):
        for stem, array in (("w", weight), ("b", bias)):
            weights.append(numpy_helper.from_array(array.astype(np.float32), f"{stem}{at}"))
        out = "logits" if at == len(layers) - 1 else f"h{at}"
        nodes.append(helper.make_node("Gemm", [here, f"w{at}", f"b{at}"], [out], name=f"g{at}"))
        here = out
        if out != "logits":
            nodes.append(helper.make_node("Relu", [here], [f"r{at}"], name=f"relu{at}"))
            here = f"r{at}"
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("pixels", 64), ("logits", len(layers[-1][1])))
    ]
    graph = helper.make_graph(nodes, "perceptron", ports[:1], ports[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path)
    return path


def benched(
    place: Path, seen: np.ndarray, label: np.ndarray, hidden: int, task: Task, seed: int
) -> LocalBench:
    """A network trained on the rows `seen`, and a bench that trains on two thirds of them."""
    model = MLPClassifier((hidden, hidden), max_iter=60, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(PIXELS[seen], label[seen])
    opened = open_model(saved(place / "model.onnx", model))
    split = np.where(np.arange(len(seen)) % 3 < 2, "train", "search").astype("<U7")
    split[-9:] = "holdout"  # there must be one; nothing opens it
    data = read(
        {"pixels": PIXELS[seen], "label": label[seen], "split": split}, place / "d",
        opened.signature,
    )  # fmt: skip
    (place / "scratch").mkdir()
    macs = 64 * hidden + hidden * hidden + hidden
    return LocalBench(
        model=opened, teacher=opened, limits=(), target=Target(), train=data.train,
        search=data.search, scratch=place / "scratch", memory=place / "memory", task=task,
        training=Training(600, 0.01, macs), seed=seed,
    )  # fmt: skip


def answers(model: Any, rows: np.ndarray) -> np.ndarray:
    with runtime("onnx").start(model, Target()) as session:
        return np.asarray(session({"pixels": PIXELS[rows]})["logits"])


def rare(place: Path, seed: int) -> dict[str, dict[str, float]]:
    label = (DIGIT == 3).astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(label))
    yes, no = (order[label[order] == each] for each in (1, 0))
    seen = np.random.default_rng(seed).permutation(np.concatenate([yes[:27], no[:873]]))
    fresh = np.concatenate([yes[27:], no[873:]])
    task = Task("classification", "logits", "recall", classes=2, form="logits")
    bench = benched(place, seen, label, 64, task, seed)
    thin = StructuredPrune(share=0.2).apply(bench.model, bench)
    found = {"original": bench.model, "thinned": thin}
    for teacher in (0.0, 0.5):
        for balance in ("none", "inverse"):
            how = Recover(effort=0.3, teacher=teacher, balance=balance)
            found[f"teacher={teacher}, balance={balance}"] = how.apply(thin, bench)
    told = {}
    for name, model in found.items():
        logit = answers(model, fresh).reshape(-1)
        told[name] = {
            "recall": float(recall_score(label[fresh], logit > 0)),
            "average precision": float(average_precision_score(label[fresh], logit)),
            "accuracy": float(accuracy_score(label[fresh], logit > 0)),
        }
    return told


def shifted(batch: Arrays, *seed: int) -> Arrays:
    """Each picture moved by up to a pixel to each side."""
    rng = np.random.default_rng(seed)
    pictures = np.pad(batch["pixels"].reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    at = rng.integers(0, 3, (len(pictures), 2))
    moved = [each[y : y + 8, x : x + 8] for each, (y, x) in zip(pictures, at, strict=True)]
    return {**batch, "pixels": np.stack(moved).reshape(-1, 64)}


def augmented(place: Path, seed: int) -> dict[str, dict[str, float]]:
    order = np.random.default_rng(seed).permutation(len(DIGIT))
    seen, fresh = order[:300], order[300:]
    task = Task("classification", "logits", "accuracy", classes=10, form="logits")
    bench = benched(place, seen, DIGIT.astype(np.int64), 128, task, seed)
    thin = StructuredPrune(share=0.2).apply(bench.model, bench)
    found = {"original": bench.model, "thinned": thin}
    for name, function in (("as they are", None), ("shifted", shifted)):
        made = dataclasses.replace(bench, augment=function)  # type: ignore[arg-type]
        memory = place / f"memory-{name}"
        found[name] = Recover(effort=0.3).apply(thin, dataclasses.replace(made, memory=memory))
    return {
        name: {"accuracy": float(accuracy_score(DIGIT[fresh], answers(model, fresh).argmax(1)))}
        for name, model in found.items()
    }


def summary(runs: list[dict[str, dict[str, float]]], pairs: list[tuple[str, str]]) -> list[str]:
    lines = []
    for name in runs[0]:
        means = {key: np.mean([run[name][key] for run in runs]) for key in runs[0][name]}
        lines.append(f"{name:34} " + ", ".join(f"{key} {mean:.3f}" for key, mean in means.items()))
    for before, after in pairs:
        for key in runs[0][after]:
            gaps = np.array([run[after][key] - run[before][key] for run in runs])
            half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps)
            lines.append(
                f"  {after} less {before}: {key} {gaps.mean():+.3f} "
                f"({gaps.mean() - half:+.3f} to {gaps.mean() + half:+.3f})"
            )
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    told: dict[str, Any] = {}
    cases: list[tuple[str, Callable[..., Any], list[tuple[str, str]]]] = [
        (
            "is it a 3",
            rare,
            [(f"teacher={t}, balance=none", f"teacher={t}, balance=inverse") for t in (0.0, 0.5)],
        ),
        ("which digit", augmented, [("as they are", "shifted")]),
    ]
    for name, measure, pairs in cases:
        runs = []
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as place:
                runs.append(measure(Path(place), seed))
        told[name] = runs
        print("\n".join([name, *summary(runs, pairs)]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
