"""A laboratory of its own for one model and its data, as the benchmarks use it: recipes are built,
timed and judged in it without a run around them."""

from __future__ import annotations

import shutil
from pathlib import Path

from sartor.bench import LocalBench
from sartor.prepare import Prepared, prepare
from sartor.records import Journal
from sartor.spec import Spec
from sartor.store import Store
from sartor.trials import Laboratory
from sartor.workers import Pool


def laboratory(
    source: Path, place: Path, patience: float, model: str | None = None
) -> tuple[Prepared, Laboratory]:
    """For `model.onnx` (or what `model` names) and `eval.npz` in `source`; all that is made is kept
    in `place`. A recipe may take `patience` seconds."""
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "eval.npz").exists():
        shutil.copy(source / "eval.npz", place)
    spec = Spec(
        model=model or str(source / "model.onnx"), data=str(place / "eval.npz"),
        out=str(place / "run"), minimize="latency",
    )  # fmt: skip
    with Pool() as pool:
        ready = prepare(spec, place / "work", pool)
    bench = LocalBench(
        model=ready.original, teacher=ready.original, task=ready.task, limits=ready.limits,
        target=ready.target, train=ready.data.train, search=ready.data.search,
        scratch=place / "scratch", memory=place / "remembered",
    )  # fmt: skip
    lab = Laboratory(
        ready.original, bench, ready.data.search, ready.limits, ready.objective,
        Store(place / "models"), Journal(place / "timings.jsonl"),
    )  # fmt: skip
    lab.patience = lambda: patience
    return ready, lab
