"""Tests that may be looked at as often as one likes: betting on the mean of bounded values.

A gambler who bets a share of their wealth on every row, in a game that is fair (or worse) where the
mean is at most the border, becomes 1/alpha times as rich with a chance of alpha at most, however
long they play and whenever they stop (Ville 1939; Waudby-Smith and Ramdas 2024, "Estimating means
of bounded random variables by betting"). Several fixed bets are played side by side, the wealth
being their mean (Robbins 1970): no bet has to be guessed, and the order of rows between two looks
does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sartor.records import Interval
from sartor.special import root
from sartor.stats import Floats

# Shares of the largest bet there is: from small gains among many flips to hardly any flips. More
# bets pay more for those that do not fit (24 bets need a tenth more rows).
BETS = np.geomspace(0.05, 0.98, 6)
LEVELS = 64  # different values up to which a sequence remembers how often each was seen


@dataclass(frozen=True)
class Sequence:
    """What betting against "the mean is at most `border`" has come to, for independent values
    within `worst` and `best`. `logs`: the logarithm of each bet's wealth; `seen`: how many values
    there were; `p_value`: the least so far, valid whenever it is looked at; `levels`: (value,
    count) of all values, None where they are too many to be kept."""

    border: float
    worst: float
    best: float
    logs: tuple[float, ...] = (0.0,) * len(BETS)
    seen: int = 0
    p_value: float = 1.0
    levels: tuple[tuple[float, int], ...] | None = ()

    def extended(self, values: Floats) -> Sequence:
        """The sequence after these values more: [N]. Raises ValueError for one below `worst`."""
        if len(values) == 0:
            return self
        found, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
        if found[0] < self.worst - 1e-9:
            raise ValueError(f"a value of {found[0]} below the worst, {self.worst}")
        logs = np.asarray(self.logs) + _growth(found, counts, self.worst, self.border)
        return replace(
            self,
            logs=tuple(logs.tolist()),
            seen=self.seen + len(values),
            p_value=min(self.p_value, _p(logs) if self.border >= self.worst else 0.0),
            levels=self._counted(found, counts),
        )

    def _counted(self, found: Floats, counts: np.ndarray) -> tuple[tuple[float, int], ...] | None:
        if self.levels is None:
            return None
        known = dict(self.levels)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            known[value] = known.get(value, 0) + count
        return tuple(sorted(known.items())) if len(known) <= LEVELS else None

    def needs(self, alpha: float) -> int | None:
        """About how many values more would show it at `alpha`, were they like those seen; None
        where nothing was gained yet."""
        best = max(self.logs)
        if best <= 0 or not self.seen:
            return None
        return max(math.ceil((math.log(len(BETS) / alpha) / best - 1) * self.seen), 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the sequence again."""
        levels = None if self.levels is None else [list(each) for each in self.levels]
        return {**vars(self), "logs": list(self.logs), "levels": levels}


def from_json(entry: Mapping[str, Any]) -> Sequence:
    """What `Sequence.to_json` wrote."""
    levels = entry["levels"]
    known = None if levels is None else tuple((float(value), int(n)) for value, n in levels)
    return Sequence(**{**entry, "logs": tuple(entry["logs"]), "levels": known})


def mean_interval(
    values: Floats, counts: np.ndarray, worst: float, best: float, level: float = 0.95
) -> Interval:
    """The mean of `values` (each seen `counts` times) with an interval that holds at whatever time
    one stops to look: the borders against which the bets win less than 2 / (1 - level)."""
    x, n = np.asarray(values, dtype=np.float64), np.asarray(counts)
    mean, tail = float(x @ n / n.sum()), (1 - level) / 2
    low = _end(x, n, worst, mean, tail)
    high = -_end(-x, n, -best, -mean, tail)
    return Interval(mean, low, high, level)


def _end(x: Floats, n: np.ndarray, worst: float, mean: float, tail: float) -> float:
    def excess(border: float) -> float:
        return _p(_growth(x, n, worst, border)) - tail

    lowest = worst + 1e-9 * max(mean - worst, 1e-12)
    if mean <= worst or excess(lowest) > 0:
        return worst
    return root(excess, lowest, mean) if excess(mean) > 0 else mean


def _growth(values: Floats, counts: np.ndarray, worst: float, border: float) -> Floats:
    """[bets]: by how much the logarithm of each bet's wealth grows."""
    gap = max(border - worst, 1e-12)
    gains = np.log1p(np.outer(BETS / gap, np.maximum(values, worst) - border))
    return np.asarray(gains @ counts, dtype=np.float64)


def _p(logs: Floats) -> float:
    richest = float(logs.max())
    mean = richest + math.log(float(np.exp(logs - richest).mean()))
    return math.exp(-max(mean, 0.0))
