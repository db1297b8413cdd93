"""Weight clustering: tensors stored as indices into a small codebook of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from sartor.contracts import Bench, Failed, Model, Technique
from sartor.space import choice, span
from sartor.techniques._graph_onnx import Graph, Parts, finish, foreign, peek, read
from sartor.techniques._packing_onnx import Unpacking, pack, too_old, weights

_ROUNDS = 300


@dataclass(frozen=True)
class ClusterWeights(Technique):
    """Each tensor's values become the nearest of its 16 or 256 cluster centres (k-means in one
    dimension: Han et al., "Deep Compression", ICLR 2016, without its retraining).

    At rest: one byte a weight (256) or half a byte (16) and the codebook, that is a quarter or an
    eighth of float32. ONNX Runtime looks the values up once, when it loads the model: no gain and
    no loss of speed or memory. Stage "storage": a quantizer or a folder of constants that ran
    after it would undo it. Parts are the float32 tensors of two or more axes; those of fewer than
    `smallest` numbers stay."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "storage"
    repair: ClassVar[str | None] = "clusters"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    clusters: int = choice(256, values=(16, 256))
    smallest: int = span(2048, 1024, 1 << 24, log=True)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        graph = peek(model)
        if reason := too_old(graph, "indices"):
            return reason
        sizes = [size for _, size in weights(graph, axes=2)]
        if max(sizes, default=0) < self.smallest:
            return f"no float32 tensor of two or more axes has {self.smallest} numbers or more"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        parts = Parts()
        for name, size in weights(graph, axes=2):
            value = graph.constant(name)
            if size < self.smallest:
                parts.skip(name, f"fewer than {self.smallest} numbers")
            elif value is None or not np.isfinite(value).all():
                parts.skip(name, "it holds infinities or NaN")
            else:
                centres, indices = cluster(value.ravel(), self.clusters)
                _store_indices(graph, name, centres, indices.reshape(value.shape))
                parts.touch(name)
        if not parts.touched:
            raise Failed(f"no tensor can be clustered: {parts.most_frequent_reason()}")
        return finish(model, self, graph, bench, parts)


def cluster(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (at most `count`, ascending, float32) and each value's index (uint8).

    Lloyd's algorithm on the sorted values: a cluster is an interval, its mean a difference of
    prefix sums, so a round costs count x log(n). The first centres stand at quantiles of the
    density to the power 1/3, where the optimal quantizer has them for many clusters (Panter and
    Dite 1951). No randomness."""
    ordered = np.sort(values)
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    if np.count_nonzero(new) <= count:
        centres = ordered[new].astype(np.float64)
    else:
        sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
        centres = _first_centres(ordered, count)
        for _ in range(_ROUNDS):
            cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
            edges = np.concatenate([[0], cuts, [ordered.size]])
            sizes = np.diff(edges)
            means = (sums[edges[1:]] - sums[edges[:-1]]) / np.maximum(sizes, 1)
            moved = np.where(sizes > 0, means, centres)
            if np.allclose(moved, centres, rtol=0, atol=1e-9 * (ordered[-1] - ordered[0])):
                break
            centres = np.sort(moved)
    found = np.unique(centres.astype(np.float32))
    middles = (found[1:].astype(np.float64) + found[:-1]) / 2
    return found, np.searchsorted(middles, values).astype(np.uint8)


def _first_centres(ordered: np.ndarray, count: int) -> np.ndarray:
    """By the gaps between quantiles, not by a histogram: outliers would fill its range. Over a gap
    of width d the integral of density^(1/3) is in proportion to d^(2/3)."""
    edges = np.linspace(0, ordered.size - 1, min(8 * count, ordered.size)).round().astype(int)
    points = ordered[edges].astype(np.float64)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(np.square(np.diff(points))))])
    wanted = (np.arange(count) + 0.5) / count * mass[-1]
    return np.asarray(np.interp(wanted, mass, points))


def _store_indices(graph: Graph, name: str, centres: np.ndarray, indices: np.ndarray) -> None:
    """In place of the tensor: a look-up in the codebook, with indices of 8 or 4 bits."""
    unpacking = Unpacking(graph, name)
    book = unpacking.keep(centres, "codebook")
    if len(centres) > 16:
        at = unpacking.keep(indices, "indices")
        unpacking.op("Gather", book, unpacking.op("Cast", at, to=onnx.TensorProto.INT32))
    else:
        at = unpacking.keep(pack(indices, 4), "indices")
        found = unpacking.op("Gather", book, unpacking.bits(at, 4, indices.size))
        unpacking.shape(found, indices.shape)
    unpacking.done()
