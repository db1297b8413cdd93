"""Certification: the one place that opens the holdout.

The finalists and their order are frozen on the search split, the likeliest to pass first (Pareto
Testing, Laufer-Goldshtein et al., ICLR 2023). All limits of a finalist and "better than the
original" are one hypothesis (intersection-union). The finalists share the level that the ledger
grants, the surest have most of it, and each that is certified passes its share on to the others:
Holm's procedure with weights (Holm 1979; as a graph: Bretz et al. 2009). That keeps the chance of
certifying any wrong one at that level, however many there are and however they hang together.
The certified one with the best objective is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sartor import judge_sequence
from sartor.contracts import Failed, Task, WrongRequest
from sartor.data import Part, Sealed
from sartor.finalists import Finalist, grade
from sartor.ledger import Ledger, Opening, Stage
from sartor.limits import PERFORMANCE, Limit, Objective, parse
from sartor.metrics import Truth, check_labels
from sartor.records import Verdict
from sartor.verdicts import (
    EXACT,
    Evidence,
    better,
    free_for_original,
    improvement,
    judge_all,
    objective_value,
    together,
)

Status = Literal["certified", "not certified", "untested"]

SURELY_TESTED = 2  # finalists, whatever time is left
DECAY = 0.7  # of the share of the level, from a finalist to the next
RESERVE = 0.1  # of the level, for the original where its own limits need the holdout
LOOKS = (  # at so many examples; another look costs a call
    *range(512, 1536, 128), *range(1536, 4096, 256), 4096, 5120, 6144, 7168, 8192, 10240, 12288,
    16384, 24576, 32768, 49152, 65536,
)  # fmt: skip
BET = {"early": 0.8, "final": 0.05}  # of the level, on deciding before all examples were seen


@dataclass(frozen=True)
class Row:
    """What certification says of one finalist. `verdicts`: of every limit, and last that of the
    objective; `value`: the objective as a ratio to the original's; `alpha`: the level it was tested
    at, a share of that of all; `reason`: why it could not be measured, where it could not; `bets`:
    how far its sequences came, where it has any, and `bets_level` what they are held against."""

    finalist: Finalist
    status: Status
    verdicts: tuple[Verdict, ...] = ()
    value: float = math.nan
    p_value: float = 1.0
    alpha: float = 0.0
    reason: str = ""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    bets: judge_sequence.Bets | None = field(default=None, compare=False, repr=False)
    bets_level: float = 0.0


@dataclass(frozen=True)
class Certification:
    """Everything that was found. `best` is the certified row with the best objective, `original`
    the original's own row, judged when nothing else is certified; `alpha` the level of the chain
    (0 where the holdout was not needed)."""

    rows: tuple[Row, ...]
    best: Row | None
    original: Row | None
    alpha: float
    opened: bool


Measure = Callable[[Finalist, Part | None], Evidence]
"""Measures a finalist anew beside the original: on the holdout's part, or where that is None all
that needs no holdout (size, memory, latency on other rows)."""


def guards(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """What no answer may be shown to break, asked for or not: slower or bigger than the original.
    A limit of the user's on the same metric takes the guard's place."""
    named = {"latency" if each.metric == "throughput" else each.metric for each in limits}
    return tuple(
        parse(f"{metric} <= baseline") for metric in ("size", "latency") if metric not in named
    )


def check_holdout(sealed: Sealed, task: Task) -> None:
    """Raises WrongRequest where the holdout's labels cannot certify anything (outside the classes,
    all the same): told before hours are spent. Nothing else of it leaves this function."""
    label = sealed.open().label
    if task.labelled and label is not None:
        check_labels(task, np.asarray(label), "the holdout")


@dataclass(frozen=True)
class Certifier:
    """All that stays the same between the early answer and the final one. `run` names the run in
    the ledger: the same again after a kill. `bets`: sequences that go on, begun on other data, and
    `cap`: the level at which they did; then they alone decide. `in_time`: whether there is time for
    one more finalist; `hurried`: whether there is too little to see all examples of one, so that as
    much is bet on the first of them as for an early answer. `rival`: whether the original could be
    the answer too, so that another must be better; where the target cannot run it, it is not."""

    limits: tuple[Limit, ...]
    objective: Objective
    task: Task
    measure: Measure
    sealed: Sealed
    ledger: Ledger
    run: str
    original: Finalist | None = None
    seed: int = 0
    bets: judge_sequence.Bets = field(default_factory=dict)
    cap: float = 1.0
    in_time: Callable[[], bool] = lambda: True
    hurried: bool = False
    rival: bool = True

    @property
    def needs_data(self) -> bool:
        """Whether anything asked for can be seen on examples only."""
        return self.objective.metric not in PERFORMANCE or any(
            each.metric not in PERFORMANCE for each in self.limits
        )

    def early(self, finalist: Finalist) -> Certification:
        """Tests one hypothesis at the early share of the error rate, or leaves it untested where
        the run has had its early answer. What needs no holdout is measured first: the holdout is
        opened only where all of that is shown. Nothing of what is found may reach the search."""
        try:
            if self.needs_data and not self._quick(finalist):
                row = Row(finalist, "not certified", value=_objective(finalist))
                return Certification((row,), None, None, 0.0, False)
            return self._certify((finalist,), "early", None, None)
        except WrongRequest:  # used up, by this run or by others meanwhile
            row = Row(finalist, "untested", value=_objective(finalist))
            return Certification((row,), None, None, 0.0, False)

    def _quick(self, finalist: Finalist) -> bool:
        """Whether all that needs no holdout is shown at the level of an early answer."""
        asked = tuple(each for each in self.limits if not each.quality)
        try:
            evidence = self.measure(finalist, None)
        except (Failed, WrongRequest):
            return False
        level = self.ledger.early_level(self.run) * BET["early"]
        verdicts = list(judge_all(asked, evidence, self.task, level, self.seed))
        if self.rival and self.objective.metric in PERFORMANCE:
            verdicts.append(better(self.objective, evidence, self.task, level, self.seed))
        return all(each.outcome == "met" for each in verdicts)

    def final(self, finalists: Sequence[Finalist], early: Row | None = None) -> Certification:
        """Tests the finalists, and the original where none of them is certified.
        `early`: the row of an early answer that was certified in this run; it stays so."""
        if early is not None and early.status != "certified":
            early = None
        return self._certify(tuple(finalists), "final", self.original, early)

    def _certify(
        self,
        finalists: tuple[Finalist, ...],
        stage: Stage,
        original: Finalist | None,
        early: Row | None,
    ) -> Certification:
        known = early.finalist.digest if early else None
        lost = {each.digest for each in finalists if _lost(each)}
        chain = [each for each in finalists if each.digest not in lost and each.digest != known]
        # The original's relative limits are arithmetic; only absolute ones need a test, for which
        # a part of the level is set aside.
        test_original = original is not None and early is None and not self._free()
        opening, part, level = self._open(stage, chain, test_original)
        share = RESERVE if test_original and chain else 0.0
        bet = BET["early" if self.hurried else stage]
        rows = list(self._walk(chain, part, level * (1 - share), bet))
        rows += [
            Row(each, "not certified", each.trial.verdicts, _objective(each))
            for each in finalists
            if each.digest in lost
        ]
        certified = [row for row in (early, *rows) if row and row.status == "certified"]
        own = None
        if not certified and original is not None:
            own = self._own(original, part, level * share if chain else level)
        if opening is not None:
            self.ledger.close(opening, bool(certified))
        # The first of those that are as good: it stands earlier, since it was surer.
        best = min(certified, key=lambda row: grade(row.value), default=None)
        kept = (early, *rows) if early else tuple(rows)
        return Certification(kept, best, own, level, opening is not None)

    def _open(
        self, stage: Stage, chain: list[Finalist], test_original: bool
    ) -> tuple[Opening | None, Part | None, float]:
        if not self.needs_data or not (chain or test_original):
            return None, None, self.ledger.total
        frozen = [*(each.digest for each in chain), *(each.text for each in self.limits)]
        opening = self.ledger.open(self.run, stage, [*frozen, self.objective.figure])
        return opening, self.sealed.open(), opening.alpha

    def _walk(
        self, chain: list[Finalist], part: Part | None, level: float, bet: float
    ) -> Iterable[Row]:
        """Holm's procedure with weights that fall from the surest on. What need not be measured
        to know the answer counts as not shown, which costs no level."""
        rows = [Row(each, "untested", value=_objective(each)) for each in chain]
        weights = [DECAY**at for at in range(len(chain))]
        # Twice: what was passed over at first may have a share to leave to one that waits for it.
        for at, finalist in [*enumerate(chain)] * 2:
            if at >= SURELY_TESTED and not self.in_time():
                break
            if rows[at].status == "untested" and _hopeful(rows, at, level):
                rows[at] = self._test(finalist, part, _share(rows, weights, at, level), bet)
                self._pass_on(rows, weights, part, level, bet)
        return [self._named(row, level) for row in rows]

    def _named(self, row: Row, level: float) -> Row:
        """With the limits that it breaks at the level of all finalists: saying what is broken
        takes nothing from what certificates may err."""
        if row.status != "not certified" or row.evidence is None or row.alpha >= level:
            return row
        whole = self._row(row.finalist, row.evidence, level).verdicts
        broken = {each.limit: each for each in whole if each.outcome == "broken"}
        verdicts = [broken.pop(each.limit, each) for each in row.verdicts]
        return replace(row, verdicts=(*verdicts, *broken.values()))

    def _pass_on(
        self, rows: list[Row], weights: list[float], part: Part | None, level: float, bet: float
    ) -> None:
        """What was certified leaves its share to the others, with which those measured are held
        against their evidence again, until nothing changes."""
        at = 0
        while at < len(rows):
            again = None
            if rows[at].status == "not certified" and rows[at].evidence is not None:
                share = _share(rows, weights, at, level)
                again = self._decided(rows[at], part, share, bet)
            if again is not None:
                rows[at] = again
            at = 0 if again is not None and again.status == "certified" else at + 1

    def _decided(self, row: Row, part: Part | None, share: float, bet: float) -> Row | None:
        """The row of a measured finalist at its share now, where that may certify it. Its p-value
        is min(that of the bets / bet, that of the fixed test / (1 - bet)): Bonferroni over both."""
        if row.evidence is None or self.bets:
            return None
        if row.bets is None or row.bets_level <= 0:  # there was nothing to bet on
            worth = row.alpha < share and row.p_value <= share
            return self._row(row.finalist, row.evidence, share) if worth else None
        if row.p_value <= share * (1 - bet):
            fixed = self._row(row.finalist, row.evidence, share * (1 - bet))
            if fixed.status == "certified":
                return replace(fixed, bets=row.bets, bets_level=share * bet)
        if part is not None and self._shown(row.bets, part, share * bet):
            found = self._row(row.finalist, row.evidence, share * bet, row.bets)
            return found if found.status == "certified" else None
        return None

    def _test(self, finalist: Finalist, part: Part | None, level: float, bet: float) -> Row:
        """Bets first, look by look; what they leave open is tested on all rows at what is left of
        the level. Sequences that go on from other data stay alone: theirs is one test."""
        on = bool(self.bets)
        try:
            bets, row = self._looked(finalist, part, level, 1.0 if on else bet)
            if row is not None:
                return row
            evidence = self.measure(finalist, part)
        except (Failed, WrongRequest) as failure:
            return Row(finalist, "not certified", alpha=level, reason=str(failure))
        if bets is None:
            return self._row(finalist, evidence, level)
        if on:
            return self._row(finalist, evidence, min(level, self.cap), bets)
        row = self._row(finalist, evidence, level * (1 - bet))
        return replace(row, bets=bets, bets_level=level * bet)

    def _looked(
        self, finalist: Finalist, part: Part | None, level: float, bet: float
    ) -> tuple[judge_sequence.Bets | None, Row | None]:
        """The sequences, None where there is nothing to bet on; and the row of a finalist that
        they have certified."""
        limits = [each for each in self._asked() if each.quality]
        if part is None or not limits:
            return None, None
        bets, start = self.bets, 0
        for rows in (*(each for each in LOOKS if each < len(part)), len(part)):
            evidence = self.measure(finalist, part.first(rows))
            more = judge_sequence.advance(bets, limits, evidence, self.task, start)
            if more is None:
                return (bets if start else None), None
            bets, start = more, rows
            if self._shown(bets, part, min(level * bet, self.cap)):
                row = self._row(finalist, evidence, min(level * bet, self.cap), bets)
                return bets, row if row.status == "certified" else None
        return bets, None

    def _shown(self, bets: judge_sequence.Bets, part: Part, level: float) -> bool:
        """Whether the sequences show every limit, in every crossing that occurs, at the level."""
        if any(each.p_value > level for each in bets.values()):
            return False
        truth = Truth(segments=part.segments)
        limits = [each for each in self._asked() if each.quality]
        return all(key in bets for each in limits for key in judge_sequence.keys(each, truth))

    def _asked(self) -> tuple[Limit, ...]:
        """The limits, and last that the objective be better than the original's."""
        return (*self.limits, *((improvement(self.objective, self.task),) * self.rival))

    def _row(
        self,
        finalist: Finalist,
        evidence: Evidence,
        level: float,
        bets: judge_sequence.Bets | None = None,
    ) -> Row:
        """The verdicts on what was measured; those on quality are as the `bets` have them, where
        they are given."""
        verdicts = list(judge_all(self.limits, evidence, self.task, level, self.seed))
        if self.rival:
            verdicts.append(better(self.objective, evidence, self.task, level, self.seed))
        if bets is not None:
            verdicts = [
                judge_sequence.seen(bets, limit, verdict, evidence, self.task, level)
                if limit.quality and verdict.outcome != "broken"
                else verdict
                for limit, verdict in zip(self._asked(), verdicts, strict=True)
            ]
        outcome, p = together(verdicts)
        least = guards(self.limits) if self.rival else ()
        worse = judge_all(least, evidence, self.task, level, self.seed)
        verdicts += [each for each in worse if each.outcome == "broken"]
        passed = outcome == "met" and not any(each.outcome == "broken" for each in worse)
        return Row(
            finalist,
            "certified" if passed else "not certified",
            tuple(verdicts),
            objective_value(self.objective, evidence, self.task),
            p,
            level,
            evidence=evidence,
            bets=bets,
            bets_level=level,
        )

    def _own(self, original: Finalist, part: Part | None, level: float) -> Row:
        try:
            evidence = replace(self.measure(original, part), same=True)
        except (Failed, WrongRequest) as failure:
            return Row(original, "not certified", alpha=level, reason=str(failure))
        verdicts = judge_all(self.limits, evidence, self.task, level, self.seed)
        outcome, p = together(verdicts)
        status: Status = "certified" if outcome == "met" else "not certified"
        return Row(original, status, verdicts, 1.0, p, level, evidence=evidence)

    def _free(self) -> bool:
        """Whether the original's own verdicts need no test on the holdout."""
        return all(free_for_original(each, self.task) for each in self.limits)


def _lost(finalist: Finalist) -> bool:
    """Whether a count (its size, say) breaks a limit already: no data can change that."""
    return any(
        each.method == EXACT and each.outcome == "broken" for each in finalist.trial.verdicts
    )


def _share(rows: Sequence[Row], weights: Sequence[float], at: int, level: float) -> float:
    """Of the level, what the row may be tested at: its weight among those not certified."""
    left = [w for row, w in zip(rows, weights, strict=True) if row.status != "certified"]
    return level * weights[at] / sum(left)


def _hopeful(rows: Sequence[Row], at: int, level: float) -> bool:
    """Whether measuring the finalist could change the answer: it is better than all that are
    certified (at the worse of what the search and the test saw of them: the search flatters what
    it picks), or one that is was measured and might pass with a larger share."""
    done = [row for row in rows if row.status == "certified"]
    certified = [max(row.value, _objective(row.finalist)) for row in done]
    if not certified:
        return True
    waiting = [row for row in rows if row.status == "not certified" and row.p_value <= level]
    open_ = [rows[at], *waiting]
    return min(grade(_objective(row.finalist)) for row in open_) < min(map(grade, certified))


def _objective(finalist: Finalist) -> float:
    return finalist.trial.figures.get("objective", math.nan)
