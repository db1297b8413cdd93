"""What runs inside the child processes of `evaluate`: sessions, answers, a timed turn.

A child keeps what it loaded between calls, so that a growing sample or the next round does not
load the model again. Only the runtime of the model's kind is imported here.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sartor import machine
from sartor.contracts import Arrays, Failed, Model, Port, Session, Signature, Target
from sartor.contracts import Part as Counted
from sartor.data import Part
from sartor.fitting import natural_batch
from sartor.registry import runtime
from sartor.turns import Lane, Turn

KEPT_SESSIONS = 2
BATCH = 32  # rows answered at once where that changes nothing
SAMPLE = 16  # rows on which it is measured whether it does
SAME = 1e-3  # of the answers' spread

_sessions: OrderedDict[tuple[str, Target], Session] = OrderedDict()
_independent: dict[tuple[str, str], bool] = {}


def session(model: Model, target: Target, key: str) -> Session:
    """The model's session, started once; `key` is its digest. The last two stay loaded."""
    known = (key, target)
    if known not in _sessions:
        while len(_sessions) >= KEPT_SESSIONS:
            _sessions.popitem(last=False)[1].__exit__(None, None, None)
        _sessions[known] = runtime(model.kind).start(model, target).__enter__()
    _sessions.move_to_end(known)
    return _sessions[known]


# -- feeding --------------------------------------------------------------------------------------


def feed(part: Part, rows: np.ndarray, signature: Signature) -> Arrays:
    """The model's inputs for these rows: trimmed to the longest of them, or as long as the model
    insists where its axes are fixed."""
    batch = part.trimmed(rows)
    if all(_fits(batch[port.name], port) for port in signature.inputs if port.name in batch):
        return batch
    whole = part.inputs(rows)
    return {
        port.name: whole[port.name]
        if _fits(whole[port.name], port)
        else _padded(batch[port.name], port)
        for port in signature.inputs
    }


def _fits(array: np.ndarray, port: Port) -> bool:
    sizes = zip(port.shape[1:], array.shape[1:], strict=False)
    return all(size is None or size == got for size, got in sizes)


def _padded(array: np.ndarray, port: Port) -> np.ndarray:
    """Zeros behind each axis that the model wants longer."""
    wanted = [
        (0, 0 if axis == 0 or size is None else max(size - got, 0))
        for axis, (size, got) in enumerate(zip(port.shape, array.shape, strict=False))
    ]
    return np.pad(array, wanted) if len(wanted) == array.ndim else array


