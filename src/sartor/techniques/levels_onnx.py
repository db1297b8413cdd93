"""Weights of two or three values: an experiment, for whoever asks for it by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from sartor.contracts import Bench, Model, Technique, Unneeded
from sartor.space import choice, span
from sartor.techniques._graph_onnx import Graph, Parts, finish, foreign, peek, read
from sartor.techniques._integers_onnx import (
    channel_axes,
    consider,
    count_weights,
    lift_constants,
    no_examples,
    obstacle,
)
from sartor.techniques._levels_onnx import levels, store
from sartor.techniques._packing_onnx import too_old
from sartor.techniques._sensitivity_onnx import Rounding, worst

_FEWEST = 1024  # weights, fewer than which the nodes that unpack them would outweigh
_OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class FewLevels(Technique):
    """Experimental: weights of three values a channel, {-a, 0, a} (Li, Zhang and Liu, "Ternary
    weight networks", 2016), or of two, {-a, a} (Rastegari and others, "XNOR-Net", ECCV 2016; the
    activations stay floats). Much is lost until `tune` trains them behind it.

    At rest two bits or one for each weight. ONNX Runtime unpacks them once, when it loads the
    model: no gain of speed or memory. `spared` is the share of the weights that stay float32, in
    the layers that change the answer most. Parts are products and convolutions."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "storage"
    repair: ClassVar[str | None] = "spared"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})
    experimental: ClassVar[bool] = True

    values: str = choice("ternary", "binary")
    spared: float = span(0.95, 0.0, 0.99)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        graph = peek(model)
        if reason := too_old(graph, "weights"):
            return reason
        parts = consider(graph, _against)
        if not parts.touched:
            return f"nothing to store in few values: {parts.most_frequent_reason()}"
        sizes = [count_weights(graph, node) for node in graph.nodes if node.name in parts.touched]
        if min(sizes) > self._most(sizes):
            return f"each layer holds more than what spared={self.spared:g} leaves: lower it"
        return no_examples(bench, "spared") if self.spared else None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph, binary = read(model), self.values == "binary"
        lift_constants(graph)
        parts, told = consider(graph, _against), Parts()
        nodes = {node.name: node for node in graph.nodes if node.name in set(parts.touched)}
        for name in parts.touched:
            if not np.isfinite(_weight(graph, nodes[name])).all():
                told.skip(name, "it holds infinities or NaN")
                del nodes[name]
        for name in self._chosen(graph, nodes, bench):
            store(graph, nodes[name].input[1], channel_axes(nodes[name])[0], binary)
            told.touch(name)
        for name in nodes:
            told.skip(name, f"spared: it is among the {self.spared:.0%} that harm most")
        for name, reason in parts.skipped:
            told.skip(name, reason)
        if not told.touched:
            raise Unneeded(f"nothing to store in few values: {told.most_frequent_reason()}")
        return finish(model, self, graph, bench, told)

    def _chosen(self, graph: Graph, nodes: dict[str, onnx.NodeProto], bench: Bench) -> list[str]:
        """The layers that do least harm, up to the share that is not spared."""
        if not self.spared or not nodes:
            return list(nodes)
        sizes = {name: count_weights(graph, node) for name, node in nodes.items()}
        left = self._most(sizes.values())
        chosen: list[str] = []
        for name in reversed(self._worst(graph, nodes, bench)):
            if sizes[name] <= left:
                chosen.append(name)
                left -= sizes[name]
        return chosen

    def _most(self, sizes: Iterable[int]) -> int:
        return round((1 - self.spared) * sum(sizes))

    def _worst(self, graph: Graph, nodes: dict[str, onnx.NodeProto], bench: Bench) -> list[str]:
        roundings = {}
        for name, node in nodes.items():
            axis = channel_axes(node)[0]
            signs, scale = levels(_weight(graph, node), axis, self.values == "binary")
            roundings[name] = Rounding({1: (signs * scale).astype(np.float32)})
        return worst(graph, roundings, bench, f"levels {self.values}")


def _against(graph: Graph, node: onnx.NodeProto) -> str | None:
    if node.op_type not in _OPERATORS:
        return f"few values are for products and convolutions, not for {node.op_type}"
    reason = obstacle(graph, node)
    if reason:
        return reason
    few = count_weights(graph, node)
    if few < _FEWEST:
        return f"{few} weights are too few to pay"
    if len(graph.users(node.input[1])) > 1 or node.input[1] in graph.outputs:
        return "its weights are read elsewhere too"
    return None


def _weight(graph: Graph, node: onnx.NodeProto) -> np.ndarray:
    weight = graph.constant(node.input[1])
    if weight is None:
        raise Unneeded(f"the weights of {node.name} are not constant")
    return weight
