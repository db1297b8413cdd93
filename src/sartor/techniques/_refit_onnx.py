"""Weights that make up for what is removed: what goes is predicted from what stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.linalg

from sartor.contracts import Bench
from sartor.techniques._axes_groups_onnx import Group, mask
from sartor.techniques._axes_onnx import Atom, leaves, places
from sartor.techniques._axes_trace_onnx import Read, Trace
from sartor.techniques._moments_onnx import moments, reads_of, steadied

_CUTS = 64  # times at most that a group's errors are computed anew while it is taken apart


def refit(
    trace: Trace, kept: Mapping[Atom, np.ndarray], atoms: Iterable[Atom], bench: Bench, rows: int
) -> None:
    """Adds to the weights that sum over a thinned axis what its lost positions contributed, as far
    as those that stay tell it: x_gone is about A x_kept by least squares on training rows, so that
    W_kept + W_gone A does nearly what W did (the interpolative decomposition of Chee et al.,
    NeurIPS 2022, for any choice of what stays). Call it before `keep`, with all `atoms` that may
    ever be thinned here: their moments are remembered for other choices."""
    reads = reads_of(trace, atoms)
    known = moments(trace, reads, bench, rows)
    for name, where in reads.items():
        value, at = trace.graph.constant(name), where[0].weight_at
        stays = mask(trace.axes[name][at], kept)
        if value is None or stays.all() or not stays.any():
            continue
        second = known[name].astype(np.float64)
        among = steadied(second[np.ix_(stays, stays)], float(known[f"rows:{name}"]))
        factor = scipy.linalg.cho_factor(among, lower=True)
        change = scipy.linalg.cho_solve(factor, second[np.ix_(stays, ~stays)])
        turned = np.moveaxis(value, at, 0).astype(np.float64)
        turned[stays] += np.tensordot(change, turned[~stays], 1)
        trace.graph.set_constant(name, np.moveaxis(turned, 0, at).astype(value.dtype))


def removal_errors(
    trace: Trace, groups: Sequence[Group], bench: Bench, rows: int
) -> dict[Atom, np.ndarray]:
    """For each index of a group the share of its readers' output energy that goes with it when all
    that mattered less has gone before and the weights are refitted each time: the optimal brain
    surgeon (Hassibi & Stork, NIPS 1992) for whole inputs, as Kurtic et al., "ZipLM", NeurIPS 2023.
    A group that no product reads as a whole has NaN."""
    reads = reads_of(trace, [group.atom for group in groups])
    known = moments(trace, reads, bench, rows)
    found = {}
    for group in groups:
        own = [
            _Reader(trace, name, where[0], group, known)
            for name, where in reads.items()
            if group.atom in leaves(trace.axes[name][where[0].weight_at])
        ]
        found[group.atom] = _taken_apart(group.size, own)
    return found


def _taken_apart(size: int, readers: Sequence[_Reader]) -> np.ndarray:
    """Errors in the order of removal never fall: what goes later counts at least as much."""
    scores = np.full(size, np.nan)
    if not readers:
        return scores
    alive, highest = np.arange(size), 0.0
    while len(alive):
        errors = np.sum([reader.errors(alive) for reader in readers], axis=0)
        order = np.argsort(errors, kind="stable")[: max(1, -(-size // _CUTS))]
        gone = alive[order]
        rising = np.maximum.accumulate(np.maximum(errors[order], highest))
        scores[gone], highest = rising, float(rising[-1])
        for reader in readers:
            reader.remove(gone)
        alive = np.setdiff1d(alive, gone)
    return scores


class _Reader:
    """A weight that sums over a group, with what is left of both while the group is taken apart:
    the inverse of the inputs' moments and the products of the weight's rows (n x n each)."""

    def __init__(
        self, trace: Trace, name: str, read: Read, group: Group, known: Mapping[str, np.ndarray]
    ) -> None:
        second = known[name].astype(np.float64)
        value = trace.graph.constant(name)
        assert value is not None  # `reads_of` saw it
        rows = np.moveaxis(value, read.weight_at, 0).reshape(len(second), -1).astype(np.float64)
        self.products = rows @ rows.T
        self.energy = max(float((second * self.products).sum()), 1e-30)
        self.inverse = np.linalg.inv(steadied(second, float(known[f"rows:{name}"])))
        self.where = places(trace.axes[name][read.weight_at], group.atom)

    def errors(self, alive: np.ndarray) -> np.ndarray:
        """What removing each index that is left would add, as a share of the output's energy."""
        own = np.flatnonzero(self.where >= 0)
        own = own[np.argsort(self.where[own], kind="stable")]
        if len(own) == len(alive):
            found = self.products[own, own] / self.inverse[own, own]
        else:
            ends = np.searchsorted(self.where[own], alive[1:])
            found = np.array([self._error(block) for block in np.split(own, ends)])
        shares: np.ndarray = np.maximum(found, 0.0) / self.energy
        return shares

    def _error(self, block: np.ndarray) -> float:
        own = np.ix_(block, block)
        return float(np.trace(np.linalg.solve(self.inverse[own], self.products[own])))

    def remove(self, gone: np.ndarray) -> None:
        goes = np.isin(self.where, gone)
        block, rest = np.flatnonzero(goes), np.flatnonzero(~goes)
        own, across, left = np.ix_(block, block), np.ix_(block, rest), np.ix_(rest, rest)
        change = np.linalg.solve(self.inverse[own], self.inverse[across]).T
        self.inverse = self.inverse[left] - change @ self.inverse[across]
        half = change @ (self.products[across] - self.products[own] @ change.T / 2)
        self.products = self.products[left] - half - half.T
        self.where = self.where[rest]
