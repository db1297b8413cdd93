"""Layers that multiply by a constant: what they take in, its second moments, and thinner layers in
their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from sartor.contracts import Arrays, Bench, Failed
from sartor.techniques._graph_onnx import Graph, attribute, watch

_BUDGET = 256 << 20  # bytes of second moments gathered in one pass over the data
_ROWS = 1024  # rows multiplied at once
_PLACES = 256  # rows taken of one activation of a convolution: neighbours are much alike
_GEOMETRY = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


@dataclass(frozen=True)
class Layer:
    """A product with a constant weight; `kernel` is empty where it is no convolution."""

    node: onnx.NodeProto
    weight: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]

    @property
    def width(self) -> int:
        """Numbers that one output is a sum over."""
        return self.inputs * int(np.prod(self.kernel, dtype=np.int64))

    @property
    def key(self) -> str:
        """Layers that read the same tensor alike share their moments."""
        how = [str(attribute(self.node, name, "")) for name in _GEOMETRY]
        return "|".join([self.node.input[0], *(["conv", *how] if self.kernel else ["rows"])])

    def matrix(self, graph: Graph) -> np.ndarray:
        """(width, outputs), float64."""
        value = graph.constant(self.weight)
        if value is None:
            raise Failed(f"the weight {self.weight} has no value in the file")
        if self.kernel:
            return value.reshape(self.outputs, self.width).T.astype(np.float64)
        turned = self.node.op_type == "Gemm" and attribute(self.node, "transB", 0)
        return (value.T if turned else value).astype(np.float64)

    def rows(self, activation: np.ndarray) -> np.ndarray:
        """What its outputs are sums over, (rows, width); of a convolution at most `_PLACES`,
        evenly spread."""
        if not self.kernel:
            return activation.reshape(-1, self.inputs)
        seen = windows(self.node, activation, self.kernel)
        places = seen.shape[: 1 + len(self.kernel)]
        count = int(np.prod(places))
        which = np.linspace(0, count - 1, min(count, _PLACES)).astype(int)
        return seen[np.unravel_index(which, places)].reshape(len(which), self.width)

    def places(self, activation: np.ndarray) -> np.ndarray:
        """How many rows there are before the kernel went over the spatial axes, when it went over
        the first of them, ... over all: `len(kernel) + 1` numbers."""
        if not self.kernel:
            return np.array([activation.size / self.inputs])
        before = activation.shape[2:]
        count, *after = windows(self.node, activation, self.kernel).shape[: 1 + len(before)]
        many = range(len(before) + 1)
        return np.array([count * np.prod([*after[:at], *before[at:]]) for at in many], np.float64)


def windows(node: onnx.NodeProto, x: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """What a convolution looks at, padded: (examples, places..., channels, kernel...), a view."""
    axes = len(kernel)
    strides: Sequence[int] = attribute(node, "strides", [1] * axes)
    dilations: Sequence[int] = attribute(node, "dilations", [1] * axes)
    reach = [(size - 1) * apart + 1 for size, apart in zip(kernel, dilations, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *_pads(node, x.shape[2:], reach, strides)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + axes)))
    steps = [slice(None, None, each) for each in (*strides, *dilations)]
    return np.moveaxis(seen[(slice(None), slice(None), *steps)], 1, 1 + axes)


def _pads(
    node: onnx.NodeProto, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    how = attribute(node, "auto_pad", b"NOTSET").decode()
    if how == "VALID":
        return [(0, 0)] * len(sizes)
    if how == "NOTSET":
        pads = attribute(node, "pads", [0] * 2 * len(sizes))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    found = []
    for size, wide, step in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // step) - 1) * step + wide - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if how == "SAME_UPPER" else (more, less))
    return found


def moments(
    graph: Graph, layers: list[Layer], bench: Bench, examples: int
) -> Mapping[str, np.ndarray]:
    """By `Layer.key`: the second moments of what it sums over, (width, width); with "places:" in
    front `Layer.places` in the mean; with "rows:" how many rows they are the moments of. Gathered
    in as many passes as bound the memory; remembered for other shares."""
    pending = {layer.key: layer for layer in layers}

    def compute() -> Mapping[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        todo = list(pending.values())
        while todo:
            group = [todo.pop(0)]
            room = _BUDGET - 8 * group[0].width ** 2
            while todo and 8 * todo[0].width ** 2 <= room:
                room -= 8 * todo[0].width ** 2
                group.append(todo.pop(0))
            batches = bench.batches("train", 1, examples)  # one by one: no padding
            if batches is None:
                raise Failed("there are no training rows to gather activations from")
            found |= _gather(graph, group, batches, bench)
        return found

    return bench.remember(f"second moments {graph.digest()} {examples}", compute)


def _gather(
    graph: Graph, group: list[Layer], batches: Iterable[Arrays], bench: Bench
) -> dict[str, np.ndarray]:
    sums = {layer.key: np.zeros((layer.width, layer.width)) for layer in group}
    waiting: dict[str, list[np.ndarray]] = {layer.key: [] for layer in group}
    counts = dict.fromkeys(sums, 0)
    places: dict[str, np.ndarray] = {layer.key: np.zeros(len(layer.kernel) + 1) for layer in group}
    seen = 0

    def add(key: str) -> None:
        for start in range(0, sum(map(len, waiting[key])), _ROWS):
            block = np.concatenate(waiting[key])[start : start + _ROWS]
            sums[key] += block.T @ block
        waiting[key].clear()

    for values in watch(graph, [layer.node.input[0] for layer in group], batches, bench):
        seen += 1
        for layer in group:
            activation = values[layer.node.input[0]]
            waiting[layer.key].append(layer.rows(activation))
            counts[layer.key] += len(waiting[layer.key][-1])
            places[layer.key] += layer.places(activation)
            # Many rows at once: each product reads and writes the whole matrix of sums.
            if sum(map(len, waiting[layer.key])) >= _ROWS:
                add(layer.key)
    found: dict[str, np.ndarray] = {}
    for key in sums:
        add(key)
        found[key] = (sums[key] / max(counts[key], 1)).astype(np.float32)
        found[f"places:{key}"] = places[key] / max(seen, 1)
        found[f"rows:{key}"] = np.array(counts[key])
    return found


@dataclass(frozen=True)
class Piece:
    """One of the layers that come in the place of another: `weight` is (into, out, *kernel), of
    size 1 along the spatial axes but `axes`, on which it takes strides and padding over."""

    weight: np.ndarray
    axes: range


def split(graph: Graph, layer: Layer, pieces: Sequence[Piece]) -> None:
    """Nodes in the place of one; the last keeps name, bias and scale. None but the last has a
    bias, so that zeros around what the first makes are what the whole layer had around it."""
    node, made, at = layer.node, [], layer.node.input[0]
    stems = ("low", "high") if len(pieces) == 2 else ("low", "core", "high")
    for stem, piece in zip(stems, pieces, strict=True):
        last = piece is pieces[-1]
        weight = graph.fresh(f"{layer.weight}_{stem}")
        turned = node.op_type == "Gemm" and last and attribute(node, "transB", 0)
        value = piece.weight.astype(np.float32)
        graph.set_constant(weight, value.swapaxes(0, 1) if layer.kernel or turned else value)
        if last:
            operator, name, ends = node.op_type, node.name, list(node.output)
        else:
            operator = "Conv" if layer.kernel else "MatMul"
            name = graph.fresh(f"{node.name}_{stem}")
            ends = [graph.fresh(f"{node.name}_{stem}_out")]
        rest = list(node.input[2:]) if last else []
        new = onnx.helper.make_node(operator, [at, weight, *rest], ends, name=name)
        if layer.kernel:
            new.attribute.extend(_geometry(node, piece))
        elif last:
            new.attribute.extend(node.attribute)
        made.append(new)
        at = ends[0]
    graph.replace(node, made)


def _geometry(node: onnx.NodeProto, piece: Piece) -> list[onnx.AttributeProto]:
    """The attributes of the convolution on the piece's axes, neutral ones on the others."""
    kernel = piece.weight.shape[2:]
    found = [onnx.helper.make_attribute("kernel_shape", kernel)]
    for each in node.attribute:
        if each.name in ("strides", "dilations", "pads"):
            neutral = 0 if each.name == "pads" else 1
            values = [
                value if at % len(kernel) in piece.axes else neutral
                for at, value in enumerate(each.ints)
            ]
            found.append(onnx.helper.make_attribute(each.name, values))
        elif each.name == "auto_pad":
            found.append(each)
    return found
