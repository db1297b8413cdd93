"""The runtime laws: what every runtime keeps, for authors of plug-ins to run over their own.

    with Pool() as pool:
        for law in RUNTIME_LAWS.values():
            law(Specimen("mlp", runtime("mine").open(path), batch, reference), folder, pool)

A law raises Broken with a sentence. The models are small: a law takes milliseconds.
"""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from sartor.contracts import Arrays, Model, Target, WrongRequest
from sartor.lab import Broken
from sartor.registry import kind_of, runtime
from sartor.workers import Pool

__all__ = ["RUNTIME_LAWS", "Broken", "Law", "Specimen"]

BATCHES = (1, 3, 8)
CYCLES = 60
LEAK = 2_000_000  # bytes that 60 cycles of loading, answering and closing may leave behind
WAIT = 120.0
ASKS = 50
IDLE = 0.02  # of the caller's time


@dataclass(frozen=True)
class Specimen:
    """A small model, a source of inputs, and what it ought to answer.

    `batch(rows, seed)` gives the same arrays each time; `reference(batch)` the right answers from
    an independent implementation, where there is one; `tolerance` is a share of their spread."""

    name: str
    model: Model
    batch: Callable[[int, int], Arrays]
    reference: Callable[[Arrays], Arrays] | None = None
    tolerance: float = 1e-4


Law = Callable[[Specimen, Path, Pool], None]


def _hold(true: bool, sentence: str) -> None:
    if not true:
        raise Broken(sentence)


def _same(got: Arrays, expected: Arrays, tolerance: float, where: str) -> None:
    _hold(set(got) == set(expected), f"{where}: outputs {sorted(got)}, not {sorted(expected)}")
    for name, right in expected.items():
        found, right = np.asarray(got[name]), np.asarray(right)
        _hold(found.shape == right.shape, f"{where}: {name} is {found.shape}, not {right.shape}")
        if right.dtype.kind == "f":
            gap = float(np.abs(found.astype(float) - right.astype(float)).max(initial=0.0))
            spread = float(np.ptp(right.astype(float))) or 1.0
            _hold(gap <= tolerance * spread, f"{where}: {name} is off by {gap / spread:.1e}")
        else:
            _hold(bool(np.array_equal(found, right)), f"{where}: {name} differs")