# -- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answerer:
    """The answers of one model to rows of one part."""

    model: Model
    run: Session
    part: Part
    output: str

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """[len(rows), ...] for at least one row, by one call."""
        asked, batch, found = self._call(rows)
        if self.output not in found:
            raise Failed(f"the model has no output {self.output!r}; it has {', '.join(found)}")
        answer = np.asarray(found[self.output])
        if answer.shape[:1] != asked.shape:
            raise Failed(
                f"the output {self.output!r} has the shape {list(answer.shape)} for {len(asked)} "
                "rows; its first axis must be the batch"
            )
        return self._widened(self.output, answer, batch)[: len(rows)]

    def every(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs that have one answer for each row, as `__call__` gives its own."""
        asked, batch, found = self._call(rows)
        return {
            name: self._widened(name, np.asarray(answer), batch)[: len(rows)]
            for name, answer in found.items()
            if np.shape(answer)[:1] == asked.shape
        }

    def _call(self, rows: np.ndarray) -> tuple[np.ndarray, Arrays, Arrays]:
        """Rows (the last one repeated where the model insists on more), inputs and outputs."""
        fixed = natural_batch(self.model.signature)
        asked = rows
        if fixed is not None and len(rows) < fixed:
            asked = np.concatenate([rows, np.repeat(rows[-1:], fixed - len(rows))])
        batch = feed(self.part, asked, self.model.signature)
        return asked, batch, self.run(batch)

    def _widened(self, name: str, answer: np.ndarray, batch: Arrays) -> np.ndarray:
        """One answer a token: zeros up to the data's width, so that all rows are of one shape."""
        if self.part.mask is None or answer.ndim < 2:
            return answer
        port = next((p for p in self.model.signature.outputs if p.name == name), None)
        trimmed = batch[self.part.mask].shape[1]
        free = port is not None and len(port.shape) == answer.ndim and port.shape[1] is None
        if not free or answer.shape[1] != trimmed:
            return answer
        width = self.part.inputs(slice(0, 1))[self.part.mask].shape[1]
        grow = [(0, 0), (0, width - trimmed)] + [(0, 0)] * (answer.ndim - 2)
        return np.pad(answer, grow)

    def equal_batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Positions in `rows`, in batches of equal length (no padding), the longest first."""
        if self.part.lengths is None:
            order, lengths = np.arange(len(rows)), np.zeros(len(rows), np.int64)
        else:
            lengths = np.asarray(self.part.lengths)[rows]
            order = np.argsort(-lengths, kind="stable")
        cuts = np.flatnonzero(np.diff(lengths[order])) + 1
        for group in np.split(order, cuts):
            for start in range(0, len(group), BATCH):
                yield group[start : start + BATCH]

    def independent(self, rows: np.ndarray) -> bool:
        """Whether rows are answered alike alone and in company, measured on a few of them. Dynamic
        quantization, for one, takes its ranges over the whole batch."""
        checked = 0
        for group in self.equal_batches(rows):
            if len(group) < 2:
                continue
            some = rows[group[: SAMPLE // 2]]
            alone = np.concatenate([self(some[at : at + 1]) for at in range(len(some))])
            if not _alike(alone, self(some)):
                return False
            checked += len(some)
            if checked >= SAMPLE:
                break
        return True


def _alike(alone: np.ndarray, together: np.ndarray) -> bool:
    if alone.shape != together.shape:
        return False
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, together))
    gap = np.abs(alone.astype(float) - together.astype(float)).max(initial=0.0)
    spread = float(np.ptp(alone.astype(float))) or 1.0
    if alone.ndim > 1 and not np.array_equal(alone.argmax(-1), together.argmax(-1)):
        return False
    return bool(gap <= SAME * spread)


def answer_rows(
    model: Model,
    key: str,
    part: Part,
    rows: np.ndarray,
    output: str,
    target: Target,
    sample: np.ndarray | None = None,
) -> np.ndarray:
    """The model's answers to `rows`, in their order: [len(rows), ...].

    Rows are answered many at a time where that is measured to change nothing (on `sample`, where
    it is given, else on the rows), else `target.batch`
    at a time in the given order. Quality is not timed, so all cores share one session."""
    single = replace(target, threads=1)
    run = Answerer(model, session(model, single, key), part, output)
    groups = _groups(run, key, rows, target.batch, rows if sample is None else sample)
    with ThreadPoolExecutor(machine.cores()) as threads:
        found = list(threads.map(lambda group: run(rows[group]), groups))
    if not found:
        raise Failed("no rows were asked for")
    answers = np.empty((len(rows), *found[0].shape[1:]), found[0].dtype)
    for group, answer in zip(groups, found, strict=True):
        answers[group] = answer
    return answers


def sample_outputs(model: Model, target: Target, part: Part, rows: int) -> dict[str, np.ndarray]:
    """Every output that answers row by row, for the first `rows` rows of the part: [rows, ...].

    Outputs whose width differs from batch to batch are filled up with zeros. What does not have
    the batch as its first axis is left out; Failed where no output has it."""
    rows = min(rows, len(part))
    size = natural_batch(model.signature) or target.batch
    found: dict[str, list[np.ndarray]] = {}
    single = replace(target, threads=1)
    with (
        runtime(model.kind).start(model, single) as run,
        ThreadPoolExecutor(machine.cores()) as threads,
    ):
        answerer = Answerer(model, run, part, "")
        batches = (np.arange(at, min(at + size, rows)) for at in range(0, rows, size))
        for answered in threads.map(answerer.every, batches):
            for name, answer in answered.items():
                found.setdefault(name, []).append(answer)
    # An axis of the right length by chance, in the last batch say, is no batch axis.
    whole = {name: each for name, each in found.items() if sum(map(len, each)) == rows}
    if not whole:
        raise Failed("no output has the batch as its first axis")
    return {name: _joined(each) for name, each in whole.items()}


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    """The pieces one after the other, zeros behind what is narrower than the widest."""
    if len({piece.shape[1:] for piece in pieces}) == 1:
        return np.concatenate(pieces)
    widest = np.max([piece.shape[1:] for piece in pieces], axis=0)
    return np.concatenate(
        [
            np.pad(
                piece,
                [
                    (0, 0),
                    *((0, most - got) for most, got in zip(widest, piece.shape[1:], strict=True)),
                ],
            )
            for piece in pieces
        ]
    )


def _groups(
    run: Answerer, key: str, rows: np.ndarray, batch: int, sample: np.ndarray
) -> list[np.ndarray]:
    fixed = natural_batch(run.model.signature)
    if fixed is None and len(rows) > 1:
        known = (key, run.part.digest)
        if known not in _independent:
            _independent[known] = run.independent(sample)
        if _independent[known]:
            return list(run.equal_batches(rows))
    size = fixed or batch
    return [np.arange(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]


# -- a timed lane ---------------------------------------------------------------------------------


_lane: Lane | None = None


def open_lane(model: Model, target: Target, part: Part, rows: np.ndarray) -> tuple[float, float]:
    """Loads the model and its rows [batches, rows each]; the seconds that loading took and those
    of one call."""
    global _lane
    engine = runtime(model.kind)
    began = time.perf_counter()
    run = engine.start(model, target).__enter__()
    loaded = time.perf_counter() - began
    batches = [feed(part, each, model.signature) for each in rows]
    _lane = Lane(run, batches)
    gc.collect()
    gc.freeze()
    _lane.turn(0, 1, 0)
    return loaded, _typical(_lane.turn)


def call_seconds() -> float:
    """Of one call of the lane, as a rule."""
    if _lane is None:
        raise Failed("the lane was not opened")
    return _typical(_lane.turn)


def _typical(turn: Callable[[int, int, int], Turn]) -> float:
    """Median seconds of a call, from a few of them: at most about half a second's worth."""
    first = float(turn(0, 1, 0).took[0]) * 1e-9
    more = int(min(max(0.2 / max(first, 1e-6), 1), 16))
    return float(np.median(turn(0, more, 0).took)) * 1e-9


def take_turn(
    first: int, calls: int, warm: int, core: int | None = None, counters: tuple[str, ...] = ()
) -> Turn:
    """A turn of the lane, on `core` alone where one is given."""
    if _lane is None:
        raise Failed("the lane was not opened")
    if core is not None:
        os.sched_setaffinity(0, {core})
    return _lane.turn(first, calls, warm, counters)


# -- memory ---------------------------------------------------------------------------------------


def footprint(model: Model, target: Target, example: Arrays) -> int:
    """Peak resident bytes of this process once it has loaded the model and answered."""
    with runtime(model.kind).start(model, target) as run:
        for _ in range(3):
            run(example)
    return peak_memory()


def peak_memory() -> int:
    """Peak resident bytes of this process since it was started.

    Linux's getrusage would count what the parent had before exec; VmHWM does not."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- a profile ------------------------------------------------------------------------------------


def look_inside(
    model: Model, target: Target, part: Part, rows: np.ndarray, example: int
) -> tuple[tuple[Counted, ...], dict[str, float]]:
    """The model's parts, counted on row `example`, and the seconds that each takes for a batch;
    `rows` are [batches, rows each]."""
    engine = runtime(model.kind)
    one = feed(part, np.array([example]), model.signature)
    batches = [feed(part, each, model.signature) for each in rows]
    return engine.parts(model, one), dict(engine.part_seconds(model, target, batches))
