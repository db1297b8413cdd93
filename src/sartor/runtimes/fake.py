"""A null back end: a model whose quality, latency and size are numbers in a small JSON file.

Its sessions answer at once and turn a fake clock on by the time that they claim, so that search,
statistics and certification can be tested on a known truth in milliseconds, without processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from sartor.contracts import Arrays, Model, Part, Signature, Target, WrongRequest
from sartor.fake_model import SIGNATURE, Facts, answers, read, uniform, write


class FakeClock:
    """A clock that only runs when something is done, in ticks of 2^-30 s: sums and differences of
    such numbers are exact, so that what a run takes does not depend on when it began."""

    TICK: ClassVar[float] = 2.0**-30

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds / self.TICK) * self.TICK


class Fake:
    """The runtime of fake models. Its `clock` is turned on by its sessions."""

    kind: ClassVar[str] = "fake"
    suffixes: ClassVar[tuple[str, ...]] = (".fake",)
    internal: ClassVar[bool] = True

    def __init__(self) -> None:
        self.clock = FakeClock()

    def open(self, path: Path, known: Signature | None = None) -> Model:
        path = Path(path).absolute()
        read(path)
        return Model(self.kind, path, SIGNATURE)

    def save(self, model: Model, folder: Path) -> Path:
        """The JSON, and beside it a sparse file that makes up the size that it claims."""
        folder.mkdir(parents=True, exist_ok=True)
        return write(read(model.payload), folder, Path(model.payload).stem)

    def digest(self, model: Model) -> str:
        """Of the figures and the settings: equal figures are equal models."""
        entry = [dataclasses.asdict(read(model.payload)), dict(model.settings)]
        return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()

    def size(self, model: Model) -> int:
        return read(model.payload).bytes

    def start(self, model: Model, target: Target) -> FakeSession:
        return FakeSession(read(model.payload), model.signature, self.clock)

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """Three layers of one size."""
        facts = read(model.payload)
        names = ("first", "second", "third")
        return tuple(
            Part(name, "Fake", facts.bytes // 12, facts.bytes // 3, facts.macs // 3)
            for name in names
        )

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        seconds = read(model.payload).seconds * target.batch
        return dict.fromkeys(("first", "second", "third"), seconds / 3)

    def versions(self) -> Mapping[str, str]:
        return {"numpy": np.__version__}


class FakeSession:
    """Answers rows by their number: logits [rows, 4]."""

    def __init__(self, facts: Facts, signature: Signature, clock: FakeClock) -> None:
        self.facts, self.signature, self.clock = facts, signature, clock
        self.calls = 0
        self.closed = False

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        rows = batch.get("row")
        if set(batch) != {"row"} or rows is None or rows.dtype != np.int64 or rows.ndim != 1:
            got = ", ".join(f"{name} {np.asarray(a).dtype}" for name, a in batch.items())
            raise WrongRequest(f"the model takes row int64[?]; it was given {got or 'nothing'}")
        self.calls += 1
        noise = uniform(np.array([self.calls]), 900 + self.facts.salt)[0]
        # Around 1 with a tail to the right, as latencies have it.
        factor = math.exp(self.facts.jitter * (2 * noise - 1) / math.sqrt(1 / 3))
        self.clock.advance(self.facts.seconds * len(rows) * factor)
        return {"logits": answers(rows, self.facts)}

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True
