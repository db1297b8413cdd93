"""Weights that make up for what is removed: what goes is predicted from what stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import scipy.linalg

from sartor.contracts import Arrays, Bench, Failed
from sartor.techniques._axes_groups_onnx import mask
from sartor.techniques._axes_onnx import Atom, leaves
from sartor.techniques._axes_trace_onnx import Read, Trace
from sartor.techniques._graph_onnx import watch

_BUDGET = 256 << 20  # bytes of second moments gathered in one pass over the data
_WIDEST = 8192  # positions along an axis: a moment matrix of 0.5 GB
_ROWS = 1024  # positions of an activation taken from each example
_RIDGE = 1e-3  # of the mean second moment, where there are rows without end


def refit(
    trace: Trace, kept: Mapping[Atom, np.ndarray], atoms: Iterable[Atom], bench: Bench, rows: int
) -> None:
    """Adds to the weights that sum over a thinned axis what its lost positions contributed, as far
    as those that stay tell it: x_gone is about A x_kept by least squares on training rows, so that
    W_kept + W_gone A does nearly what W did (the interpolative decomposition of Chee et al.,
    NeurIPS 2022, for any choice of what stays). Call it before `keep`, with all `atoms` that may
    ever be thinned here: their moments are remembered for other choices.

    Only products whose outputs each sum over the whole axis: not grouped convolutions."""
    every = set(atoms)
    reads: dict[str, list[Read]] = {}
    for read in trace.read:
        layout = trace.axes[read.tensor][read.at]
        known = trace.graph.constant_tensor(read.weight) if read.weight else None
        thin = not every.isdisjoint(leaves(layout))
        if known is not None and thin and known.dims[read.weight_at] <= _WIDEST:
            reads.setdefault(read.weight, []).append(read)
    moments = _moments(trace, reads, bench, rows)
    for name, places in reads.items():
        value, at = trace.graph.constant(name), places[0].weight_at
        stays = mask(trace.axes[name][at], kept)
        if value is not None and not stays.all() and stays.any():
            seen = float(moments[f"rows:{name}"])
            change = _prediction(moments[name].astype(np.float64), stays, seen)
            turned = np.moveaxis(value, at, 0)
            grown = np.array(turned, np.float64)
            grown[stays] += np.tensordot(change.T, turned[~stays].astype(np.float64), 1)
            trace.graph.set_constant(name, np.moveaxis(grown, 0, at).astype(value.dtype))


def _prediction(second: np.ndarray, stays: np.ndarray, rows: float) -> np.ndarray:
    """(gone, kept): what stays to what goes, by least squares with a ridge that grows with the
    number of unknowns for each row: where rows are few it falls back to leaving weights alone."""
    if not np.isfinite(second).all():
        raise Failed("activations are not finite")
    among = second[np.ix_(stays, stays)]
    share = _RIDGE + len(among) / max(rows, 1.0)
    ridge = share * max(float(np.trace(among)) / len(among), 1e-30)
    factor = scipy.linalg.cho_factor(among + ridge * np.eye(len(among)), lower=True)
    found: np.ndarray = scipy.linalg.cho_solve(factor, second[np.ix_(stays, ~stays)]).T
    return found


def _moments(
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
                raise Failed("there are no training rows to refit weights on")
            found |= _gather(trace, dict(part), batches, bench)
        return found

    return bench.remember(f"moments {trace.graph.digest()} {rows} {sorted(reads)}", compute)


def _bytes(trace: Trace, read: Read) -> float:
    tensor = trace.graph.constant_tensor(read.weight)
    return 8.0 * (tensor.dims[read.weight_at] if tensor is not None else 0) ** 2


def _gather(
    trace: Trace, reads: Mapping[str, list[Read]], batches: Iterable[Arrays], bench: Bench
) -> dict[str, np.ndarray]:
    sums: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(reads, 0)
    names = list(dict.fromkeys(read.tensor for each in reads.values() for read in each))
    for values in watch(trace.graph, names, batches, bench):
        for name, places in reads.items():
            for read in places:
                x = np.moveaxis(values[read.tensor], read.at, -1)
                x = x.reshape(-1, x.shape[-1])
                if len(x) > _ROWS:
                    x = x[np.linspace(0, len(x) - 1, _ROWS).astype(int)]
                product = x.T.astype(np.float64) @ x.astype(np.float64)
                sums[name] = sums.get(name, 0.0) + product
                counts[name] += len(x)
    found = {name: (sums[name] / max(counts[name], 1)).astype(np.float32) for name in sums}
    return found | {f"rows:{name}": np.array(counts[name]) for name in sums}
