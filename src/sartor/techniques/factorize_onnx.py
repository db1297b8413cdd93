"""Low rank: one wide layer becomes two thin ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import scipy.linalg

from sartor.contracts import Arrays, Bench, Failed, Model, Technique
from sartor.space import choice, span
from sartor.techniques._graph_onnx import (
    Graph,
    Parts,
    attribute,
    finish,
    foreign,
    peek,
    read,
    unchanged,
    watch,
)

_BUDGET = 256 << 20  # bytes of second moments gathered in one pass over the data
_WIDEST = 8192  # inputs: a moment matrix of 0.5 GB
_ROWS = 1024  # rows of activations multiplied at once
_SMALLEST = 16  # inputs and outputs: below, two layers cost more in calls than they save


@dataclass(frozen=True)
class LowRank(Technique):
    """Replaces W (inputs x outputs) by two factors of rank r, where r (inputs + outputs) <
    inputs x outputs, so that the error of the *outputs* on the training data is least: W U U',
    U the leading eigenvectors of the outputs' second moments W' S W, S those of the activations
    (Chen et al., "DRONE", NeurIPS 2021; whitening as in Wang et al., "SVD-LLM", ICLR 2025, gives
    the same and is what we do where a layer has more outputs than inputs).

    `share` is the share of the multiply-accumulates of all layers considered that remains. Ranks
    are chosen together: the least sum of relative output errors at that cost, by bisection over
    its Lagrange multiplier, so layers that bear no approximation stay whole. Parts are
    the MatMul, Gemm and Conv nodes with constant weights."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    stage: ClassVar[str] = "structure"
    repair: ClassVar[str | None] = "share"
    neutral: ClassVar[Mapping[str, float]] = {"share": 1.0}
    claims: ClassVar[frozenset[str]] = frozenset({"macs", "size"})

    share: float = span(0.9, 0.2, 1.0)
    examples: int = choice(256, values=(64, 256, 1024))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        if bench.batches("train", 1, 1) is None:
            return (
                "it weighs errors by activations and needs training rows, of which there are none"
            )
        layers, parts = _layers(peek(model))
        if not layers:
            return f"no layer can be factorized: {parts.most_frequent_reason()}"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        layers, parts = _layers(graph)
        if self.share == 1.0:
            for layer in layers:
                parts.skip(layer.node.name, "share 1 keeps every layer whole")
            return unchanged(model, self, parts)
        moments = _moments(graph, layers, bench, self.examples)
        factored = {layer.node.name: _factor(layer, graph, moments) for layer in layers}
        ranks = _ranks(layers, factored, self.share)
        for layer in layers:
            rank = ranks[layer.node.name]
            if rank is None:
                parts.skip(layer.node.name, "its error would cost more than its rank saves")
            else:
                _split(graph, layer, *factored[layer.node.name].factors(rank))
                parts.touch(layer.node.name)
        if not parts.touched:
            raise Failed(f"at a share of {self.share:g} every layer is better left whole")
        graph.drop_unused()
        return finish(model, self, graph, bench, parts)


