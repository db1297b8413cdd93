"""Carries out one recipe: apply, screen by what is cheap, measure, and say what came of it.

The order is that of cost: a refusal is free, the size is known after applying, a few interleaved
rounds give the latency, quality comes last on a growing sample of the search split and stops as
soon as the evidence is against the candidate (`racing`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from sartor.bench import LocalBench
from sartor.building import Builder, Stopped
from sartor.certify import guards
from sartor.contracts import (
    Failed,
    Model,
    Recipe,
    Target,
    Task,
    WrongRequest,
    describe,
    to_json,
    trains,
)
from sartor.data import Part
from sartor.evaluate import ALLOWANCE, Race, answers, digest, memory_pair
from sartor.figures import figures_of, truth_of
from sartor.finalists import SURE
from sartor.limits import PERFORMANCE, Limit, Objective
from sartor.racing import SLOWER, looks, lost, outdone
from sartor.records import Journal, Timing, Trial, Verdict, plain
from sartor.registry import recipe as known_recipe
from sartor.registry import runtime
from sartor.report.text import figure, interval
from sartor.store import Store, step_to_json
from sartor.timings import journaled, paces, timing_from_json, timing_to_json
from sartor.verdicts import EXACT, Evidence, judge_all, objective_value, together
from sartor.workers import Pool

SCREEN_ROUNDS, SCREEN_SECONDS = 10, 4.0
LOOK_ROUNDS, LOOK_SECONDS = 5, 2.0
ALIKE_ROWS = 256  # on which it is seen whether batching changes answers
LONG = 10.0  # seconds of training before which size and speed are looked at
LIKELY = 0.05  # doubt below which a trial rather keeps its limits than not
WORTH = 2.0  # times the objective of such a trial, above which nothing is trained


def count_flops(model: Model, part: Part) -> float:
    """In a child: floating-point operations of one example, two for each multiply-add; NaN where
    some part's cannot be counted."""
    counted = [each.macs for each in runtime(model.kind).parts(model, part.example(0))]
    known = [each for each in counted if each is not None]
    return 2.0 * sum(known) if len(known) == len(counted) else math.nan


