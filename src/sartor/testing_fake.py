"""Everything that drives models, without processes: a race and a pool for fake models."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sartor.contracts import Arrays, Model, Target
from sartor.data import Part
from sartor.fake_model import Facts, answers, labels, read, write
from sartor.records import Timing
from sartor.registry import runtime
from sartor.testing_runtimes import Specimen

Result = TypeVar("Result")
CALLS = 8


def fake_model(folder: Path, name: str = "model", **facts: Any) -> Model:
    """A fake model with these figures (see `fake_model.Facts`), written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return runtime("fake").open(write(Facts(**facts), folder, name))


def fake_arrays(rows: int, first: int = 0) -> dict[str, np.ndarray]:
    """Labelled data for fake models: row numbers from `first` on under "row", and "label"."""
    numbers = np.arange(first, first + rows)
    return {"row": numbers, "label": labels(numbers)}


def fake_part(folder: Path, rows: int, first: int = 0) -> Part:
    """A part of the data with such rows, in files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = fake_arrays(rows, first)
    np.save(folder / "input_0.npy", arrays["row"])
    np.save(folder / "label.npy", arrays["label"])
    (folder / "segments.json").write_text(json.dumps([]), encoding="utf-8")
    return Part(folder, rows, f"{first}+{rows}", ("row",))


class InProcess:
    """A pool that calls in this process. What fails raises what it raises; nothing times out."""

    def call(
        self, function: Callable[..., Result], *args: Any, timeout: float | None = None, **kw: Any
    ) -> Result:
        return function(*args, **kw)

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FakeRace:
    """`evaluate.Race` by the fake clock: the same rounds, no waiting."""

    def __init__(self, original: Model, target: Target, part: Part, seed: int = 0) -> None:
        self.original, self.target, self.part, self.seed = original, target, part, seed
        self.load_seconds = self.block_seconds = 0.0
        self.timed: list[str] = []  # digests of the candidates, in the order of their races

    def time(
        self,
        candidate: Model,
        rounds: int,
        seconds: float | None = None,
        least: int = 5,
        blocks: int = 1,
        *,
        runs: int = 0,
        further: Callable[[Timing], int] | None = None,
        patience: float = math.inf,
    ) -> Timing:
        engine = runtime("fake")
        self.timed.append(engine.digest(candidate))
        clock = engine.clock  # type: ignore[attr-defined]
        batch = {"row": np.arange(self.target.batch)}
        lanes = [engine.start(model, self.target) for model in (self.original, candidate)]
        lanes.append(engine.start(_twin(self.original), self.target))
        began, taken = clock(), []
        for number in range(max(rounds, 5)):
            if seconds is not None and number >= 5 and clock() - began >= seconds:
                break
            turn = []
            for run in lanes:
                calls = []
                for _ in range(CALLS):
                    start = clock()
                    run(batch)
                    calls.append(clock() - start)
                turn.append(calls)
            taken.append(turn)
        found = np.array(taken)
        return Timing(
            baseline=found[:, 0],
            candidate=found[:, 1],
            twin=found[:, 2],
            batch=self.target.batch,
            threads=self.target.threads,
        )

    def meter(self, metrics: Iterable[str], watts: float | None = None) -> None:
        """Nothing to meter."""

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> FakeRace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _twin(model: Model) -> Model:
    """The same figures with noise of its own."""
    facts = read(model.payload)
    folder = Path(model.payload).parent / "twin"
    folder.mkdir(exist_ok=True)
    other = dataclasses.replace(facts, salt=facts.salt + 10_000)
    return runtime("fake").open(write(other, folder, Path(model.payload).stem))


def fake_footprint(model: Model, target: Target, example: Arrays) -> int:
    """`evaluate.footprint` of a fake model: what it claims."""
    return read(model.payload).memory


def specimens(folder: Path) -> list[Specimen]:
    """Fake models for the runtime laws."""
    return [
        Specimen(name, fake_model(folder, name, **facts), _batch, _Reference(Facts(**facts)), 0.0)
        for name, facts in (("plain", {"bytes": 10_000}), ("odd", {"error": 0.4, "flips": 0.1}))
    ]


def _batch(rows: int, seed: int) -> Arrays:
    return {"row": np.random.default_rng(seed).integers(0, 10_000, rows)}


@dataclasses.dataclass(frozen=True)
class _Reference:
    facts: Facts

    def __call__(self, batch: Arrays) -> Arrays:
        return {"logits": answers(batch["row"], self.facts)}
