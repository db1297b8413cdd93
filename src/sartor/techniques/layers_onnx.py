"""Fewer layers: whole blocks of a transformer or a residual network are taken out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sartor.contracts import Bench, Failed, Model, Technique, Unneeded
from sartor.space import choice, span
from sartor.techniques._blocks_onnx import Layer, stacks, take_out
from sartor.techniques._graph_onnx import (
    Graph,
    Parts,
    finish,
    foreign,
    peek,
    read,
    unchanged,
    watch,
)

_EXAMPLES = 64  # training rows for the cosines: of a text, a thousand positions


@dataclass(frozen=True)
class DropLayers(Technique):
    """Takes whole layers out of every stack of layers that repeat, so that `keep` is the share that
    stays (at least one): encoder layers of a transformer, decoder layers, residual blocks of a CNN.
    What is around them stays, and so do weights that other layers share.

    `order` says which go: "spread" leaves evenly spaced ones, the first and the last among them
    (Sanh et al., "DistilBERT", 2019, took every other one); "last" and "first" take them from one
    end; "importance" takes those whose input and output point most alike on training rows, by the
    mean cosine over positions (Men et al., "ShortGPT", 2024). Nothing is trained afterwards. Parts
    are the layers, named by their first node."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "structure"
    repair: ClassVar[str | None] = "keep"
    neutral: ClassVar[Mapping[str, float]] = {"keep": 1.0}
    claims: ClassVar[frozenset[str]] = frozenset({"macs", "size", "latency"})

    keep: float = span(0.75, 0.1, 1.0)
    order: str = choice("spread", "last", "first", "importance")

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        if self.order == "importance" and bench.batches("train", 1, 1) is None:
            return "order=importance compares layers on training rows, of which there are none"
        return self._idle(stacks(peek(model)))

    def apply(self, model: Model, bench: Bench) -> Model:
        graph, parts = read(model), Parts()
        found = stacks(graph)
        idle = self._idle(found)
        if idle:
            raise Unneeded(idle)
        if self.keep == 1.0:
            for layer in [each for layers in found for each in layers]:
                parts.skip(layer.name, "keep=1 leaves every layer")
            return unchanged(model, self, parts)
        alike = _cosines(graph, found, bench) if self.order == "importance" else {}
        gone: list[Layer] = []
        for layers in found:
            staying = self._staying([alike.get(each.name, 0.0) for each in layers])
            for at, layer in enumerate(layers):
                if at in staying:
                    share = f"one of the {len(staying)} of {len(layers)} layers that stay"
                    cosine = f" (cosine {alike[layer.name]:.3f})" if alike else ""
                    parts.skip(layer.name, f"{share} by order={self.order}{cosine}")
                else:
                    parts.touch(layer.name)
                    gone.append(layer)
        take_out(graph, gone)
        return finish(model, self, graph, bench, parts)

    def _idle(self, found: Sequence[Sequence[Layer]]) -> str | None:
        """The reason where there are no layers, or the share leaves all of them though it is not
        1."""
        if not found:
            return "no layers repeat: there are no two residual blocks of the same structure in it"
        most = max(len(layers) for layers in found)
        if self.keep == 1.0 or any(self._count(len(layers)) < len(layers) for layers in found):
            return None
        return f"keep={self.keep:g} leaves all layers: the highest stack has {most}"

    def _count(self, layers: int) -> int:
        return max(1, math.floor(self.keep * layers + 0.5))

    def _staying(self, alike: Sequence[float]) -> set[int]:
        """Which of a stack's layers stay, given the cosine of each one's input and output."""
        layers = len(alike)
        count = self._count(layers)
        if self.order == "first":
            return set(range(layers - count, layers))
        if self.order == "last":
            return set(range(count))
        if self.order == "importance":
            return {int(at) for at in np.argsort(np.array(alike), kind="stable")[:count]}
        return {math.floor(each + 0.5) for each in np.linspace(0, layers - 1, count)}


def _cosines(graph: Graph, found: Sequence[Sequence[Layer]], bench: Bench) -> Mapping[str, float]:
    """Layer -> the mean cosine of its input and output on training rows, one by one, so that no
    padding counts. Remembered for other shares."""
    layers = [each for stack in found for each in stack]
    names = list(dict.fromkeys(name for each in layers for name in (each.input, each.output)))

    def compute() -> Mapping[str, np.ndarray]:
        rows = bench.batches("train", 1, _EXAMPLES)
        if rows is None:
            raise Failed("there are no training rows to compare the layers on")
        seen = [
            [_cosine(values[each.input], values[each.output]) for each in layers]
            for values in watch(graph, names, rows, bench)
        ]
        return {"cosine": np.mean(seen, axis=0)}

    known = bench.remember(f"cosines of layers {graph.digest()} {_EXAMPLES}", compute)["cosine"]
    if not np.isfinite(known).all():
        raise Failed("what the layers compute on training rows is not finite")
    return {each.name: float(value) for each, value in zip(layers, known, strict=True)}


def _cosine(one: np.ndarray, two: np.ndarray) -> float:
    """The mean over positions of sequences [rows, steps, width]; over rows for other shapes."""
    kept = 2 if one.ndim == 3 else 1
    first, second = (each.reshape(*each.shape[:kept], -1).astype(np.float64) for each in (one, two))
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return float(np.mean((first * second).sum(-1) / np.maximum(norms, 1e-30)))
