"""Low rank: one wide layer becomes two or three thin ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from sartor.contracts import Bench, Failed, Model, Technique
from sartor.space import choice, span
from sartor.techniques._factors_onnx import Factored, factor
from sartor.techniques._graph_onnx import (
    Graph,
    Parts,
    attribute,
    finish,
    foreign,
    peek,
    read,
    unchanged,
)
from sartor.techniques._products_onnx import Layer, moments, split

_WIDEST = 8192  # numbers summed over: a moment matrix of 0.5 GB
_SMALLEST = 16  # inputs and outputs: below, two layers cost more in calls than they save


@dataclass(frozen=True)
class LowRank(Technique):
    """Replaces W (inputs x outputs) by two factors of rank r, where r (inputs + outputs) <
    inputs x outputs, so that the error of the *outputs* on the training data is least: W U U',
    U the leading eigenvectors of the outputs' second moments W' S W, S those of the activations
    (Chen et al., "DRONE", NeurIPS 2021; whitening as in Wang et al., "SVD-LLM", ICLR 2025, gives
    the same and is what we do where a layer has more outputs than inputs).

    Convolutions wider than 1 become two or three: `kernels` "tucker" takes the kernel over fewer
    channels (Tucker-2), "spatial" goes over the axes one by one; both fitted to S too (`Kernel`).

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
    kernels: str = choice("spatial", "tucker")
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
        known = moments(graph, layers, bench, self.examples)
        lanes = 16 if "avx512f" in bench.target.features else 8  # of blocked convolutions
        factored = [factor(each, each.matrix(graph), known, self.kernels, lanes) for each in layers]
        for layer, ways, which in zip(layers, factored, _chosen(factored, self.share), strict=True):
            if which is None:
                parts.skip(layer.node.name, "its error would cost more than its rank saves")
            else:
                split(graph, layer, ways.pieces(which))
                parts.touch(layer.node.name)
        if not parts.touched:
            raise Failed(f"at a share of {self.share:g} every layer is better left whole")
        graph.drop_unused()
        return finish(model, self, graph, bench, parts)


def _layers(graph: Graph) -> tuple[list[Layer], Parts]:
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
        found.append(Layer(node, node.input[1], inputs, outputs, dims[2:]))
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
        if attribute(node, "group", 1) != 1:
            return "it is a grouped convolution"
    elif len(dims) != 2:
        return "its weight is no matrix"
    elif attribute(node, "transA", 0):
        return "it takes its input transposed"
    if min(dims[:2]) < _SMALLEST:
        return f"fewer than {_SMALLEST} inputs or outputs"
    if max(*dims[:2], int(np.prod(dims)) // dims[0]) > _WIDEST:
        return f"its outputs are sums over more than {_WIDEST} numbers"
    return None


def _chosen(factored: list[Factored], share: float) -> list[int | None]:
    """Which way to factorize each layer, or None for whole: the least sum of relative errors with
    at most `share` of the multiply-accumulates (as far as it can be reached), by bisection over
    the price of a MAC."""
    total = sum(each.whole for each in factored)

    def at(price: float) -> tuple[list[int | None], float]:
        found: list[int | None] = []
        cost = 0.0
        for each in factored:
            losses = each.losses + price * each.costs / total
            best = int(np.argmin(losses)) if losses.size else None
            if best is None or losses[best] >= price * each.whole / total:
                found.append(None)
                cost += each.whole / total
            else:
                found.append(best)
                cost += float(each.costs[best]) / total
        return found, cost

    low, high = 1e-9, 1e9
    for _ in range(80):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if at(middle)[1] > share else (low, middle)
    return at(high)[0]
