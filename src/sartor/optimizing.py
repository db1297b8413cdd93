"""Where the stages meet: prepare -> [ask, try, tell]* -> certify -> bundle and answer."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sartor import cluster, machine
from sartor.ahead import Crew, take
from sartor.answer import Answering, ledger_of
from sartor.bench import LocalBench
from sartor.clock import Clock
from sartor.contracts import Failed, Recipe, Training, WrongRequest, describe, trains
from sartor.granting import grant, granted
from sartor.openings import openings
from sartor.prepare import Prepared, allowed, environment, prepare
from sartor.priors import features, learned
from sartor.records import Journal, Trial
from sartor.registry import format_of, recipe
from sartor.resuming import note_budget, remembered, settled
from sartor.run import Run, RunFolder
from sartor.search import GuidedSearch, key_of
from sartor.spec import Spec
from sartor.store import Store
from sartor.terminal import Progress, minutes
from sartor.trials import Laboratory
from sartor.workers import Pool

SHORTEST = 300.0  # seconds of budget below which the search asks for no training of its own
FOLLOW_SECONDS = 2.0
MOST = 0.8  # of what is left, that one training may take
LEAST = 15.0  # seconds that any one step of a trial may take, however little time is left


def optimize(spec: Spec, progress: Progress | None = None) -> Run:
    """Runs the request to its answer, or continues it where it was stopped.

    Raises WrongRequest for a wrong request; everything else ends in the run's status."""
    began = time.monotonic()
    progress = progress or Progress(quiet=True)
    if len(spec.formats) > 1:
        raise WrongRequest("each format has a run of its own: call sartor.optimize_each")
    folder = RunFolder(Path(spec.out))
    folder.check()
    spec = settled(spec, folder)
    cluster.check(spec.cluster)
    replay = _replayed(spec)
    ceiling = spec.memory or machine.memory_ceiling()
    with folder.locked(), progress, Pool(ceiling) as pool:
        progress.now("reading model and data")
        pool.ready()
        ready = prepare(spec, folder.work, pool)
        first = [recipe(ready.original.kind, entries) for entries in spec.recipes]
        if folder.journal.last("request") is None:  # the corrected command finds no run here
            ledger_of(spec, ready).check()
        facts = environment(ready.original) | {"spec": remembered(spec)}
        folder.begin(ready.request, facts)
        if folder.journal.last("answer") and not spec.resume:
            progress.say(
                "this run is finished; it goes on with: sartor optimize --resume "
                f"{folder.root} --budget +10m"
            )
            return Run(folder.root)
        note_budget(spec, folder)
        for note in ready.notes:
            progress.say(f"note: {note}", "yellow")
        store = Store(folder.work / "models")
        store.sweep()
        bench = _bench(ready, folder, spec)
        with Laboratory(
            ready.original, bench, ready.data.search, ready.limits, ready.objective, store,
            folder.journal, replay, ceiling, pool,
        ) as lab:  # fmt: skip
            lab.takes = tuple(map(format_of, spec.formats))
            clock = Clock(spec, began, folder.spent())
            answering = Answering(spec, ready, lab, folder, progress, clock)
            with cluster.crew(spec.cluster, lab, folder.journal, folder.work) as crew:
                search(spec, ready, lab, folder, progress, clock, answering, crew, first)
            answering.conclude()
            lab.patience = lambda: LEAST
            with contextlib.suppress(Failed, WrongRequest):  # for later runs: this one is answered
                _features(lab, folder)
    return Run(folder.root)


def _replayed(spec: Spec) -> Journal | None:
    """The journal whose latencies stand in for new ones."""
    if spec.replay is None:
        return None
    if not Path(spec.replay).is_file():
        raise WrongRequest(f"--replay {spec.replay}: no such file; name the run.jsonl of a run")
    return Journal(Path(spec.replay))


def _bench(ready: Prepared, folder: RunFolder, spec: Spec) -> LocalBench:
    return LocalBench(
        model=ready.original,
        teacher=ready.original,
        task=ready.task,
        limits=ready.limits,
        target=ready.target,
        train=ready.data.train,
        search=ready.data.search,
        scratch=folder.work / "scratch",
        memory=folder.work / "remembered",
        seed=spec.seed,
        training=granted(folder.journal) or Training(),
        augment=ready.augment,
        processes=spec.train_processes,
        budget=math.inf if spec.trials is not None else spec.budget,
    )


