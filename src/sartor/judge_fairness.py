"""Verdicts on how far apart groups lie: demographic parity, equal opportunity, equalized odds.

The largest gap between groups is biased upward, most where there is none, and a bootstrap of it
keeps no level. So the limit is taken apart: it holds when the gap of every ordered pair of groups
is shown to be within it (intersection-union, no correction), where the bias works against the
candidate. A gap of two groups is judged by melding exact bounds of both (`melded`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from sartor import fairness, melded
from sartor.answers import Ints
from sartor.contracts import Task
from sartor.evidence import Evidence, identical, unknown, verdict_of
from sartor.judge_groups import FEWEST, crossings, joined, too_few
from sartor.limits import Limit
from sartor.records import Interval, Verdict
from sartor.stats import Comparison, Floats

# Relative to the original a pair's gap is held against its own gap before, at this share of the
# level, and at the rest, shared by all pairs, against the largest gap before: the limit follows
# from either, and a pair that was closer than the widest may drift a little.
_OWN = 0.8
_METHOD = "melded exact bounds"


@dataclass(frozen=True)
class _Rate:
    """One rate by group: `cells` [G, 4] as `melded.bounds` takes them, `rows` [G] counted, and
    `before` and `after` [G], the rates themselves."""

    name: str
    cells: Floats
    rows: Ints
    before: Floats
    after: Floats


@dataclass(frozen=True)
class _Pair:
    """An ordered pair of groups under one rate (an index)."""

    rate: int
    high: int
    low: int


def fair(limit: Limit, evidence: Evidence, task: Task, alpha: float, seed: int) -> Verdict:
    truth, answers = evidence.truth, evidence.answers
    if truth is None or answers is None:
        raise ValueError("a verdict on groups needs answers")
    parts = list(crossings(limit, truth))
    if len(parts) < 2:
        if not parts:
            return unknown(limit, f"there is no column {limit.segment} in the data")
        return unknown(limit, f"{parts[0][0]} is the only group: nothing to hold it against")
    names, group = [name for name, _ in parts], np.zeros(len(answers[0]), np.int64)
    for at, (_, rows) in enumerate(parts):
        group[rows] = at
    picked = [fairness.chosen(each, task) for each in answers]
    rates = [
        _rate(name, picked, group, rows, truth.units)
        for name, rows in fairness.conditions(limit.metric, truth, len(group))
    ]
    few = [
        too_few(replace(limit, text=f"{limit.text} [{each.name}, {names[g]}]"), int(rows))
        for each in rates
        for g, rows in enumerate(each.rows)
        if rows < FEWEST
    ]
    ratio = limit.metric.endswith("ratio")
    before = fairness.figure([each.before for each in rates], ratio)
    after = fairness.figure([each.after for each in rates], ratio)
    if evidence.original and limit.bound.kind != "absolute":
        return identical(limit, before, len(group))
    pairs = [
        _Pair(at, *pair)
        for at, each in enumerate(rates)
        for pair in itertools.permutations(np.flatnonzero(each.rows >= FEWEST).tolist(), 2)
    ]
    if not pairs:
        return replace(few[0], limit=limit.text, parts=tuple(few))
    judge = _Judge(limit, names, rates, pairs, ratio, alpha, seed)
    found = judge.parts()
    one = joined(
        limit, [v for v, _ in found] + few, [p for _, p in found] + [1.0] * len(few), alpha
    )
    low, high = judge.ends()
    return replace(one, estimate=after, low=low, high=high, examples=len(group))


def _rate(
    name: str, picked: list[np.ndarray], group: Ints, rows: np.ndarray, units: np.ndarray | None
) -> _Rate:
    size = int(group.max()) + 1
    cell = group * 4 + picked[0] * 2 + picked[1]
    cells = np.bincount(cell[rows], minlength=4 * size).reshape(size, 4).astype(np.float64)
    count = cells.sum(1)
    with np.errstate(invalid="ignore"):
        before, after = (cells[:, 2] + cells[:, 3]) / count, (cells[:, 1] + cells[:, 3]) / count
    if units is None:
        return _Rate(name, cells, count.astype(np.int64), before, after)
    # Rows that belong together count as if they were the same (Kish 1965).
    worth = np.zeros(size)
    for g in range(size):
        times = np.unique(units[rows & (group == g)], return_counts=True)[1].astype(np.float64)
        worth[g] = times.sum() ** 2 / (times**2).sum() if len(times) else 0.0
    scaled = cells * np.divide(worth, count, out=np.zeros(size), where=count > 0)[:, None]
    return _Rate(name, scaled, np.floor(worth + 1e-9).astype(np.int64), before, after)


class _Judge:
    """A limit on all pairs, as "effect <= border": the gap of a pair after, less `share` times
    one before."""

    def __init__(
        self, limit: Limit, names: list[str], rates: list[_Rate], pairs: list[_Pair],
        ratio: bool, alpha: float, seed: int,
    ) -> None:  # fmt: skip
        self.limit, self.names, self.rates, self.pairs = limit, names, rates, pairs
        self.ratio, self.alpha = ratio, alpha
        self.sign = -1.0 if ratio else 1.0
        kind, value = limit.bound.kind, limit.bound.value
        self.share = {"absolute": 0.0, "offset": 1.0, "ratio": value}[kind]
        self.border = 0.0 if kind == "ratio" else self.sign * value
        self.drawn = [melded.bounds(each.cells, seed + i) for i, each in enumerate(rates)]
        self.widest = max(pairs, key=lambda each: self._gap(each, "before"))
        self.before = self.sign * self._gap(self.widest, "before")

    def _gap(self, pair: _Pair, when: str) -> float:
        rate = self.rates[pair.rate].before if when == "before" else self.rates[pair.rate].after
        found = float(fairness.gap(rate[pair.high], rate[pair.low], self.ratio))
        return found if math.isfinite(found) else -math.inf

    def _effect(self, pair: _Pair, other: _Pair, bad: bool) -> Floats:
        """Draws [R] of the pair's gap after less the other's before, from unfavourable bounds of
        all shares (`bad`) or from favourable ones."""
        x, y = self.drawn[pair.rate], self.drawn[other.rate]
        new = (x.new_high, x.new_low) if bad else (x.new_low, x.new_high)
        old = (y.old_low, y.old_high) if bad else (y.old_high, y.old_low)
        found = fairness.gap(new[0][pair.high], new[1][pair.low], self.ratio)
        if self.share == 0:
            return found
        return found - self.share * fairness.gap(old[0][other.high], old[1][other.low], self.ratio)

    def _above(self, pair: _Pair) -> float:
        """P-value of "the pair breaks the limit"."""
        own = melded.p_value(~(self._effect(pair, pair, True) < self.border))
        if self.share == 0:
            return own
        other = melded.p_value(~(self._effect(pair, self.widest, True) < self.border))
        return min(own / _OWN, other * len(self.pairs) / (1 - _OWN), 1.0)

    def _below(self, pair: _Pair) -> float:
        """P-value of "the pair is within the limit"."""
        others = {self.widest} if self.share == 0 else {pair, self.widest}
        return max(
            melded.p_value(~(self._effect(pair, other, False) > self.border)) for other in others
        )

    def parts(self) -> list[tuple[Verdict, float]]:
        """For each unordered pair the verdict on the direction that is the less sure, with the
        p-value of "this one is within the limit"."""
        sure = {pair: self._above(pair) for pair in self.pairs}
        worse = (
            max((pair, replace(pair, high=pair.low, low=pair.high)), key=lambda each: sure[each])
            for pair in self.pairs
            if pair.high < pair.low
        )
        return [(self._verdict(pair, sure[pair]), self._below(pair)) for pair in worse]

    def _verdict(self, pair: _Pair, above: float) -> Verdict:
        rate, (a, b) = self.rates[pair.rate], (pair.high, pair.low)
        estimate = self._gap(pair, "after")
        old = self.share * self._gap(pair, "before") if self.share else 0.0
        high, low = (self._effect(pair, pair, bad) for bad in (True, False))
        ends = (old + np.quantile(low, 0.025), old + np.quantile(high, 0.975))
        nearest = estimate - old
        if self.share:
            nearest = min(nearest, estimate - self.share * self._gap(self.widest, "before"))
        far = (self.border - nearest) / max(float(np.std(high)), 1e-12)
        found = Comparison(
            Interval(estimate, *map(float, ends)), above, self._below(pair),
            far, int(rate.rows[a] + rate.rows[b]), _METHOD,
        )  # fmt: skip
        shown = found.interval if not self.ratio else found.negated().interval
        names = (self.names[a], self.names[b])
        text = f"{self.limit.text} [{rate.name}, {names[0]} over {names[1]}]"
        bound = self.limit.bound.resolve(self.before)
        one = replace(self.limit, text=text)
        return verdict_of(one, found, shown, bound, self.alpha, "examples")

    def _top(self, pair: _Pair) -> float:
        if self.share == 0:
            return float(np.quantile(self._effect(pair, pair, True), 0.975))
        rest = 0.025 * (1 - _OWN) / len(self.pairs)
        own = np.quantile(self._effect(pair, pair, True), 1 - 0.025 * _OWN)
        return float(min(own, np.quantile(self._effect(pair, self.widest, True), 1 - rest)))

    def ends(self) -> tuple[float, float]:
        """A two-sided interval of the figure: from above the largest of the pairs' bounds, from
        below the largest after Bonferroni's correction."""
        known = self.sign * self.share * self.before
        tail = 0.025 / len(self.pairs)
        tops = [self._top(each) for each in self.pairs]
        bottoms = [np.quantile(self._effect(each, self.widest, False), tail) for each in self.pairs]
        low, high = known + float(max(bottoms)), known + float(max(tops))
        return (-high, -low) if self.ratio else (max(low, 0.0), high)
