"""Zeros in the weights of ONNX models, and the storage that makes them pay.

Zeros bring no speed: ONNX Runtime multiplies by them as by any other number. What they bring is
size, and only where they are stored compactly (`SparseStorage`) or the file is compressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx import TensorProto

from sartor.contracts import Bench, Failed, Model, Technique
from sartor.space import choice, span
from sartor.techniques._graph_onnx import Graph, Parts, finish, foreign, peek, read, unchanged
from sartor.techniques._packing_onnx import Unpacking, pack, too_old, weights

# Operator -> which of its inputs are weights.
_WEIGHTS = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Attention": (1,),
    "FusedMatMul": (0, 1),
}
_FLOOR = 0.02


@dataclass(frozen=True)
class PruneMagnitude(Technique):
    """Sets the weights of smallest magnitude to zero (Han et al., NeurIPS 2015, without its
    retraining), of the share that is not kept.

    `scope` "global" compares weights of all layers, each in units of its own layer's root mean
    square (else wide layers, whose weights are small, would go entirely); "local" prunes every
    layer alike. It claims nothing: zeros bring no speed with ONNX Runtime and a plain file does
    not shrink; `SparseStorage` after it does. Parts are the weights of products, convolutions
    and recurrent layers of at least `smallest` numbers."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "weights"
    repair: ClassVar[str | None] = "density"
    neutral: ClassVar[dict[str, float]] = {"density": 1.0}

    density: float = span(0.7, 0.05, 1.0)
    scope: str = choice("global", "local")
    smallest: int = choice(1024, values=(256, 1024, 16384))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        if not _prunable(peek(model), self.smallest):
            return f"no float32 weight of a product or convolution has {self.smallest} numbers"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        parts = Parts()
        chosen = _prunable(graph, self.smallest)
        for name, size in weights(graph, axes=2):
            if name not in chosen:
                few = f"fewer than {self.smallest} numbers"
                parts.skip(name, few if size < self.smallest else "not the weight of a product")
        if self.density == 1.0:
            for name in chosen:
                parts.skip(name, "density 1 keeps every weight")
            return unchanged(model, self, parts)
        values = {name: graph.constant(name) for name in chosen}
        present = {name: value for name, value in values.items() if value is not None}
        for name, limit in self._limits(present).items():
            value = present[name]
            graph.set_constant(name, np.where(np.abs(value) < limit, np.float32(0), value))
            parts.touch(name)
        return finish(model, self, graph, bench, parts)

    def _limits(self, values: dict[str, np.ndarray]) -> dict[str, float]:
        """Tensor -> the magnitude below which its weights go. At least 2 % of each stay."""
        units = {
            name: float(np.sqrt(np.mean(np.square(v, dtype=np.float64)))) or 1.0
            for name, v in values.items()
        }
        own = {name: _quantile(np.abs(v), 1 - self.density) for name, v in values.items()}
        if self.scope == "local":
            return own
        every = np.concatenate(
            [np.abs(v.ravel()) / np.float32(units[n]) for n, v in values.items()]
        )
        limit = _quantile(every, 1 - self.density)
        return {
            name: min(limit * units[name], _quantile(np.abs(value), 1 - _FLOOR))
            for name, value in values.items()
        }


@dataclass(frozen=True)
class SparseStorage(Technique):
    """Stores tensors with many zeros as one bit a number and the values that are not zero.

    ONNX Runtime unpacks them when it loads the model: the same numbers, no gain and no loss of
    speed (ONNX's own sparse initializers spend eight bytes on every position and save nothing
    above a third of zeros). For float32 it pays from 1/32 of zeros, for int8 from 1/8. It takes
    4 to 20 bytes a number while loading. Parts are the float32, float16 and int8 tensors."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "storage"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        graph = read(model)
        if reason := too_old(graph, "bits"):
            return reason
        if not any(_saves(graph, name) for name, _ in weights(graph, 2, _TYPES)):
            return "no tensor has so many zeros that storing it by a bit mask would be smaller"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        parts = Parts()
        for name, _ in weights(graph, 2, _TYPES):
            if _saves(graph, name):
                _store_sparse(graph, name)
                parts.touch(name)
            else:
                parts.skip(name, "too few zeros")
        if not parts.touched:
            raise Failed("no tensor has so many zeros that storing it by a bit mask saves bytes")
        return finish(model, self, graph, bench, parts)


_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
_OVERHEAD = 512  # bytes of the nodes that unpack one tensor


def _prunable(graph: Graph, smallest: int) -> tuple[str, ...]:
    """The float32 weights of layers with at least so many numbers, in order."""
    read_as = {
        node.input[at]
        for node in graph.nodes
        for at in _WEIGHTS.get(node.op_type, ())
        if at < len(node.input)
    }
    return tuple(
        name for name, size in weights(graph, axes=2) if name in read_as and size >= smallest
    )


def _quantile(magnitudes: np.ndarray, share: float) -> float:
    """The magnitude below which this share lies; by partition: no sort of all weights."""
    flat = magnitudes.ravel()
    at = min(int(share * flat.size), flat.size - 1)
    return float(np.partition(flat, at)[at])


def _saves(graph: Graph, name: str) -> bool:
    value = graph.constant(name)
    if value is None:
        return False
    packed = np.count_nonzero(value) * value.itemsize + value.size / 8 + _OVERHEAD
    return bool(packed < value.nbytes)


def _store_sparse(graph: Graph, name: str) -> None:
    """In place of the tensor: position -> how many values came before -> the value, or zero."""
    value = graph.constant(name)
    assert value is not None  # `_saves` saw it
    present = value.ravel() != 0
    unpacking = Unpacking(graph, name)
    kept = np.concatenate([np.zeros(1, value.dtype), value.ravel()[present]])
    book = unpacking.keep(kept, "values")
    there = unpacking.bits(unpacking.keep(pack(present, 1), "present"), 1, value.size)
    rank = unpacking.op("CumSum", there, unpacking.keep(np.array(0, np.int64), "axis"))
    found = unpacking.op("Gather", book, unpacking.op("Mul", rank, there))
    unpacking.shape(found, value.shape)
    unpacking.done()
