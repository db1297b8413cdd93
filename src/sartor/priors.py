"""What trials teach, also those of earlier runs: which recipes were good on models like this one.

A lesson is what was observed of one recipe on one model. Journals of earlier runs give lessons
where the user names them (`--learn-from`); nothing is collected unasked or sent anywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sartor.contracts import Model, WrongRequest
from sartor.data import Part
from sartor.evidence import EXACT
from sartor.records import Journal, Trial, Verdict, trial_from_json
from sartor.registry import runtime
from sartor.special import ndtri

DONE = ("done", "dropped")
UNSURE = 3.0  # margins count up to so many standard errors
STEEP = 2.0  # what a factor of e by which a figure without error misses its limit counts as
UNLIKE, ALIKE = 0.1, 0.95  # correlations between models without and with all in common


@dataclass(frozen=True)
class Lesson:
    """A trial of an earlier run on another model: what was observed of it (the logarithm of the
    objective, the margin of each limit), which run it was (1, 2 ...; 0: this one), and how that
    model's values are taken to correlate with this one's."""

    recipe: tuple[Mapping[str, Any], ...]
    state: str
    observed: Mapping[str, float]
    source: int
    likeness: float


def features(model: Model, part: Part) -> dict[str, float]:
    """In a child: the share of the model's bytes ("bytes:Conv") and of its multiply-accumulates
    ("macs:Conv") that each operator holds; each kind of share sums to 1."""
    sums: dict[str, Counter[str]] = {"bytes": Counter(), "macs": Counter()}
    for each in runtime(model.kind).parts(model, part.example(0)):
        sums["bytes"][each.operator] += each.bytes
        sums["macs"][each.operator] += each.macs or 0
    return {
        f"{what}:{operator}": round(amount / total, 4)
        for what, counted in sums.items()
        if (total := sum(counted.values()))
        for operator, amount in sorted(counted.items())
        if amount
    }


def correlation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """How what was seen on one model is taken to correlate with another: by the share that their
    features have in common. Even unlike models share a machine and its arithmetic."""
    kinds = {name.split(":")[0] for name in (*a, *b)}
    common = sum(min(a.get(name, 0.0), b.get(name, 0.0)) for name in a)
    return UNLIKE + (ALIKE - UNLIKE) * common / max(len(kinds), 1)


def objective_of(trial: Trial) -> float:
    """The objective's ratio to the original's; NaN where it was not measured."""
    value = trial.figures.get("objective", math.nan) if trial.state in DONE else math.nan
    return value if value > 0 else math.nan


def observed(trial: Trial) -> dict[str, float]:
    """The logarithm of the trial's objective, and for each limited figure by how much its limit
    holds: in standard errors (at least), or by the logarithm of its share of the bound."""
    found: dict[str, float] = {}
    value = objective_of(trial)
    if math.isfinite(value):
        found["objective"] = math.log(value)
    for each in trial.verdicts:
        if math.isfinite(each.p_value) and each.method:
            margin = min(max(_margin(each), -UNSURE), UNSURE)
            figure = each.limit.split()[0]
            found[figure] = min(margin, found.get(figure, margin))
    return found


def _margin(verdict: Verdict) -> float:
    if verdict.method == EXACT and min(verdict.estimate, verdict.bound) > 0:
        below = STEEP * math.log(verdict.bound / verdict.estimate)
        return -below if ">=" in verdict.limit else below
    p = min(max(verdict.p_value, 1e-9), 1 - 1e-9)
    return -ndtri(p)


def learned(
    places: Iterable[str], kind: str, own: Mapping[str, float], objective: str, out: Path
) -> tuple[Lesson, ...]:
    """The lessons of the journals in these files and folders, but that of the run in `out` itself.
    `own` are this model's features. Raises WrongRequest where a path holds no journal."""
    lessons: list[Lesson] = []
    for source, path in enumerate(dict.fromkeys(_journals(places)), 1):
        journal = Journal(path)
        request = (journal.last("request") or {}).get("request", {})
        if path == (out / "run.jsonl").resolve() or request.get("kind") != kind:
            continue
        told = journal.last("features")
        alike = correlation(told["features"], own) if told else UNLIKE
        for entry in journal.events("trial"):
            trial = _in_terms_of(objective, request.get("objective"), trial_from_json(entry))
            lessons.append(Lesson(trial.recipe, trial.state, observed(trial), source, alike))
    return tuple(lessons)


def _journals(places: Iterable[str]) -> Iterable[Path]:
    for place in places:
        path = Path(place)
        found = sorted(path.rglob("run.jsonl")) if path.is_dir() else [path]
        if not found or not all(each.is_file() for each in found):
            raise WrongRequest(
                f"--learn-from {place}: no run.jsonl there; name the journal of a run, or a folder "
                "with runs in it"
            )
        yield from (each.resolve() for each in found)


def _in_terms_of(wanted: str, theirs: str | None, trial: Trial) -> Trial:
    """The trial with this run's objective in place of that of its own, where its figures tell."""
    if wanted == theirs:
        return trial
    figures = dict(trial.figures)
    value = math.nan
    if wanted.split(".")[0] == "latency":
        value = figures.get("latency.ratio", math.nan)
    elif {wanted, f"original.{wanted}"} <= figures.keys() and wanted in ("size", "memory", "flops"):
        value = figures[wanted] / (figures[f"original.{wanted}"] or math.nan)
    return replace(trial, figures={**figures, "objective": value})
