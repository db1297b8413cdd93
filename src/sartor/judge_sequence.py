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
from sartor.judge_quality import crossings, mean_values
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
        for key, part in _parts(limit, _rows(evidence, np.arange(start, len(evidence.answers[0])))):
            means = mean_values(limit, part, task)
            if means is None:
                return None
            known = made.get(key) or Sequence(means.border, means.worst, means.best)
            if (known.border, known.worst) != (means.border, means.worst):
                return None
            made[key] = known.extended(means.values)
    return made


def shown(bets: Bets, limit: Limit, verdict: Verdict, evidence: Evidence, task: Task) -> Verdict:
    """The verdict on a limit that its sequences have shown, in the words and with the interval
    that hold whenever one looks; `verdict` is that of the rows seen so far."""
    if limit.segment is not None:
        parts = tuple(
            _shown(bets[key], replace(limit, text=key), limit, each, part, task)
            for (key, part), each in zip(_parts(limit, evidence), verdict.parts, strict=True)
        )
        outcome, p = together(parts)
        worst = max(parts, key=lambda each: each.p_value)
        return replace(worst, limit=limit.text, outcome=outcome, p_value=p, parts=parts)
    return _shown(bets[limit.text], limit, limit, verdict, evidence, task)


def _shown(
    sequence: Sequence, named: Limit, limit: Limit, verdict: Verdict, evidence: Evidence, task: Task
) -> Verdict:
    means = mean_values(limit, evidence, task)
    if means is None:
        raise ValueError(f"{named.text} has no mean to bet on")
    values, counts = np.unique(means.values, return_counts=True)
    effect = mean_interval(values, counts, means.worst, means.best)
    low, high = effect.low - effect.estimate, effect.high - effect.estimate
    if means.sign < 0:
        low, high = -high, -low
    return replace(
        verdict, limit=named.text, outcome="met", p_value=sequence.p_value,
        low=verdict.estimate + low, high=verdict.estimate + high,
        method=f"betting on {sequence.seen:,} examples", needs=None, note="", parts=(),
    )  # fmt: skip


def _key(limit: Limit, name: str) -> str:
    return f"{limit.text} [{name}]"


def _parts(limit: Limit, evidence: Evidence) -> Iterator[tuple[str, Evidence]]:
    if limit.segment is None:
        yield limit.text, evidence
    elif evidence.truth is not None:
        for name, rows in crossings(limit, evidence.truth):
            yield _key(limit, name), _rows(evidence, rows)


def _rows(evidence: Evidence, rows: np.ndarray) -> Evidence:
    if evidence.answers is None or evidence.truth is None:
        raise ValueError("a sequence needs answers")
    before, after = evidence.answers
    return replace(
        evidence, answers=(before[rows], after[rows]), truth=evidence.truth.take(rows),
        same=evidence.original,
    )  # fmt: skip
