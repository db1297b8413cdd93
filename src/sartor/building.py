"""Recipes become models: one step after the other, each in a child process, kept by its key.

What two recipes begin with alike is made once. A step that fails, hangs or refuses ends the recipe
with its reason; one that trains says how long it takes, and may take longer than others.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sartor.bench import LocalBench
from sartor.contracts import (
    Failed,
    Model,
    Recipe,
    Technique,
    Unneeded,
    technique_name,
    to_json,
    trains,
)
from sartor.evaluate import digest
from sartor.pace import Pace
from sartor.records import State
from sartor.registry import runtime
from sartor.store import Store, key_of
from sartor.workers import DiskFull, Pool

APPLY_SECONDS = 900.0
SLOWNESS = 1.5  # before one was seen: the first training computes the original's answers too


class Stopped(Failed):
    """A technique of the recipe refused, or failed; the trial ends as `state`."""

    def __init__(self, state: State, technique: Technique, reason: str) -> None:
        super().__init__(reason)
        self.state, self.culprit, self.reason = state, technique_name(technique), reason


def apply_step(
    technique: Technique, model: Model, bench: LocalBench, store: Path, key: str
) -> Model | str:
    """In a child: the changed model out of the store, or the reason of a refusal."""
    reason = technique.refuse(model, bench)
    if reason is not None:
        return reason
    return Store(store).put(key, technique.apply(model, bench), bench.scratch)


class Builder:
    """Builds models of one original in its store."""

    def __init__(self, original: Model, bench: LocalBench, store: Store, pool: Pool) -> None:
        self.original, self.bench, self.store, self.pool = original, bench, store, pool
        self.patience: Callable[[], float] = lambda: APPLY_SECONDS  # seconds one step may take
        self.longest: Callable[[], float] = lambda: math.inf  # seconds a training may take
        self.slowness = SLOWNESS  # how much longer a training takes than its steps were reckoned
        self.scratch: Path | None = None  # of the step that is being applied
        self.stops: dict[str, tuple[State, str]] = {}  # key -> how a step ended ahead, and why
        self.keys: dict[Recipe, str] = {}  # recipe -> where the store has what it made

    def build(self, recipe: Recipe, lineage: list[Model] | None = None) -> Model:
        """The model that the recipe makes; shared beginnings come from the store. Raises Stopped.
        `lineage`, where given, receives the model after each step."""
        model = self.original
        for technique in recipe:
            key = self.key(model, technique)
            if key in self.stops:
                raise Stopped(self.stops[key][0], technique, self.stops[key][1])
            model = self.store.get(key) or self._apply(technique, model, key)
            if lineage is not None:
                lineage.append(model)
        if recipe:
            self.keys[recipe] = key
        return model

    def _apply(self, technique: Technique, model: Model, key: str) -> Model:
        try:
            made = self._made_with_room(technique, model, key)
        except Unneeded as nothing:
            raise Stopped("refused", technique, str(nothing)) from None
        except Failed as failure:
            if not self.store.room():  # not its fault: somebody else filled the disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from failure
            raise Stopped("failed", technique, str(failure)) from None
        if isinstance(made, str):
            raise Stopped("refused", technique, made)
        return made

    def _made_with_room(self, technique: Technique, model: Model, key: str) -> Model | str:
        try:
            return self._made(technique, model, key)
        except DiskFull:  # by what was kept of earlier trials, perhaps
            if not self.store.shrink(Path(str(model.payload))):
                raise
            return self._made(technique, model, key)

    def _made(self, technique: Technique, model: Model, key: str) -> Model | str:
        self.scratch, patience, nominal = self.store.scratch(), self.patience(), 0.0
        if trains(technique):  # it is known how long that takes: no hang
            nominal = self.bench.training.takes(getattr(technique, "effort", 1.0))
            patience = max(patience, min(2 * self.slowness * nominal, self.longest()))
        try:
            bench = self.bench.on(model, self.scratch, patience, self.slowness)
            made: Model | str = self.pool.call(
                apply_step, technique, model, bench, self.store.folder, key, timeout=patience
            )
            return made
        finally:
            told = self.training()
            if told and nominal:  # also of one that was given up
                self.slowness = max(told.seconds / nominal, 1.0)
            shutil.rmtree(self.scratch, ignore_errors=True)

    def training(self) -> Pace | None:
        """How far the training is that goes on at this moment, if one does."""
        return None if self.scratch is None else Pace.read(self.scratch)

    def key(self, model: Model, technique: Technique) -> str:
        made = runtime(technique.makes).versions() if technique.makes else {}
        return key_of(
            model=digest(model),
            technique=to_json(technique),
            bench=self.bench.facts(trains(technique)),
            versions={**runtime(model.kind).versions(), **made},
        )
