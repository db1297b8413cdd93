"""Point estimates for people to read, and what a metric is held against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sartor.contracts import Task
from sartor.data import Part
from sartor.definitions import needs_groups
from sartor.judge_timing import noise
from sartor.limits import Limit, parse_objective
from sartor.metrics import Truth, find
from sartor.records import Timing
from sartor.verdicts import Evidence, objective_value


def truth_of(part: Part, reference: np.ndarray, rows: np.ndarray | None = None) -> Truth:
    """What a metric may compare with, for these rows; `reference` is the original's answers."""
    picked = np.arange(len(part)) if rows is None else rows
    return Truth(
        label=None if part.label is None else np.asarray(part.label)[picked],
        reference=reference,
        group=None if part.group is None else np.asarray(part.group)[picked],
        segments={name: np.asarray(values)[picked] for name, values in part.segments.items()},
        unit=None if part.unit is None else np.asarray(part.unit)[picked],
    )


def figures_of(evidence: Evidence, task: Task, limits: Iterable[Limit] = ()) -> dict[str, float]:
    """Point estimates of the candidate, by name, and of the original under `original.`."""
    figures: dict[str, float] = {
        "size": float(evidence.sizes[1]),
        "original.size": float(evidence.sizes[0]),
    }
    if evidence.memories:
        figures["original.memory"], figures["memory"] = map(float, evidence.memories)
    if evidence.flops:
        figures["original.flops"], figures["flops"] = evidence.flops
    if evidence.timing is not None:
        _latencies(figures, evidence.timing)
        figures["latency.ratio"] = objective_value(parse_objective("latency"), evidence, task)
        if (control := noise(evidence.timing)) is not None:
            figures["latency.noise"] = control.estimate
    if evidence.answers is not None and evidence.truth is not None:
        names = {task.metric, *(each.metric for each in limits if each.quality)}
        if task.kind == "classification":
            names.add("flips")
        for name in sorted(name for name in names if not needs_groups(name)):
            metric = find(name, task)
            before, after = evidence.answers
            figures[f"original.{name}"] = metric.value(before, evidence.truth)
            figures[name] = metric.value(after, evidence.truth)
    return figures


def _latencies(figures: dict[str, float], timing: Timing) -> None:
    """Seconds without those in which other processes had the core; joules of a call."""
    energy, timing = timing.energy(), timing.undisturbed()
    if energy is not None:
        figures["original.energy"] = float(energy.baseline.mean())
        figures["energy"] = float(energy.candidate.mean())
    for prefix, lane in (("original.", timing.baseline), ("", timing.candidate)):
        figures[f"{prefix}latency"] = float(np.median(lane))
        figures[f"{prefix}latency.mean"] = float(lane.mean())
        for share in (95, 99):
            figures[f"{prefix}latency.p{share}"] = float(np.quantile(lane, share / 100))
        figures[f"{prefix}throughput"] = timing.batch / float(lane.mean())
