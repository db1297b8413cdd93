"""Toy techniques for fake models, one of each stage, whose effects are known and multiply.

They exist for tests of what drives techniques: one always fails, one always refuses, one makes
things worse.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sartor.contracts import Bench, Failed, Model, Step, Technique, to_json
from sartor.fake_model import SIGNATURE, Facts, read, write
from sartor.space import choice, span

PARTS = ("first", "second", "third")


@dataclasses.dataclass(frozen=True)
class Toy(Technique):
    """What the toys have in common: they turn figures into other figures."""

    kinds: ClassVar[frozenset[str]] = frozenset({"fake"})

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes fake models only, not {model.kind}"
        done = [step for step in model.lineage if type(step.technique) is type(self)]
        return "was applied already" if done else None

    def apply(self, model: Model, bench: Bench) -> Model:
        before = read(Path(model.payload))
        after = self.effect(before)
        text = json.dumps([dataclasses.asdict(before), to_json(self)], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        bench.scratch.mkdir(parents=True, exist_ok=True)
        path = write(after, bench.scratch, name)
        lineage = (*model.lineage, Step(self, self.touched(), self.skipped()))
        return Model("fake", path.absolute(), SIGNATURE, model.settings, lineage)

    @abstractmethod
    def effect(self, facts: Facts) -> Facts:
        """The figures afterwards."""

    def touched(self) -> tuple[str, ...]:
        return PARTS

    def skipped(self) -> tuple[tuple[str, str], ...]:
        return ()


def _changed(
    facts: Facts, *, seconds: float = 1.0, size: float = 1.0, error: float = 0.0, flips: float = 0.0
) -> Facts:
    return dataclasses.replace(
        facts,
        seconds=facts.seconds * seconds,
        bytes=max(round(facts.bytes * size), 1),
        memory=max(round(facts.memory * size), 1),
        error=min(facts.error + error, 1.0),
        flips=min(facts.flips + flips, 1.0),
        salt=facts.salt + 1,
    )


@dataclasses.dataclass(frozen=True)
class Slim(Toy):
    """Takes away the share `strength` of everything; the error grows with its square."""

    stage: ClassVar[str] = "structure"
    claims: ClassVar[frozenset[str]] = frozenset({"size", "latency", "macs"})
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    strength: float = span(0.2, 0.0, 0.8)

    def effect(self, facts: Facts) -> Facts:
        if self.strength == 0:
            return facts
        kept = 1 - self.strength
        made = _changed(facts, seconds=kept, size=kept, error=0.1 * self.strength**2, flips=0.02)
        return dataclasses.replace(made, macs=round(facts.macs * kept))


@dataclasses.dataclass(frozen=True)
class Share(Toy):
    """Fewer different weights: smaller on disk, never faster."""

    stage: ClassVar[str] = "weights"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})
    values: int = choice(16, values=(256, 64, 16, 4))

    def effect(self, facts: Facts) -> Facts:
        size = {256: 0.25, 64: 0.19, 16: 0.13, 4: 0.07}[self.values]
        return _changed(facts, size=size, error=0.04 / self.values, flips=0.01)


@dataclasses.dataclass(frozen=True)
class Fuse(Toy):
    """A little faster, the same answers."""

    stage: ClassVar[str] = "graph"
    claims: ClassVar[frozenset[str]] = frozenset({"latency"})
    neutral: ClassVar[Mapping[str, Any] | None] = {}

    def effect(self, facts: Facts) -> Facts:
        return dataclasses.replace(facts, seconds=facts.seconds * 0.9)


@dataclasses.dataclass(frozen=True)
class Round(Toy):
    """Fewer bits. `exceptions` parts stay as they are: each buys back a third of what was lost."""

    stage: ClassVar[str] = "precision"
    claims: ClassVar[frozenset[str]] = frozenset({"size", "latency"})
    repair: ClassVar[str | None] = "exceptions"
    bits: int = choice(8, 4)
    exceptions: int = choice(0, 1, 2)

    def effect(self, facts: Facts) -> Facts:
        done = 1 - self.exceptions / 3
        seconds, size, error = {8: (0.5, 0.25, 0.006), 4: (0.6, 0.13, 0.03)}[self.bits]
        return _changed(
            facts,
            seconds=1 - done * (1 - seconds),
            size=1 - done * (1 - size),
            error=error * done,
            flips=0.03 * done,
        )

    def touched(self) -> tuple[str, ...]:
        return PARTS[self.exceptions :]

    def skipped(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, "an exception") for name in PARTS[: self.exceptions])


@dataclasses.dataclass(frozen=True)
class Pack(Toy):
    """Smaller on disk, slower to run."""

    stage: ClassVar[str] = "storage"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    def effect(self, facts: Facts) -> Facts:
        size = max(round(facts.bytes * 0.8), 1)
        return dataclasses.replace(facts, bytes=size, seconds=facts.seconds * 1.05)


@dataclasses.dataclass(frozen=True)
class Sluggish(Toy):
    """Makes everything slower: no search should keep it."""

    stage: ClassVar[str] = "graph"

    def effect(self, facts: Facts) -> Facts:
        return dataclasses.replace(facts, seconds=facts.seconds * 3)


@dataclasses.dataclass(frozen=True)
class Broken(Toy):
    """Always fails."""

    stage: ClassVar[str] = "weights"

    def effect(self, facts: Facts) -> Facts:
        raise Failed("this toy always fails")


@dataclasses.dataclass(frozen=True)
class Unwilling(Toy):
    """Always refuses."""

    stage: ClassVar[str] = "precision"

    def effect(self, facts: Facts) -> Facts:
        return facts

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return "this toy always refuses"


def portfolio(model: Model, bench: Bench) -> Sequence[Sequence[Mapping[str, Any]]]:
    """Recipes known to be good: the milder, the earlier."""
    return [
        [{"technique": "fuse"}],
        [{"technique": "fuse"}, {"technique": "round"}],
        [{"technique": "share"}, {"technique": "fuse"}],
    ]
