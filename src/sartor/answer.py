"""From trials to the answer: the early certificate, the final one, what each step contributed,
the bundle and the frontier."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sartor import bundle, machine
from sartor.card import card
from sartor.certify import (
    Answer,
    Certification,
    Certifier,
    Finalist,
    Row,
    freeze,
    nearness,
    outcome,
)
from sartor.clock import Clock
from sartor.contracts import Failed, Model, describe
from sartor.data import Part
from sartor.evaluate import BLOCKS, MOST_CALLS, TURN_SECONDS, answers, throughputs
from sartor.figures import figures_of, truth_of
from sartor.judge_timing import conditions_of, further_starts, runs_wanted
from sartor.ledger import Ledger, ledger_path
from sartor.limits import TIMED
from sartor.prepare import Prepared, environment
from sartor.records import Timing, Trial, plain, trial_from_json, verdict_from_json
from sartor.registry import recipe, runtime
from sartor.run import RunFolder
from sartor.spec import Spec
from sartor.store import discard, publish, settle, step_to_json
from sartor.terminal import Progress
from sartor.trials import APPLY_SECONDS, LOOK_SECONDS, Laboratory
from sartor.verdicts import Evidence, improvement
from sartor.workers import THREADS

EARLY = 0.01  # a candidate is certified early when the search split leaves this little doubt
EARLY_GAIN = 0.95  # and when it is at least this much better than the original
EARLY_BLOCKS = 3  # starts of every process for an early answer
ROUNDS = 60
LEAST_ROUNDS = 12
START_SECONDS = 2.0  # about what a start of all three takes
STEP_ROWS = 512  # examples on which the contribution of a step is looked at
FRONTIER = 5
LONG = 120.0  # seconds of a budget from which on throughput is seen at several batch sizes


class Answering:
    """Follows the trials of one run and answers at its end. Nothing that it finds on the holdout
    goes back to the search."""

    def __init__(
        self, spec: Spec, ready: Prepared, lab: Laboratory, folder: RunFolder,
        progress: Progress, clock: Clock,
    ) -> None:  # fmt: skip
        self.spec, self.ready, self.lab = spec, ready, lab
        self.folder, self.progress, self.clock = folder, progress, clock
        self.trials: list[Trial] = []
        self.load_before = machine.load()
        self.load_timed: float | None = None
        self.wanted = {ready.objective.metric, *(each.metric for each in ready.limits)}
        lab.race.meter(self.wanted, spec.watts)
        self.sealed_answers: dict[str, np.ndarray] = {}
        self.bare: dict[tuple[str, str], Evidence] = {}  # without answers, by model and purpose
        self.ledger = Ledger(
            ledger_path(spec.data), ready.data.holdout.digest, total=1.0 - spec.confidence
        )
        opened = self._since_the_answer("early", "frozen")
        self.early = self._early_before() if "early" in opened else self._certified_before()
        if not opened:
            self.ledger.check()

    # -- while the search goes on -------------------------------------------------------------

    def consider(self, trial: Trial) -> None:
        """Takes a finished trial; the first that leaves no doubt is certified at once."""
        self.trials.append(trial)
        best = self.best_trial()
        if best is not None:
            self.progress.best_so_far(
                f"{self.title(best)}, {best.figures['objective']:.3f} x the original's "
                f"{self.spec.objective}"
            )
        surely = trial.state == "done" and trial.recipe and trial.p_value <= EARLY
        if self.early is not None or not surely or trial.figures["objective"] > EARLY_GAIN:
            return
        if self.certifier.needs_data and self.clock.left() < 2 * self.test_seconds(1):
            return
        self.progress.now(f"certifying an early answer: {self.title(trial)}")
        early = dataclasses.replace(self.certifier, measure=self.measure_early)
        found = early.early(Finalist(trial.model, trial))
        row = found.rows[0]
        self.early = row
        self.folder.journal.add(
            "early",
            session=self.clock.session,
            elapsed=self.clock.elapsed(),
            trial=dataclasses.asdict(trial),
            row=self._row_to_json(row),
            alpha=found.alpha,
        )
        if row.status == "certified":
            self._bundle(row, Answer(0, "an early answer; the search went on"), [])
            self.progress.say(
                f"first certified answer after {self.clock.elapsed():.0f} s: {self.title(trial)}, "
                f"{row.value:.3f} x the original's {self.spec.objective} ({self.folder.bundle})",
                "green",
            )

    def frozen(self) -> int | None:
        """After how many trials an earlier session of this run froze its finalists: the holdout
        may have been opened since, so that no further trial may be made."""
        entry = self._since_the_answer("frozen").get("frozen")
        return None if entry is None else int(entry["trials"])

    def _since_the_answer(self, *events: str) -> dict[str, dict[str, Any]]:
        """The last of each of these events after the last answer: each answer opens the holdout
        for itself."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self.folder.journal:
            if entry["event"] == "answer":
                found.clear()
            elif entry["event"] in events:
                found[entry["event"]] = entry
        return found

    def best_trial(self) -> Trial | None:
        hopeful = [
            each
            for each in self.trials
            if each.state == "done" and each.recipe and each.p_value <= 0.05
            and math.isfinite(each.figures.get("objective", math.nan))
        ]  # fmt: skip
        return min(hopeful, key=lambda each: each.figures["objective"], default=None)

    def test_seconds(self, finalists: int) -> float:
        """About how long certifying that many takes, from what was measured so far."""
        rows, pace = self.ready.data.holdout.rows, self.lab.pace
        known = self.ready_digest in self.sealed_answers
        own = 0.0 if known else rows / pace.get(self.ready_digest, math.inf)
        others = [each for name, each in pace.items() if name != self.ready_digest]
        slowest = min(others or pace.values(), default=math.inf)
        return own + finalists * (rows / slowest + self.race_seconds + 1.0)

    def reserve(self) -> float:
        """Seconds to keep back for the certificate, the contributions and the bundle."""
        chain = freeze(self.trials)
        steps = max((len(each.trial.recipe) for each in chain), default=0)
        slowest = min(self.lab.pace.values(), default=math.inf)
        look = LOOK_SECONDS + 2.0 + STEP_ROWS / slowest
        return self.test_seconds(min(len(chain), 2)) + look * (steps + 1) + 3.0 + self.batch_seconds

    @property
    def batch_seconds(self) -> float:
        """Kept back to see original and answer at several batch sizes: nothing in a short run."""
        return 12.0 if self.spec.trials is None and self.spec.budget >= LONG else 0.0

    @property
    def race_seconds(self) -> float:
        """About how long the rounds of one finalist take."""
        calls = [each.figures.get("original.latency", math.inf) for each in self.trials]
        call = min(calls, default=math.inf)
        turn = max(min(TURN_SECONDS, MOST_CALLS * call), call) + 2 * call
        return min(self.timing_seconds, 3 * ROUNDS * turn) + BLOCKS * START_SECONDS

    @property
    def timing_seconds(self) -> float:
        if self.spec.trials is not None:
            return 8.0
        return min(max(self.spec.budget / 15, 3.0), 20.0)

    @property
    def ready_digest(self) -> str:
        return str(self.ready.request["model"])

    # -- certification ------------------------------------------------------------------------

    @property
    def certifier(self) -> Certifier:
        own = self.trials[0]
        return Certifier(
            self.ready.limits,
            self.ready.objective,
            self.ready.task,
            self.measure,
            self.ready.data.holdout,
            self.ledger,
            self.folder.run_name(),
            original=Finalist(own.model or self.ready_digest, own),
            seed=self.spec.seed,
            in_time=lambda: self.clock.left() > self.test_seconds(1),
        )

    def measure(self, finalist: Finalist, part: Part | None) -> Evidence:
        """The finalist beside the original, all measured anew."""
        # A resumed run measures anew: its certificate rests on no latency of an earlier answer.
        purpose = f"certify {len(self.folder.journal.events('answer'))}"
        return self._measured(finalist, part, purpose, BLOCKS)

    def measure_early(self, finalist: Finalist, part: Part | None) -> Evidence:
        """As `measure`, from fewer starts: an early answer is clearly faster or waits."""
        return self._measured(finalist, part, "certify early", EARLY_BLOCKS)

    def _measured(
        self, finalist: Finalist, part: Part | None, purpose: str, blocks: int
    ) -> Evidence:
        title = self.title(finalist.trial)
        model = self.model_of(finalist.trial)
        evidence = self._bare(finalist, model, purpose, blocks)
        if part is None:
            return evidence
        self.progress.now(f"certifying {title}: {len(part):,} examples of the holdout")
        before = self._sealed(self.ready.original, self.ready_digest, part)
        after = self._sealed(model, finalist.digest, part)
        return dataclasses.replace(evidence, answers=(before, after), truth=truth_of(part, before))

    def _bare(self, finalist: Finalist, model: Model, purpose: str, blocks: int) -> Evidence:
        """What needs no holdout, measured once for each purpose."""
        known = (finalist.digest, purpose)
        if known not in self.bare:
            self.progress.now(f"certifying {self.title(finalist.trial)}: timing")
            timing = self.lab.timing(
                model, purpose, ROUNDS, self._rounds_seconds(finalist), LEAST_ROUNDS, blocks,
                runs=runs_wanted(self.ready.limits),
                further=self._further if blocks == BLOCKS else None,
            )  # fmt: skip
            self.load_timed = machine.load()
            evidence = dataclasses.replace(
                self.lab.evidence(model), timing=timing, same=finalist.digest == self.ready_digest
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
        start = 0 if known is None else len(known)
        if start < len(part):
            more = answers(
                self.lab.pool, model, part, np.arange(start, len(part)), self.ready.task,
                self.ready.target, timeout=APPLY_SECONDS,
            )  # fmt: skip
            known = more if known is None else np.concatenate([known, more])
            self.sealed_answers[digest] = known
        return self.sealed_answers[digest][: len(part)]

    def model_of(self, trial: Trial) -> Model:
        return self.lab.build(recipe(self.ready.original.kind, trial.recipe))

    def title(self, trial: Trial) -> str:
        return describe(recipe(self.ready.original.kind, trial.recipe))

    # -- the end ------------------------------------------------------------------------------

    def conclude(self) -> None:
        """Certifies, explains, writes bundle, frontier and answer."""
        self.lab.patience = lambda: APPLY_SECONDS  # what was found is not lost to the clock
        chain = freeze(self.trials)
        self.folder.journal.add(
            "frozen",
            session=self.clock.session,
            elapsed=self.clock.elapsed(),
            trials=len(self.trials),
            finalists=[each.digest for each in chain],
        )
        found = self.certifier.final(chain, self.early)
        answer = outcome(found, self.ready.limits, self.trials)
        shown = self._shown(found)
        self.progress.now("measuring what each step contributed")
        steps = self._steps(shown)
        if answer.status == 0 and shown is not None:
            self._bundle(shown, answer, steps)
        else:
            discard(self.folder.bundle)
        self.progress.now("writing the frontier")
        frontier = self._frontier(found, shown if answer.status == 0 else None)
        self._record(found, answer, shown, steps, frontier)

    def _shown(self, found: Certification) -> Row | None:
        """The row that the answer is about: the best certified, else the original where it holds,
        else the finalist that came nearest."""
        if found.best is not None:
            return found.best
        if found.original is not None and found.original.status == "certified":
            return found.original
        tested = [row for row in found.rows if row.verdicts]
        return min(tested, key=lambda row: row.p_value, default=found.original)

    def _record(
        self, found: Certification, answer: Answer, shown: Row | None,
        steps: list[dict[str, Any]], frontier: list[str],
    ) -> None:  # fmt: skip
        early = self.folder.journal.last("early")
        trial = shown.finalist.trial if shown else None
        self.folder.journal.add(
            "answer",
            session=self.clock.session,
            elapsed=self.clock.elapsed(),
            status=answer.status,
            message=self._message(answer, shown),
            metric=self.ready.task.metric,
            objective=self.spec.objective,
            chosen=None if trial is None or answer.status else self.title(trial),
            recipe=None if trial is None or answer.status else trial.recipe,
            artifact=None if answer.status else str(self.folder.bundle),
            files=bundle.files(self.folder.bundle),
            limits=shown.verdicts if shown else (),
            about=None if trial is None else self.title(trial),
            steps=steps,
            figures=steps[-1]["figures"] if steps else {},
            rows=[self._row_to_json(row) for row in found.rows],
            binding=answer.binding,
            nearest=answer.nearest,
            needs=answer.needs,
            frontier=frontier,
            alpha=found.alpha,
            error_rate_left=self.ledger.left(),
            first_certified_seconds=(
                early["elapsed"] if early and early["row"]["status"] == "certified" else None
            ),
            trials=len(self.trials),
            conditions=self._conditions(shown),
            throughputs=self._throughputs(shown) if answer.status == 0 else {},
            notes=[*self.ready.notes, *self._notes()],
        )

    def _message(self, answer: Answer, shown: Row | None) -> str:
        if answer.status or shown is None or not shown.finalist.trial.recipe:
            return answer.message
        return (
            f"certified: {self.title(shown.finalist.trial)}, "
            f"{shown.value:.3f} x the original's {self.spec.objective}"
        )

    def _notes(self) -> list[str]:
        states = [each.state for each in self.trials]
        told = [f"{states.count(s)} {s}" for s in ("done", "dropped", "refused", "failed")]
        replayed = [f"latencies were taken from {self.spec.replay}, not measured here"]
        lost = len(self.folder.journal.events("lost"))
        return [
            *(replayed if self.spec.replay else ()),
            *([f"work was lost with a worker {lost} times, and done again"] if lost else ()),
            f"{len(states)} trials ({', '.join(told)}) in {self.clock.elapsed():.0f} s",
            f"{self.ledger.left():.2%} of this holdout's error rate is left for further runs",
        ]

    def _steps(self, shown: Row | None) -> list[dict[str, Any]]:
        """Figures of the original, after each step (first rows of the search split), and of what
        is shown (holdout, where it was opened)."""
        if shown is None:
            return []
        own = self.trials[0]
        models: list[Model] = []
        entries = shown.finalist.trial.recipe
        try:
            self.lab.build(recipe(self.ready.original.kind, entries), models)
        except Failed:  # the answer stands without
            return []
        rows = min(STEP_ROWS, len(self.ready.data.search))
        title = f"original ({rows} search rows)"
        steps = [{"title": title, "figures": self._look(self.ready.original, rows)}]
        for model, step in zip(models, recipe(self.ready.original.kind, entries), strict=True):
            title = f"+ {describe((step,))}"
            steps.append({"title": title, "figures": self._look(model, rows)})
        figures = {} if own is shown.finalist.trial else self._figures(shown)
        if figures:
            which = "chosen" if shown.status == "certified" else "nearest"
            steps.append({"title": "original (holdout)", "figures": _own(figures)})
            steps.append({"title": f"{which} (holdout)", "figures": figures})
        return steps

    def _look(self, model: Model, rows: int) -> dict[str, float]:
        """Figures of a model on the way; none where it does not run: the answer stands without."""
        try:
            return self.lab.looked_at(model, rows)
        except Failed:
            return {}

    def _figures(self, row: Row) -> dict[str, float]:
        """What was measured of a finalist when it was certified, be it before the run was
        stopped; empty where it was not measured."""
        if row.evidence is not None:
            return figures_of(row.evidence, self.ready.task, self.ready.limits)
        before = [each["row"] for each in self.folder.journal.events("early")]
        before += [each for entry in self.folder.journal.events("answer") for each in entry["rows"]]
        known = [each for each in before if each["digest"] == row.finalist.digest]
        return known[-1]["figures"] if known else {}

    def _row_to_json(self, row: Row) -> dict[str, Any]:
        return {
            "digest": row.finalist.digest,
            "trial": row.finalist.trial.number,
            "status": row.status,
            "verdicts": row.verdicts,
            "value": row.value,
            "p_value": row.p_value,
            "alpha": row.alpha,
            "reason": row.reason,
            "figures": self._figures(row),
        }

    def _bundle(self, row: Row, answer: Answer, steps: list[dict[str, Any]]) -> None:
        self._write_bundle(row, self._message(answer, row), steps, self.folder.bundle)

    def _write_bundle(
        self, row: Row, message: str, steps: list[dict[str, Any]], place: Path
    ) -> None:
        """The artifact with what is known of it, certified or not."""
        trial = row.finalist.trial
        model = self.model_of(trial)
        facts = environment(self.ready.original)
        conditions = self._conditions(row)
        scratch = self.lab.store.scratch()
        made = scratch / "bundle"
        original = self.ready.original
        certificate = {
            "message": message,
            "status": row.status,
            "limits": row.verdicts or trial.verdicts,
            "level": row.alpha,
            "objective": self.spec.objective,
            "ratio": row.value,
            "limits_asked": [each.text for each in self.ready.limits],
            "figures_on_the_search_split": trial.figures,
            "steps": steps,
            "replayed": self.spec.replay is not None,
            "conditions": conditions,
            "watts": self.spec.watts,
            **facts,
        }
        if row.bets and row.status != "certified":  # `verify` goes on from here with more data
            certificate["bets"] = {key: each.to_json() for key, each in row.bets.items()}
            certificate["bets_level"] = row.bets_level
        # In a child: an artifact that crashes must not take the answer with it.
        self.lab.pool.call(
            bundle.write,
            model,
            made,
            {
                "sartor": facts["versions"]["sartor"],
                "title": self.title(trial),
                "task": self.ready.task,
                "recipe": trial.recipe,
                "steps": [step_to_json(step) for step in model.lineage],
                "original": {
                    "digest": self.ready_digest,
                    "path": str(Path(str(original.payload)).resolve()),
                    "bytes": runtime(original.kind).size(original),
                },
                "data": self.ready.request["data"],
                "columns": {
                    "label": self.spec.label,
                    "segments": self.spec.segments,
                    "group": self.spec.group,
                    "mask": self.spec.mask,
                },
                "certificate": certificate,
            },
            self.ready.data.search.inputs(slice(0, 64)),
            self.ready.data.fingerprints,
            self.ready.target,
            card(
                f"{Path(str(original.payload)).stem}, tailored", self.title(trial), message,
                plain(certificate["limits"]), steps, {**facts, "conditions": conditions},
            ),
            timeout=APPLY_SECONDS,
        )  # fmt: skip
        settle(made)
        publish(made, place)
        scratch.rmdir()

    def _throughputs(self, shown: Row | None) -> dict[str, dict[str, float]]:
        """Rows a second by batch size, of the original and of what was chosen."""
        if shown is None or not self.batch_seconds or self.clock.left() < self.batch_seconds:
            return {}
        models = {"original": self.ready.original, "chosen": self.model_of(shown.finalist.trial)}
        if not shown.finalist.trial.recipe:
            del models["chosen"]
        self.progress.now("measuring throughput at several batch sizes")
        part, target = self.ready.data.search, self.ready.target
        return {name: throughputs(model, part, target) for name, model in models.items()}

    def _conditions(self, row: Row | None) -> dict[str, Any]:
        """What was measured of the noise and the load while `row` was timed, and the load average
        at the beginning of the run, then and now."""
        timing = row.evidence.timing if row is not None and row.evidence is not None else None
        loads = [self.load_before, self.load_timed, machine.load()]
        return {
            "load_average": loads,
            "threads": self.ready.target.threads,
            "batch": self.ready.target.batch,
            "settings": THREADS,
            **(conditions_of(timing) if timing is not None else {}),
        }

    def _frontier(self, found: Certification, chosen: Row | None) -> list[str]:
        """The other artifacts worth having, each marked with what is known of it."""
        scratch = self.lab.store.scratch()
        kept: list[str] = []
        others = [row for row in found.rows if row is not chosen]
        if not others and chosen is None:
            others = self._hopeless()
        for row in others[:FRONTIER]:
            trial = row.finalist.trial
            name = f"{len(kept) + 1:02d}-trial-{trial.number}"
            about = f"{row.status}: {self.title(trial)}"
            try:
                self._write_bundle(row, about, [], scratch / "frontier" / name)
            except Failed:
                continue  # it does not run any more: nothing worth having
            kept.append(str(self.folder.frontier / name))
        if kept:
            settle(scratch / "frontier")
            publish(scratch / "frontier", self.folder.frontier)
        else:
            discard(self.folder.frontier)
        scratch.rmdir()
        return kept

    def _hopeless(self) -> list[Row]:
        """Where every trial was dropped: those that were built, the nearest to the limits first."""
        built = [t for t in self.trials if t.state == "dropped" and t.model and t.recipe]
        built.sort(key=lambda each: nearness(each.verdicts))
        return [Row(Finalist(each.model, each), "untested") for each in built]

    def _early_before(self) -> Row | None:
        """The early answer of this run that an earlier session gave."""
        entry = self.folder.journal.last("early")
        return None if entry is None else _row(entry["row"], trial_from_json(entry["trial"]))

    def _certified_before(self) -> Row | None:
        """What the last answer of this run chose, where it is continued: it stays certified at the
        level that was spent on it, whatever comes of the rest."""
        answer = self.folder.journal.last("answer")
        if answer is None or answer["status"]:
            return None
        trials = {each.number: each for each in self.folder.trials()}
        for row in answer["rows"]:
            trial = trials.get(row["trial"])
            if row["status"] == "certified" and trial and plain(trial.recipe) == answer["recipe"]:
                return _row(row, trial)
        return None


def _row(entry: Mapping[str, Any], trial: Trial) -> Row:
    """The row that `_row_to_json` wrote."""
    return Row(
        Finalist(trial.model, trial),
        entry["status"],
        tuple(verdict_from_json(each) for each in entry["verdicts"]),
        entry["value"],
        entry["p_value"],
        entry["alpha"],
    )


def _own(figures: Mapping[str, float]) -> dict[str, float]:
    """The original's figures out of a candidate's, as a row of its own."""
    own = {name.removeprefix("original."): v for name, v in figures.items() if "original." in name}
    own |= {f"original.{name}": value for name, value in own.items()}
    return own | ({"latency.ratio": 1.0} if "latency" in own else {})
