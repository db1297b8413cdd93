"""Fake models: quality, latency and size are numbers in a small JSON file.

What the fake runtime and the toy techniques share. The answers are arrays with a known truth, so
that statistics, search and certification can be tested against it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Port, Signature, WrongRequest

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


def labels(rows: np.ndarray) -> np.ndarray:
    """The truth about rows, by their number: [rows], int64 below 4."""
    return (uniform(rows, 1) * CLASSES).astype(np.int64)


def answers(rows: np.ndarray, facts: Facts) -> np.ndarray:
    """Logits [rows, 4]. The share `error` of all rows is wrong: those of a small number that all
    models share, but for the share `flips`, where each model (by its salt) draws anew."""
    own = uniform(rows, 2) < facts.flips
    luck = np.where(own, uniform(rows, 1000 + facts.salt), uniform(rows, 3))
    right = labels(rows)
    away = 1 + (uniform(rows, 4) * (CLASSES - 1)).astype(np.int64)
    told = np.where(luck < facts.error, (right + away) % CLASSES, right)
    logits = np.stack([uniform(rows, 10 + each) for each in range(CLASSES)], axis=1)
    logits[np.arange(len(rows)), told] += 2.0
    return logits.astype(np.float32)


def uniform(rows: np.ndarray, salt: int) -> np.ndarray:
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