def search(
    spec: Spec,
    ready: Prepared,
    lab: Laboratory,
    folder: RunFolder,
    progress: Progress,
    clock: Clock,
    answering: Answering,
    crew: Crew | None = None,
    first: Sequence[Recipe] = (),
) -> None:
    """Asks, tries and tells until trials, space or time end; what the journal holds already is
    told again, not tried again. The crew works ahead; it decides nothing."""
    kind = ready.original.kind
    known = _in_time(allowed(spec, kind), lab)
    # Half of what is left at most: a hang takes its share of the time, not all of it.
    lab.patience = lambda: min(spec.deadline, max((clock.left() - answering.reserve()) / 2, LEAST))
    lab.longest = lambda: MOST * (clock.left() - answering.reserve())
    own: dict[str, float] = {}
    if spec.learn_from:
        with contextlib.suppress(Failed):  # lessons of other models count for less without
            own = _features(lab, folder)
    lessons = learned(spec.learn_from, kind, own, spec.objective, folder.root)
    portfolio, later = openings(lab, known)
    seeker = GuidedSearch(
        kind, known, portfolio, requested=first, later=later, lessons=lessons, trials=spec.trials,
        seed=spec.seed, ends=lab.formats,
    )  # fmt: skip
    for each in seeker.left_out(first):
        progress.say(
            f"note: {describe(each)} is not tried: a step of it is left out by the request, or is "
            "a training for which there are no rows or less than five minutes", "yellow",
        )  # fmt: skip
    finished = folder.trials()
    frozen = answering.frozen()
    progress.deadline, progress.trials = clock.deadline, clock.trials
    number = 0
    longest = 0.0
    while True:
        if number == frozen:
            progress.say("the finalists were chosen before the run was stopped: their answer first")
            return
        late = clock.left() < answering.reserve() + longest / 2
        if late and number >= len(finished) and number > 1:  # one candidate is tried in any case
            progress.say(f"the last {clock.left():.0f} s are kept for the certificate")
            return
        asked = seeker.ask()
        if asked is None:
            return
        if number < len(finished):
            trial = finished[number]
            if trial.key != key_of(asked[0]):
                seeker.waiting.insert(
                    0, asked[0]
                )  # another version asked otherwise: its turn comes
        else:
            if crew is not None:
                progress.now(f"waiting for the workers: {describe(asked[0])}")
                _ahead(crew, seeker, lab, spec, number, asked[0])
            trial = _try(lab, folder, progress, clock, number, asked[0])
        # What trains is refused where there is no time for it, and takes no time from the others.
        if trial.state in ("done", "dropped") and not any(map(trains, asked[0])):
            longest = max(longest, trial.seconds)
        progress.trial(trial, lab.title(trial), ready.task.metric)
        seeker.tell(trial)
        if trial.model:
            lab.seen.setdefault(trial.model, trial)
        answering.consider(trial)
        number += 1


def _in_time(known: dict[str, Any], lab: Laboratory) -> dict[str, Any]:
    """Without the techniques that train, where there is no time or nothing to train on."""
    able = lab.bench.budget >= SHORTEST and lab.bench.count("train") > 0
    return {name: cls for name, cls in known.items() if able or not trains(cls)}


def _features(lab: Laboratory, folder: RunFolder) -> dict[str, float]:
    """What later runs may compare this model by; kept in the journal."""
    told = folder.journal.last("features")
    if told is None:
        found = lab.pool.call(features, lab.original, lab.search, timeout=lab.patience())
        folder.journal.add("features", features=found)
        return found
    known: dict[str, float] = told["features"]
    return known


def _ahead(
    crew: Crew, seeker: GuidedSearch, lab: Laboratory, spec: Spec, number: int, asked: Recipe
) -> None:
    """Lets the workers go on with what comes next, and takes what they have of what is asked."""
    left = math.inf if spec.trials is None else spec.trials - number - 1
    coming = seeker.upcoming(int(min(crew.width, left)))
    for each in (asked, *coming):
        grant(lab, lab.journal, lab.bench.budget, each)
    crew.foresee(coming, lab.bench.training)
    made = crew.bring(asked, lab.patience())
    if made is not None:
        take(lab, made)


def _try(
    lab: Laboratory,
    folder: RunFolder,
    progress: Progress,
    clock: Clock,
    number: int,
    asked: Recipe,
) -> Trial:
    progress.now(f"trying {describe(asked)}")
    grant(lab, folder.journal, lab.bench.budget, asked)
    known = dict(lab.pace)
    with _followed(lab, progress, asked):
        trial = lab.try_recipe(number, asked)
    folder.journal.add(
        "trial",
        title=describe(asked),
        session=clock.session,
        elapsed=clock.elapsed(),
        pace={name: pace for name, pace in lab.pace.items() if known.get(name) != pace},
        **vars(trial),
    )
    return trial


@contextlib.contextmanager
def _followed(lab: Laboratory, progress: Progress, asked: Recipe) -> Iterator[None]:
    """Says how far the training is while it goes on, if one does."""
    if not any(map(trains, asked)):
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(FOLLOW_SECONDS):
            if pace := lab.training():
                left = minutes(pace.left)
                told = f"training, step {pace.done} of {pace.steps}, {left} left of it"
                progress.now(f"{told}: {describe(asked)}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
