"""From trials to the answer: the early certificate, the final one, what each step contributed,
the bundle and the frontier."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sartor import bundle
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
from sartor.evaluate import BLOCKS, MOST_CALLS, TURN_SECONDS, answers
from sartor.ledger import Ledger, ledger_path
from sartor.prepare import Prepared, environment
from sartor.records import Trial, plain, trial_from_json, verdict_from_json
from sartor.registry import recipe, runtime
from sartor.run import RunFolder
from sartor.spec import Spec
from sartor.store import discard, publish, step_to_json
from sartor.terminal import Progress
from sartor.trials import APPLY_SECONDS, LOOK_SECONDS, Laboratory, figures_of, truth_of
from sartor.verdicts import Evidence

EARLY = 0.01  # a candidate is certified early when the search split leaves this little doubt
EARLY_GAIN = 0.95  # and when it is at least this much better than the original
EARLY_BLOCKS = 3  # starts of every process for an early answer
ROUNDS = 60
LEAST_ROUNDS = 12
START_SECONDS = 2.0  # about what a start of all three takes
STEP_ROWS = 512  # examples on which the contribution of a step is looked at
FRONTIER = 5


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
        self.sealed_answers: dict[str, np.ndarray] = {}
        self.bare: dict[tuple[str, str], Evidence] = {}  # without answers, by model and purpose
        self.ledger = Ledger(
            ledger_path(spec.data), ready.data.holdout.digest, total=1.0 - spec.confidence
        )
        self.early = self._early_before()
        if not folder.journal.events("frozen") and self.early is None:
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
        last = None
        for entry in self.folder.journal:
            if entry["event"] in ("frozen", "answer"):
                last = entry["trials"] if entry["event"] == "frozen" else None
        return last

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
        return self.test_seconds(min(len(chain), 2)) + look * (steps + 1) + 3.0

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
                model, purpose, ROUNDS, self.timing_seconds, LEAST_ROUNDS, blocks
            )
            evidence = dataclasses.replace(
                self.lab.evidence(model), timing=timing, same=finalist.digest == self.ready_digest
            )
            wanted = {self.ready.objective.metric, *(each.metric for each in self.ready.limits)}
            if "memory" in wanted:
                evidence = dataclasses.replace(evidence, memories=self.lab.memories(model))
            self.bare[known] = evidence
        return self.bare[known]

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
        self.lab.build(recipe(self.ready.original.kind, entries), models)
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
        early = self.folder.journal.last("early")
        known = early is not None and early["row"]["digest"] == row.finalist.digest
        return early["row"]["figures"] if early is not None and known else {}

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
        trial = row.finalist.trial
        model = self.model_of(trial)
        facts = environment(self.ready.original)
        message = self._message(answer, row)
        scratch = self.lab.store.scratch()
        made = scratch / "bundle"
        original = self.ready.original
        certificate = {
            "message": message,
            "limits": row.verdicts,
            "level": row.alpha,
            "objective": self.spec.objective,
            "ratio": row.value,
            "limits_asked": [each.text for each in self.ready.limits],
            "steps": steps,
            "replayed": self.spec.replay is not None,
            **facts,
        }
        bundle.write(
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
                plain(row.verdicts), steps, facts,
            ),
        )  # fmt: skip
        publish(made, self.folder.bundle)
        scratch.rmdir()

    def _frontier(self, found: Certification, chosen: Row | None) -> list[str]:
        """The other artifacts worth having, each marked with what is known of it."""
        discard(self.folder.frontier)
        kept: list[str] = []
        others = [row for row in found.rows if row is not chosen]
        if not others and chosen is None:
            others = self._hopeless()
        for row in others[:FRONTIER]:
            trial = row.finalist.trial
            place = self.folder.frontier / f"{len(kept) + 1:02d}-trial-{trial.number}"
            place.mkdir(parents=True)
            model = self.model_of(trial)
            runtime(model.kind).save(model, place)
            about = {
                "recipe": self.title(trial),
                "status": row.status,
                "certified": row.status == "certified",
                "figures_on_the_search_split": trial.figures,
                "limits": row.verdicts or trial.verdicts,
            }
            (place / "about.json").write_text(json.dumps(plain(about), indent=1) + "\n")
            kept.append(str(place))
        return kept

    def _hopeless(self) -> list[Row]:
        """Where every trial was dropped: those that were built, the nearest to the limits first."""
        built = [t for t in self.trials if t.state == "dropped" and t.model and t.recipe]
        built.sort(key=lambda each: nearness(each.verdicts))
        return [Row(Finalist(each.model, each), "untested") for each in built]

    def _early_before(self) -> Row | None:
        """The early answer of this run that an earlier session gave."""
        entry = self.folder.journal.last("early")
        if entry is None:
            return None
        row = entry["row"]
        trial = trial_from_json(entry["trial"])
        return Row(
            Finalist(trial.model, trial),
            row["status"],
            tuple(verdict_from_json(each) for each in row["verdicts"]),
            row["value"],
            row["p_value"],
            row["alpha"],
        )


def _own(figures: Mapping[str, float]) -> dict[str, float]:
    """The original's figures out of a candidate's, as a row of its own."""
    own = {name.removeprefix("original."): v for name, v in figures.items() if "original." in name}
    own |= {f"original.{name}": value for name, value in own.items()}
    return own | ({"latency.ratio": 1.0} if "latency" in own else {})