@dataclass(frozen=True)
class _Layer:
    """A product with a constant weight; `spatial` axes of size 1 where it is a convolution."""

    node: onnx.NodeProto
    weight: str
    inputs: int
    outputs: int
    spatial: int

    def matrix(self, graph: Graph) -> np.ndarray:
        """(inputs, outputs), float64."""
        value = graph.constant(self.weight)
        if value is None:
            raise Failed(f"the weight {self.weight} has no value in the file")
        if self.node.op_type == "Conv":
            return value.reshape(self.outputs, self.inputs).T.astype(np.float64)
        turned = self.node.op_type == "Gemm" and attribute(self.node, "transB", 0)
        return (value.T if turned else value).astype(np.float64)

    def rows(self, activation: np.ndarray) -> np.ndarray:
        """The activation as (rows, inputs)."""
        if self.node.op_type != "Conv":
            return activation.reshape(-1, self.inputs)
        strides: Iterable[int] = attribute(self.node, "strides", [1] * (activation.ndim - 2))
        seen = activation[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
        return np.moveaxis(seen, 1, -1).reshape(-1, self.inputs)


@dataclass(frozen=True)
class _Factored:
    """Factors of full rank, best columns first: `first` is (inputs, n), `second` (n, outputs).
    `tail[r]` is the share of the outputs' energy lost at rank r; `positions` counts how often the
    layer is applied per example."""

    first: np.ndarray
    second: np.ndarray
    tail: np.ndarray
    positions: float

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return self.first[:, :rank].astype(np.float32), self.second[:rank].astype(np.float32)


def _layers(graph: Graph) -> tuple[list[_Layer], Parts]:
    """The layers that can be factorized; the others with a constant weight skipped with reasons."""
    found, parts = [], Parts()
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or node.domain:
            continue
        weight = graph.constant_tensor(node.input[1])
        if weight is None:
            continue
        reason = _unsuitable(node, weight, graph)
        if reason:
            parts.skip(node.name, reason)
            continue
        dims = tuple(weight.dims)
        turned = node.op_type == "Conv" or attribute(node, "transB", 0)
        outputs, inputs = dims[:2] if turned else dims[1::-1]
        found.append(_Layer(node, node.input[1], inputs, outputs, len(dims) - 2))
    return found, parts


def _unsuitable(node: onnx.NodeProto, weight: onnx.TensorProto, graph: Graph) -> str | None:
    if weight.data_type != onnx.TensorProto.FLOAT:
        return "its weight is not float32"
    if len(graph.users(node.input[1])) > 1:
        return "its weight is shared with another layer"
    if graph.constant_tensor(node.input[0]) is not None:
        return "both of its operands are constants"
    dims = tuple(weight.dims)
    if node.op_type == "Conv":
        if any(size != 1 for size in dims[2:]):
            return "its kernel is wider than 1"
        if attribute(node, "group", 1) != 1:
            return "it is a grouped convolution"
        automatic = attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        if automatic or any(attribute(node, "pads", [0])):
            return "it pads with a kernel of 1"
    elif len(dims) != 2:
        return "its weight is no matrix"
    elif attribute(node, "transA", 0):
        return "it takes its input transposed"
    if min(dims[:2]) < _SMALLEST:
        return f"fewer than {_SMALLEST} inputs or outputs"
    if max(dims[:2]) > _WIDEST:
        return f"more than {_WIDEST} inputs or outputs"
    return None


def _moments(
    graph: Graph, layers: list[_Layer], bench: Bench, examples: int
) -> Mapping[str, np.ndarray]:
    """Tensor -> second moments of its rows, (inputs, inputs), and "rows:" + tensor -> rows per
    example. Gathered in as many passes as bound the memory; remembered for other shares."""
    pending = {(layer.node.input[0], _way(layer)): layer for layer in layers}

    def compute() -> Mapping[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        todo = list(pending.items())
        while todo:
            group = [todo.pop(0)]
            room = _BUDGET - 8 * group[0][1].inputs ** 2
            while todo and 8 * todo[0][1].inputs ** 2 <= room:
                room -= 8 * todo[0][1].inputs ** 2
                group.append(todo.pop(0))
            batches = bench.batches("train", 1, examples)  # one by one: no padding
            if batches is None:
                raise Failed("there are no training rows to gather activations from")
            found |= _gather(graph, dict(group), batches, bench)
        return found

    return bench.remember(f"second moments {graph.digest()} {examples}", compute)


def _way(layer: _Layer) -> str:
    """How the layer reads its input: two that read it alike share their moments."""
    return f"conv{attribute(layer.node, 'strides', '')}" if layer.node.op_type == "Conv" else "rows"


def _key(layer: _Layer) -> str:
    return f"{layer.node.input[0]}|{_way(layer)}"


def _gather(
    graph: Graph, group: dict[tuple[str, str], _Layer], batches: Iterable[Arrays], bench: Bench
) -> dict[str, np.ndarray]:
    sums = {at: np.zeros((layer.inputs, layer.inputs)) for at, layer in group.items()}
    waiting: dict[tuple[str, str], list[np.ndarray]] = {at: [] for at in group}
    counts = dict.fromkeys(group, 0)
    seen = 0

    def add(at: tuple[str, str]) -> None:
        for start in range(0, sum(map(len, waiting[at])), _ROWS):
            block = np.concatenate(waiting[at])[start : start + _ROWS].astype(np.float64)
            sums[at] += block.T @ block
        waiting[at].clear()

    first = graph.proto.graph.input[0].name
    for values in watch(graph, [first, *(name for name, _ in group)], batches, bench):
        seen += len(values[first])
        for at, layer in group.items():
            waiting[at].append(layer.rows(values[at[0]]))
            counts[at] += len(waiting[at][-1])
            # Many rows at once: each product reads and writes the whole matrix of sums.
            if sum(map(len, waiting[at])) >= _ROWS:
                add(at)
    for at in group:
        add(at)
    found = {}
    for at, layer in group.items():
        found[_key(layer)] = (sums[at] / max(counts[at], 1)).astype(np.float32)
        found[f"rows:{_key(layer)}"] = np.array(counts[at] / max(seen, 1))
    return found


def _factor(layer: _Layer, graph: Graph, moments: Mapping[str, np.ndarray]) -> _Factored:
    """By the eigenvectors of the smaller of two matrices, which is far cheaper than an SVD."""
    weight = layer.matrix(graph)
    second = moments[_key(layer)].astype(np.float64)
    if not np.isfinite(second).all() or not np.isfinite(weight).all():
        raise Failed(f"weight or activations of {layer.node.name} are not finite")
    if layer.outputs <= layer.inputs:
        energies, vectors = _leading(weight.T @ second @ weight)
        left, right = weight @ vectors, vectors.T
    else:
        # Directions the data never took have no weight at all and could not be unwhitened.
        ridge = 1e-6 * max(float(np.trace(second)) / layer.inputs, 1e-30)
        root = np.linalg.cholesky(second + ridge * np.eye(layer.inputs))
        whitened = root.T @ weight
        energies, vectors = _leading(whitened @ whitened.T)
        left = scipy.linalg.solve_triangular(root.T, vectors)
        right = vectors.T @ whitened
    # Between the factors every column gets the root of its scale: what a quantizer likes best.
    heights = np.linalg.norm(left, axis=0) / np.maximum(np.linalg.norm(right, axis=1), 1e-30)
    balance = np.sqrt(np.maximum(heights, 1e-30))
    lost = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    positions = float(moments[f"rows:{_key(layer)}"])
    tail = lost / max(float(lost[0]), 1e-300)
    return _Factored(left / balance, right * balance[:, None], tail, positions)


def _leading(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first and none below zero, and their vectors as columns."""
    values, vectors = np.linalg.eigh(matrix)
    # Eigenvectors have no sign of their own: the largest entry is made positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    return np.maximum(values[::-1], 0.0), (vectors * signs)[:, ::-1]


def _ranks(
    layers: list[_Layer], factored: Mapping[str, _Factored], share: float
) -> dict[str, int | None]:
    """Node -> rank, or None for whole: the least sum of relative errors with at most `share` of
    the multiply-accumulates (as far as it can be reached), by bisection over the price of a MAC."""
    whole = sum(each.inputs * each.outputs * factored[each.node.name].positions for each in layers)

    def at(price: float) -> tuple[dict[str, int | None], float]:
        ranks: dict[str, int | None] = {}
        cost = 0.0
        for layer in layers:
            svd = factored[layer.node.name]
            dense = layer.inputs * layer.outputs
            candidates = _candidates(layer)
            costs = candidates * (layer.inputs + layer.outputs) * svd.positions / whole
            losses = svd.tail[candidates] + price * costs
            best = int(np.argmin(losses)) if candidates.size else None
            if best is None or losses[best] >= price * dense * svd.positions / whole:
                ranks[layer.node.name] = None
                cost += dense * svd.positions / whole
            else:
                ranks[layer.node.name] = int(candidates[best])
                cost += float(costs[best])
        return ranks, cost

    low, high = 1e-9, 1e9
    for _ in range(80):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if at(middle)[1] > share else (low, middle)
    return at(high)[0]


def _candidates(layer: _Layer) -> np.ndarray:
    """Ranks that save multiply-accumulates; multiples of 8 where there is a choice, for the
    vector units."""
    even = layer.inputs * layer.outputs / (layer.inputs + layer.outputs)
    step = 8 if even >= 64 else 1
    return np.arange(step, int(np.ceil(even)), step)


def _split(graph: Graph, layer: _Layer, first: np.ndarray, second: np.ndarray) -> None:
    """Two nodes in the place of one: the first projects, the second keeps bias and scale."""
    node = layer.node
    thin, name = graph.fresh(f"{node.name}_thin"), graph.fresh(f"{node.name}_low")
    low, high = graph.fresh(f"{layer.weight}_low"), graph.fresh(f"{layer.weight}_high")
    if node.op_type == "Conv":
        spatial = (1,) * layer.spatial
        graph.set_constant(low, first.T.reshape(-1, layer.inputs, *spatial))
        graph.set_constant(high, second.T.reshape(layer.outputs, -1, *spatial))
        before = onnx.helper.make_node("Conv", [node.input[0], low], [thin], name=name)
        before.attribute.extend(each for each in node.attribute)
        keep = [each for each in node.attribute if each.name not in ("strides", "pads", "auto_pad")]
    else:
        turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
        graph.set_constant(low, first)
        graph.set_constant(high, second.T if turned else second)
        before = onnx.helper.make_node("MatMul", [node.input[0], low], [thin], name=name)
        keep = list(node.attribute)
    after = onnx.helper.make_node(
        node.op_type, [thin, high, *node.input[2:]], list(node.output), name=node.name
    )
    after.attribute.extend(keep)
    graph.replace(node, [before, after])
