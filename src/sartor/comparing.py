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

from sartor import bundle, lanes, machine
from sartor.contracts import Failed, Model, Port, Target, Task, WrongRequest
from sartor.data import read
from sartor.evaluate import (
    BLOCKS,
    Race,
    answering,
    answers,
    memory_pair,
    throughputs,
)
from sartor.figures import figures_of, truth_of
from sartor.fitting import natural_batch
from sartor.glimpse import looker, repeatable
from sartor.judge_timing import conditions_of, further_starts, runs_wanted
from sartor.limits import TIMED, Limit, parse
from sartor.metrics import check_labels, find, infer_task
from sartor.records import plain
from sartor.registry import adopt, runtime
from sartor.report.layout import Group, RenderableType, Table, Text, box
from sartor.report.text import figure, told_conditions, told_throughputs
from sartor.spec import check_batch
from sartor.terminal import Progress
from sartor.verdicts import Evidence, judge
from sartor.workers import Pool

ROUNDS, SECONDS = 40, 10.0
TIMEOUT = 900.0
SAMPLE = 512  # examples on which the task is told


def compare(
    models: Sequence[Any],
    progress: Progress | None = None,
    *,
    data: Any,
    label: str | None = None,
    segments: Sequence[str] = (),
    group: str | None = None,
    mask: str | None = None,
    trust: bool | None = None,
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
        data = repeatable(data)
        look = looker(data, label=label, segments=segments or (), group=group, trust=bool(trust))
        asked = {"look": look, "trust": bool(trust)}
        baseline = _open(models[0], work / "0", **asked)
        first = baseline.signature
        opened = [baseline]
        for at, each in enumerate(models[1:], 1):
            opened.append(_open(each, work / str(at), signature=first, **asked))
        part = read(
            data, work / "data", baseline.signature,
            label=label, segments=segments or (), group=group, mask=mask, trust=bool(trust),
        ).search  # fmt: skip
        check_batch(batch)
        batch = batch or natural_batch(baseline.signature) or 1
        target = Target("cpu", threads or 1, batch, machine.features())
        sample = pool.call(lanes.sample_outputs, baseline, target, part, SAMPLE, timeout=TIMEOUT)
        known = answering(baseline.signature, sample)
        found = infer_task(known, part, sample, metric=metric, output=output, kind=task)
        if found.labelled:
            check_labels(found, np.asarray(part.label))
        rows = []
        with Race(baseline, target, part, 0) as race:
            for name, model in zip(models, opened, strict=True):
                progress.now(f"measuring {name}")
                rows.append(_row(str(name), model, pool, race, found))
    return {"metric": found.metric, "rows": rows, "examples": len(part)}


def _open(given: Any, work: Path, **asked: Any) -> Model:
    if isinstance(given, (str, Path)) and bundle.holds(Path(given)):
        return bundle.open_model(Path(given))
    return adopt(given, work, **asked)


def measure_pair(
    pool: Pool,
    race: Race,
    model: Model,
    task: Task,
    time: tuple[int, float],
    timeout: float,
    memory: bool = True,
    limits: Sequence[Limit] = (),
) -> Evidence:
    """A model beside the original of a race, on all rows of the race's part.

    `time`: the rounds of the race and the seconds after which no more begin; `timeout`: the
    seconds that answering may take; `memory`: whether memory is measured, which takes some fresh
    processes; `limits`: those for which calls and starts are added until they are decided or what
    they are about is known closely. Raises Failed where either model does not get through, or
    their answers are not of one shape."""
    timed = [limit for limit in limits if limit.metric in TIMED]
    original, target, part = race.original, race.target, race.part
    rows = np.arange(len(part))
    before, after = (
        answers(pool, each, part, rows, _answering(each, original, task), target, timeout=timeout)
        for each in (original, model)
    )
    if np.shape(before) != np.shape(after):
        found, wanted = (list(np.shape(each)) for each in (after, before))
        raise Failed(f"it answers {found} where the first {wanted}")
    engines = runtime(original.kind), runtime(model.kind)
    return Evidence(
        (engines[0].size(original), engines[1].size(model)),
        memories=memory_pair(original, model, target, part) if memory else None,
        timing=race.time(
            model,
            *time,
            blocks=BLOCKS,
            runs=runs_wanted(timed),
            further=lambda found: further_starts(timed, found, BLOCKS),
        ),
        answers=(before, after),
        truth=truth_of(part, before),
        same=engines[0].digest(original) == engines[1].digest(model),
    )


def _answering(model: Model, original: Model, task: Task) -> Task:
    """The task with this model's own name for the output, where it has but one and that is of the
    same sort: as many axes, floats for floats, and no other number of classes."""
    named = {port.name: port for port in model.signature.outputs}
    if task.output in named or len(named) != 1:
        return task
    found = next(iter(named.values()))
    wanted = next(each for each in original.signature.outputs if each.name == task.output)
    return dataclasses.replace(task, output=found.name) if _alike(found, wanted) else task


def _alike(one: Port, two: Port) -> bool:
    kinds = {np.dtype(each.dtype).kind for each in (one, two)}
    sizes = zip(one.shape[1:], two.shape[1:], strict=False)
    known = [(a, b) for a, b in sizes if isinstance(a, int) and isinstance(b, int)]
    return len(kinds) == 1 and len(one.shape) == len(two.shape) and all(a == b for a, b in known)


def _row(name: str, model: Model, pool: Pool, race: Race, task: Task) -> dict[str, Any]:
    names, first = (
        {port.name for port in each.signature.inputs} for each in (model, race.original)
    )
    if names != first:
        raise WrongRequest(f"{name} takes other inputs than the first model: they cannot be paired")
    try:
        evidence = measure_pair(pool, race, model, task, (ROUNDS, SECONDS), TIMEOUT)
    except (Failed, WrongRequest) as failure:
        return {"model": name, "failed": str(failure)}
    higher = find(task.metric, task).higher
    texts = ("latency <= baseline", f"{task.metric} {'>=' if higher else '<='} baseline")
    verdicts = [judge(parse(text), evidence, task) for text in texts]
    output = _answering(model, race.original, task).output
    return {
        "model": name,
        "output": output,
        "figures": plain(figures_of(evidence, task)),
        "throughputs": throughputs(model, race.part, race.target),
        "conditions": plain(conditions_of(evidence.timing)) if evidence.timing else {},
        "latency": plain(verdicts[0]),
        "quality": plain(verdicts[1]),
    }


def render(found: dict[str, Any]) -> RenderableType:
    """The table, throughput by batch size, and the noise that the figures were measured in."""
    lines = []
    for row in found["rows"]:
        told = [*told_throughputs({row["model"]: row.get("throughputs", {})})]
        told += told_conditions(row.get("conditions", {}))[:1]
        lines += [Text(each if row["model"] in each else f"  {each}") for each in told]
    return Group(_table(found), *lines)


def _table(found: dict[str, Any]) -> Table:
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
