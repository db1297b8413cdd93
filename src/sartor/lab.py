"""A laboratory for the technique laws: toy models, a bench over their inputs, and what techniques
made of them so far."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sartor.contracts import (
    Arrays,
    Failed,
    Model,
    Recipe,
    Session,
    Signature,
    Target,
    Task,
    Technique,
    Training,
    technique_name,
    to_json,
)
from sartor.fitting import in_portions
from sartor.registry import runtime

ROWS = 64  # rows in each part of a toy's data


class Broken(AssertionError):
    """A technique breaks a law; the sentence says which part of it and on which toy."""


@dataclass(frozen=True)
class Toy:
    """A small model and a source of inputs: `batch(rows, seed)` gives the same arrays each time.

    Both must be picklable: one law runs in another process."""

    name: str
    model: Model
    batch: Callable[[int, int], Arrays]


@dataclass
class ToyBench:
    """A Bench over a toy's seeded inputs; its labels are what the toy itself answers."""

    toy: Toy
    scratch: Path
    parts: tuple[str, ...] = ("train", "search")
    seed: int = 0
    limits: tuple[Any, ...] = ()
    target: Target = field(default_factory=Target)
    training: Training = field(default_factory=lambda: Training(30, 0.01, 1))
    augment: Callable[..., Arrays] | None = None
    processes: int = 1
    budget: float = 900.0
    patience: float = 900.0

    def __post_init__(self) -> None:
        self.teacher = self.toy.model
        output = self.teacher.signature.outputs[0]
        self.task = Task("classification", output.name, "accuracy", classes=output.shape[-1])
        self._known: dict[str, Mapping[str, np.ndarray]] = {}
        self.scratch.mkdir(parents=True, exist_ok=True)

    def batches(
        self, split: str, size: int = 1, most: int | None = None
    ) -> Iterator[Arrays] | None:
        if split not in self.parts:
            return None
        return self._batches(1 + self.parts.index(split), size, min(most or ROWS, ROWS))

    def _batches(self, seed: int, size: int, rows: int) -> Iterator[Arrays]:
        every = self._rows(seed, rows)
        for start in range(0, rows, size):
            yield {name: value[start : start + size] for name, value in every.items()}

    def _rows(self, seed: int, rows: int) -> Arrays:
        every = self.toy.batch(rows, seed)
        return {**every, "label": self.teach(every)[self.task.output].argmax(-1)}

    def count(self, split: str) -> int:
        return ROWS if split in self.parts else 0

    def pick(self, split: str, rows: np.ndarray) -> Arrays:
        every = self._rows(1 + self.parts.index(split), ROWS)
        return {name: value[rows] for name, value in every.items()}

    def lengths(self, split: str) -> np.ndarray | None:
        return None

    def teach(self, batch: Arrays, sharers: int = 1) -> Arrays:
        with runtime(self.teacher.kind).start(self.teacher, self.target) as session:
            inputs = {p.name: batch[p.name] for p in self.teacher.signature.inputs}
            return in_portions(session, self.teacher.signature, inputs)

    def remember(
        self, key: str, compute: Callable[[], Mapping[str, np.ndarray]], *, shared: bool = False
    ) -> Mapping[str, np.ndarray]:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def keeping(self, key: str) -> Path:
        return self.scratch / f"{hashlib.sha256(key.encode()).hexdigest()}.partial"


class Lab:
    """Toys, a folder, and what was made of them so far: laws share what they have in common."""

    def __init__(self, toys: Sequence[Toy], folder: Path) -> None:
        self.toys = {toy.name: toy for toy in toys}
        self.kind = toys[0].model.kind
        self.runtime = runtime(self.kind)
        self.folder = folder
        self._made: dict[tuple[str, str], Model | str] = {}
        self._benches: dict[str, ToyBench] = {}
        self._sessions: dict[int, tuple[Model, Session]] = {}

    def bench(self, toy: Toy, **facts: Any) -> ToyBench:
        """A fresh bench in a folder of its own; the one without special facts is shared."""
        if not facts and toy.name in self._benches:
            return self._benches[toy.name]
        count = sum(1 for _ in self.folder.glob("bench-*"))
        bench = ToyBench(toy, self.folder / f"bench-{count}", **facts)
        if not facts:
            self._benches[toy.name] = bench
        return bench

    def make(self, toy: Toy, recipe: Recipe) -> Model | str:
        """The toy after the recipe, or the reason why it was refused. Made once."""
        if not recipe:
            return toy.model
        key = (toy.name, json.dumps([to_json(each) for each in recipe], sort_keys=True))
        if key not in self._made:
            before = self.make(toy, recipe[:-1])
            bench = self.bench(toy)
            self._made[key] = (
                before if isinstance(before, str) else apply(recipe[-1], before, bench)
            )
        return self._made[key]

    def made(self, *recipe: Technique) -> Iterator[tuple[Toy, Model]]:
        """Every toy with what the recipe makes of it, without those that were refused."""
        for toy in self.toys.values():
            model = self.make(toy, recipe)
            if isinstance(model, Model):
                yield toy, model

    def answers(self, model: Model, batch: Arrays) -> Arrays:
        if id(model) not in self._sessions:
            started = runtime(model.kind).start(model, Target())
            # The model is kept too: an id is only its own while it lives.
            self._sessions[id(model)] = (model, started.__enter__())
        return in_portions(self._sessions[id(model)][1], model.signature, batch)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, session in self._sessions.values():
            session.__exit__(kind, error, trace)
        self._sessions.clear()


def apply(technique: Technique, model: Model, bench: ToyBench) -> Model | str:
    """The changed model, or the reason of a refusal, before or in the attempt.

    Raises Broken where the technique raises anything but Failed, or gives an empty reason."""
    name = technique_name(technique)
    try:
        reason = technique.refuse(model, bench)
        if reason is None:
            return technique.apply(model, bench)
    except Failed as error:
        reason = str(error)
    except Exception as error:
        raise Broken(
            f"{name} raises on {bench.toy.name} instead of refusing: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(reason, str) or len(reason) < 10:
        raise Broken(f"{name} refuses {bench.toy.name} without a sentence: {reason!r}")
    return reason


def alike(first: Arrays, second: Arrays) -> float:
    """The least cosine over the outputs of two answers; NaN and infinities count as -1."""
    least = 1.0
    for name, value in first.items():
        one, two = (np.asarray(v, np.float64).ravel() for v in (value, second[name]))
        if not np.isfinite(two).all():
            return -1.0
        norm = float(np.linalg.norm(one) * np.linalg.norm(two))
        least = min(least, float(one @ two) / norm if norm else float(np.array_equal(one, two)))
    return least


def keeps(before: Signature, after: Signature, kind: str) -> bool:
    """Whether the signature is the same; where models of the kind that came out have fixed sizes,
    those that were free may be fixed."""
    if not getattr(runtime(kind), "static", False):
        return before == after
    pairs = [
        *itertools.zip_longest(before.inputs, after.inputs),
        *itertools.zip_longest(before.outputs, after.outputs),
    ]
    return all(
        one is not None
        and two is not None
        and (one.name, one.dtype, len(one.shape)) == (two.name, two.dtype, len(two.shape))
        and all(n in (None, m) for n, m in zip(one.shape, two.shape, strict=True))
        for one, two in pairs
    )
