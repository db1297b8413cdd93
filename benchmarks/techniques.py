"""Each technique alone and in composition, with and without training, as a Markdown table.

    python benchmarks/techniques.py resnet|minilm|lowrank [--minutes 3]

A row a recipe: accuracy on the search part, size, latency ratio in rounds interleaved with the
original, multiply-accumulates, seconds of the making. Trainings take about `--minutes`. What
was measured is kept in build/techniques: the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from laboratory import laboratory

from sartor.contracts import Failed, describe
from sartor.granting import FEWEST, SHARE, grant
from sartor.registry import recipe
from sartor.trials import Laboratory, count_flops

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
Entries = list[dict[str, Any]]


def step(technique: str, **settings: Any) -> dict[str, Any]:
    return {"technique": technique, **settings}


LABELS, ORIGINAL, BOTH = 0.0, 1.0, 0.5  # who teaches


def resnet() -> list[Entries]:
    def trained(teacher: float = BOTH) -> dict[str, Any]:
        return step("recover", effort=1.0, rate=0.03, teacher=teacher)

    thin = step("structured-prune", share=0.3)
    eight = step("static-int8", bias_correction=True)
    zeros = step("gradual-prune", density=0.2, effort=1.0, rate=0.03)
    return [
        [eight],
        [thin], [thin, trained(LABELS)], [thin, trained(ORIGINAL)], [thin, trained()],
        [thin, trained(), eight], [thin, trained(), step("static-int8"), step("tune", effort=0.3)],
        *[[step("structured-prune", share=0.3, importance=how), trained()]
          for how in ("taylor", "activation", "random")],
        [step("structured-prune", share=0.15), trained()],
        3 * [step("structured-prune", share=0.53), step("recover", effort=0.3, rate=0.03)],
        [step("low-rank", share=0.5)], [step("low-rank", share=0.5), trained()],
        [step("drop-layers", keep=0.5)], [step("drop-layers", keep=0.5), trained()],
        [step("drop-layers", keep=0.5), thin, trained(), eight],
        [step("prune-magnitude", density=0.2)], [zeros], [zeros, eight, step("sparse-storage")],
        [step("gradual-prune", pattern="2:4", effort=1.0, rate=0.03)],
        [step("cluster-weights", clusters=16)],
        [step("cluster-weights", clusters=16), step("tune", effort=1.0)],
    ]  # fmt: skip


def minilm() -> list[Entries]:
    def trained(teacher: float = 0.9, **more: Any) -> dict[str, Any]:
        return step("recover", effort=1.0, rate=0.003, teacher=teacher, **more)

    words, half = step("trim-vocabulary"), step("drop-layers", keep=0.5)
    fast = [step("fuse-transformer"), step("separate-norm"), step("dynamic-int8", smooth=0.8),
            step("weight-only", matmul=0)]  # fmt: skip
    thin = step("structured-prune", share=0.5)
    return [
        fast, [words, *fast],
        [half], [half, trained(LABELS)], [half, trained(ORIGINAL)], [half, trained()],
        [half, trained(hints="hidden")], [half, trained(hints="relations")],
        [thin], [thin, trained()],
        [step("low-rank", share=0.6)], [step("low-rank", share=0.6), trained()],
        [words, half, trained(), *fast], [words, half, thin, trained(), *fast],
    ]  # fmt: skip


def lowrank() -> list[Entries]:
    """Of the ResNet: two ways to thin its kernels beside fewer channels. The first row is the
    original beside itself."""
    trained = step("recover", effort=1.0, rate=0.03)
    thin = [step("low-rank", share=0.3), step("structured-prune", share=0.3)]
    return [
        [step("low-rank", share=1.0)],
        *[[step("low-rank", share=share, kernels=kernels)]
          for share in (0.7, 0.5, 0.3) for kernels in ("spatial", "tucker")],
        *[[step("structured-prune", share=share)] for share in (0.7, 0.5, 0.3)],
        *[[each, trained, step("static-int8")] for each in thin],
        [thin[0], step("static-int8")],
    ]  # fmt: skip


MODELS = {
    "resnet": (BUILD / "resnet18", resnet),
    "minilm": (BUILD / "minilm", minilm),
    "lowrank": (BUILD / "resnet18", lowrank),
}
COLUMNS = ("recipe", "accuracy", "MB", "latency ratio", "MMACs", "s")


def opened(source: Path, place: Path, minutes: float) -> Laboratory:
    """A laboratory whose trainings take `minutes`."""
    _, lab = laboratory(source, place, 6 * 60 * minutes)
    trains = recipe("onnx", [step("prune-magnitude"), step("recover")])
    grant(lab, lab.journal, 60 * minutes / SHARE, trains)
    if not lab.bench.training.steps:
        raise SystemExit(f"{minutes:g} minutes hold fewer than {FEWEST} steps: give more")
    return lab


def row(lab: Laboratory, entries: Entries) -> list[str]:
    title = describe(recipe("onnx", entries))
    known = {each["title"]: each["row"] for each in lab.journal.events("row")}
    if title not in known:
        print(title, file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            model = lab.build(recipe("onnx", entries))
            took = time.monotonic() - began
            found = lab.looked_at(model, len(lab.search))
            base = found["accuracy"] - found["original.accuracy"]
            cells = [
                f"{found['accuracy']:.4f} ({100 * base:+.2f})", f"{found['size'] / 1e6:.2f}",
                f"{found['latency.ratio']:.3f}", f"{count_flops(model, lab.search) / 2e6:.1f}",
                f"{took:.0f}",
            ]  # fmt: skip
        except Failed as failure:
            cells = [str(failure), "", "", "", f"{time.monotonic() - began:.0f}"]
        lab.journal.add("row", title=title, row=[title, *cells])
        known[title] = [title, *cells]
    return known[title]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--minutes", type=float, default=3.0)
    given = parser.parse_args()
    source, recipes = MODELS[given.model]
    place = BUILD / "techniques" / given.model
    with opened(source, place, given.minutes) as lab:
        rows = [row(lab, entries) for entries in recipes()]
    for line in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