def agrees(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """It answers what an independent implementation answers, one row or several at a time."""
    if specimen.reference is None:
        return
    with runtime(specimen.model.kind).start(specimen.model, Target()) as run:
        for rows in BATCHES:
            batch = specimen.batch(rows, rows)
            expected = specimen.reference(batch)
            _same(run(batch), expected, specimen.tolerance, f"{specimen.name}, {rows} rows")


def takes_any_batch(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """Rows are answered alike alone and together, where the batch axis is free."""
    if any(port.shape[:1] != (None,) for port in specimen.model.signature.inputs):
        return
    tolerance = max(specimen.tolerance, 1e-5)
    with runtime(specimen.model.kind).start(specimen.model, Target()) as run:
        for rows in BATCHES[1:]:
            batch = specimen.batch(rows, rows)
            together = run(batch)
            for row in range(rows):
                alone = run({name: array[row : row + 1] for name, array in batch.items()})
                expected = {name: array[row : row + 1] for name, array in together.items()}
                _same(alone, expected, tolerance, f"{specimen.name}, row {row} of {rows}")


def keeps_its_signature(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """Outputs have the names, dtypes and shapes that the signature states."""
    ports = {port.name: port for port in specimen.model.signature.outputs}
    with runtime(specimen.model.kind).start(specimen.model, Target()) as run:
        found = run(specimen.batch(3, 0))
    _hold(
        set(found) == set(ports), f"{specimen.name}: outputs {sorted(found)}, not {sorted(ports)}"
    )
    for name, array in found.items():
        port = ports[name]
        _hold(port.dtype in ("str", str(array.dtype)), f"{name} is {array.dtype}, not {port.dtype}")
        fits = len(port.shape) == array.ndim and all(
            size in (None, got) for size, got in zip(port.shape, array.shape, strict=True)
        )
        _hold(fits, f"{specimen.name}: {name} is {array.shape}, which is not {port.shape}")


def survives_saving(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """`open(save(m))` equals m in digest, signature and answers; `size` counts what was saved;
    saving changes nothing of m."""
    engine, model = runtime(specimen.model.kind), specimen.model
    before = engine.digest(model)
    saved = engine.save(model, folder / "saved")
    again = engine.open(saved)
    _hold(kind_of(saved) == model.kind, f"{saved.name}: its suffix is not of kind {model.kind}")
    _hold(engine.digest(again) == before, f"{specimen.name}: saved and opened, its digest differs")
    _hold(again.signature == model.signature, f"{specimen.name}: its signature differs once saved")
    _hold(engine.digest(model) == before, f"{specimen.name}: saving it changed it")
    files = [path for path in (folder / "saved").rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    _hold(engine.size(model) == total, f"{specimen.name}: size {engine.size(model)}, saved {total}")
    batch = specimen.batch(3, 0)
    with engine.start(model, Target()) as first, engine.start(again, Target()) as second:
        _same(second(batch), first(batch), 0.0, f"{specimen.name}, saved and opened")


def digest_is_the_same_elsewhere(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """In another process, and for a copy in another folder, the digest is equal."""
    engine = runtime(specimen.model.kind)
    here = engine.digest(specimen.model)
    there = pool.call(_digest, specimen.model, timeout=WAIT)
    _hold(there == here, f"{specimen.name}: its digest differs in another process")
    _hold(len(here) >= 32 and set(here) <= set("0123456789abcdef"), f"no hex digest: {here}")


def _digest(model: Model) -> str:
    return runtime(model.kind).digest(model)


def refuses_wrong_inputs(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """A missing or unknown name, or a dtype that does not fit, is a wrong request that lists the
    right inputs."""
    right = dict(specimen.batch(2, 0))
    names = list(right)
    first = names[0]
    other = np.float64 if right[first].dtype != np.float64 else np.float32
    wrong: dict[str, Arrays] = {
        "no input": {},
        "an unknown name": {**{k: right[k] for k in names[1:]}, "no such input": right[first]},
        "one input too many": {**right, "no such input": right[first]},
        "another dtype": {**right, first: np.zeros(right[first].shape, other)},
        "another rank": {**right, first: right[first][..., None]},
    }
    with runtime(specimen.model.kind).start(specimen.model, Target()) as run:
        for what, batch in wrong.items():
            try:
                run(batch)
            except WrongRequest as refusal:
                missing = [name for name in names if name not in str(refusal)]
                _hold(not missing, f"{specimen.name}: {what}: the refusal does not name {missing}")
            else:
                raise Broken(f"{specimen.name}: {what} was accepted")
        run(right)


def answers_threads_alike(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """Eight threads at once get the answers that one alone gets."""
    batches = [specimen.batch(1 + at % 3, at) for at in range(24)]
    with runtime(specimen.model.kind).start(specimen.model, Target()) as run:
        expected = [run(batch) for batch in batches]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(run, batches * 2))
    for got, right in zip(found, expected * 2, strict=True):
        _same(got, right, 1e-6, f"{specimen.name} from 8 threads")


def keeps_to_its_threads(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """With a ceiling of one thread nothing computes beside the caller: threads that it starts
    besides stay idle."""
    own, others = pool.call(_spent, specimen.model, specimen.batch(3, 0), timeout=WAIT)
    share = others / max(own, 1)
    _hold(
        share <= IDLE, f"{specimen.name}: threads of its own compute {share:.0%} of what it takes"
    )


def _spent(model: Model, batch: Arrays) -> tuple[int, int]:
    """Nanoseconds of processor time of this thread while it asks, and of those that the session
    started, by Linux's own account."""
    runtime(model.kind).versions()
    before = set(_tasks())
    with runtime(model.kind).start(model, Target(threads=1)) as run:
        run(batch)
        theirs, own = _tasks(), time.thread_time_ns()
        for _ in range(ASKS):
            run(batch)
        own, after = time.thread_time_ns() - own, _tasks()
    started = after.keys() - before
    return own, sum(after[each] - theirs.get(each, 0) for each in started)


def _tasks() -> dict[str, int]:
    """Thread -> nanoseconds that it has computed."""
    folders = Path("/proc/self/task").iterdir()
    return {each.name: int((each / "schedstat").read_text().split()[0]) for each in folders}


def frees_its_memory(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """Loading, answering and closing again and again leaves nothing behind."""
    left = pool.call(_cycles, specimen.model, specimen.batch(1, 0), timeout=WAIT)
    _hold(
        left < LEAK, f"{specimen.name}: {CYCLES} cycles of load and close leave {left / 1e6:.1f} MB"
    )


def _cycles(model: Model, batch: Arrays) -> int:
    engine, process = runtime(model.kind), psutil.Process()

    def cycle() -> None:
        with engine.start(model, Target()) as run:
            run(batch)

    for _ in range(5):  # what is allocated once and for all
        cycle()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(CYCLES):
        cycle()
    gc.collect()
    return int(process.memory_info().rss - before)


def changes_nothing(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """Running, counting and profiling leave the model as it was; it can be sent to a child."""
    engine, model = runtime(specimen.model.kind), specimen.model
    before = engine.digest(model)
    held = _holdings(model)
    batch = specimen.batch(1, 0)
    with engine.start(model, Target()) as run:
        run(batch)
    engine.parts(model, batch)
    engine.part_seconds(model, Target(), [batch])
    _hold(_holdings(model) == held, f"{specimen.name}: running it left files beside it")
    _hold(engine.digest(model) == before, f"{specimen.name}: running it changed it")
    again = pickle.loads(pickle.dumps(model))
    _hold(again == model, f"{specimen.name}: it is another model after pickling")


def _holdings(model: Model) -> list[tuple[str, int]]:
    """Name and time of the files beside a model that is a file."""
    if not isinstance(model.payload, (str, os.PathLike)):
        return []
    folder = Path(model.payload).parent
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.iterdir())


def counts_its_parts(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """Parts have unique names and no more bytes than the file; times are of parts or of what the
    runtime made of them, and not negative."""
    engine, model = runtime(specimen.model.kind), specimen.model
    batch = specimen.batch(1, 0)
    parts = engine.parts(model, batch)
    _hold(bool(parts), f"{specimen.name} has no parts")
    _hold(len({part.name for part in parts}) == len(parts), f"{specimen.name}: parts share a name")
    total = sum(part.bytes for part in parts)
    _hold(total <= engine.size(model), f"{specimen.name}: parts of {total} bytes in a smaller file")
    seconds = engine.part_seconds(model, Target(), [batch] * 3)
    _hold(min(seconds.values()) >= 0 < sum(seconds.values()), f"{specimen.name}: no times")
    known = set(seconds) & {part.name for part in parts}
    _hold(bool(known), f"{specimen.name}: no time belongs to any part")


def opens_no_nonsense(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """A missing, empty or random file with its suffix is a wrong request of one sentence."""
    engine = runtime(specimen.model.kind)
    for suffix in engine.suffixes:
        for name, data in (("gone", None), ("empty", b""), ("random", os.urandom(999))):
            path = folder / f"{name}{suffix}"
            if data is not None:
                path.write_bytes(data)
            try:
                engine.open(path)
            except WrongRequest as refusal:
                _hold("\n" not in str(refusal), f"{name}: the refusal is not one sentence")
            else:
                raise Broken(f"a {name} file was opened as {specimen.model.kind}")


def tells_versions(specimen: Specimen, folder: Path, pool: Pool) -> None:
    """It names the packages that decide what the model computes."""
    told = runtime(specimen.model.kind).versions()
    _hold(bool(told) and all(isinstance(each, str) for each in told.values()), f"versions: {told}")


RUNTIME_LAWS: dict[str, Law] = {
    law.__name__.replace("_", " "): law
    for law in (
        agrees,
        takes_any_batch,
        keeps_its_signature,
        survives_saving,
        digest_is_the_same_elsewhere,
        refuses_wrong_inputs,
        answers_threads_alike,
        keeps_to_its_threads,
        frees_its_memory,
        changes_nothing,
        counts_its_parts,
        opens_no_nonsense,
        tells_versions,
    )
}
