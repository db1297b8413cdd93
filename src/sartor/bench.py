"""The bench of a run: all that a technique may use, in the child process where it is applied."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sartor import lanes, machine
from sartor.contracts import Arrays, Model, Target, Task, Training, WrongRequest
from sartor.data import Part
from sartor.fitting import in_portions
from sartor.records import plain
from sartor.registry import runtime
from sartor.user_functions import Augmentation

_PREFIX = "array:"  # a tensor may be called "file", which is savez's own parameter


@dataclass(frozen=True)
class LocalBench:
    """`contracts.Bench` on the parts of the data, never the holdout. Cheap to pickle.

    `model` is the one that a technique is applied to; `memory` the folder that keeps what
    techniques computed and may need again; `scratch` takes the files they make."""

    model: Model
    teacher: Model
    task: Task
    limits: tuple[Any, ...]
    target: Target
    train: Part | None
    search: Part
    scratch: Path
    memory: Path
    seed: int = 0
    training: Training = field(default_factory=Training)
    augment: Augmentation | None = None
    processes: int = 1
    budget: float = math.inf
    patience: float = math.inf

    def on(
        self, model: Model, scratch: Path, patience: float = math.inf, slowness: float = 1.0
    ) -> LocalBench:
        """The same bench for another model, with a folder of its own to write to; its trainings
        take `slowness` times as long as was measured."""
        training = dataclasses.replace(self.training, seconds=self.training.seconds * slowness)
        return dataclasses.replace(
            self, model=model, scratch=scratch, patience=patience, training=training
        )

    def facts(self, trains: bool = False) -> dict[str, Any]:
        """Plain JSON of everything that decides what a technique makes here, besides the model
        that it is applied to: part of the cache's key. What was granted matters to one that
        `trains`."""
        return {
            "teacher": _digest(self.teacher),
            "task": plain(self.task),
            "limits": [plain(each) for each in self.limits],
            "target": plain(self.target),
            "train": self.train.digest if self.train is not None else None,
            "search": self.search.digest,
            "seed": self.seed,
            **({"training": [self.training.steps, self.training.work]} if trains else {}),
            **({"processes": self.processes} if trains and self.processes > 1 else {}),
            **({"augment": self.augment.digest} if self.augment is not None else {}),
        }

    def batches(
        self, split: str, size: int = 1, most: int | None = None
    ) -> Iterator[Arrays] | None:
        """Batches of "train" or "search" with their labels under "label"; None without rows."""
        part = self._part(split)
        return None if part is None else part.batches(size, most, labels=True)

    def _part(self, split: str) -> Part | None:
        if split not in ("train", "search"):
            raise WrongRequest(f"no part {split!r} on the bench; there are 'train' and 'search'")
        part = self.train if split == "train" else self.search
        return part if part is not None and len(part) else None

    def count(self, split: str) -> int:
        part = self._part(split)
        return 0 if part is None else len(part)

    def pick(self, split: str, rows: np.ndarray) -> Arrays:
        """One batch of these rows, trimmed to the longest, labels included."""
        part = self._part(split)
        if part is None:
            raise WrongRequest(f"the part {split!r} has no rows")
        return part.picked(rows, labels=True)

    def lengths(self, split: str) -> np.ndarray | None:
        part = self._part(split)
        return None if part is None else part.lengths

    def teach(self, batch: Arrays, sharers: int = 1) -> Arrays:
        """The original's answers, on all cores, since this is not timed, or on the part of one of
        the `sharers`; what is no input of it (the labels) is left out."""
        names = [port.name for port in self.teacher.signature.inputs]
        inputs = {name: batch[name] for name in names if name in batch}
        whole = dataclasses.replace(self.target, threads=max(machine.cores() // sharers, 1))
        run = lanes.session(self.teacher, whole, _digest(self.teacher))
        return in_portions(run, self.teacher.signature, inputs)

    def remember(
        self, key: str, compute: Callable[[], Mapping[str, np.ndarray]], *, shared: bool = False
    ) -> Mapping[str, np.ndarray]:
        """What `compute` returns, from disk where it was computed before for this model, these
        data and this key. A damaged file is computed anew; a half-written one is never seen."""
        path = self._place(key, ".npz", self.teacher if shared else self.model)
        known = _load(path)
        if known is None:
            known = {name: np.asarray(value) for name, value in compute().items()}
            _save(path, known)
        return known

    def keeping(self, key: str) -> Path:
        return self._place(key, ".partial", self.model)

    def _place(self, key: str, suffix: str, model: Model) -> Path:
        data = [part.digest for part in (self.train, self.search) if part is not None]
        facts = "\n".join([key, _digest(model), _digest(self.teacher), *data])
        return self.memory / f"{hashlib.sha256(facts.encode()).hexdigest()}{suffix}"


def _digest(model: Model) -> str:
    return runtime(model.kind).digest(model)


def _load(path: Path) -> dict[str, np.ndarray] | None:
    try:
        # Opened here: np.load leaves the file open where it is damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name.removeprefix(_PREFIX): file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        path.unlink(missing_ok=True)
        return None


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(prefix=".making-", suffix=".npz", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            named = {_PREFIX + name: array for name, array in arrays.items()}
            np.savez(file, allow_pickle=False, **named)
        os.replace(made, path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
