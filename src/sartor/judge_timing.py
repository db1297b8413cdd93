"""Verdicts on latency, throughput and energy: interleaved rounds, with the A/A noise floor against
both sides of the question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from sartor import means, stats
from sartor.bootstrap import bootstrap
from sartor.evidence import Evidence, ends, identical, unknown, verdict_of
from sartor.limits import Limit
from sartor.records import Interval, Timing, Verdict
from sartor.stats import Comparison, Floats

STARTS = 3  # blocks of fresh processes from which the scatter between them can be told

DISTURBED = 0.01  # of the calls' time in the hands of others: below it is taken for none
OTHERS = 0.25  # cores that others keep busy: below it the machine is taken for calm
NEIGHBOUR = 2.0  # times longer that calls may take beside busy neighbours on other cores
NARROW = 0.02  # half of an interval, of its estimate: no more is measured then
ROOM = 0.002  # p-value of a verdict that more starts are not needed for


def timing_verdict(limit: Limit, evidence: Evidence, alpha: float, seed: int) -> Verdict:
    """Of a limit on latency, throughput or energy. Time in which other processes had the core is
    no time of the model's: where there was much of it, it is taken out of the calls. With several
    threads it is not known which of their waits made the call longer: the calls are judged as
    they were and without any wait, and where that differs the machine is too noisy to tell."""
    timing = evidence.timing
    if timing is not None and limit.metric == "energy":
        timing = timing.energy()
    if evidence.original and limit.bound.kind != "absolute":
        value = math.nan if timing is None else _figure(limit, timing.baseline, timing)
        return identical(limit, value, 0 if timing is None else timing.baseline.size)
    if timing is None:
        return unknown(limit, f"{limit.metric} was not measured")
    if not all(np.isfinite(lane).all() for lane in (timing.candidate, timing.baseline)):
        return unknown(limit, "a run without a duration")
    found = _judged(limit, timing, alpha, seed)
    if timing.disturbed > DISTURBED:
        left = _judged(limit, timing.undisturbed(), alpha, seed)
        found = _without(left, timing) if timing.threads == 1 else _agreed(found, left, timing)
    found = _beside_load(limit, found, timing, alpha, seed)
    if limit.metric == "energy":
        return replace(found, note="; ".join(filter(None, (found.note, energy_source(timing)))))
    return found


def _without(left: Verdict, timing: Timing) -> Verdict:
    return replace(
        left, note="; ".join(filter(None, (left.note, f"{_share_of(timing)}, taken out")))
    )


def _agreed(seen: Verdict, left: Verdict, timing: Timing) -> Verdict:
    """The verdict on what is `left` without the waits, where that on the calls as they were `seen`
    is the same."""
    if seen.outcome == left.outcome:
        return replace(_without(left, timing), p_value=max(seen.p_value, left.p_value))
    note = f"too noisy here: {_share_of(timing)}"
    p = max(seen.p_value, left.p_value)
    return replace(left, outcome="undecided", note=note, needs=None, p_value=p)


def _share_of(timing: Timing) -> str:
    return f"other processes had the core in {timing.disturbed:.0%} of the calls' time"


def _beside_load(limit: Limit, found: Verdict, timing: Timing, alpha: float, seed: int) -> Verdict:
    """A neighbour that is busy on another core slows calls down without ever taking the core
    (shared caches, memory, two threads on one physical core): a limit in seconds is broken only
    where it would be with calls that are shorter by as much as that may cost."""
    busy = max(timing.others, default=0.0)
    seconds = limit.bound.kind == "absolute" and limit.metric != "energy"
    if not seconds or found.outcome != "broken" or busy <= OTHERS:
        return found
    shorter = timing.undisturbed()
    shorter = shorter.of([lane / NEIGHBOUR for lane in shorter.lanes])
    if _judged(limit, shorter, alpha, seed).outcome == "broken":
        return found
    note = f"too noisy here: other processes keep {busy:.1f} cores busy, which may slow the calls"
    return replace(found, outcome="undecided", note=note, needs=None)


def energy_source(timing: Timing) -> str:
    if timing.joules is not None:
        return "by the machine's energy counter"
    return f"estimated from CPU time at {timing.watts:g} W a core"


def _judged(limit: Limit, timing: Timing, alpha: float, seed: int) -> Verdict:
    relative, statistic = limit.bound.kind != "absolute", _statistic(limit)
    # Where every process was started several times the scatter between starts is in the interval.
    started = relative and statistic in ("mean", "p50") and len(timing.blocks) >= STARTS
    floor = proven_noise(timing) if started else _floor(timing)
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


def _statistic(limit: Limit) -> str:
    return "mean" if limit.metric in ("throughput", "energy") else limit.statistic or "p50"


def _floor(timing: Timing) -> float:
    return 0.0 if timing.twin is None else stats.noise_floor(timing.baseline, timing.twin)


# -- noise and how much to measure ----------------------------------------------------------------


def noise(timing: Timing) -> Interval | None:
    """What the original beside itself differs by, as a ratio less 1: over starts where there were
    several, else over rounds. None without a twin."""
    if timing.twin is None:
        return None
    control = timing.undisturbed()
    control = control.of([control.baseline, control.lanes[-1], control.lanes[-1]])
    found = log_ratio(control, "p50", 0.0, 0).interval
    low, high = (math.expm1(min(x, 700.0)) for x in (found.low, found.high))
    return Interval(math.expm1(found.estimate), low, high, found.level)


def proven_noise(timing: Timing) -> float:
    """|log ratio| that original and twin are shown (at 99 %) to differ by: nothing but their
    places in the rounds can cause it, and it may help or hurt a candidate as much."""
    if timing.twin is None or len(timing.blocks) < STARTS:
        return 0.0
    control = replace(timing, candidate=timing.twin)
    found = stats.centre(_starts(control, "p50"), 0.0, 0.99, timing.first).interval
    return max(found.low, -found.high, 0.0)


def conditions_of(timing: Timing) -> dict[str, Any]:
    """Plain figures of what a timing was measured under; `noise` in words."""
    control = noise(timing)
    return {
        "starts": len(timing.blocks),
        "calls": int(timing.candidate.size),
        "aa_difference": control,
        "cores_of_others": float(np.mean(timing.others)) if timing.others else None,
        "disturbed": timing.disturbed if timing.queued is not None else None,
        "energy": energy_source(timing),
        "noise": _told(timing, control),
    }


def _told(timing: Timing, control: Interval | None) -> str:
    told = []
    if control is not None:
        told = [f"noise here: the original beside itself differs by {control.estimate:+.1%}"]
        if math.isfinite(control.low) and math.isfinite(control.high):
            told[0] += f" ({control.low:+.1%} to {control.high:+.1%})"
    if timing.others:
        told.append(f"other processes kept {np.mean(timing.others):.2f} cores busy")
    if timing.queued is not None:
        told.append(f"they had the core in {timing.disturbed:.1%} of the timed calls' time")
    return ", ".join(told)


def further_starts(
    limits: Iterable[Limit], timing: Timing, most: int, seed: int = 0, room: float = ROOM
) -> int:
    """How many more starts of every process a timing deserves, up to `most`: until half the
    interval of what the limits are about is NARROW of it, none for a limit that is decided with
    room already. Asked once, after the first starts, whose scatter then is that of the verdict
    (`stats.centre`)."""
    wanted = 0
    for limit in limits:
        found = timing.energy() if limit.metric == "energy" else timing.undisturbed()
        if found is None:
            continue
        done, statistic = len(found.blocks), _statistic(limit)
        strict, _, shown, _ = _timed(limit, found, statistic, 0.0, seed)
        if min(strict.above, strict.below) <= room:
            continue
        if limit.bound.kind != "absolute" and statistic in ("mean", "p50") and done >= STARTS:
            total = stats.values_for(_starts(found, statistic), NARROW, done + most)
        else:
            half = (shown.high - shown.low) / (2 * abs(shown.estimate))
            total = math.ceil(min(done * (half / NARROW) ** 2, done + most))
        wanted = max(wanted, total - done)
    return wanted


def runs_wanted(limits: Iterable[Limit], alpha: float = 0.05) -> int:
    """The calls that a verdict on the limits' tails takes: twice the fewest that can bound the
    quantile, since the calls of one round are worth less than independent ones."""
    tails = [_share(_statistic(each)) for each in limits if _statistic(each) not in ("mean", "p50")]
    return max((2 * stats.quantile_runs(max(q, 1 - q), alpha) for q in tails), default=0)


# -- the comparison -------------------------------------------------------------------------------


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


def _figure(limit: Limit, lane: Floats, timing: Timing) -> float:
    statistic = _statistic(limit)
    seconds = _seconds_of(lane, statistic)
    return timing.batch / seconds if limit.metric == "throughput" else seconds


def _share(statistic: str) -> float:
    return float(statistic[1:]) / 100


def _timed(
    limit: Limit, timing: Timing, statistic: str, floor: float, seed: int
) -> tuple[Comparison, Comparison, Interval, float]:
    """The comparison with the noise floor against it on both sides, the one without, the figures
    and the bound. All in seconds or their ratios; "above" means fast enough."""
    before = _figure(limit, timing.baseline, timing)
    bound = limit.bound.resolve(before)
    most = timing.batch / bound if limit.metric == "throughput" else bound
    seconds = _seconds_of(timing.baseline, statistic)
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


def _seconds_of(lane: Floats, statistic: str) -> float:
    return float(lane.mean() if statistic == "mean" else np.quantile(lane, _share(statistic)))


def _scaled(interval: Interval, scale: float) -> Interval:
    estimate, low, high = (scale * math.exp(min(x, 700.0)) for x in ends(interval))
    return Interval(estimate, low, high, interval.level)


def _seconds(timing: Timing, statistic: str, border: float) -> Comparison:
    """A statistic of the candidate's calls against so many seconds: over calls and rounds and,
    where every process was started several times, over starts too; what both say counts."""
    lane = timing.candidate
    if statistic == "mean":
        calls = means.real_mean(lane.mean(1), border, 0.0)
    else:
        calls = stats.quantile(lane, _share(statistic), border)
    if len(timing.blocks) < STARTS:
        return calls
    parts = np.split(lane, np.cumsum(timing.blocks)[:-1])
    logs = np.log([_seconds_of(part, statistic) for part in parts])
    starts = stats.centre(logs, math.log(border), first=timing.first)
    low, high = (math.exp(min(x, 700.0)) for x in (starts.interval.low, starts.interval.high))
    return _both(calls, replace(starts, interval=replace(starts.interval, low=low, high=high)))


def _both(calls: Comparison, starts: Comparison) -> Comparison:
    """What holds over the calls and over the starts: the larger p-values, the wider interval."""
    found, other = calls.interval, starts.interval
    weaker = calls if not abs(calls.z) >= abs(starts.z) else starts
    return replace(
        calls,
        interval=replace(found, low=min(found.low, other.low), high=max(found.high, other.high)),
        above=max(calls.above, starts.above),
        below=max(calls.below, starts.below),
        z=weaker.z,
        method=f"{calls.method}, {starts.method}",
    )


def log_ratio(timing: Timing, statistic: str, border: float, seed: int) -> Comparison:
    """log(candidate / original) of a statistic, over rounds."""
    old, new = timing.baseline, timing.candidate
    if statistic in ("mean", "p50"):
        if len(timing.blocks) >= STARTS:
            return stats.centre(_starts(timing, statistic), border, first=timing.first)
        return stats.pseudomedian(_ratios(timing, statistic), border)
    q = _share(statistic)
    if new.size < stats.quantile_runs(q):
        return replace(
            stats.nothing(f"needs at least {stats.quantile_runs(q)} runs", new.size), z=math.nan
        )

    def effect(rounds: np.ndarray) -> float:
        return float(np.log(np.quantile(new[rounds], q) / np.quantile(old[rounds], q)))

    rounds = bootstrap(effect, len(new), border, resamples=500, seed=seed)
    if len(timing.blocks) < STARTS:
        return rounds
    parts = np.split(np.arange(len(new)), np.cumsum(timing.blocks)[:-1])
    starts = np.array([effect(part) for part in parts])
    return _both(rounds, stats.centre(starts, border, first=timing.first))


def ratio(timing: Timing, statistic: str) -> float:
    """Estimate of candidate / original, however few runs there are: no verdict hangs on it."""
    found = log_ratio(timing, statistic, 0.0, 0) if statistic in ("mean", "p50") else None
    if found is not None and math.isfinite(found.interval.estimate):
        return math.exp(found.interval.estimate)
    old, new = (_seconds_of(x, statistic) for x in (timing.baseline, timing.candidate))
    return new / old if old > 0 else math.nan


def _ratios(timing: Timing, statistic: str) -> Floats:
    """log(candidate / original) of every round."""
    middle = np.mean if statistic == "mean" else np.median
    found = [middle(lane, axis=1) for lane in (timing.candidate, timing.baseline)]
    return np.asarray(np.log(found[0] / found[1]), dtype=np.float64)


def _starts(timing: Timing, statistic: str) -> Floats:
    """log(candidate / original) of every start of the processes."""
    parts = np.split(_ratios(timing, statistic), np.cumsum(timing.blocks)[:-1])
    return np.array([part.mean() for part in parts])
