"""Any artifacts side by side, the first as the baseline: the same rows, paired statistics,
interleaved timing. It looks at the search part of the data only, so that the holdout stays sealed;
what it shows are estimates with intervals, not a certificate."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table

from sartor import bundle, machine
from sartor.contracts import Failed, Model, Target, Task, WrongRequest
from sartor.data import Part, read
from sartor.evaluate import Race, answers, footprint
from sartor.limits import parse
from sartor.metrics import check_labels, find, infer_task
from sartor.prepare import run_sample
from sartor.records import plain
from sartor.registry import adopt, runtime
from sartor.report.text import figure
from sartor.terminal import Progress
from sartor.trials import figures_of, truth_of
from sartor.verdicts import Evidence, judge
from sartor.workers import Pool

ROUNDS, SECONDS = 40, 10.0
TIMEOUT = 900.0


def compare(
    models: Sequence[Any],
    progress: Progress | None = None,
    *,
    data: Any,
    label: str | None = None,
    segments: Sequence[str] = (),
    group: str | None = None,
    output: str | None = None,
    task: str | None = None,
    metric: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """Plain JSON: for each model its figures, and the verdict "as good as the first" for latency
    and for the primary metric. A model that crashes is a row with its reason.

    Raises WrongRequest for files or data that cannot be used."""
    progress = progress or Progress(quiet=True)
    with tempfile.TemporaryDirectory(prefix="sartor-compare-") as place, progress, Pool() as pool:
        work = Path(place)
        opened = [_open(each, work / str(i)) for i, each in enumerate(models)]
        baseline = opened[0]
        part = read(
            data, work / "data", baseline.signature,
            label=label, segments=segments or (), group=group,
        ).search  # fmt: skip
        target = Target("cpu", threads or 1, batch or 1, machine.features())
        sample = pool.call(run_sample, baseline, target, part, min(512, len(part)), timeout=TIMEOUT)
        found = infer_task(
            baseline.signature, part, sample, metric=metric, output=output, kind=task
        )
        if found.labelled:
            check_labels(found, np.asarray(part.label))
        bench = _Bench(pool, part, found, target, baseline)
        rows = []
        with Race(baseline, target, part, 0) as race:
            for name, model in zip(models, opened, strict=True):
                progress.now(f"measuring {name}")
                rows.append(_row(str(name), model, bench, race))
    return {"metric": found.metric, "rows": rows, "examples": len(part)}


@dataclasses.dataclass(frozen=True)
class _Bench:
    pool: Pool
    part: Part
    task: Task
    target: Target
    baseline: Model


def _open(given: Any, work: Path) -> Model:
    if isinstance(given, (str, Path)) and Path(given).is_dir():
        return bundle.open_model(Path(given))
    return adopt(given, work)


def _row(name: str, model: Model, bench: _Bench, race: Race) -> dict[str, Any]:
    if {port.name for port in model.signature.inputs} != {
        port.name for port in bench.baseline.signature.inputs
    }:
        raise WrongRequest(f"{name} takes other inputs than the first model: they cannot be paired")
    engine = runtime(model.kind)
    rows = np.arange(len(bench.part))
    same = engine.digest(model) == runtime(bench.baseline.kind).digest(bench.baseline)
    try:
        pair = tuple(
            answers(bench.pool, each, bench.part, rows, bench.task, bench.target, timeout=TIMEOUT)
            for each in (bench.baseline, model)
        )
        example = bench.part.example(0)
        evidence = Evidence(
            (runtime(bench.baseline.kind).size(bench.baseline), engine.size(model)),
            memories=(
                footprint(bench.baseline, bench.target, example),
                footprint(model, bench.target, example),
            ),
            timing=race.time(model, ROUNDS, SECONDS),
            answers=(pair[0], pair[1]),
            truth=truth_of(bench.part, pair[0]),
            same=same,
        )
    except Failed as failure:
        return {"model": name, "failed": str(failure)}
    higher = find(bench.task.metric, bench.task).higher
    texts = ("latency <= baseline", f"{bench.task.metric} {'>=' if higher else '<='} baseline")
    verdicts = [judge(parse(text), evidence, bench.task) for text in texts]
    return {
        "model": name,
        "figures": plain(figures_of(evidence, bench.task)),
        "latency": plain(verdicts[0]),
        "quality": plain(verdicts[1]),
    }


def render(found: dict[str, Any]) -> RenderableType:
    metric = found["metric"]
    table = Table(
        title=f"Side by side on {found['examples']:,} examples of the search part",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model", overflow="fold")
    names = ("size", "memory", "latency p50", "p95", "ratio to the first (95 %)", metric, "flips")
    for name in names:
        table.add_column(name, justify="right")
    for row in found["rows"]:
        if "failed" in row:
            table.add_row(row["model"], f"failed: {row['failed']}")
            continue
        figures, verdict = row["figures"], row["latency"]
        bound = verdict["bound"] or 1.0
        low, high = (verdict[end] / bound if verdict[end] else 1.0 for end in ("low", "high"))
        flips = figures.get("flips")
        table.add_row(
            row["model"],
            figure("size", figures["size"]),
            figure("memory", figures["memory"]),
            figure("latency", figures["latency"]),
            figure("latency", figures["latency.p95"]),
            f"{figures['latency.ratio']:.3f} ({low:.3f} to {high:.3f})",
            figure(metric, figures[metric]),
            "-" if flips is None else f"{flips:.2%}",
        )
    return table
