"""Verdicts that are made of parts: segments, classes, pairs of groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sartor import stats
from sartor.evidence import together, unknown
from sartor.limits import Limit
from sartor.metrics import Truth
from sartor.records import Verdict

FEWEST = 20  # rows below which a part is not judged


def crossings(limit: Limit, truth: Truth) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows of every combination of the columns' values that occurs."""
    names = limit.segments
    if not names or not all(name in truth.segments for name in names):
        return
    columns = [np.asarray(truth.segments[name]).astype(str) for name in names]
    values, codes = zip(*(np.unique(each, return_inverse=True) for each in columns), strict=True)
    found, index = np.unique(np.stack([c.ravel() for c in codes], 1), axis=0, return_inverse=True)
    order = np.argsort(index.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(index.ravel(), minlength=len(found)))[:-1]
    for combination, rows in zip(found, np.split(order, ends), strict=True):
        said = (f"{n}={v[c]}" for n, v, c in zip(names, values, combination, strict=True))
        yield ", ".join(said), rows


def too_few(limit: Limit, rows: int, what: str = "examples") -> Verdict:
    more = FEWEST - rows
    note = f"too few examples: {rows}, {more} more {what} to look at it at all"
    return replace(unknown(limit, note, rows), needs=more)


def joined(limit: Limit, parts: Sequence[Verdict], against: list[float], alpha: float) -> Verdict:
    """One verdict of all parts: met when every one is (intersection-union: no correction). Parts
    that are named broken are so after Holm's correction; `against` are the p-values of "the part
    meets the limit". The figures are those of the worst part that could be judged."""
    sure = stats.holm(against)
    parts = [
        replace(part, outcome="undecided") if part.outcome == "broken" and p > alpha else part
        for part, p in zip(parts, sure, strict=True)
    ]
    outcome, p = together(parts)
    # A part that is not a number is broken and has no figure; nothing is worse.
    lost = [each for each in parts if each.outcome == "broken" and math.isnan(each.estimate)]
    judged = lost or [each for each in parts if not math.isnan(each.estimate)] or list(parts)
    worst = min(judged, key=lambda each: (_margin(limit, each), len(each.limit)))
    needs = max((each.needs or 0 for each in parts if each.outcome == "undecided"), default=0)
    return replace(
        worst, limit=limit.text, outcome=outcome, p_value=p, parts=tuple(parts),
        needs=needs or None, note=_told(limit, parts, worst),
    )  # fmt: skip


def _margin(limit: Limit, part: Verdict) -> float:
    found = part.estimate - part.bound if limit.higher else part.bound - part.estimate
    return found if math.isfinite(found) else -math.inf


def _told(limit: Limit, parts: Sequence[Verdict], worst: Verdict) -> str:
    """The worst part with its interval, those that are broken, those that say too little."""

    def name(part: Verdict) -> str:
        return part.limit[len(limit.text) + 2 : -1]

    said = f"the worst: {name(worst)}"
    if not math.isnan(worst.estimate):
        said += f", {worst.estimate:.4g} ({worst.low:.4g} to {worst.high:.4g})"
        said += f" where {worst.bound:.4g} is asked"
    notes = [said, worst.note] if worst.note else [said]
    broken = [name(each) for each in parts if each.outcome == "broken"]
    few = [f"{name(each)} ({each.examples})" for each in parts if each.note.startswith("too few")]
    others = [
        name(each)
        for each in parts
        if each.outcome == "undecided" and not each.note.startswith("too few")
    ]
    for what, names in (("broken", broken), ("undecided", others), ("too few examples", few)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            notes.append(f"{what}: {'; '.join(names[:8])}{more}")
    return " · ".join(notes)
