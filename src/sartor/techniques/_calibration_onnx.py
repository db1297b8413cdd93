"""Ranges of activations in bounded memory: the model is run example by example, and only minima,
maxima and histograms of a fixed number of bins are kept.

Examples go through one at a time, as they will when the model serves: a batch would be padded, and
the padding would enter the ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sartor.contracts import Arrays, Bench, Failed
from sartor.techniques._graph_onnx import Graph, watch

HALF = 2048
"""Histogram bins on each side of zero."""

_BYTES_AT_ONCE = 64_000_000
_LEVELS = 128

Ranges = dict[str, tuple[float, float]]


def examples(bench: Bench, most: int) -> Iterator[Arrays]:
    """Calibration examples, one at a time. Raises Failed where there are none."""
    found = bench.batches("train", 1, most)
    if found is None:
        raise Failed("there are no calibration examples: give the data a train split")
    return found


def mark(graph: Graph) -> str:
    """A digest of the graph, for keys of what is remembered about it."""
    return hashlib.sha256(graph.proto.SerializeToString(deterministic=True)).hexdigest()


def ranges(
    graph: Graph, names: Sequence[str], bench: Bench, most: int, method: str, percentile: float
) -> Ranges:
    """Tensor -> (low, high) by "minmax", "percentile" (that share of the values lies inside, in
    per cent) or "entropy". Only tensors that are float32 and were seen are in the answer."""
    key = f"ranges {mark(graph)} {most} {hashlib.sha256(chr(0).join(names).encode()).hexdigest()}"
    seen = bench.remember(key, lambda: _extremes(graph, names, bench, most))
    found = {
        name: (float(low), float(high))
        for name, low, high in zip(names, seen["low"], seen["high"], strict=True)
        if low <= high
    }
    if method == "minmax":
        return found
    counted = bench.remember(f"{key} bins", lambda: _histograms(graph, found, bench, most))
    if method == "percentile":
        narrow = [
            by_percentile(bins, *found[name], percentile)
            for name, bins in zip(found, counted["bins"], strict=True)
        ]
    else:
        narrow = [
            by_entropy(bins, *found[name])
            for name, bins in zip(found, counted["bins"], strict=True)
        ]
    return dict(zip(found, narrow, strict=True))


def _extremes(graph: Graph, names: Sequence[str], bench: Bench, most: int) -> Arrays:
    """ "low" and "high", one number for each name; low > high where a tensor is not float32."""
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    for group in _groups(graph, names, bench):
        for values in watch(graph, group, examples(bench, most), bench):
            for name, value in values.items():
                finite = value[np.isfinite(value)]
                if finite.size:
                    low[name] = min(low[name], float(finite.min()))
                    high[name] = max(high[name], float(finite.max()))
    return {"low": np.array(list(low.values())), "high": np.array(list(high.values()))}


def _histograms(graph: Graph, found: Ranges, bench: Bench, most: int) -> Arrays:
    """ "bins": for each tensor 2 * HALF counts over [-a, a], a being its largest magnitude."""
    bins = {name: np.zeros(2 * HALF, np.int64) for name in found}
    for group in _groups(graph, list(found), bench):
        for values in watch(graph, group, examples(bench, most), bench):
            for name, value in values.items():
                top = max(abs(found[name][0]), abs(found[name][1])) or 1.0
                finite = value[np.isfinite(value)]
                at = ((finite + top) * (HALF / top)).astype(np.int64)
                bins[name] += np.bincount(np.clip(at, 0, 2 * HALF - 1), minlength=2 * HALF)
    return {"bins": np.array(list(bins.values())).reshape(len(bins), 2 * HALF)}


def _groups(graph: Graph, names: Sequence[str], bench: Bench) -> list[list[str]]:
    """The float32 tensors among `names`, as many at once as fit into the memory granted."""
    groups: list[list[str]] = [[]]
    filled = 0
    for start in range(0, len(names), 16):
        for values in watch(graph, names[start : start + 16], examples(bench, 1), bench):
            for name, value in values.items():
                if value.dtype != np.float32:
                    continue
                if filled + value.nbytes > _BYTES_AT_ONCE and groups[-1]:
                    groups.append([])
                    filled = 0
                groups[-1].append(name)
                filled += value.nbytes
    return groups


def by_percentile(
    bins: np.ndarray, low: float, high: float, percentile: float
) -> tuple[float, float]:
    """The range that leaves out half of `100 - percentile` per cent of the values on each side."""
    top = max(abs(low), abs(high)) or 1.0
    edges = np.linspace(-top, top, len(bins) + 1)
    share = np.cumsum(bins) / max(bins.sum(), 1)
    tail = (100 - percentile) / 200
    left = edges[np.searchsorted(share, tail, side="right")] if tail else low
    last = min(int(np.searchsorted(share, 1 - tail)), len(bins) - 1)
    right = edges[last + 1]
    return max(low, float(left)), min(high, float(right))


def by_entropy(bins: np.ndarray, low: float, high: float, step: int = 16) -> tuple[float, float]:
    """The symmetric clip whose quantized histogram diverges least (Kullback-Leibler) from the
    clipped one, within [low, high]; S. Migacz, "8-bit inference with TensorRT", GTC 2017."""
    folded = (bins[HALF:] + bins[:HALF][::-1]).astype(np.float64)
    if not folded[1:].any():
        return low, high
    folded[0] = folded[1]  # a Relu's many zeros are exact in any range and must not decide it
    top = max(abs(low), abs(high))
    levels = 2 * _LEVELS - 1 if low >= 0 or high <= 0 else _LEVELS
    ends = range(levels + 1, HALF + 1, step)
    diverged = [_divergence(folded, end, levels) for end in ends]
    clip = top * ends[int(np.argmin(diverged))] / HALF
    return max(low, -clip), min(high, clip)


def _divergence(folded: np.ndarray, end: int, levels: int) -> float:
    """KL(p || q): p the first `end` bins with all that lies beyond put into the last one, q the
    same bins without it, averaged over each of the quantization levels."""
    inside = folded[:end]
    p = inside.copy()
    p[-1] += folded[end:].sum()
    starts = np.linspace(0, end, levels, endpoint=False).astype(np.int64)
    filled = (p > 0).astype(np.float64)
    shared = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat(filled, starts), 1)
    q = np.repeat(shared, np.diff(np.append(starts, end))) * filled
    # As TensorRT does, bins that would make it infinite get a little of the others' mass.
    p, q = np.maximum(p, 1e-4 * filled), np.maximum(q, 1e-4 * filled)
    p, q = p / p.sum(), q / max(q.sum(), 1e-30)
    there = p > 0
    return float(np.sum(p[there] * np.log(p[there] / q[there])))


def scale_of(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of uint8 for a range, as ONNX Runtime's quantizer chooses them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1), np.uint8(0)
    return scale, np.uint8(np.clip(np.round(-low / scale), 0, 255))


def channel_peaks(
    graph: Graph, names: Sequence[str], bench: Bench, most: int
) -> Mapping[str, np.ndarray]:
    """Tensor -> the largest magnitude of each channel of its last axis."""
    peaks: dict[str, np.ndarray] = {}
    for values in watch(graph, names, examples(bench, most), bench):
        for name, value in values.items():
            peak = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0, initial=0)
            peaks[name] = np.maximum(peaks.get(name, np.float32(0)), peak)
    return peaks


def mean_inputs(
    graph: Graph, axes: Mapping[str, int], bench: Bench, most: int
) -> dict[str, np.ndarray]:
    """Tensor -> its mean over the examples: [channels, ...] where `axes[name]`, the axis of its
    channels, is 1, [channels] where it is -1 or where the sizes change between examples."""
    total: dict[str, np.ndarray] = {}
    count = 0
    for values in watch(graph, list(axes), examples(bench, most), bench):
        count += 1
        for name, value in values.items():
            rows = value if axes[name] == 1 else value.reshape(-1, value.shape[-1])
            mean = rows.mean(axis=0, dtype=np.float64)
            before = total.get(name, mean * 0)
            if before.shape != mean.shape:
                before, mean = _by_channel(before), _by_channel(mean)
            total[name] = before + mean
    return {name: (value / max(count, 1)).astype(np.float32) for name, value in total.items()}


def _by_channel(mean: np.ndarray) -> np.ndarray:
    means: np.ndarray = mean.reshape(len(mean), -1).mean(axis=1)
    return means
