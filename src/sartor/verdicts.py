"""What the evidence says of a limit: met, broken or undecided, at the stated confidence.

Met: the one-sided bound lies on the right side of the limit. Broken: that of the other side
excludes it. Else undecided, which is never rounded up. Intervals are two-sided at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from sartor.contracts import Task
from sartor.evidence import (
    EXACT,
    Evidence,
    counted,
    fact,
    free_for_original,
    together,
    unknown,
)
from sartor.judge_quality import quality
from sartor.judge_timing import ratio, timing_verdict
from sartor.limits import PERFORMANCE, TIMED, Bound, Limit, Objective, higher_is_better
from sartor.metrics import find
from sartor.records import Verdict

__all__ = [
    "EXACT",
    "Evidence",
    "better",
    "free_for_original",
    "improvement",
    "judge",
    "judge_all",
    "nearest",
    "objective_value",
    "together",
]


def judge(
    limit: Limit, evidence: Evidence, task: Task, alpha: float = 0.05, seed: int = 0
) -> Verdict:
    """The verdict of one limit; undecided with a note where the evidence for it is missing."""
    if limit.metric not in PERFORMANCE:
        return quality(limit, evidence, task, alpha, seed)
    if limit.metric in TIMED:
        return timing_verdict(limit, evidence, alpha, seed)
    pair = counted(limit.metric, evidence)
    if pair is None:
        return unknown(limit, f"{limit.metric} was not measured")
    before, after = pair
    bound = limit.bound.resolve(before)
    if math.isnan(after) or math.isnan(bound):
        return unknown(limit, f"{limit.metric} is not known")
    met = after >= bound if limit.higher else after <= bound
    return fact(limit, met, after, bound)


def judge_all(
    limits: Iterable[Limit], evidence: Evidence, task: Task, alpha: float = 0.05, seed: int = 0
) -> tuple[Verdict, ...]:
    return tuple(judge(each, evidence, task, alpha, seed) for each in limits)


def improvement(objective: Objective, task: Task) -> Limit:
    """ "Better than the original's", as a limit."""
    higher = _higher(objective, task)
    return Limit(
        metric=objective.metric,
        statistic=objective.statistic,
        segment=None,
        sense=">=" if higher else "<=",
        bound=Bound("offset", 0.0) if objective.metric not in PERFORMANCE else Bound("ratio", 1.0),
        text=f"{objective.figure} better than the original's",
    )


def better(
    objective: Objective, evidence: Evidence, task: Task, alpha: float = 0.05, seed: int = 0
) -> Verdict:
    """Whether the objective is shown to be better than the original's: strictly smaller where it
    is counted, beyond the noise floor where it is timed."""
    limit = improvement(objective, task)
    pair = counted(objective.metric, evidence)
    if pair is not None and any(map(math.isnan, pair)):
        return unknown(limit, f"{objective.metric} is not known")
    if pair is not None:
        return fact(limit, pair[1] < pair[0], pair[1], pair[0])
    if evidence.original:
        return replace(judge(limit, evidence, task, alpha, seed), outcome="broken", p_value=1.0)
    return judge(limit, evidence, task, alpha, seed)


def objective_value(objective: Objective, evidence: Evidence, task: Task) -> float:
    """The objective as a ratio to the original's; lower is better always (NaN: not measured)."""
    if evidence.original:
        return 1.0
    if objective.metric in TIMED:
        timing = evidence.timing
        if timing is not None and objective.metric == "energy":
            timing = timing.energy()
        if timing is None:
            return math.nan
        statistic = objective.statistic or "p50" if objective.metric == "latency" else "mean"
        return ratio(timing, statistic)
    if objective.metric in PERFORMANCE:
        pair = counted(objective.metric, evidence)
        return pair[1] / pair[0] if pair and pair[0] else math.nan
    if evidence.answers is None or evidence.truth is None:
        return math.nan
    metric = find(objective.metric, task)
    before, after = (metric.value(each, evidence.truth) for each in evidence.answers)
    gain = after - before if metric.higher else before - after
    return 1.0 - gain / max(abs(before), 1e-12)


def nearest(limit: Limit, verdict: Verdict) -> str | None:
    """The limit in its own words with the value that this evidence would certify: the end of the
    interval. None where there is no such value."""
    value = verdict.low if limit.higher else verdict.high
    kind, given, bound = limit.bound.kind, limit.bound.value, verdict.bound
    if not (math.isfinite(value) and math.isfinite(bound)):
        return None
    name = limit.text.split(limit.sense)[0].strip()
    if kind == "offset":
        value -= bound - given
        written = f"baseline {'-' if value < 0 else '+'} {_written(limit, value, signed=True)}"
    elif kind == "ratio" and given > 0 and bound > 0:
        value *= given / bound
        written = f"{_rounded(value, limit.higher):g} x baseline"
    else:
        written = _written(limit, value)
    return f"{name} {limit.sense} {written}"


def _rounded(value: float, down: bool, digits: int = 3) -> float:
    """To three digits, towards what is easier to meet."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - digits)
    return float(f"{(math.floor if down else math.ceil)(value / unit) * unit:.{digits}g}")


def _written(limit: Limit, value: float, signed: bool = False) -> str:
    units = {
        "size": (1e6, " MB"),
        "memory": (1e6, " MB"),
        "latency": (1e3, " ms"),
        "energy": (1e3, " mJ"),
    }
    scale, unit = units.get(limit.metric, (1.0, ""))
    factor = 1 / scale if unit == " MB" else scale
    digits = 2 if limit.metric not in PERFORMANCE and signed else 3
    found = _rounded(value * factor, limit.higher, digits)
    return f"{abs(found) if signed else found:.12g}{unit}"


def _higher(objective: Objective, task: Task) -> bool:
    known = higher_is_better(objective.metric)
    return find(objective.metric, task).higher if known is None else known
