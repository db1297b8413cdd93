"""What is measured of a finalist at the end: beside the original, on the holdout, with the noise
and the load that there were, and how long all that takes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from sartor import machine
from sartor.building import APPLY_SECONDS
from sartor.clock import Clock
from sartor.contracts import Model
from sartor.data import Part
from sartor.evaluate import (
    BLOCKS,
    MOST_CALLS,
    TURN_SECONDS,
    answers,
    throughputs,
)
from sartor.figures import truth_of
from sartor.finalists import Finalist
from sartor.judge_timing import conditions_of, further_starts, runs_wanted
from sartor.limits import TIMED
from sartor.prepare import Prepared
from sartor.records import Timing, Trial
from sartor.spec import Spec
from sartor.terminal import Progress
from sartor.trials import Laboratory
from sartor.verdicts import Evidence, improvement
from sartor.workers import THREADS

EARLY_BLOCKS = 4  # starts of every process for an early answer
EARLY_SECONDS = 1.6  # that its rounds may take: what clearly gains shows it soon
ROUNDS = 60
LEAST_ROUNDS = 12
START_SECONDS = 1.5  # about what a start of all three takes
AT_ONCE = 256  # rows of the holdout that are answered at a time
PORTION = 2048  # rows for which a call has its time
LONG = 120.0  # seconds of a budget from which on throughput is seen at several batch sizes


class Measuring:
    """Everything is measured once and remembered; answers to the holdout are kept nowhere else."""

    def __init__(
        self, spec: Spec, ready: Prepared, lab: Laboratory, progress: Progress, clock: Clock
    ) -> None:
        self.spec, self.ready, self.lab = spec, ready, lab
        self.progress, self.clock = progress, clock
        self.own = str(ready.request["model"])  # the original's digest
        self.load_before = machine.load()
        self.load_timed: float | None = None
        self.wanted = {ready.objective.metric, *(each.metric for each in ready.limits)}
        lab.race.meter(self.wanted, spec.watts)
        self.sealed_answers: dict[str, np.ndarray] = {}
        self.bare: dict[tuple[str, str], Evidence] = {}  # without answers, by model and purpose

    # -- a finalist ---------------------------------------------------------------------------

    def final(self, finalist: Finalist, part: Part | None) -> Evidence:
        """The finalist beside the original, all measured anew."""
        purpose = f"certify {self._answers_before}"
        return self._measured(finalist, part, purpose, self._rounds_seconds(finalist), BLOCKS)

    @property
    def _answers_before(self) -> int:
        """A continued run measures anew: its certificate rests on no latency of an earlier one."""
        return len(self.lab.journal.events("answer"))

    def early(self, finalist: Finalist, part: Part | None) -> Evidence:
        """As `final`, from fewer starts: an early answer is clearly faster or waits."""
        seconds = min(EARLY_SECONDS, self.timing_seconds)
        purpose = f"certify early {self._answers_before}"
        return self._measured(finalist, part, purpose, seconds, EARLY_BLOCKS)

    def _measured(
        self, finalist: Finalist, part: Part | None, purpose: str, seconds: float, blocks: int
    ) -> Evidence:
        title = self.lab.title(finalist.trial)
        model = self.lab.model_of(finalist.trial)
        evidence = self._bare(finalist, model, purpose, seconds, blocks)
        if part is None:
            return evidence
        self.progress.now(f"certifying {title}: {len(part):,} examples of the holdout")
        before = self._sealed(self.ready.original, self.own, part)
        after = self._sealed(model, finalist.digest, part)
        return dataclasses.replace(evidence, answers=(before, after), truth=truth_of(part, before))

    def _bare(
        self, finalist: Finalist, model: Model, purpose: str, seconds: float, blocks: int
    ) -> Evidence:
        """What needs no holdout, measured once for each purpose."""
        known = (finalist.digest, purpose)
        if known not in self.bare:
            self.progress.now(f"certifying {self.lab.title(finalist.trial)}: timing")
            timing = self.lab.timing(
                model, purpose, ROUNDS, seconds, LEAST_ROUNDS, blocks,
                runs=runs_wanted(self.ready.limits),
                further=self._further if blocks == BLOCKS else None,
            )  # fmt: skip
            self.load_timed = machine.load()
            evidence = dataclasses.replace(
                self.lab.evidence(model), timing=timing, same=finalist.digest == self.own
            )
            if "memory" in self.wanted:
                evidence = dataclasses.replace(evidence, memories=self.lab.memories(model))
            self.bare[known] = evidence
        return self.bare[known]

    def _rounds_seconds(self, finalist: Finalist) -> float:
        """For the rounds of a race, more where a limit on a tail takes more calls and the clock
        leaves time for them."""
        call = finalist.trial.figures.get("original.latency", 0.0)
        tail = 3 * 1.5 * call * runs_wanted(self.ready.limits)
        return max(self.timing_seconds, min(tail, self.clock.left() / 4))

    def _further(self, timing: Timing) -> int:
        """Starts beyond the first ones, so far as the clock leaves time for them."""
        each = max(self.timing_seconds / BLOCKS + START_SECONDS, self.lab.race.block_seconds)
        most = int(min(max(self.clock.left(), 0.0) / 2 / each, BLOCKS))
        asked = [*self.ready.limits, improvement(self.ready.objective, self.ready.task)]
        timed = [limit for limit in asked if limit.metric in TIMED]
        return further_starts(timed, timing, most, self.spec.seed)

    def _sealed(self, model: Model, digest: str, part: Part) -> np.ndarray:
        """Answers to the first rows of the holdout, each computed once in this process. They are
        kept nowhere else."""
        known = self.sealed_answers.get(digest)
        have = 0 if known is None else len(known)
        if have < len(part):
            # Rows of one length are answered together, so that the rows of two looks at once take
            # less time. `part` is the beginning of the holdout; no look sees more than that.
            most = min(-(-len(part) // AT_ONCE) * AT_ONCE, self.ready.data.holdout.rows)
            for start in range(have, most, PORTION):
                more = answers(
                    self.lab.pool, model, dataclasses.replace(part, rows=most),
                    np.arange(start, min(start + PORTION, most)),
                    self.ready.task, self.ready.target, timeout=APPLY_SECONDS,
                )  # fmt: skip
                known = more if known is None else np.concatenate([known, more])
                self.sealed_answers[digest] = known
        return self.sealed_answers[digest][: len(part)]

    # -- how long it takes --------------------------------------------------------------------

    def test_seconds(self, finalists: int) -> float:
        """About how long certifying that many takes, from what was measured so far. How much of
        the holdout an early answer took does not count: the search must not learn it."""
        rows, pace = self.ready.data.holdout.rows, self.lab.pace
        own = rows / pace.get(self.own, math.inf)
        others = [each for name, each in pace.items() if name != self.own]
        slowest = min(others or pace.values(), default=math.inf)
        return own + finalists * (rows / slowest + self.race_seconds + 1.0)

    @property
    def race_seconds(self) -> float:
        """About how long the rounds of one finalist take."""
        calls = [each.figures.get("original.latency", math.inf) for each in self.lab.seen.values()]
        call = min(calls, default=math.inf)
        turn = max(min(TURN_SECONDS, MOST_CALLS * call), call) + 2 * call
        starts = BLOCKS * START_SECONDS
        least = 2 * 3 * turn * BLOCKS if math.isfinite(turn) else 0.0  # two rounds for each start
        return max(min(self.timing_seconds, 3 * ROUNDS * turn), least) + starts

    @property
    def timing_seconds(self) -> float:
        if self.spec.trials is not None:
            return 8.0
        return min(max(self.spec.budget / 15, 3.0), 20.0)

    @property
    def batch_seconds(self) -> float:
        """Kept back to see original and answer at several batch sizes: nothing in a short run."""
        return 12.0 if self.spec.trials is None and self.spec.budget >= LONG else 0.0

    # -- beside it ----------------------------------------------------------------------------

    def throughputs(self, shown: Trial | None) -> dict[str, dict[str, float]]:
        """Rows a second by batch size, of the original and of what was chosen."""
        if shown is None or not self.batch_seconds or self.clock.left() < self.batch_seconds:
            return {}
        models = {"original": self.ready.original, "chosen": self.lab.model_of(shown)}
        if not shown.recipe:
            del models["chosen"]
        self.progress.now("measuring throughput at several batch sizes")
        part, target = self.ready.data.search, self.ready.target
        return {name: throughputs(model, part, target) for name, model in models.items()}

    def conditions(self, evidence: Evidence | None) -> dict[str, Any]:
        """What was measured of the noise and the load while `evidence` was taken, and the load
        average at the beginning of the run, then and now."""
        timing = evidence.timing if evidence is not None else None
        loads = [self.load_before, self.load_timed, machine.load()]
        return {
            "load_average": loads,
            "threads": self.ready.target.threads,
            "batch": self.ready.target.batch,
            "settings": THREADS,
            **(conditions_of(timing) if timing is not None else {}),
        }
