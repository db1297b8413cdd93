"""What was measured of a candidate, and the verdicts that need no statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sartor import stats
from sartor.contracts import Task
from sartor.definitions import lookup
from sartor.limits import Limit
from sartor.metrics import Truth
from sartor.records import Interval, Outcome, Timing, Verdict
from sartor.stats import Comparison

COUNTED = frozenset({"size", "memory", "flops"})  # figures without scatter
EXACT = "exact"  # the method of a verdict that is a count and no estimate


@dataclass(frozen=True)
class Evidence:
    """What was measured of a candidate beside the original, in that order in every pair.

    `answers` are to the same rows, described by `truth`. `same`: the candidate *is* the original,
    so that what is relative to it is a fact and not an estimate; equal answers on a sample alone
    do not show that."""

    sizes: tuple[int, int]
    memories: tuple[int, int] | None = None
    flops: tuple[float, float] | None = None
    timing: Timing | None = None
    answers: tuple[np.ndarray, np.ndarray] | None = None
    truth: Truth | None = None
    same: bool = False

    def take(self, rows: np.ndarray | slice) -> Evidence:
        """What is known of these rows alone. Raises ValueError where there are no answers."""
        if self.answers is None or self.truth is None:
            raise ValueError("there are no answers to take rows of")
        before, after = self.answers
        return replace(
            self, answers=(before[rows], after[rows]), truth=self.truth.take(rows),
            same=self.original,
        )  # fmt: skip

    def first(self, rows: int) -> Evidence:
        """What was known after the first rows."""
        if self.answers is None or self.truth is None or rows >= len(self.answers[0]):
            return self
        return self.take(slice(rows))

    @property
    def original(self) -> bool:
        """Whether the candidate is the original: said so, or its answers are the same memory."""
        return self.same or (self.answers is not None and _one_array(*self.answers))


def _one_array(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (
        a.shape == b.shape and a.size > 0 and a.__array_interface__ == b.__array_interface__
    )


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def counted(metric: str, evidence: Evidence) -> tuple[float, float] | None:
    known = {"size": evidence.sizes, "memory": evidence.memories, "flops": evidence.flops}
    pair = known.get(metric)
    if pair is None:
        return None
    return (pair[0], pair[0]) if evidence.same else (pair[0], pair[1])


def fact(limit: Limit, met: bool, value: float, bound: float) -> Verdict:
    outcome: Outcome = "met" if met else "broken"
    p = 0.0 if met else 1.0
    return Verdict(limit.text, outcome, value, value, value, bound, p, EXACT, 0)


def unknown(limit: Limit, note: str, examples: int = 0, method: str = "") -> Verdict:
    nan, inf = math.nan, math.inf
    return Verdict(
        limit.text, "undecided", nan, -inf, inf, nan, 1.0, method, examples, None, note
    )  # fmt: skip


def broken(limit: Limit, note: str, examples: int) -> Verdict:
    return replace(unknown(limit, note, examples), outcome="broken")


def identical(limit: Limit, value: float, examples: int) -> Verdict:
    """The original itself under a limit relative to it, or on a metric that holds answers against
    the original's: arithmetic."""
    bound = limit.bound.resolve(value)
    met = holds_for_original(limit)
    if limit.bound.kind == "absolute":
        met = value >= bound if limit.higher else value <= bound
    return replace(fact(limit, met, value, bound), examples=examples, note="the original itself")


def own_value(metric: str) -> float | None:
    """What a metric that holds answers against the original's says of the original's own; None
    for all other metrics and for a function of the user's."""
    found = lookup(metric)
    if found is None or not found.relative:
        return None
    if found.bounds is None:
        return 0.0
    return found.bounds[1] if found.higher else found.bounds[0]


def free_for_original(limit: Limit, task: Task) -> bool:
    """Whether the verdict on the original itself needs no data: the limit is relative to it, or
    about what is counted, or about answers held against the original's."""
    relative = limit.bound.kind != "absolute"
    return relative or limit.metric in COUNTED or own_value(limit.metric) is not None


def verdict_of(
    limit: Limit, found: Comparison, figures: Interval, bound: float, alpha: float, unit: str
) -> Verdict:
    """`found` is oriented so that "above its border" means that the limit holds."""
    outcome: Outcome = "undecided"
    needs, note = None, ""
    if found.above <= alpha:
        outcome = "met"
    elif found.below <= alpha:
        outcome = "broken"
    else:
        total = stats.needed(found.n, found.z, found.above, alpha)
        if total is None:
            note = "the estimate misses the limit, more data would rather decide against it"
        elif math.isinf(total):
            note = f"the estimate lies on the limit: no number of {unit} would decide"
        else:
            needs = max(int(total) - found.n, 1)
    return Verdict(
        limit.text, outcome, figures.estimate, figures.low, figures.high, bound,
        found.above, found.method, found.n, needs, note,
    )  # fmt: skip


def holds_for_original(limit: Limit) -> bool:
    """Whether the original meets a limit relative to itself, whatever its figure is."""
    if limit.bound.kind == "offset":
        return limit.bound.value <= 0 if limit.higher else limit.bound.value >= 0
    return limit.bound.value <= 1 if limit.higher else limit.bound.value >= 1


def together(verdicts: Iterable[Verdict]) -> tuple[Outcome, float]:
    """All limits as one: met when each is (intersection-union: no correction is needed), with the
    largest p-value."""
    judged = list(verdicts)
    p = max((each.p_value for each in judged), default=0.0)
    outcomes = {each.outcome for each in judged}
    if "broken" in outcomes:
        return "broken", p
    return ("undecided", p) if "undecided" in outcomes else ("met", p)
