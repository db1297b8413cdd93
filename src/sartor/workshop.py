"""A worker's side of `ahead`: what it is told, the laboratory in which it carries recipes out by
the driver's own code, and what it sends back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from sartor import machine
from sartor.bench import LocalBench
from sartor.building import Stopped
from sartor.contracts import HUNG, Failed, Model, Recipe, Training
from sartor.data import Part
from sartor.evaluate import digest
from sartor.limits import Objective
from sartor.racing import SAMPLES, looks
from sartor.records import Journal, State
from sartor.registry import kinds, runtime
from sartor.registry import recipe as recipe_from_json
from sartor.store import Files, Store, files_of, read_model, write_files, write_model
from sartor.trials import Laboratory
from sartor.workers import Pool, Worker

Result = TypeVar("Result")
Entries = Sequence[Mapping[str, Any]]

AHEAD_ROWS = SAMPLES[-1]  # of the search split that are answered ahead


# -- what travels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a worker must know of a run; the holdout is not in it. `packed` holds the files of the
    original ("teacher") and of the parts ("train", "search") where it cannot read the driver's."""

    bench: LocalBench
    objective: Objective
    ceiling: int | None
    packed: Mapping[str, Files] | None = None

    def unpacked(self, folder: Path) -> LocalBench:
        """The bench, with its files below `folder` where they had to travel."""
        if self.packed is None:
            return dataclasses.replace(self.bench, scratch=folder / "scratch")
        for name, files in self.packed.items():
            write_files(files, folder / name)
        teacher = read_model(folder / "teacher")
        train = self.bench.train
        return dataclasses.replace(
            self.bench,
            model=teacher,
            teacher=teacher,
            train=None if train is None else dataclasses.replace(train, folder=folder / "train"),
            search=dataclasses.replace(self.bench.search, folder=folder / "search"),
            scratch=folder / "scratch",
            memory=folder / "remembered",
        )


def job_of(lab: Laboratory, travels: bool) -> Job:
    """What workers of this laboratory need, with all files in it where the job `travels`."""
    job = Job(lab.bench, lab.objective, lab.ceiling)
    if not travels:
        return job
    with tempfile.TemporaryDirectory() as folder:
        write_model(lab.original, Path(folder))
        packed = {"teacher": files_of(Path(folder))}
    parts: dict[str, Part | None] = {"train": lab.bench.train, "search": lab.bench.search}
    packed |= {name: files_of(part.folder) for name, part in parts.items() if part is not None}
    return dataclasses.replace(job, packed=packed)


@dataclass(frozen=True)
class Answered:
    """The answers of the model with this digest to the rows `start` to `end` of the search split
    in the laboratory's order, and the seconds that they took."""

    model: str
    start: int
    end: int
    values: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Made:
    """What came of a recipe: the models by their keys in the store, answers of the last one, and
    the step at which it ended early (its key), if it did. `likeness` is the worker's."""

    likeness: Mapping[str, Any]
    models: tuple[tuple[str, Files], ...] = ()
    answers: tuple[Answered, ...] = ()
    stopped: tuple[str, State, str] | None = None


def likeness(kind: str) -> dict[str, Any]:
    """What must be equal on two machines for their models and answers to be equal: the versions
    of the packages, and the instruction sets, by which a framework chooses its arithmetic."""
    versions = {"sartor": version("sartor"), "numpy": np.__version__}
    for each in kinds(kind):
        versions |= runtime(each).versions()
    # What a training makes depends on over how many threads its sums are spread.
    return {**versions, "instructions": sorted(machine.features()), "cores": machine.cores()}


# -- a worker -------------------------------------------------------------------------------------


class GatedPool(Pool):
    """A pool whose child can be held still while something else is timed on the machine.

    `killed`: whether the last call ended by a kill from outside or for taking too long: that tells
    of the machine, not of the technique."""

    def __init__(self, memory: int | None = None) -> None:
        super().__init__(memory)
        self.held = False
        self.killed = False
        self._gate = threading.Condition()

    def call(self, function: Callable[..., Result], *args: Any, **kw: Any) -> Result:
        with self._gate:
            self._gate.wait_for(lambda: not self.held)
            if self.worker is None or not self.worker.alive:
                self.worker = Worker("pool", self.memory)
                # Only a child that answers has arranged to die with its parent: one that were
                # stopped before would stay behind.
                self.worker.call(os.getpid)
        self.killed = False
        try:
            return super().call(function, *args, **kw)
        except Failed as failure:
            self.killed = str(failure).startswith(("killed", HUNG))
            raise

    def hold(self) -> None:
        """Stops the child; it stands still when this returns."""
        with self._gate:
            self.held = True
            for child in self._signal(signal.SIGSTOP):
                with contextlib.suppress(psutil.Error):
                    while child.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                        time.sleep(0.0005)

    def release(self) -> None:
        with self._gate:
            self.held = False
            self._signal(signal.SIGCONT)
            self._gate.notify_all()

    def _signal(self, which: signal.Signals) -> list[psutil.Process]:
        """Sends it to all below the worker's keeper, which itself goes on to watch the driver."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            while self.worker is not None and self.worker.alive and not found:
                found = psutil.Process(self.worker.process.pid).children(recursive=True)
            for each in found:
                each.send_signal(which)
        return found


class Workshop:
    """A worker's side: a laboratory in a folder of its own. It never times anything."""

    def __init__(self, job: Job, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a worker that was killed
        folder.mkdir(parents=True)
        self.folder = folder
        bench = job.unpacked(folder)
        self.kind = bench.teacher.kind
        self.lab = Laboratory(
            bench.teacher, bench, bench.search, bench.limits, job.objective,
            Store(folder / "models"), Journal(folder / "run.jsonl"), ceiling=job.ceiling,
        )  # fmt: skip
        self.pool = GatedPool(job.ceiling)
        self.lab.pool = self.pool

    def carry_out(self, entries: Entries, training: Training) -> Made:
        """Builds the recipe, with so much training granted, and answers the first rows of the
        search split."""
        self.lab.bench = dataclasses.replace(self.lab.bench, training=training)
        recipe, models = recipe_from_json(self.kind, entries), list[Model]()
        stopped: tuple[str, State, str] | None = None
        try:
            self.lab.build(recipe, models)
        except Stopped as end:
            if not self.pool.killed:
                stopped = (self._keys(recipe, models)[-1], end.state, end.reason)
        answered = self._answers(models[-1]) if len(models) == len(recipe) and models else ()
        keys = self._keys(recipe, models)[: len(models)]
        folders = [self.lab.store.folder / key for key in keys]
        return Made(
            likeness(self.kind),
            tuple((k, files_of(place)) for k, place in zip(keys, folders, strict=True)),
            answered,
            stopped,
        )

    def _keys(self, recipe: Recipe, models: list[Model]) -> list[str]:
        """Of each model made, and of the first that was not."""
        before = [self.lab.original, *models]
        return [self.lab.key(m, t) for m, t in zip(before, recipe, strict=False)]

    def _answers(self, model: Model) -> tuple[Answered, ...]:
        """In the very portions that the driver asks for; what fails here it will see itself."""
        found: list[Answered] = []
        key, start = digest(model), 0
        with contextlib.suppress(Failed):
            for end in looks(len(self.lab.search)):
                if end > AHEAD_ROWS:
                    break
                began = time.monotonic()
                values = self.lab.answered(model, end)[start:]
                found.append(Answered(key, start, end, values, time.monotonic() - began))
                start = end
        return tuple(found)

    def close(self) -> None:
        self.lab.close()
        shutil.rmtree(self.folder, ignore_errors=True)
