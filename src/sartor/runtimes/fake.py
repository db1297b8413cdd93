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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sartor.contracts import Arrays, Model, Part, Port, Signature, Target, WrongRequest

SIGNATURE = Signature((Port("row", "int64", (None,)),), (Port("logits", "float32", (None, 4)),))
CLASSES = 4


@dataclass(frozen=True)
class Facts:
    """What a fake model is. `error` is its error rate, `flips` the share of rows that are right or
    wrong by an independent draw instead of the one all models share (0: the errors of models are
    nested), `seconds` of one row, `bytes` on disk, `memory` in use, `macs` of one row, `jitter`
    the spread of its latencies (standard deviation of the logarithm)."""

    error: float = 0.1
    flips: float = 0.0
    seconds: float = 0.01
    bytes: int = 10_000_000
    memory: int = 50_000_000
    macs: int = 1_000_000
    jitter: float = 0.02
    salt: int = 0

    def check(self) -> None:
        """Raises WrongRequest where a figure cannot be."""
        for name in ("error", "flips"):
            if not 0 <= getattr(self, name) <= 1:
                raise WrongRequest(f"a fake model's {name} lies between 0 and 1")
        least = {"seconds": 1e-9, "bytes": 1, "memory": 1, "macs": 0, "jitter": 0, "salt": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise WrongRequest(f"a fake model's {name} is at least {low}")


class FakeClock:
    """A clock that only runs when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Fake:
    """The runtime of fake models. Its `clock` is turned on by its sessions."""

    kind: ClassVar[str] = "fake"
    suffixes: ClassVar[tuple[str, ...]] = (".fake",)

    def __init__(self) -> None:
        self.clock = FakeClock()

    def open(self, path: Path) -> Model:
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
        noise = _uniform(np.array([self.calls]), 900 + self.facts.salt)[0]
        # Around 1 with a tail to the right, as latencies have it.
        factor = math.exp(self.facts.jitter * (2 * noise - 1) / math.sqrt(1 / 3))
        self.clock.advance(self.facts.seconds * len(rows) * factor)
        return {"logits": answers(rows, self.facts)}

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True


def labels(rows: np.ndarray) -> np.ndarray:
    """The truth about rows, by their number: [rows], int64 below 4."""
    return (_uniform(rows, 1) * CLASSES).astype(np.int64)


def answers(rows: np.ndarray, facts: Facts) -> np.ndarray:
    """Logits [rows, 4]. The share `error` of all rows is wrong: those of a small number that all
    models share, but for the share `flips`, where each model (by its salt) draws anew."""
    own = _uniform(rows, 2) < facts.flips
    luck = np.where(own, _uniform(rows, 1000 + facts.salt), _uniform(rows, 3))
    right = labels(rows)
    away = 1 + (_uniform(rows, 4) * (CLASSES - 1)).astype(np.int64)
    told = np.where(luck < facts.error, (right + away) % CLASSES, right)
    logits = np.stack([_uniform(rows, 10 + each) for each in range(CLASSES)], axis=1)
    logits[np.arange(len(rows)), told] += 2.0
    return logits.astype(np.float32)


def _uniform(rows: np.ndarray, salt: int) -> np.ndarray:
    """A number from 0 to 1 for each row, the same on every machine (splitmix64)."""
    with np.errstate(over="ignore"):
        x = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(salt + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    mixed: np.ndarray = (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return mixed


def read(path: Path) -> Facts:
    """The figures in a file. Raises WrongRequest where it holds none."""
    try:
        entry: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        facts = Facts(**entry)
    except FileNotFoundError:
        raise WrongRequest(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError) as error:
        raise WrongRequest(f"{path} holds no fake model: {error}") from None
    facts.check()
    return facts


def write(facts: Facts, folder: Path, name: str = "model") -> Path:
    """The model's file `NAME.fake`, and `NAME.weights`, empty on disk, of the bytes that lack."""
    facts.check()
    path = folder / f"{name}.fake"
    text = json.dumps(dataclasses.asdict(facts), sort_keys=True)
    path.write_text(text, encoding="utf-8")
    with (folder / f"{name}.weights").open("wb") as file:
        file.truncate(max(facts.bytes - len(text), 0))
    return path
