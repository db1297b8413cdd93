"""What workers do ahead is what the driver would do, and nothing that becomes of them changes the
answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sartor import building, trials
from sartor.ahead import Crew, Hands, Lost, take
from sartor.bench import LocalBench
from sartor.contracts import Failed, Model, Target, Task, Training
from sartor.evaluate import digest
from sartor.limits import parse, parse_objective
from sartor.records import Journal, Trial
from sartor.registry import recipe
from sartor.search import GuidedSearch
from sartor.store import Store, files_of, write_files
from sartor.techniques.toy_fake import Toy
from sartor.testing_fake import FakeRace, InProcess, fake_model, fake_part
from sartor.workshop import Entries, GatedPool, Job, Made, Workshop, job_of, likeness

PORTFOLIO = [
    recipe("fake", [{"technique": "slim", "strength": 0.5}]),
    recipe("fake", [{"technique": "fuse"}, {"technique": "round"}]),
    recipe("fake", [{"technique": "broken"}]),
    recipe("fake", [{"technique": "fuse"}, {"technique": "unwilling"}]),
]


class InHouse(GatedPool):
    """Calls in this process."""

    def call(self, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        return InProcess().call(function, *args, **kw)


def laboratory(folder: Path, rows: int = 600) -> trials.Laboratory:
    """Of a fake model, with a fake clock, in this process."""
    original = fake_model(folder / "original", seconds=0.01, error=0.1)
    part = fake_part(folder / "search", rows)
    task = Task("classification", "logits", "accuracy", classes=4)
    limits = (parse("accuracy >= baseline - 0.05"), parse("size <= 0.9 x baseline"))
    bench = LocalBench(
        original, original, task, limits, Target(), None, part, folder / "s", folder / "m"
    )
    lab = trials.Laboratory(
        original, bench, part, limits, parse_objective("latency"), Store(folder / "models"),
        Journal(folder / "run.jsonl"),
    )  # fmt: skip
    lab.pool = InProcess()  # type: ignore[assignment]
    lab.race = FakeRace(original, Target(), part)  # type: ignore[assignment]
    return lab


class FakeHands:
    """Workers in this process, whose work is done when it is looked at; the n-th recipes that are
    begun in all may be the end of their worker."""

    def __init__(self, job: Job, folder: Path, workers: int, fatal: Sequence[int] = ()) -> None:
        self.job, self.folder, self.fatal = job, folder, set(fatal)
        self.workers = range(workers)
        self.hired = 0
        self.begun: list[Entries] = []
        self.held = self.closed = False
        self.shops = {worker: self._shop() for worker in self.workers}

    def _shop(self) -> Workshop:
        self.hired += 1
        shop = Workshop(self.job, self.folder / f"worker-{self.hired}")
        shop.pool = InHouse()
        shop.lab.pool = shop.pool
        return shop

    def give(self, worker: int, entries: Entries, training: Training) -> list[Any]:
        return [self.shops[worker], entries]

    def ended(self, tickets: Sequence[Any], seconds: float) -> list[Any]:
        assert not self.held, "nothing may be computed while something is timed"
        for ticket in tickets[:1]:
            if len(ticket) == 2:
                self.begun.append(ticket[1])
                gone = len(self.begun) in self.fatal
                ticket.append(
                    Lost("killed") if gone else ticket[0].carry_out(ticket[1], Training())
                )
        return [ticket for ticket in tickets if len(ticket) == 3]

    def check(self, ticket: Any) -> None:
        if isinstance(ticket[2], Lost):
            raise ticket[2]

    def fetch(self, ticket: Any) -> Made:
        self.check(ticket)
        made = ticket[2]
        assert isinstance(made, Made)
        return made

    def forget(self, ticket: Any) -> None:
        ticket.append(Lost("forgotten"))

    def about(self, worker: int) -> dict[str, Any]:
        return {"host": "here", "pid": worker}

    def replace(self, worker: int) -> None:
        self.shops[worker] = self._shop()

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def close(self) -> None:
        self.closed = True


def searched(lab: trials.Laboratory, crew: Crew | None, count: int = 12) -> list[Trial]:
    """The loop of `optimizing.search`, without a certificate."""
    names = {type(each) for each in sum(PORTFOLIO, ())}
    known = {each.__name__.lower(): each for each in names}
    seeker = GuidedSearch("fake", known, PORTFOLIO, trials=count, seed=3)
    told = []
    while (asked := seeker.ask()) is not None:
        if crew is not None:
            crew.foresee(seeker.upcoming(crew.width), Training())
            made = crew.bring(asked[0], 60.0)
            if made is not None:
                take(lab, made)
        trial = lab.try_recipe(len(told), asked[0])
        seeker.tell(trial)
        if trial.model:
            lab.seen.setdefault(trial.model, trial)
        told.append(trial)
    return told


def without_time(told: list[Trial]) -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(trial).items() if k != "seconds"} for trial in told]


def crewed(
    folder: Path, lab: trials.Laboratory, workers: int, fatal: Sequence[int] = ()
) -> tuple[Crew, FakeHands]:
    hands = FakeHands(job_of(lab, travels=True), folder / "workers", workers, fatal)
    assert isinstance(hands, object)
    typed: Hands = hands
    crew = Crew(typed, lab.journal, likeness("fake"))
    lab.quiet = crew.quiet
    return crew, hands


@pytest.mark.parametrize(
    ("workers", "fatal"), [(1, ()), (2, ()), (5, ()), (2, (2,)), (2, (1, 2, 3)), (1, range(1, 99))]
)
def test_the_trials_are_the_same_with_workers_and_when_they_are_lost(
    workers: int, fatal: Sequence[int], tmp_path: Path
) -> None:
    plain = searched(laboratory(tmp_path / "plain"), None)
    assert {trial.state for trial in plain} >= {"done", "refused", "failed"}
    lab = laboratory(tmp_path / "crew")
    crew, hands = crewed(tmp_path, lab, workers, fatal)
    assert without_time(searched(lab, crew)) == without_time(plain)
    lost = lab.journal.events("lost")
    assert len(lost) == len([n for n in fatal if n <= len(hands.begun)])
    if not fatal:
        assert crew.brought >= 4
    if len(fatal) == 1:
        assert lost[0]["again"] == "its successor"
        redone = lab.journal.events("redone")
        assert [each["recipe"] for each in redone] == [lost[0]["recipe"]]
        assert redone[0]["tries"] == 2
    if len(fatal) > 50:  # workers that never live: they are given up, the driver works alone
        assert not crew.queues
        assert crew.brought == 0


def test_work_that_kills_two_workers_is_left_to_the_driver(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)
    crew, hands = crewed(tmp_path, lab, 1, (1, 2))
    crew.foresee([PORTFOLIO[0]], Training())
    assert crew.bring(PORTFOLIO[0], 60.0) is None
    told = [(each["tries"], each["again"]) for each in lab.journal.events("lost")]
    assert told == [(1, "its successor"), (2, "nobody: the driver does it")]
    assert hands.hired == 3
    assert crew.queues == {0: []}


def test_models_answers_and_ends_come_from_the_worker(tmp_path: Path) -> None:
    """Nothing is left to do for the driver but to time: its pool would fail."""
    plain = laboratory(tmp_path / "plain")
    expected = [plain.try_recipe(n, each) for n, each in enumerate([(), *PORTFOLIO])]
    lab = laboratory(tmp_path / "crew")
    first = lab.try_recipe(0, ())
    lab.answered(lab.original, len(lab.search))
    crew, _ = crewed(tmp_path, lab, 2)

    class Idle(InProcess):
        def call(self, *args: Any, **kw: Any) -> Any:
            raise AssertionError("the driver computes")

    lab.pool = Idle()  # type: ignore[assignment]
    told = [first]
    for number, each in enumerate(PORTFOLIO, 1):
        crew.foresee(PORTFOLIO[number - 1 :], Training())
        made = crew.bring(each, 60.0)
        assert made is not None
        take(lab, made)
        told.append(lab.try_recipe(number, each))
    assert without_time(told) == without_time(expected)


def test_workers_of_another_kind_are_not_believed(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)
    crew, _ = crewed(tmp_path, lab, 1)
    crew.likeness = {**crew.likeness, "numpy": "1.0"}
    crew.foresee([PORTFOLIO[0]], Training())
    assert crew.bring(PORTFOLIO[0], 60.0) is None


def test_what_waits_behind_something_else_is_done_by_the_driver(tmp_path: Path) -> None:
    lab = laboratory(tmp_path)
    crew, hands = crewed(tmp_path, lab, 1)
    hands.ended = lambda tickets, seconds: []  # type: ignore[method-assign]
    crew.foresee(PORTFOLIO, Training())
    assert [unit.recipe for unit in crew.queues[0]] == PORTFOLIO[:2]
    assert crew.bring(PORTFOLIO[1], 60.0) is None
    assert [unit.recipe for unit in crew.queues[0]] == PORTFOLIO[:1]
    assert crew.bring(PORTFOLIO[0], 0.0) is None, "patience ends"


def test_the_holdout_does_not_travel(tmp_path: Path) -> None:
    job = job_of(laboratory(tmp_path), travels=True)
    assert job.packed is not None
    assert set(job.packed) == {"teacher", "search"}
    away = job.unpacked(tmp_path / "away")
    assert digest(away.teacher) == digest(job.bench.teacher)
    assert away.search.digest == job.bench.search.digest
    assert str(tmp_path / "away") in str(away.search.folder)
    assert np.array_equal(away.search.inputs(slice(0, 9))["row"], np.arange(9))


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", ""])
def test_files_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no name of a file"):
        write_files({"fine": b"1", name: b"2"}, tmp_path / "in")
    assert not list(tmp_path.rglob("*out*"))
    assert not (tmp_path / "in").exists()


def test_an_adopted_model_is_the_one_that_was_put(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "m", error=0.2)
    kept = Store(tmp_path / "one").put("key", model)
    there = Store(tmp_path / "two").adopt("key", files_of(tmp_path / "one" / "key"))
    assert digest(there) == digest(kept) == digest(model)
    assert Store(tmp_path / "two").get("key") is not None


# -- with child processes ---------------------------------------------------------------------


def crash(technique: Toy, model: Model, bench: LocalBench, store: Path, key: str) -> Model:
    os.abort()


def be_killed(technique: Toy, model: Model, bench: LocalBench, store: Path, key: str) -> Model:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize(
    ("step", "told"), [(crash, "aborted (SIGABRT)"), (be_killed, None)], ids=["crash", "killed"]
)
def test_a_crash_is_the_trials_failure_and_the_worker_lives(
    step: Any, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was killed from outside tells nothing of the technique: the driver tries it itself."""
    shop = Workshop(job_of(laboratory(tmp_path), travels=True), tmp_path / "worker")
    entries = [{"technique": "fuse"}]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(building, "apply_step", step)
            made = shop.carry_out(entries, Training())
        if told is None:
            assert made.stopped is None
        else:
            assert made.stopped is not None
            assert made.stopped[1] == "failed"
            assert made.stopped[2].startswith(told)
        assert not made.models
        made = shop.carry_out(entries, Training())
        assert made.stopped is None
        assert sum(len(each.values) for each in made.answers) == 600
    finally:
        shop.close()
    assert not (tmp_path / "worker").exists()


def spin(seconds: float) -> float:
    """Seconds of processor time used until so many have been."""
    while time.process_time() < seconds:
        pass
    return time.process_time()


def test_a_held_pool_stands_still_and_goes_on() -> None:
    with GatedPool() as pool:
        pool.call(os.getpid)
        assert pool.worker is not None
        child = psutil.Process(pool.worker.process.pid).children()[0]
        found: list[float] = []
        work = threading.Thread(target=lambda: found.append(pool.call(spin, 3.0)))
        work.start()
        while child.cpu_times().user + child.cpu_times().system < 0.5:
            time.sleep(0.01)
        pool.hold()
        assert child.status() == psutil.STATUS_STOPPED
        used = child.cpu_times()
        time.sleep(0.5)
        assert child.cpu_times() == used
        assert not found
        pool.release()
        work.join(120)
        assert found


def test_what_is_asked_of_a_held_pool_waits() -> None:
    with GatedPool() as pool:
        pool.hold()
        found: list[int] = []
        work = threading.Thread(target=lambda: found.append(pool.call(os.getpid)))
        work.start()
        time.sleep(0.3)
        assert pool.worker is None
        pool.release()
        work.join(120)
        assert found
