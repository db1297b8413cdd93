"""Verdicts on latency and throughput: interleaved rounds, with the A/A noise floor against both
sides of the question."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sartor import means, stats
from sartor.bootstrap import bootstrap
from sartor.evidence import Evidence, ends, identical, unknown, verdict_of
from sartor.limits import Bound, Limit
from sartor.records import Interval, Timing, Verdict
from sartor.stats import Comparison, Floats

STARTS = 3  # blocks of fresh processes from which the scatter between them can be told

Figure = Callable[[Floats], Floats]


def timing_verdict(limit: Limit, evidence: Evidence, alpha: float, seed: int) -> Verdict:
    timing, relative = evidence.timing, limit.bound.kind != "absolute"
    statistic = "mean" if limit.metric == "throughput" else limit.statistic or "p50"
    if evidence.original and relative:
        value = math.nan if timing is None else _figure(limit, timing.baseline, statistic, timing)
        return identical(limit, value, 0 if timing is None else timing.baseline.size)
    if timing is None:
        return unknown(limit, f"{limit.metric} was not measured")
    if not (np.isfinite(timing.candidate).all() and np.isfinite(timing.baseline).all()):
        return unknown(limit, "a run without a duration")
    # Where every process was started several times the scatter between starts is in the interval.
    started = relative and statistic in ("mean", "p50") and len(timing.blocks) >= STARTS
    floor = 0.0 if timing.twin is None else stats.noise_floor(timing.baseline, timing.twin)
    floor = 0.0 if started else floor
    strict, plain, figures, bound = _timed(limit, timing, statistic, floor, seed)
    verdict = verdict_of(limit, strict, figures, bound, alpha, "runs")
    if verdict.outcome == "undecided" and (short := _too_few(limit, timing, statistic, alpha)):
        return replace(verdict, needs=short[0], note=short[1])
    if timing.twin is None:
        return replace(verdict, note="; ".join(filter(None, (verdict.note, "no A/A control"))))
    if verdict.outcome == "undecided" and min(plain.above, plain.below) <= alpha:
        note = f"too noisy here: two processes of the same model differ by {math.expm1(floor):.1%}"
        return replace(verdict, note=note, needs=None)
    if verdict.outcome == "undecided" and not verdict.note and verdict.needs is None:
        return replace(verdict, note="too few runs")
    return verdict


def _too_few(limit: Limit, timing: Timing, statistic: str, alpha: float) -> tuple[int, str] | None:
    """How many more runs it takes before anything can be decided, in words too; None where there
    are enough, so that it is the figures that leave it open."""
    rounds, calls = timing.candidate.shape
    if statistic in ("mean", "p50") and limit.bound.kind != "absolute":
        if len(timing.blocks) >= STARTS:
            return None
        least = stats.least_rounds(alpha)
        what = f"{least} rounds"
    else:
        if statistic == "mean":
            return None
        q = _share(statistic)
        runs = stats.quantile_runs(max(q, 1 - q), min(alpha, 0.05))
        least, what = math.ceil(runs / calls), f"{runs} runs"
    if rounds >= least:
        return None
    return (least - rounds) * calls, f"too few rounds: {rounds}; it takes {what} to decide anything"


def _figure(limit: Limit, lane: Floats, statistic: str, timing: Timing) -> float:
    seconds = float(lane.mean() if statistic == "mean" else np.quantile(lane, _share(statistic)))
    return timing.batch / seconds if limit.metric == "throughput" else seconds


def _share(statistic: str) -> float:
    return float(statistic[1:]) / 100


def _timed(
    limit: Limit, timing: Timing, statistic: str, floor: float, seed: int
) -> tuple[Comparison, Comparison, Interval, float]:
    """The comparison with the noise floor against it on both sides, the one without, the figures
    and the bound. All in seconds or their ratios; "above" means fast enough."""
    before = _figure(limit, timing.baseline, statistic, timing)
    bound = limit.bound.resolve(before)
    most = timing.batch / bound if limit.metric == "throughput" else bound
    seconds = _figure(_LATENCY, timing.baseline, statistic, timing)
    if most <= 0 or not math.isfinite(most):
        impossible = replace(stats.nothing("arithmetic"), below=0.0)
        return impossible, impossible, Interval(math.nan, -math.inf, math.inf), bound
    compare: Callable[[float], Comparison]
    if limit.bound.kind == "absolute":
        # Longer by the floor: the same as a limit that is stricter by it.
        compare = lambda shift: _seconds(timing, statistic, most * math.exp(shift))  # noqa: E731
        scale = None
    else:
        target = math.log(most / seconds)
        compare = lambda shift: log_ratio(timing, statistic, target + shift, seed)  # noqa: E731
        scale = seconds
    plain, hard, easy = compare(0.0), compare(-floor), compare(floor)
    shown = plain.interval if scale is None else _scaled(plain.interval, scale)
    # The ends that would be decided: what two processes of one model differ by is in them too.
    wider = math.exp(floor)
    shown = Interval(shown.estimate, shown.low / wider, shown.high * wider, shown.level)
    if limit.metric == "throughput":
        rates = [timing.batch / x if x > 0 else math.inf for x in ends(shown)]
        shown = Interval(rates[0], rates[2], rates[1], shown.level)
    strict = replace(hard.negated(), below=easy.above, n=timing.candidate.size)
    return strict, plain.negated(), shown, bound


_LATENCY = Limit("latency", None, None, "<=", Bound("ratio", 1.0), "latency <= 1 x baseline")


def _scaled(interval: Interval, scale: float) -> Interval:
    estimate, low, high = (scale * math.exp(min(x, 700.0)) for x in ends(interval))
    return Interval(estimate, low, high, interval.level)


def _seconds(timing: Timing, statistic: str, border: float) -> Comparison:
    lane = timing.candidate
    if statistic == "mean":
        return means.real_mean(lane.mean(1), border, 0.0)
    return stats.quantile(lane, _share(statistic), border)


def log_ratio(timing: Timing, statistic: str, border: float, seed: int) -> Comparison:
    """log(candidate / original) of a statistic, over rounds."""
    old, new = timing.baseline, timing.candidate
    if statistic in ("mean", "p50"):
        middle: Figure = (lambda x: x.mean(1)) if statistic == "mean" else _medians
        ratios = np.log(middle(new) / middle(old))
        if len(timing.blocks) >= STARTS:
            parts = np.split(ratios, np.cumsum(timing.blocks)[:-1])
            return stats.centre(np.array([part.mean() for part in parts]), border)
        return stats.pseudomedian(ratios, border)
    q = _share(statistic)
    if new.size < stats.quantile_runs(q):
        return replace(
            stats.nothing(f"needs at least {stats.quantile_runs(q)} runs", new.size), z=math.nan
        )

    def effect(rounds: np.ndarray) -> float:
        return float(np.log(np.quantile(new[rounds], q) / np.quantile(old[rounds], q)))

    return bootstrap(effect, len(new), border, resamples=500, seed=seed)


def ratio(timing: Timing, statistic: str) -> float:
    """Estimate of candidate / original, however few runs there are: no verdict hangs on it."""
    found = log_ratio(timing, statistic, 0.0, 0) if statistic in ("mean", "p50") else None
    if found is not None and math.isfinite(found.interval.estimate):
        return math.exp(found.interval.estimate)
    old, new = (
        _figure(_LATENCY, x, statistic, timing) for x in (timing.baseline, timing.candidate)
    )
    return new / old if old > 0 else math.nan


def _medians(lane: Floats) -> Floats:
    return np.asarray(np.median(lane, 1), dtype=np.float64)
