"""Limits on the mean of scores, decided look by look before all examples were seen.

Every limit, and every crossing of the segments it is about, has a sequence of its own; all of them
must come below the level (intersection-union: no correction is needed).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from sartor.contracts import Task
from sartor.evidence import Evidence, together
from sartor.judge_groups import crossings
from sartor.judge_quality import mean_values
from sartor.limits import Limit
from sartor.metrics import Truth
from sartor.records import Verdict
from sartor.sequences import Sequence, mean_interval

Bets = Mapping[str, Sequence]
"""A sequence for each "LIMIT" or "LIMIT [crossing]"."""


def keys(limit: Limit, truth: Truth) -> list[str]:
    """What must be shown for the limit on these data: itself, or each crossing that occurs."""
    if limit.segment is None:
        return [limit.text]
    return [_key(limit, name) for name, _ in crossings(limit, truth)]


def advance(
    bets: Bets, limits: Iterable[Limit], evidence: Evidence, task: Task, start: int
) -> Bets | None:
    """The sequences after the rows of the evidence from `start` on; None where one of the limits
    has none (a figure of a whole set, rows that are not independent, scores without bounds)."""
    if evidence.truth is None or evidence.answers is None:
        return None
    units = evidence.truth.units
    if units is not None and len(np.unique(units)) < len(units):
        return None
    made = dict(bets)
    for limit in limits:
        for key, part in _parts(limit, evidence.take(slice(start, None))):
            means = mean_values(limit, part, task)
            if means is None:
                return None
            known = made.get(key) or Sequence(means.border, means.worst, means.best)
            if (known.border, known.worst) != (means.border, means.worst):
                return None
            made[key] = known.extended(means.values)
    return made


def seen(
    bets: Bets, limit: Limit, verdict: Verdict, evidence: Evidence, task: Task, alpha: float
) -> Verdict:
    """The verdict on a limit as its sequences have it, met or undecided at `alpha`, with an
    interval that holds whenever one looks; `verdict` is that of the evidence alone."""
    if limit.segment is None:
        return _seen(bets[limit.text], limit.text, limit, verdict, evidence, task, alpha)
    here = dict(_parts(limit, evidence))
    known = {each.limit: each for each in verdict.parts}
    parts = tuple(
        _seen(bets[key], key, limit, known[key], here[key], task, alpha)
        for key in here
        if key in bets and key in known
    )
    if not parts:
        return verdict
    outcome, p = together(parts)
    worst = max(parts, key=lambda each: each.p_value)
    return replace(worst, limit=limit.text, outcome=outcome, p_value=p, parts=parts)


def _seen(
    sequence: Sequence, name: str, limit: Limit, verdict: Verdict, evidence: Evidence, task: Task,
    alpha: float,
) -> Verdict:  # fmt: skip
    means = mean_values(limit, evidence, task)
    if means is None:
        raise ValueError(f"{name} has no mean to bet on")
    values, counts = np.unique(means.values, return_counts=True)
    here = float(values @ counts / counts.sum())
    if sequence.levels:  # all that was ever seen, on other data too
        values, counts = (np.array(each) for each in zip(*sequence.levels, strict=True))
    effect = mean_interval(values, counts, means.worst, means.best)
    ends = [means.sign * (x - here) for x in (effect.estimate, effect.low, effect.high)]
    met = sequence.p_value <= alpha
    return replace(
        verdict, limit=name, outcome="met" if met else "undecided", p_value=sequence.p_value,
        estimate=verdict.estimate + ends[0],
        low=verdict.estimate + min(ends[1:]), high=verdict.estimate + max(ends[1:]),
        method=f"betting on {sequence.seen:,} examples", examples=sequence.seen,
        needs=None if met else sequence.needs(alpha), note="", parts=(),
    )  # fmt: skip


def _key(limit: Limit, name: str) -> str:
    return f"{limit.text} [{name}]"


def _parts(limit: Limit, evidence: Evidence) -> Iterator[tuple[str, Evidence]]:
    if limit.segment is None:
        yield limit.text, evidence
    elif evidence.truth is not None:
        for name, rows in crossings(limit, evidence.truth):
            yield _key(limit, name), evidence.take(rows)