class Laboratory(Builder):
    """Everything that stays the same from trial to trial, and what was measured so far.

    `replay` is a journal whose latencies stand in for measuring; `ceiling` the bytes of address
    space that a child process may take."""

    def __init__(
        self,
        original: Model,
        bench: LocalBench,
        search: Part,
        limits: tuple[Limit, ...],
        objective: Objective,
        store: Store,
        journal: Journal,
        replay: Journal | None = None,
        ceiling: int | None = None,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(original, bench, store, pool or Pool(ceiling))
        self.search, self.limits, self.objective = search, limits, objective
        self.journal, self.seed = journal, bench.seed
        self.target: Target = bench.target
        self.task: Task = bench.task
        self.ceiling = ceiling
        self.race = Race(original, self.target, search, self.seed, memory=ceiling)
        self.order = np.random.default_rng(self.seed).permutation(len(search))
        self.known: dict[str, np.ndarray] = {}  # model digest -> answers in `order`
        self.seen: dict[str, Trial] = {}  # model digest -> the trial that measured it
        self.timings, self.replayed = journaled(journal), journaled(replay)
        self.pace = paces(journal)  # model digest -> examples a second, while not timed
        self.enough: Callable[[Trial], bool] = lambda _: False  # whether to see no more examples
        # (kind, suffix) of the files that the target takes; none named: any.
        self.takes: tuple[tuple[str, str], ...] = ()
        # What workers did ahead (see `ahead`), and what keeps them still while something is timed.
        self.foreseen: dict[tuple[str, int, int], tuple[np.ndarray, float]] = {}
        self.quiet: Callable[[], AbstractContextManager[None]] = nullcontext

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.race.close()
        self.pool.close()

    @property
    def rival(self) -> bool:
        """Whether the original could be the answer, so that another must be better."""
        return self.taken(self.original)

    @property
    def formats(self) -> tuple[str, ...]:
        """The kinds that the target takes; none: any."""
        return tuple(dict.fromkeys(kind for kind, _ in self.takes))

    def taken(self, model: Model) -> bool:
        """Whether it is a file that the target takes."""
        return not self.takes or any(
            model.kind == kind and suffix in ("", getattr(model.payload, "suffix", ""))
            for kind, suffix in self.takes
        )

    def recipe_of(self, trial: Trial) -> Recipe:
        return known_recipe(self.original.kind, trial.recipe)

    def model_of(self, trial: Trial) -> Model:
        """What the trial made: as it was kept, where it was, else made once more."""
        key = self.store.kept().get(trial.model)
        kept = self.store.get(key) if key else None
        return kept or self.build(self.recipe_of(trial))

    def has_built(self, trial: Trial) -> bool:
        """Whether this session made, or found in the store, what the trial is about."""
        return self.recipe_of(trial) in self.keys

    def keep(self, trials: Iterable[Trial]) -> None:
        """Has the store keep what these made, whatever it takes: they may be the answer."""
        before, kept = self.store.kept(), {}
        for each in trials:
            key = self.keys.get(self.recipe_of(each)) or before.get(each.model)
            if key:
                kept[each.model] = key
        if kept != before:
            self.store.keep(kept)

    def title(self, trial: Trial) -> str:
        return describe(self.recipe_of(trial))

    # -- measuring ----------------------------------------------------------------------------

    def timing(
        self,
        model: Model,
        purpose: str,
        rounds: int,
        seconds: float,
        least: int = 5,
        blocks: int = 1,
        *,
        runs: int = 0,
        further: Callable[[Timing], int] | None = None,
    ) -> Timing:
        """Interleaved rounds with the original (see `evaluate.Race.time`); out of another journal
        where they are replayed. Either way they stand in this run's own."""
        key = (digest(model), purpose)
        if key not in self.timings:
            known = self.replayed.get(key)
            if known is not None:
                timing = known
            else:
                with self.quiet():
                    timing = self.race.time(
                        model, rounds, seconds, least, blocks,
                        runs=runs, further=further, patience=self.patience(),
                    )  # fmt: skip
            told = timing_to_json(timing)  # a resumed run must see the very same figures
            self.timings[key] = timing_from_json(told)
            self.journal.add(
                "timing", model=key[0], purpose=purpose, replayed=known is not None, **told
            )
        return self.timings[key]

    def known_timing(self, model: Model) -> Timing | None:
        return self.timings.get((digest(model), "screen"))

    def answered(self, model: Model, rows: int) -> np.ndarray:
        """The model's answers to the first `rows` of the search split in its seeded order."""
        key = digest(model)
        have = self.known.get(key)
        start = 0 if have is None else len(have)
        if start < rows:
            chunk = (key, start, rows)
            done = chunk in self.foreseen
            more, took = self.foreseen.pop(chunk) if done else self._answer(model, start, rows)
            if rows - start >= 64:
                self.pace[key] = (rows - start) / took
            have = more if have is None else np.concatenate([have, more])
            if key != digest(self.original):
                self.known = {k: v for k, v in self.known.items() if k == digest(self.original)}
            self.known[key] = have
        return self.known[key][:rows]

    def _answer(self, model: Model, start: int, end: int) -> tuple[np.ndarray, float]:
        """The answers to these rows of the order, and the seconds that they took."""
        began = time.monotonic()
        found = answers(
            self.pool, model, self.search, self.order[start:end], self.task, self.target,
            timeout=self.patience(), sample=self.order[:ALIKE_ROWS],
        )  # fmt: skip
        return found, time.monotonic() - began

    def evidence(self, model: Model) -> Evidence:
        """What is known for nothing once the model is there."""
        sizes = (size(self.original), size(model))
        flops = None
        if self.objective.metric == "flops" or any(each.metric == "flops" for each in self.limits):
            flops = (self._flops(self.original), self._flops(model))
        return Evidence(sizes, flops=flops, same=digest(model) == digest(self.original))

    def _flops(self, model: Model) -> float:
        return self.pool.call(count_flops, model, self.search, timeout=self.patience())

    def memories(self, model: Model) -> tuple[int, int]:
        """Peak bytes of original and model: the original's best run and the model's worst."""
        timeout = max(self.patience(), ALLOWANCE)
        return memory_pair(self.original, model, self.target, self.search, timeout)

    def looked_at(self, model: Model, rows: int) -> dict[str, float]:
        """Figures of a model on the way, from a few rounds and the first rows of the search."""
        evidence = self.evidence(model)
        pair = (self.answered(self.original, rows), self.answered(model, rows))
        evidence = dataclasses.replace(
            evidence,
            timing=self.known_timing(model)
            or self.timing(model, "look", LOOK_ROUNDS, LOOK_SECONDS),
            answers=pair,
            truth=truth_of(self.search, pair[0], self.order[:rows]),
        )
        return figures_of(evidence, self.task, self.limits)

    # -- one trial ----------------------------------------------------------------------------

    def try_recipe(self, number: int, recipe: Recipe) -> Trial:
        """The recipe's trial, whatever happens: done, dropped, refused or failed with a reason."""
        began = time.monotonic()
        entries = tuple(to_json(each) for each in recipe)
        trial = Trial(number=number, recipe=entries, state="failed")
        try:
            vain = self._in_vain(trial, recipe)
            if vain is not None:
                return dataclasses.replace(vain, seconds=time.monotonic() - began)
            model = self.build(recipe)
            if recipe and not self.taken(model):
                said = f"{model.kind} ({getattr(model.payload, 'suffix', '')})"
                wanted = ", ".join(suffix or kind for kind, suffix in self.takes)
                raise Stopped("refused", recipe[-1], f"is {said}, and the target takes {wanted}")
            steps = tuple(step_to_json(step) for step in model.lineage)
            trial = dataclasses.replace(trial, model=digest(model), steps=steps)
            twin = self.seen.get(trial.model)
            trial = _same_as(twin, trial) if twin else self._measure(trial, model)
        except Stopped as end:
            trial = dataclasses.replace(
                trial, state=end.state, reason=end.reason, culprit=end.culprit
            )
        except (Failed, WrongRequest) as failure:  # a candidate that takes other inputs, say
            trial = dataclasses.replace(trial, state="failed", reason=str(failure))
        return dataclasses.replace(trial, seconds=time.monotonic() - began)

    def _in_vain(self, trial: Trial, recipe: Recipe) -> Trial | None:
        """A trial that is dropped before its long training, which changes neither size nor speed:
        without it the recipe makes a model that is too big or too slow, or gains far less than what
        is there. What is thinned after a training is thinned by its values."""
        last = max((at for at, each in enumerate(recipe) if each.stage == "structure"), default=0)
        sketch = (*recipe[:last], *(each for each in recipe[last:] if not each.values_only))
        if sketch == recipe or any(map(trains, sketch)):
            return None
        seconds = self.slowness * self.bench.training.takes(self._efforts(recipe))
        if not LONG <= seconds <= max(self.patience(), self.longest()):
            return None  # too short to matter, or refused for want of time
        found, _ = self._performance(trial, self.build(sketch))
        better = self._far_better(found)
        if found.state != "dropped" and better is None:
            return None
        reason = found.reason
        if not reason and better:
            value, other = (each.figures["objective"] for each in (found, better))
            reason = (
                f"not worth its training: {self.objective.metric} {value:.2f} x the original's, "
                f"and trial {better.number} has {other:.2f} x"
            )
        return dataclasses.replace(
            found, state="dropped", reason=f"{reason} (seen before it was trained)"
        )

    def _far_better(self, trial: Trial) -> Trial | None:
        """What rather keeps all limits and gains far more, where that does not hang on answers."""
        if self.objective.metric not in PERFORMANCE:
            return None
        kept = [t for t in self.seen.values() if t.state == "done" and t.p_value <= LIKELY]
        best = min(kept, key=lambda each: each.figures["objective"], default=None)
        if best is None or trial.figures["objective"] <= WORTH * best.figures["objective"]:
            return None
        return best

    def _efforts(self, recipe: Recipe) -> float:
        """Of the trainings that change values only, from the first step on that is not made yet."""
        model = self.original
        for at, technique in enumerate(recipe):
            known = self.store.get(self.key(model, technique))
            if known is None:
                return sum(getattr(each, "effort", 0.0) for each in recipe[at:] if each.values_only)
            model = known
        return 0.0

    def _measure(self, trial: Trial, model: Model) -> Trial:
        trial, evidence = self._performance(trial, model)
        return trial if trial.state == "dropped" else self._quality(trial, model, evidence)

    def _performance(self, trial: Trial, model: Model) -> tuple[Trial, Evidence]:
        """Size, then latency and memory; dropped where a limit is broken or nothing gained."""
        evidence = self.evidence(model)
        trial = self._judged(trial, evidence, performance_limits(self.limits, {"size", "flops"}))
        if trial.state == "dropped":
            return trial, evidence
        evidence = dataclasses.replace(
            evidence, timing=self.timing(model, "screen", SCREEN_ROUNDS, SCREEN_SECONDS)
        )
        if self.objective.metric == "memory" or performance_limits(self.limits, {"memory"}):
            evidence = dataclasses.replace(evidence, memories=self.memories(model))
        trial = self._judged(trial, evidence, performance_limits(self.limits))
        least = guards(self.limits) if self.rival else ()
        for each in judge_all(least, evidence, self.task, seed=self.seed):
            # Two processes of one model may differ by several percent: what is close is left
            # to the certificate, which starts them many times.
            near = each.method != EXACT and trial.figures["latency.ratio"] < SLOWER
            if each.outcome == "broken" and trial.recipe and trial.state != "dropped" and not near:
                trial = dataclasses.replace(
                    trial, state="dropped", reason=f"worse than the original: {_reason(each)}"
                )
        worse = self.rival and trial.figures["objective"] > 1.0 and trial.recipe
        if worse and trial.state != "dropped":
            how = f"{self.objective.metric} {trial.figures['objective']:.2f} x the original's"
            trial = dataclasses.replace(trial, state="dropped", reason=f"no gain: {how}")
        if trial.state == "dropped":
            return trial, evidence
        better = outdone(trial, evidence, self.objective, self.seen.values(), self.task, self.seed)
        if better is not None:
            how = f"{trial.figures['latency.ratio']:.2f} x the original's latency"
            against = f"{better.figures['latency.ratio']:.2f} x, and is no bigger"
            reason = f"cannot beat trial {better.number}: {how}; that has {against}"
            trial = dataclasses.replace(trial, state="dropped", reason=reason)
        return trial, evidence

    def _quality(self, trial: Trial, model: Model, evidence: Evidence) -> Trial:
        total = len(self.search)
        for rows in looks(total):
            pair = (self.answered(self.original, rows), self.answered(model, rows))
            evidence = dataclasses.replace(
                evidence, answers=pair, truth=truth_of(self.search, pair[0], self.order[:rows])
            )
            trial = self._judged(trial, evidence, self.limits)
            trial = dataclasses.replace(trial, fidelity=rows / total, examples=rows)
            if trial.state == "dropped":
                return trial
            sure = trial.p_value <= SURE and self.objective.metric in PERFORMANCE
            if sure or self.enough(trial):
                break  # more examples could not rank it higher, or it may be the early answer
        return dataclasses.replace(trial, state="done")

    def _judged(self, trial: Trial, evidence: Evidence, limits: tuple[Limit, ...]) -> Trial:
        """The trial with figures and verdicts of what is known by now; dropped when a limit is
        broken beyond reasonable doubt."""
        verdicts = judge_all(limits, evidence, self.task, seed=self.seed)
        figures = {**trial.figures, **figures_of(evidence, self.task, limits)}
        figures["objective"] = objective_value(self.objective, evidence, self.task)
        trial = dataclasses.replace(
            trial, figures=figures, verdicts=verdicts, p_value=together(verdicts)[1]
        )
        missed = lost(limits, verdicts, evidence, self.task, self.seed, len(self.search))
        if missed is not None:
            trial = dataclasses.replace(trial, state="dropped", reason=_reason(missed))
        return trial


def _same_as(twin: Trial, trial: Trial) -> Trial:
    """A trial whose settings made no difference: it has the figures of the one that had them."""
    return dataclasses.replace(
        trial,
        state="dropped",
        same=True,
        reason=f"the same artifact as trial {twin.number}",
        figures=twin.figures,
        verdicts=twin.verdicts,
        p_value=twin.p_value,
    )


def size(model: Model) -> int:
    return runtime(model.kind).size(model)


def performance_limits(
    limits: Iterable[Limit], metrics: frozenset[str] | set[str] | None = None
) -> tuple[Limit, ...]:
    """The limits that need no labels: all of them, or those on `metrics`."""
    return tuple(
        each for each in limits if not each.quality and (metrics is None or each.metric in metrics)
    )


def _reason(verdict: Verdict) -> str:
    metric = verdict.limit.split()[0]
    return (
        f"breaks {verdict.limit}: {interval(metric, plain(verdict))}, must reach "
        f"{figure(metric, verdict.bound)}"
    )
