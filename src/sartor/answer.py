"""From trials to the answer: the early certificate, the final one, what each step contributed,
the bundle and the frontier."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sartor import bundle
from sartor.building import APPLY_SECONDS
from sartor.certify import BET, Certification, Certifier, Row
from sartor.clock import Clock
from sartor.contracts import Failed, Model, describe
from sartor.delivery import Delivery
from sartor.figures import figures_of
from sartor.finalists import Finalist, freeze
from sartor.ledger import SHARE, Ledger, ledger_path, part
from sartor.limits import PERFORMANCE
from sartor.measuring import Measuring
from sartor.outcome import Answer, outcome
from sartor.prepare import Prepared
from sartor.racing import promising
from sartor.records import Trial, plain, trial_from_json, verdict_from_json
from sartor.registry import recipe
from sartor.run import RunFolder
from sartor.spec import Spec
from sartor.store import discard
from sartor.terminal import Progress
from sartor.trials import LOOK_SECONDS, Laboratory

HURRIED = 512  # examples of the search split that are seen however little time is left
STEP_ROWS = 512  # examples on which the contribution of a step is looked at
SOON = 8  # trials, by which a run should have shown something: an early answer is in haste then


def ledger_of(spec: Spec, ready: Prepared) -> Ledger:
    """The ledger of the run's holdout; runs of one request take equal parts of a run's share."""
    share = part(spec.together.index(spec.formats[0]), len(spec.together)) if spec.together else 1.0
    return Ledger(
        ledger_path(spec.data), ready.data.holdout.digest, total=1.0 - spec.confidence,
        share=SHARE * share,
    )  # fmt: skip


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
        self.measuring = Measuring(spec, ready, lab, progress, clock)
        self.delivery = Delivery(self.measuring, folder)
        lab.enough = self._enough
        self.ledger = ledger_of(spec, ready)
        opened = self._since_the_answer("early", "frozen")
        self.early = self._early_before() if "early" in opened else self._certified_before()
        if not opened:
            self.ledger.check(folder.run_name())

    # -- while the search goes on -------------------------------------------------------------

    def consider(self, trial: Trial) -> None:
        """Takes a finished trial; the first that leaves no doubt is certified at once."""
        self.trials.append(trial)
        self._keep(trial)
        best = self.best_trial()
        if best is not None:
            self.progress.best_so_far(
                f"{self.lab.title(best)}, {best.figures['objective']:.3f} x the original's "
                f"{self.spec.objective}"
            )
        if trial.state != "done" or not self._promising(trial):
            return
        self.progress.now(f"certifying an early answer: {self.lab.title(trial)}")
        early = dataclasses.replace(self.certifier, measure=self.measuring.early)
        found = early.early(Finalist(trial.model, trial))
        row = found.rows[0]
        self.early = row
        self.folder.journal.add(
            "early",
            session=self.clock.session,
            elapsed=self.clock.elapsed(),
            total=self.clock.total(),
            trial=dataclasses.asdict(trial),
            row=self._row_to_json(row),
            alpha=found.alpha,
        )
        if row.status == "certified":
            self._bundle(row, Answer(0, "an early answer; the search went on"), [])
            after = f"{self.clock.total():.0f} s: {self.lab.title(trial)}"
            self.progress.say(
                f"first certified answer after {after}, {row.value:.3f} x the original's "
                f"{self.spec.objective} ({self.folder.bundle})",
                "green",
            )

    def _keep(self, trial: Trial) -> None:
        """Has what may be the answer kept: it is not made, or trained, a second time."""
        # What an earlier session tried is kept as that one left it.
        if trial.state == "done" and trial.recipe and self.lab.has_built(trial):
            early = [self.early.finalist] if self.early else []
            chain = [*freeze(self.trials, rival=self.lab.rival), *early]
            self.lab.keep([each.trial for each in chain if each.trial.recipe])

    def _promising(self, trial: Trial) -> bool:
        """Whether the trial is worth the run's one early answer, and there is time for it."""
        if self.early is not None or not trial.recipe:
            return False
        if self.ready.objective.metric not in PERFORMANCE:  # its gain needs all the examples
            return False
        if self.certifier.needs_data and self.clock.left() < 2 * self.measuring.test_seconds(1):
            return False
        level = self.ledger.early_level(self.folder.run_name()) * (1 - BET["early"])
        return level > 0 and promising(
            self.ready.limits, trial, self.ready.data.holdout.rows, level
        )

    def _enough(self, trial: Trial) -> bool:
        """Whether the trial needs no more examples of the search split: it is among the first, and
        the holdout is to judge it now; or there is little more time than that will take."""
        hurried = self.clock.left() < self.measuring.test_seconds(1)
        soon = len(self.trials) < SOON and self._promising(trial)
        return soon or (hurried and trial.examples >= HURRIED)

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

    def reserve(self) -> float:
        """Seconds to keep back for the certificate of what was found or may be found next, the
        contributions and the bundle."""
        known = self.early.finalist.digest if self.early else None
        frozen = freeze(self.trials, rival=self.lab.rival)
        chain = [each for each in frozen if each.digest != known]
        steps = max((len(each.trial.recipe) for each in chain), default=0)
        slowest = min(self.lab.pace.values(), default=math.inf)
        look = LOOK_SECONDS + STEP_ROWS / slowest
        finalists = min(max(len(chain), 1), 2)
        test = self.measuring.test_seconds(finalists) + self.measuring.batch_seconds
        return test + look * (steps + 1) + 3.0

    # -- certification ------------------------------------------------------------------------

    @property
    def certifier(self) -> Certifier:
        own = self.trials[0]
        return Certifier(
            self.ready.limits,
            self.ready.objective,
            self.ready.task,
            self.measuring.final,
            self.ready.data.holdout,
            self.ledger,
            self.folder.run_name(),
            original=Finalist(own.model or self.measuring.own, own) if self.lab.rival else None,
            seed=self.spec.seed,
            in_time=lambda: self.clock.left() > self.measuring.test_seconds(1),
            hurried=self.clock.left() < self.measuring.test_seconds(1),
            rival=self.lab.rival,
        )

    # -- the end ------------------------------------------------------------------------------

    def conclude(self) -> None:
        """Certifies, explains, writes bundle, frontier and answer."""
        self.lab.patience = lambda: APPLY_SECONDS  # what was found is not lost to the clock
        self.lab.longest = lambda: math.inf
        chain = freeze(self.trials, rival=self.lab.rival)
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
        frontier = self.delivery.frontier(found, shown if answer.status == 0 else None, self.trials)
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
            chosen=None if trial is None or answer.status else self.lab.title(trial),
            recipe=None if trial is None or answer.status else trial.recipe,
            artifact=None if answer.status else str(self.folder.bundle),
            files=bundle.files(self.folder.bundle),
            limits=shown.verdicts if shown else (),
            about=None if trial is None else self.lab.title(trial),
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
                early.get("total", early["elapsed"])
                if early and early["row"]["status"] == "certified"
                else None
            ),
            trials=len(self.trials),
            conditions=self.measuring.conditions(shown.evidence if shown else None),
            throughputs=self.measuring.throughputs(trial) if answer.status == 0 else {},
            notes=[*self.ready.notes, *self._notes()],
        )

    def _message(self, answer: Answer, shown: Row | None) -> str:
        if answer.status or shown is None or not shown.finalist.trial.recipe:
            return answer.message
        return (
            f"certified: {self.lab.title(shown.finalist.trial)}, "
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
            f"{len(states)} trials ({', '.join(told)}) in {self.clock.total():.0f} s",
            f"{self.ledger.left():.2%} of this holdout's error rate is left for further runs "
            f"({self.ledger.runs_left()} more)",
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
        self.delivery.write(row, self._message(answer, row), steps, self.folder.bundle)

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
