"""Toy TensorFlow Lite models for the laws, written by LiteRT's schema alone, with seeded weights.

Public, for authors of techniques and runtimes. "mlp" takes any number of rows; the others insist on
one, as converted models do; "whole" takes and gives int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from sartor.contracts import Arrays
from sartor.registry import runtime
from sartor.testing_runtimes import Specimen
from sartor.tflite_write import packed

VOCABULARY, TOKENS = 128, 12
_TYPES = {"float32": 0, "int32": 2, "int64": 4, "int8": 9}
_RELU = 1
Weights = dict[str, np.ndarray]


class Draft:
    """A file in the making: each method appends an operator or a constant and gives its tensor."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph.tensors, self.graph.operators, self.graph.name = [], [], "main"
        self.weights: Weights = {}
        self.codes: dict[int, int] = {}

    def tensor(self, name: str, dtype: str, shape: Sequence[int], free: bool = False) -> int:
        made = schema.TensorT()
        made.name, made.type, made.buffer, made.shape = name, _TYPES[dtype], 0, list(shape)
        if free:
            made.shapeSignature = [-1, *shape[1:]]
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(self, name: str, value: np.ndarray) -> int:
        at = self.tensor(name, value.dtype.name, value.shape)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[at].buffer = len(self.model.buffers) - 1
        self.weights[name] = value
        return at

    def weight(self, name: str, *shape: int, fan: int) -> int:
        values = self.rng.standard_normal(shape) * np.sqrt(2 / fan)
        return self.constant(name, values.astype(np.float32))

    def bias(self, name: str, size: int) -> int:
        return self.constant(name, (0.1 * self.rng.standard_normal(size)).astype(np.float32))

    def op(
        self, operator: str, inputs: Sequence[int], shape: Sequence[int], *,
        dtype: str = "float32", free: bool = False, options: str = "", **settings: Any,
    ) -> int:  # fmt: skip
        number = getattr(schema.BuiltinOperator, operator)
        if number not in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
            self.codes[number] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        step = schema.OperatorT()
        step.opcodeIndex, step.inputs = self.codes[number], list(inputs)
        out = self.tensor(f"{operator.lower()}_{len(self.graph.operators)}", dtype, shape, free)
        step.outputs = [out]
        if options:
            step.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            step.builtinOptions = getattr(schema, f"{options}T")()
            for name, value in settings.items():
                setattr(step.builtinOptions, name, value)
        self.graph.operators.append(step)
        return out

    def dense(
        self, x: int, into: int, out: int, shape: Sequence[int], relu: bool = False, **more: Any
    ) -> int:
        name = f"dense{len(self.weights)}"
        given = [x, self.weight(f"{name}.w", out, into, fan=into), self.bias(f"{name}.b", out)]
        return self.op(
            "FULLY_CONNECTED", given, shape, options="FullyConnectedOptions",
            fusedActivationFunction=_RELU * relu, keepNumDims=len(shape) > 2, **more,
        )  # fmt: skip

    def scaled(self, at: int, scale: float, zero: int) -> int:
        how = schema.QuantizationParametersT()
        how.scale, how.zeroPoint = [scale], [zero]
        self.graph.tensors[at].quantization = how
        return at

    def written(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        told = schema.SignatureDefT()
        told.signatureKey, told.subgraphIndex = "serving_default", 0
        told.inputs, told.outputs = _maps(inputs), _maps(outputs)
        self.model.signatureDefs = [told]
        return packed(self.model)


def _maps(ports: Mapping[str, int]) -> list[Any]:
    found = []
    for name, at in ports.items():
        each = schema.TensorMapT()
        each.name, each.tensorIndex = name, at
        found.append(each)
    return found


def _mlp(draft: Draft) -> bytes:
    x = draft.tensor("x", "float32", (1, 32), free=True)
    inner = draft.dense(x, 32, 64, (1, 64), relu=True, free=True)
    inner = draft.dense(inner, 64, 64, (1, 64), relu=True, free=True)
    return draft.written({"x": x}, {"logits": draft.dense(inner, 64, 4, (1, 4), free=True)})


def _cnn(draft: Draft) -> bytes:
    """Convolutions, a depthwise one, a mean over the picture, a linear head."""
    image = draft.tensor("image", "float32", (1, 16, 16, 3))
    given = [image, draft.weight("stem.w", 32, 3, 3, 3, fan=27), draft.bias("stem.b", 32)]
    x = draft.op(
        "CONV_2D", given, (1, 16, 16, 32), options="Conv2DOptions", padding=0, strideW=1,
        strideH=1, fusedActivationFunction=_RELU,
    )  # fmt: skip
    given = [x, draft.weight("deep.w", 1, 3, 3, 32, fan=9), draft.bias("deep.b", 32)]
    x = draft.op(
        "DEPTHWISE_CONV_2D", given, (1, 16, 16, 32), options="DepthwiseConv2DOptions", padding=0,
        strideW=1, strideH=1, depthMultiplier=1, fusedActivationFunction=_RELU,
    )  # fmt: skip
    axes = draft.constant("axes", np.array([1, 2], np.int32))
    x = draft.op("MEAN", [x, axes], (1, 32), options="ReducerOptions", keepDims=False)
    return draft.written({"image": image}, {"logits": draft.dense(x, 32, 4, (1, 4))})


def _attention(draft: Draft, width: int = 64) -> bytes:
    """An embedding, one head of attention with a shortcut, a mean over tokens; two outputs."""
    ids = draft.tensor("ids", "int64", (1, TOKENS))
    table = draft.weight("table", VOCABULARY, width, fan=2)
    shape = (1, TOKENS, width)
    x = draft.op("GATHER", [table, ids], shape, options="GatherOptions", axis=0)
    q, k, v = (draft.dense(x, width, width, shape) for _ in "qkv")
    scores = draft.op(
        "BATCH_MATMUL", [q, k], (1, TOKENS, TOKENS), options="BatchMatMulOptions", adjY=True
    )
    scale = draft.constant("scale", np.array([width**-0.5], np.float32))
    scores = draft.op("MUL", [scores, scale], (1, TOKENS, TOKENS), options="MulOptions")
    scores = draft.op("SOFTMAX", [scores], (1, TOKENS, TOKENS), options="SoftmaxOptions", beta=1.0)
    x = draft.op(
        "ADD", [x, draft.op("BATCH_MATMUL", [scores, v], shape, options="BatchMatMulOptions")],
        shape, options="AddOptions",
    )  # fmt: skip
    axis = draft.constant("axis", np.array([1], np.int32))
    x = draft.op("MEAN", [x, axis], (1, width), options="ReducerOptions", keepDims=False)
    return draft.written({"ids": ids}, {"logits": draft.dense(x, width, 4, (1, 4)), "pooled": x})


def _whole(draft: Draft) -> bytes:
    """int8 in and out, floats between: what a converter makes of a float model at its ends."""
    x = draft.scaled(draft.tensor("x", "int8", (1, 32)), 0.05, 3)
    inner = draft.op("DEQUANTIZE", [x], (1, 32))
    inner = draft.dense(inner, 32, 4, (1, 4))
    out = draft.op("QUANTIZE", [inner], (1, 4), dtype="int8")
    return draft.written({"x": x}, {"y": draft.scaled(out, 0.1, -5)})


_TOYS: Mapping[str, Callable[[Draft], bytes]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "attention": _attention,
    "whole": _whole,
}


def save_toys(folder: Path, seed: int = 0, only: Sequence[str] = ()) -> dict[str, Path]:
    """Name -> the file; of the toys named in `only`, where some are."""
    found = {}
    for at, (name, make) in enumerate(_TOYS.items()):
        if not only or name in only:
            found[name] = folder / f"{name}.tflite"
            found[name].write_bytes(make(Draft(seed + at)))
    return found


def toy_batch(name: str, rows: int, seed: int = 0) -> Arrays:
    """`rows` examples that the toy of this name takes."""
    rng = np.random.default_rng((seed, *name.encode()))
    if name == "cnn":
        return {"image": rng.standard_normal((rows, 16, 16, 3), np.float32)}
    if name == "attention":
        return {"ids": rng.integers(0, VOCABULARY, (rows, TOKENS))}
    if name == "whole":
        return {"x": rng.integers(-128, 128, (rows, 32)).astype(np.int8)}
    if name == "mlp":
        return {"x": rng.standard_normal((rows, 32), np.float32)}
    raise KeyError(f"no toy model {name!r}; there are: {', '.join(_TOYS)}")


@dataclass(frozen=True)
class _Batch:
    """As many rows as are asked for where the model takes any number, else one."""

    name: str

    def __call__(self, rows: int, seed: int) -> Arrays:
        return toy_batch(self.name, rows if self.name == "mlp" else 1, seed)


def reference(name: str, weights: Weights, batch: Arrays) -> Arrays:
    """What the toy ought to answer, in plain numpy."""
    x = next(iter(batch.values()))
    dense = [key[:-2] for key in weights if key.startswith("dense") and key.endswith(".w")]

    def linear(x: np.ndarray, at: int) -> np.ndarray:
        made: np.ndarray = x @ weights[f"{dense[at]}.w"].T + weights[f"{dense[at]}.b"]
        return made

    if name == "mlp":
        inner = np.maximum(linear(np.maximum(linear(x, 0), 0), 1), 0)
        return {"logits": linear(inner, 2)}
    if name == "cnn":
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("nhwcij,oijc->nhwo", windows, weights["stem.w"]) + weights["stem.b"]
        padded = np.pad(np.maximum(x, 0), [(0, 0), (1, 1), (1, 1), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("nhwcij,ijc->nhwc", windows, weights["deep.w"][0]) + weights["deep.b"]
        return {"logits": linear(np.maximum(x, 0).mean((1, 2)), 0)}
    if name == "attention":
        x = weights["table"][x]
        q, k, v = (linear(x, at) for at in range(3))
        scores = np.exp(q @ k.swapaxes(1, 2) * weights["scale"])
        pooled = (x + scores / scores.sum(-1, keepdims=True) @ v).mean(1)
        return {"logits": linear(pooled, 3), "pooled": pooled}
    found = linear((x.astype(np.float32) - 3) * np.float32(0.05), 0) / np.float32(0.1)
    return {"y": np.clip(np.round(found) - 5, -128, 127).astype(np.int8)}


@dataclass(frozen=True)
class _Reference:
    name: str
    weights: Weights

    def __call__(self, batch: Arrays) -> Arrays:
        return reference(self.name, self.weights, batch)


def specimens(folder: Path) -> list[Specimen]:
    """The toys for the runtime laws."""
    engine = runtime("tflite")
    found = []
    for at, (name, path) in enumerate(save_toys(folder).items()):
        draft = Draft(at)
        _TOYS[name](draft)
        answers = _Reference(name, draft.weights)
        found.append(Specimen(name, engine.open(path), _Batch(name), answers))
    return found
