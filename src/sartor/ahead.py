"""Work done before the search asks for it, by workers that may be lost at any moment.

The driver decides alone and in order, as without workers. What they do ahead of it are values that
it would compute itself: a technique is pure, and a worker carries a recipe out by the driver's own
`Laboratory`, in a child process of its own. The driver finds the models in its store, by their
keys, and the answers in its memory; what is lost, late or was guessed wrong it does itself. So the
answer cannot depend on how many workers there are, nor on what becomes of them.

`Crew` hands recipes out and takes them in; it knows no cluster, only `Hands` (see `cluster`).
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sartor.contracts import Recipe, Training, describe, to_json
from sartor.records import Journal
from sartor.search import key_of
from sartor.trials import Laboratory
from sartor.workshop import Entries, Made

DEEP = 2  # recipes that a worker holds: one in hand, one to go on with
TRIES = 2  # of one recipe, when workers are lost over it; then the driver does it itself
REPLACED = 3  # times that a lost worker is replaced
UNCLAIMED = 4  # finished recipes kept for each worker, in case the search comes back to them
LOOK_SECONDS = 0.5  # between two looks at what a worker is about to finish


class Lost(Exception):
    """The worker is gone, and what it was doing with it."""


def take(lab: Laboratory, made: Made) -> None:
    """Puts what a worker made where the laboratory looks first."""
    for key, files in made.models:
        if lab.store.get(key) is None:
            lab.store.adopt(key, files)
    if made.stopped is not None:
        key, state, reason = made.stopped
        lab.stops[key] = (state, reason)
    lab.foreseen = {
        (each.model, each.start, each.end): (each.values, each.seconds) for each in made.answers
    }


class Hands(Protocol):
    """Workers, by number. A ticket stands for a recipe that one of them was given."""

    @property
    def workers(self) -> Sequence[int]: ...

    def give(self, worker: int, entries: Entries, training: Training) -> Any:
        """Puts a recipe behind those that the worker has already; its ticket."""

    def ended(self, tickets: Sequence[Any], seconds: float) -> list[Any]:
        """Those that ended, well or not, after at most so many seconds (at once where one has)."""

    def check(self, ticket: Any) -> None:
        """Raises Lost where the worker of an ended ticket is gone."""

    def fetch(self, ticket: Any) -> Made:
        """What came of an ended ticket. Raises Lost."""

    def forget(self, ticket: Any) -> None:
        """It is not wanted any more; it need not be begun."""

    def about(self, worker: int) -> Mapping[str, Any]:
        """Where the worker is: plain JSON for the journal."""

    def replace(self, worker: int) -> None:
        """Starts another worker in the place of one that is gone."""

    def hold(self) -> None:
        """The workers on this machine stand still when this returns."""

    def release(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Unit:
    """A recipe in the hands of a worker."""

    recipe: Recipe
    training: Training
    ticket: Any
    tries: int = 1

    @property
    def entries(self) -> Entries:
        return [to_json(each) for each in self.recipe]


@dataclass
class Crew:
    """Gives the workers what the search will ask soon, and brings what it asks."""

    hands: Hands
    journal: Journal
    likeness: Mapping[str, Any]
    queues: dict[int, list[Unit]] = field(default_factory=dict)
    finished: OrderedDict[str, Unit] = field(default_factory=OrderedDict)
    replaced: dict[int, int] = field(default_factory=dict)
    given: int = 0  # recipes that workers were given
    brought: int = 0  # and that were asked then: ready, or about to be

    def __post_init__(self) -> None:
        self.queues = {worker: [] for worker in self.hands.workers}

    @property
    def width(self) -> int:
        """How many upcoming recipes are of use."""
        return DEEP * len(self.queues)

    def foresee(self, recipes: Sequence[Recipe], training: Training) -> None:
        """Gives out what is likely to be asked, the likeliest first, and how much it may train."""
        self._collect(0.0)
        for recipe in recipes:
            free = min(self.queues, key=lambda worker: len(self.queues[worker]), default=None)
            if free is None or len(self.queues[free]) >= DEEP:
                return
            if recipe and not self._known(key_of(recipe)):
                unit = Unit(recipe, training, None)
                unit.ticket = self.hands.give(free, unit.entries, training)
                self.queues[free].append(unit)
                self.given += 1

    def bring(self, recipe: Recipe, patience: float) -> Made | None:
        """What the workers made of the recipe; waits where one has it in hand, `patience` seconds
        at most. None where the driver has to do it."""
        key, until = key_of(recipe), time.monotonic() + patience
        while self._in_hand(key) and time.monotonic() < until:
            self._collect(LOOK_SECONDS)
        self._withdraw(key)
        unit = self.finished.pop(key, None)
        if unit is None:
            return None
        try:
            made = self.hands.fetch(unit.ticket)
        except Lost:
            self._note(unit, None, "nobody: the driver does it")
            return None
        if made.likeness != self.likeness:
            return None  # a worker that came later, on a machine of another kind
        self.brought += 1
        return made

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """No worker computes on this machine meanwhile."""
        self.hands.hold()
        try:
            yield
        finally:
            self.hands.release()

    def _known(self, key: str) -> bool:
        return key in self.finished or any(
            key_of(unit.recipe) == key for queue in self.queues.values() for unit in queue
        )

    def _in_hand(self, key: str) -> bool:
        heads = (queue[0] for queue in self.queues.values() if queue)
        return any(key_of(unit.recipe) == key for unit in heads)

    def _withdraw(self, key: str) -> None:
        """Takes the recipe back from where it still waits behind another."""
        for worker, queue in self.queues.items():
            for unit in queue[1:]:
                if key_of(unit.recipe) == key:
                    self.hands.forget(unit.ticket)
                    self.queues[worker].remove(unit)

    def _collect(self, seconds: float) -> None:
        """Sees what ended and whom that concerns: recipes that are done, workers that are lost."""
        tickets = [unit.ticket for queue in self.queues.values() for unit in queue]
        ended = self.hands.ended(tickets, seconds) if tickets else []
        for worker in list(self.queues):
            queue = self.queues[worker]
            try:
                while queue and any(queue[0].ticket is each for each in ended):
                    self.hands.check(queue[0].ticket)
                    self._finish(worker, queue.pop(0))
            except Lost:
                self._lose(worker)
        while len(self.finished) > UNCLAIMED * max(len(self.queues), 1):
            _, oldest = self.finished.popitem(last=False)
            self.hands.forget(oldest.ticket)

    def _finish(self, worker: int, unit: Unit) -> None:
        self.finished[key_of(unit.recipe)] = unit
        if unit.tries > 1:
            self.journal.add(
                "redone", recipe=describe(unit.recipe), tries=unit.tries,
                worker=worker, **self.hands.about(worker),
            )  # fmt: skip

    def _lose(self, worker: int) -> None:
        """The worker is gone, and what it had in hand with it: once more, by its successor; what
        waited behind that has cost nothing yet."""
        queue = self.queues[worker]
        unit = queue[0]
        self.replaced[worker] = self.replaced.get(worker, 0) + 1
        goes_on = self.replaced[worker] <= REPLACED
        again = unit.tries < TRIES and goes_on
        self._note(unit, worker, "its successor" if again else "nobody: the driver does it")
        if not again:
            queue.pop(0)
        else:
            unit.tries += 1
        if not goes_on:
            del self.queues[worker]
            return
        self.hands.replace(worker)
        for each in queue:
            each.ticket = self.hands.give(worker, each.entries, each.training)

    def _note(self, unit: Unit, worker: int | None, again: str) -> None:
        where = {} if worker is None else {"worker": worker, **self.hands.about(worker)}
        self.journal.add(
            "lost", recipe=describe(unit.recipe), tries=unit.tries, again=again, **where
        )
