"""Half-precision storage of ONNX weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from sartor.contracts import Bench, Failed, Model, Technique
from sartor.space import span
from sartor.techniques._graph_onnx import Parts, finish, foreign, peek, read
from sartor.techniques._packing_onnx import Unpacking, weights


@dataclass(frozen=True)
class Float16Storage(Technique):
    """Stores float32 tensors as float16, with a Cast to float32 that ONNX Runtime folds away when
    it loads the model: half of the bytes at rest, the same speed, an error of at most 2^-11 of
    each weight.

    Tensors of fewer than `smallest` numbers stay (biases and scales weigh nothing and matter).
    What a quantizer stored in integers stays as it is. Parts are the float32 tensors."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "storage"
    repair: ClassVar[str | None] = "smallest"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    smallest: int = span(1024, 64, 1 << 24, log=True)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        largest = max((size for _, size in weights(peek(model))), default=0)
        if largest < self.smallest:
            return f"no float32 tensor has {self.smallest} numbers or more"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        parts = Parts()
        for name, size in weights(graph):
            if size < self.smallest:
                parts.skip(name, f"fewer than {self.smallest} numbers")
                continue
            value = graph.constant(name)
            reason = _loses(value) if value is not None else "it has no value"
            if reason or value is None:
                parts.skip(name, reason or "")
                continue
            unpacking = Unpacking(graph, name)
            half = unpacking.keep(value.astype(np.float16), "float16")
            unpacking.op("Cast", half, to=onnx.TensorProto.FLOAT)
            unpacking.done()
            parts.touch(name)
        if not parts.touched:
            raise Failed(f"no tensor can be stored in float16: {parts.most_frequent_reason()}")
        return finish(model, self, graph, bench, parts)


def _loses(value: np.ndarray) -> str | None:
    """Why the tensor cannot be told in float16; None where it can."""
    if not np.isfinite(value).all():
        return "it holds infinities or NaN"
    largest = float(np.abs(value).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        return f"its largest value, {largest:.3g}, is beyond the range of float16"
    # Below 6e-8 everything becomes zero, below 6e-5 digits are lost: mass there must not matter.
    rounded = value.astype(np.float16).astype(np.float32)
    error = float(np.linalg.norm((value - rounded).ravel()))
    if error > 2.0**-9 * float(np.linalg.norm(value.ravel())):
        return "its values are too small for float16"
    return None
