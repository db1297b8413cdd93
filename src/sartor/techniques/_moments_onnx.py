"""Second moments of the activations over which weights sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from sartor.contracts import Arrays, Bench, Failed
from sartor.techniques._axes_onnx import Atom, leaves
from sartor.techniques._axes_trace_onnx import Read, Trace
from sartor.techniques._graph_onnx import watch

_BUDGET = 256 << 20  # bytes of second moments gathered in one pass over the data
_WIDEST = 8192  # positions along an axis: a moment matrix of 0.5 GB
_ROWS = 1024  # positions of an activation taken from each example
_RIDGE = 1e-3  # of the mean second moment, where there are rows without end


def reads_of(trace: Trace, atoms: Iterable[Atom]) -> dict[str, list[Read]]:
    """Weight -> where it sums over an axis with one of these atoms. Only products whose outputs
    each sum over the whole axis: no grouped convolutions."""
    every = set(atoms)
    found: dict[str, list[Read]] = {}
    for read in trace.read:
        layout = trace.axes[read.tensor][read.at]
        known = trace.graph.constant_tensor(read.weight) if read.weight else None
        thin = not every.isdisjoint(leaves(layout))
        if known is not None and thin and known.dims[read.weight_at] <= _WIDEST:
            found.setdefault(read.weight, []).append(read)
    return found


def steadied(second: np.ndarray, rows: float) -> np.ndarray:
    """The moments with a ridge that grows with the number of unknowns for each row: where rows
    are few, what is fitted falls back to nothing. Raises Failed where they are not finite."""
    if not np.isfinite(second).all():
        raise Failed("activations are not finite")
    share = _RIDGE + len(second) / max(rows, 1.0)
    ridge = share * max(float(np.trace(second)) / len(second), 1e-30)
    found: np.ndarray = second + ridge * np.eye(len(second))
    return found


def moments(
    trace: Trace, reads: Mapping[str, list[Read]], bench: Bench, rows: int
) -> Mapping[str, np.ndarray]:
    """Weight -> mean of x x' over what it sums (positions, positions), and "rows:" + weight -> how
    many it is the mean of. In as many passes as bound the memory."""

    def compute() -> Mapping[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        todo = list(reads.items())
        while todo:
            part, room = [todo.pop(0)], float(_BUDGET)
            room -= _bytes(trace, part[0][1][0])
            while todo and _bytes(trace, todo[0][1][0]) <= room:
                room -= _bytes(trace, todo[0][1][0])
                part.append(todo.pop(0))
            batches = bench.batches("train", 1, rows)  # one by one: no padding
            if batches is None:
                raise Failed("there are no training rows to gather activations from")
            found |= _gather(trace, dict(part), batches, bench)
        return found

    return bench.remember(f"axis moments {trace.graph.digest()} {rows} {sorted(reads)}", compute)


def _bytes(trace: Trace, read: Read) -> float:
    tensor = trace.graph.constant_tensor(read.weight)
    return 8.0 * (tensor.dims[read.weight_at] if tensor is not None else 0) ** 2


def _gather(
    trace: Trace, reads: Mapping[str, list[Read]], batches: Iterable[Arrays], bench: Bench
) -> dict[str, np.ndarray]:
    sums: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(reads, 0)
    waiting: dict[str, list[np.ndarray]] = {name: [] for name in reads}

    def add(name: str) -> None:
        if waiting[name]:
            block = np.concatenate(waiting[name])
            sums[name] = sums.get(name, 0.0) + (block.T @ block).astype(np.float64)
            counts[name] += len(block)
            waiting[name].clear()

    names = list(dict.fromkeys(read.tensor for each in reads.values() for read in each))
    for values in watch(trace.graph, names, batches, bench):
        for name, places in reads.items():
            waiting[name] += [_rows(values[read.tensor], read.at) for read in places]
            # Many rows at once: each product reads and writes the whole matrix of sums.
            if sum(map(len, waiting[name])) >= _ROWS:
                add(name)
    for name in reads:
        add(name)
    found = {name: (sums[name] / max(counts[name], 1)).astype(np.float32) for name in sums}
    return found | {f"rows:{name}": np.array(counts[name]) for name in sums}


def _rows(x: np.ndarray, at: int) -> np.ndarray:
    """(rows, positions along the axis), at most `_ROWS` of them, evenly spread."""
    moved = np.moveaxis(x, at, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    if len(rows) > _ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _ROWS).astype(int)]
    return rows.astype(np.float32)
