"""What training brings to weights in four bits and fewer: accuracy by recipe.

    python benchmarks/few_bits.py digits [--seeds 5] [--steps 600]
    python benchmarks/few_bits.py FOLDER [--steps 150] [--rows 1000] --recipe '[...]' ...

`digits`: a perceptron of 64-128-128-10 on 600 rows of scikit-learn's digits, measured on the 1,197
that nothing has seen, with 95 % intervals (t) of the difference on the same seed. FOLDER holds a
trained model.onnx and its eval.npz (build/resnet18, build/minilm); recipes are lists of JSON as in
a spec, measured on the first rows of the search part. A training is of `--steps` steps of 64 rows
at `effort` 1, more for a network of fewer multiply-accumulates.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from laboratory import laboratory
from sklearn.metrics import accuracy_score
from training_options import DIGIT, answers, benched, summary

from sartor.bench import LocalBench
from sartor.contracts import Model, Target, Task, Training, describe
from sartor.registry import recipe, runtime, training_cost

ROOT = Path(__file__).resolve().parent.parent
Entries = list[dict[str, Any]]


def step(technique: str, **settings: Any) -> dict[str, Any]:
    return {"technique": technique, **settings}


def built(model: Model, bench: LocalBench, entries: Entries) -> Model:
    for each in recipe("onnx", entries):
        model = each.apply(model, bench.on(model, bench.scratch))
    return model


def digits() -> dict[str, Entries]:
    tune, fast = step("tune", effort=1.0), step("tune", effort=1.0, rate=0.03)
    found = {}
    for name, how in {
        "4 bits, blocks of 128": step("weight-only", matmul=4, block=128),
        "ternary": step("few-levels", spared=0.0),
        "binary": step("few-levels", values="binary", spared=0.0),
    }.items():
        found[name] = [how]
        found[f"{name}, trained"] = [how, tune if name.startswith("4") else fast]
    return found


def perceptron(place: Path, seed: int, recipes: dict[str, Entries], steps: int) -> dict[str, Any]:
    order = np.random.default_rng(seed).permutation(len(DIGIT))
    task = Task("classification", "logits", "accuracy", classes=10, form="logits")
    bench = benched(place, order[:600], DIGIT.astype(np.int64), 128, task, seed)
    macs = 64 * 128 + 128 * 128 + 128 * 10
    bench = dataclasses.replace(bench, training=Training(steps, 0.01, macs))
    models = {"original": bench.model}
    models |= {name: built(bench.model, bench, entries) for name, entries in recipes.items()}
    fresh = order[600:]
    return {
        name: {
            "accuracy": float(accuracy_score(DIGIT[fresh], answers(model, fresh).argmax(1))),
            "kB": runtime("onnx").size(model) / 1e3,
        }
        for name, model in models.items()
    }


def seeds(given: argparse.Namespace) -> None:
    recipes, runs = digits(), []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as place:
            runs.append(perceptron(Path(place), seed, recipes, given.steps or 600))
    pairs = [(name, f"{name}, trained") for name in recipes if f"{name}, trained" in recipes]
    print("\n".join(summary(runs, pairs)), flush=True)


def folder(source: Path, given: argparse.Namespace) -> None:
    place = ROOT / "build" / "few_bits" / source.name
    ready, lab = laboratory(source, place, 3600.0)
    with lab:
        size, steps = runtime("onnx").size, given.steps or 150
        _, macs = training_cost(lab.original, lab.bench)
        part = lab.search.first(given.rows)
        for entries in [[], *map(json.loads, given.recipe)]:
            began = time.monotonic()
            bench = dataclasses.replace(lab.bench, training=Training(steps, 0.01, macs))
            model = built(lab.original, bench, entries)
            took = time.monotonic() - began
            right = []
            with runtime("onnx").start(model, Target(threads=1)) as session:
                for batch in part.batches(50, labels=True):
                    found = session({n.name: batch[n.name] for n in model.signature.inputs})
                    right += list(found[ready.task.output].argmax(1) == batch["label"])
            title = describe(recipe("onnx", entries))
            told = f"{np.mean(right):.4f} of {len(right)} rows, {size(model) / 1e6:.3f} MB"
            print(f"{title}: {told}, {took:.0f} s", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("what")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=0)
    options.add_argument("--rows", type=int, default=1000)
    options.add_argument("--recipe", action="append", default=[])
    given = options.parse_args()
    if given.what == "digits":
        seeds(given)
    else:
        folder(Path(given.what), given)


if __name__ == "__main__":
    main()
