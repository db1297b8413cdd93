"""What a run leaves behind: frozen results, and the journal that holds them.

The journal is one JSON object a line, append-only, each line on disk before the run goes on. A
last line cut short by a kill is dropped on reading; everything before it stands.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

State = Literal["done", "dropped", "refused", "failed"]
Outcome = Literal["met", "broken", "undecided"]

WATTS = 10.0  # a busy core of a server or a laptop, its share of the package: 5 to 15 W


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval at `level`."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Timing:
    """Seconds per call in interleaved rounds: arrays of shape (rounds, calls).

    In every round all lanes answered the same rows, one process after the other, in an order that
    turned. `twin` is the original once more in a second process: the A/A control. `blocks` are
    the rounds in each block, one after the other; with each block all processes were started
    anew, since a process keeps for its life what its memory's layout makes it cost.

    What else was seen, each with the lanes as its first axis, in the order baseline, candidate,
    twin, and None where the system does not tell: `queued`, the seconds of every call in which
    another process had the core; `cpu`, CPU-seconds per call in each round; `joules`, those of an
    energy counter. `others` are the cores that other processes kept busy in each block. `first`:
    where the number of blocks was chosen by the scatter of the first ones, how many those were.
    `watts`: what a core is taken to need, where joules are estimated from CPU-seconds."""

    baseline: np.ndarray
    candidate: np.ndarray
    twin: np.ndarray | None
    batch: int = 1
    threads: int = 1
    blocks: tuple[int, ...] = ()
    queued: np.ndarray | None = None
    cpu: np.ndarray | None = None
    joules: np.ndarray | None = None
    others: tuple[float, ...] = ()
    first: int = 0
    watts: float = WATTS

    @property
    def lanes(self) -> tuple[np.ndarray, ...]:
        lanes = (self.baseline, self.candidate)
        return lanes if self.twin is None else (*lanes, self.twin)

    @property
    def disturbed(self) -> float:
        """The share of the calls' time in which another process had the core; 0 where unknown."""
        if self.queued is None:
            return 0.0
        return float(self.queued.sum() / max(sum(float(lane.sum()) for lane in self.lanes), 1e-12))

    def undisturbed(self) -> Timing:
        """The same calls without what they stood in the queue for a core."""
        if self.queued is None:
            return self
        pairs = zip(self.lanes, self.queued, strict=True)
        return self.of([np.maximum(lane - waited, 0.05 * lane) for lane, waited in pairs])

    def of(self, lanes: Sequence[np.ndarray]) -> Timing:
        """The same rounds with another figure of every call: [rounds, calls] for each lane."""
        twin = lanes[2] if self.twin is not None else None
        return dataclasses.replace(
            self, baseline=lanes[0], candidate=lanes[1], twin=twin, queued=None
        )

    def energy(self) -> Timing | None:
        """Joules per call in each round [rounds, 1] in place of the seconds: by the counter where
        there was one, else CPU-seconds times `watts`. None where neither was measured."""
        if self.joules is not None:
            return self.of([lane[:, None] for lane in self.joules])
        if self.cpu is None:
            return None
        return self.of([lane[:, None] * self.watts for lane in self.cpu])


@dataclass(frozen=True)
class Verdict:
    """What the evidence says of one limit.

    `estimate` and its interval are in the limit's own unit (for a limit relative to the baseline:
    of the figure itself where `bound` is what it must reach). `p_value` is that of the hypothesis
    "the limit is broken". `needs` says how many more examples or runs would decide it."""

    limit: str
    outcome: Outcome
    estimate: float
    low: float
    high: float
    bound: float
    p_value: float
    method: str
    examples: int
    needs: int | None = None
    note: str = ""
    parts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One recipe tried. `figures` are point estimates by metric name ("accuracy", "size",
    "latency", "latency.p95", "latency.ratio" ...); `reason` says why where state is not "done", and
    `culprit` names the technique that refused or failed; `same` says that the artifact is that of
    an earlier trial, whose figures these are."""

    number: int
    recipe: tuple[Mapping[str, Any], ...]
    state: State
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    p_value: float = 1.0
    fidelity: float = 0.0
    examples: int = 0
    seconds: float = 0.0
    culprit: str = ""
    model: str = ""
    steps: tuple[Mapping[str, Any], ...] = ()
    same: bool = False

    @property
    def key(self) -> str:
        return json.dumps(self.recipe, sort_keys=True)


def trial_from_json(entry: Mapping[str, Any]) -> Trial:
    values = {f.name: entry[f.name] for f in dataclasses.fields(Trial) if f.name in entry}
    values["recipe"] = tuple(values["recipe"])
    values["steps"] = tuple(values.get("steps", ()))
    values["verdicts"] = tuple(verdict_from_json(each) for each in values.get("verdicts", ()))
    figures = values.get("figures", {})
    values["figures"] = {name: _number(figure, math.nan) for name, figure in figures.items()}
    return Trial(**values)


def verdict_from_json(entry: Mapping[str, Any]) -> Verdict:
    """The verdict that `plain` wrote; what JSON lacks is a number again (no bound: infinite)."""
    known = {"estimate": math.nan, "low": -math.inf, "high": math.inf, "bound": math.nan}
    numbers = {name: _number(entry[name], lacking) for name, lacking in known.items()}
    parts = tuple(verdict_from_json(each) for each in entry.get("parts", ()))
    return Verdict(**{**entry, **numbers, "parts": parts})


def _number(value: float | None, lacking: float) -> float:
    return lacking if value is None else value


def plain(value: Any) -> Any:
    """Strict JSON of a record: numbers that JSON lacks become null, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(each) for each in value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return plain(value.item())
    return value


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_full(error: BaseException | None) -> bool:
    """Whether it came of a disk (or a quota) without room, directly or by way of other errors."""
    seen = 0
    while error is not None and seen < 10:
        # numpy says how much it could write, and leaves out the number of the error.
        if isinstance(error, OSError) and (
            error.errno in _FULL or re.search(r"requested and \d+ written", str(error))
        ):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def allocate(path: Path) -> None:
    """Takes the room on the disk that a sparse file will need. Raises OSError where there is too
    little: who writes through a mapping without asking is killed by the system (SIGBUS)."""
    if hasattr(os, "posix_fallocate") and path.stat().st_size:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def append(file: IO[bytes], data: bytes) -> None:
    """Writes the bytes at the end of an unbuffered file and onto the disk: all, or, where the disk
    is full, none of them. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), end)
        raise


class Journal:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **values: Any) -> None:
        """Adds a line, whole and on the disk when this returns. Raises OSError where it cannot be
        written; the journal is then as it was."""
        line = json.dumps({"event": event, **plain(values)}, allow_nan=False) + "\n"
        with self.path.open("a+b", buffering=0) as file:
            # A kill can leave half a line behind: close it, so that ours starts on its own.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line
            append(file, line.encode())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "event" in entry:
                yield entry

    def events(self, name: str) -> list[dict[str, Any]]:
        return [entry for entry in self if entry["event"] == name]

    def last(self, name: str) -> dict[str, Any] | None:
        found = self.events(name)
        return found[-1] if found else None
