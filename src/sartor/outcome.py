"""How a run ends: its exit status and, where nothing was certified, what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sartor.certify import Certification, Row
from sartor.contracts import HUNG
from sartor.limits import PERFORMANCE, Limit
from sartor.records import Trial, Verdict
from sartor.verdicts import nearest, together


@dataclass(frozen=True)
class Answer:
    """How a run ends. `status` is the exit status: 0, 3 or 4. `binding` is the limit that stands
    in the way; `nearest` the same limit with the value that could be met."""

    status: int
    message: str
    binding: Verdict | None = None
    nearest: str | None = None
    needs: int | None = None


def outcome(found: Certification, limits: Sequence[Limit], trials: Iterable[Trial] = ()) -> Answer:
    """The exit status and why. 0: something, the original included, is certified; 4: else, where
    some finalist (or the original) is undecided with none of its limits broken; 3: else.

    `trials` serve to name the binding limit where no finalist was left to test."""
    if found.best is not None:
        value = found.best.value
        return Answer(0, f"certified: {value:.3g} x the original's objective")
    if found.original is not None and found.original.status == "certified":
        return Answer(0, "the original is kept: nothing better is shown to meet the limits")
    tested = [row for row in (*found.rows, found.original) if row and row.verdicts]
    open_ = [row for row in tested if together(row.verdicts)[0] == "undecided"]
    if open_:
        return _undecided(min(open_, key=lambda row: row.p_value), limits)
    unseen = [row for row in found.rows if not row.verdicts and not _breaks(row.finalist.trial)]
    if unseen:
        return _unmeasured(unseen)
    judged = [row.verdicts for row in tested if row is not found.original]
    tried = [each for each in trials if each.recipe]
    judged += [each.verdicts for each in tried if each.verdicts]
    late = sum(each.reason.startswith(HUNG) for each in tried)
    if late and not judged:  # nothing was learnt of what can be reached
        return Answer(
            4, f"undecided: no candidate was finished in the time there was ({late} were cut off); "
            "give a longer --budget"
        )  # fmt: skip
    if found.original is not None:
        judged.append(found.original.verdicts)
    return _infeasible(judged, limits)


def _breaks(trial: Trial) -> bool:
    return any(each.outcome == "broken" for each in trial.verdicts)


def _unmeasured(rows: Sequence[Row]) -> Answer:
    """Where finalists that break nothing on the search part were not seen on the holdout."""
    text = f"undecided: {len(rows)} that may meet the limits could not be tested on the holdout"
    reason = next((row.reason for row in rows if row.reason), "there was no time left")
    return Answer(4, f"{text} ({reason})")


def _undecided(row: Row, limits: Sequence[Limit]) -> Answer:
    doubtful = [each for each in row.verdicts if each.outcome == "undecided"]
    binding = max(doubtful, key=lambda each: each.p_value)
    counts = [each.needs for each in doubtful]
    needs = max((each for each in counts if each is not None), default=None)
    text = f"undecided: {binding.limit}"
    if needs is not None and None not in counts:
        text += f"; about {needs:,} more {_unit(binding, limits)} would decide it"
    elif binding.note:
        text += f" ({binding.note})"
    return Answer(4, text, binding, _nearest(binding, limits), needs)


def _infeasible(judged: Sequence[tuple[Verdict, ...]], limits: Sequence[Limit]) -> Answer:
    """The binding limit: of the candidate that comes nearest (fewest limits broken, the smallest
    miss) the one that it misses most, with the best value that any such candidate reaches."""
    lost = [verdicts for verdicts in judged if nearness(verdicts)[0]]
    if not lost:
        return Answer(3, "infeasible: no candidate got as far as to be judged")
    closest = min(lost, key=nearness)
    binding = max((v for v in closest if v.outcome == "broken"), key=_miss)
    reached = _nearest(binding, limits)
    text = f"infeasible: {binding.limit} is broken"
    if reached:
        text += f"; the nearest that was reached is {reached}"
    return Answer(3, text, binding, reached)


def nearness(verdicts: Iterable[Verdict]) -> tuple[int, float]:
    """How near a candidate comes to its limits, the nearest the least: how many are broken, and
    by how much the worst of them."""
    misses = [_miss(each) for each in verdicts if each.outcome == "broken"]
    return len(misses), max(misses, default=0.0)


def _miss(verdict: Verdict) -> float:
    """How far the estimate lies from the bound, as a share of the bound."""
    if not (math.isfinite(verdict.estimate) and math.isfinite(verdict.bound)):
        return math.inf
    return abs(verdict.estimate - verdict.bound) / max(abs(verdict.bound), 1e-12)


def _limit_of(verdict: Verdict, limits: Sequence[Limit]) -> Limit | None:
    return next((each for each in limits if each.text == verdict.limit), None)


def _nearest(verdict: Verdict, limits: Sequence[Limit]) -> str | None:
    limit = _limit_of(verdict, limits)
    return nearest(limit, verdict) if limit is not None else None


def _unit(verdict: Verdict, limits: Sequence[Limit]) -> str:
    limit = _limit_of(verdict, limits)
    metric = limit.metric if limit is not None else verdict.limit.split()[0].split(".")[0]
    return "runs" if metric in PERFORMANCE else "holdout examples"
