"""Toy ONNX models for the laws: every shape of network in miniature, with seeded weights.

They are small enough for a test to take milliseconds and wide enough (32, 64) for block-wise
quantizers to accept them. Public, for authors of techniques and runtimes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from sartor.contracts import Arrays
from sartor.registry import runtime
from sartor.testing_runtimes import Specimen

VOCABULARY = 128
OPSET, IR = 17, 8  # what the exporters of the day write, readable by every runtime in use


class Draft:
    """A graph in the making: each method appends a node or a weight and gives its name."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(
        self, operator: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Appends a node; the name of its first output."""
        name = f"{operator}_{len(self.nodes)}"
        made = list(outputs) or [f"{name}_out"]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name=name, **attributes))
        return made[0]

    def constant(self, value: Any, name: str = "") -> str:
        name = name or f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, fan: int | None = None) -> str:
        """A float32 weight, normal with standard deviation sqrt(2 / fan-in)."""
        fan = fan or (shape[0] if len(shape) == 2 else int(np.prod(shape[1:])))
        values = self.rng.standard_normal(shape) * np.sqrt(2 / fan)
        return self.constant(values.astype(np.float32), f"weight_{len(self.weights)}")

    def bias(self, size: int) -> str:
        values = 0.1 * self.rng.standard_normal(size)
        return self.constant(values.astype(np.float32), f"bias_{len(self.weights)}")

    def linear(self, x: str, into: int, out: int) -> str:
        """MatMul and Add, as exporters write a linear layer on three axes."""
        return self.op("Add", self.op("MatMul", x, self.weight(into, out)), self.bias(out))

    def gemm(self, x: str, into: int, out: int) -> str:
        return self.op("Gemm", x, self.weight(into, out), self.bias(out))

    def conv(self, x: str, into: int, out: int, size: int = 3, group: int = 1) -> str:
        weight = self.weight(out, into // group, size, size)
        pad = [size // 2] * 4
        return self.op(
            "Conv", x, weight, self.bias(out), kernel_shape=[size, size], pads=pad, group=group
        )

    def norm(self, x: str, width: int) -> str:
        ones = self.constant(np.ones(width, np.float32))
        return self.op("LayerNormalization", x, ones, self.bias(width), axis=-1, epsilon=1e-5)

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        for made, port in zip(self._ends(len(outputs)), outputs, strict=True):
            self.nodes.append(
                helper.make_node("Identity", [made], [port.name], name=f"out_{port.name}")
            )
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        made = helper.make_model(graph, opset_imports=opset, ir_version=IR, producer_name="sartor")
        onnx.checker.check_model(made, full_check=True)
        return made

    def _ends(self, count: int) -> list[str]:
        """The first outputs of the last `count` nodes whose first output nobody reads."""
        read = {name for node in self.nodes for name in node.input}
        ends = [node.output[0] for node in self.nodes if node.output[0] not in read]
        return ends[-count:]


def _port(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _mlp(seed: int) -> onnx.ModelProto:
    draft = Draft(seed)
    hidden = draft.op("Relu", draft.gemm("x", 32, 64))
    hidden = draft.op("Relu", draft.gemm(hidden, 64, 64))
    draft.gemm(hidden, 64, 4)
    return draft.model("mlp", [_port("x", "batch", 32)], [_port("logits", "batch", 4)])


def _cnn(seed: int) -> onnx.ModelProto:
    """Stem, residual block, depthwise and 1x1 convolution, pooling, head."""
    draft = Draft(seed)
    stem = draft.op("Relu", draft.conv("image", 3, 32))
    inner = draft.op("Relu", draft.conv(stem, 32, 32))
    block = draft.op("Relu", draft.op("Add", draft.conv(inner, 32, 32), stem))
    deep = draft.op("Relu", draft.conv(block, 32, 32, group=32))
    deep = draft.op("Relu", draft.conv(deep, 32, 64, size=1))
    pooled = draft.op("Flatten", draft.op("GlobalAveragePool", deep), axis=1)
    draft.gemm(pooled, 64, 4)
    image = _port("image", "batch", 3, 16, 16)
    return draft.model("cnn", [image], [_port("logits", "batch", 4)])


def _lstm(seed: int) -> onnx.ModelProto:
    draft = Draft(seed)
    hidden, steps = 32, draft.op("Transpose", "x", perm=[1, 0, 2])
    weights = (
        draft.weight(1, 4 * hidden, 16, fan=16),
        draft.weight(1, 4 * hidden, hidden, fan=2 * hidden),
        draft.constant(0.1 * draft.rng.standard_normal((1, 8 * hidden), np.float32)),
    )
    draft.op("LSTM", steps, *weights, outputs=("every", "last", "cell"), hidden_size=hidden)
    axis = draft.constant(np.array([0], np.int64))
    draft.gemm(draft.op("Squeeze", "last", axis), hidden, 4)
    x = _port("x", "batch", "steps", 16)
    return draft.model("lstm", [x], [_port("logits", "batch", 4)])


def _heads(draft: Draft, x: str, width: int, heads: int) -> str:
    """[batch, tokens, width] -> [batch, heads, tokens, width / heads]."""
    shape = draft.constant(np.array([0, 0, heads, width // heads], np.int64))
    return draft.op("Transpose", draft.op("Reshape", x, shape), perm=[0, 2, 1, 3])


def _attention(draft: Draft, x: str, bias: str, width: int, heads: int) -> str:
    query, key, value = (_heads(draft, draft.linear(x, width, width), width, heads) for _ in "qkv")
    scores = draft.op("MatMul", query, draft.op("Transpose", key, perm=[0, 1, 3, 2]))
    scale = draft.constant(np.float32(np.sqrt(width // heads)))
    scores = draft.op("Add", draft.op("Div", scores, scale), bias)
    mixed = draft.op("MatMul", draft.op("Softmax", scores, axis=-1), value)
    mixed = draft.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = draft.op("Reshape", mixed, draft.constant(np.array([0, 0, width], np.int64)))
    return draft.linear(mixed, width, width)


def _gelu(draft: Draft, x: str) -> str:
    error = draft.op("Erf", draft.op("Div", x, draft.constant(np.float32(np.sqrt(2)))))
    grown = draft.op("Mul", x, draft.op("Add", error, draft.constant(np.float32(1))))
    return draft.op("Mul", grown, draft.constant(np.float32(0.5)))


def _transformer(seed: int) -> onnx.ModelProto:
    return encoder(Draft(seed), "transformer")


def _deep(seed: int) -> onnx.ModelProto:
    """Four layers with norms in their branches; each changes little, as in trained networks."""
    return encoder(Draft(seed), "deep", layers=4, width=32, change=0.1, pre_norm=True)


def encoder(
    draft: Draft,
    name: str,
    layers: int = 1,
    width: int = 64,
    change: float = 1.0,
    pre_norm: bool = False,
) -> onnx.ModelProto:
    """An encoder with mask, mean pooling and head, as exporters write it: norms behind the sums as
    in BERT, or within the branches and one at the end. `change` scales what a layer adds."""
    table = draft.weight(VOCABULARY, width, fan=2)
    x = draft.norm(draft.op("Gather", table, "input_ids"), width)
    mask = draft.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    one, far = draft.constant(np.float32(1)), draft.constant(np.float32(-1e4))
    lifted = draft.op("Unsqueeze", mask, draft.constant(np.array([1, 2], np.int64)))
    bias = draft.op("Mul", draft.op("Sub", one, lifted), far)
    for _ in range(layers):
        x = _encoder_layer(draft, x, bias, width, change, pre_norm)
    x = draft.norm(x, width) if pre_norm else x
    column = draft.op("Unsqueeze", mask, draft.constant(np.array([2], np.int64)))
    axis = draft.constant(np.array([1], np.int64))
    total = draft.op("ReduceSum", draft.op("Mul", x, column), axis, keepdims=0)
    pooled = draft.op("Div", total, draft.op("ReduceSum", mask, axis, keepdims=1))
    draft.gemm(pooled, width, 4)
    inputs = [
        _port(each, "batch", "tokens", kind=TensorProto.INT64)
        for each in ("input_ids", "attention_mask")
    ]
    return draft.model(name, inputs, [_port("logits", "batch", 4)])


def _encoder_layer(
    draft: Draft, x: str, bias: str, width: int, change: float, pre_norm: bool
) -> str:
    def added(x: str, branch: Callable[[str], str]) -> str:
        seen = branch(draft.norm(x, width) if pre_norm else x)
        if change != 1.0:
            seen = draft.op("Mul", seen, draft.constant(np.float32(change)))
        x = draft.op("Add", x, seen)
        return x if pre_norm else draft.norm(x, width)

    x = added(x, lambda x: _attention(draft, x, bias, width, 4))
    return added(
        x,
        lambda x: draft.linear(_gelu(draft, draft.linear(x, width, 2 * width)), 2 * width, width),
    )


def _several(seed: int) -> onnx.ModelProto:
    """Two inputs, two outputs, one weight read twice."""
    draft = Draft(seed)
    left = draft.op("Relu", draft.gemm("left", 32, 64))
    right = draft.op("Tanh", draft.linear("right", 16, 64))
    both = draft.op("Concat", left, right, axis=1)
    shared, bias = draft.weight(128, 64), draft.bias(64)
    once = draft.op("Relu", draft.op("Gemm", both, shared, bias))
    twice = draft.op("Relu", draft.op("Gemm", draft.op("Abs", both), shared, bias))
    draft.gemm(draft.op("Add", once, twice), 64, 3)
    draft.op("ReduceMean", once, axes=[1], keepdims=1)
    inputs = [_port("left", "batch", 32), _port("right", "batch", 16)]
    outputs = [_port("scores", "batch", 3), _port("level", "batch", 1)]
    return draft.model("several", inputs, outputs)


def _embedding(seed: int) -> onnx.ModelProto:
    """A table of 512 rows, which is most of the bytes, a mean and a linear head. The data use the
    first 64 and few others; the others lie near those, as the forms of a word do."""
    draft = Draft(seed)
    words = np.tile(draft.rng.standard_normal((64, 64)), (8, 1))
    words[64:] += 0.3 * draft.rng.standard_normal((448, 64))
    rows = draft.op("Gather", draft.constant(words.astype(np.float32)), "ids")
    draft.linear(draft.op("ReduceMean", rows, axes=[1], keepdims=0), 64, 4)
    ids = _port("ids", "batch", "words", kind=TensorProto.INT64)
    return draft.model("embedding", [ids], [_port("logits", "batch", 4)])


_TOYS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "lstm": _lstm,
    "transformer": _transformer,
    "several": _several,
    "embedding": _embedding,
    "deep": _deep,
}


def toy_models(seed: int = 0) -> dict[str, onnx.ModelProto]:
    """Name -> a small float32 model with a free batch axis; the same seed, the same weights."""
    return {name: make(seed + at) for at, (name, make) in enumerate(_TOYS.items())}


def toy_batch(name: str, rows: int, seed: int = 0) -> Arrays:
    """`rows` examples that the toy of this name takes; sequences are 6 to 20 steps long."""
    rng = np.random.default_rng((seed, *name.encode()))
    steps = int(rng.integers(6, 21))
    if name == "cnn":
        return {"image": rng.standard_normal((rows, 3, 16, 16), np.float32)}
    if name == "lstm":
        return {"x": rng.standard_normal((rows, steps, 16), np.float32)}
    if name == "several":
        sizes = {"left": 32, "right": 16}
        return {key: rng.standard_normal((rows, size), np.float32) for key, size in sizes.items()}
    if name == "embedding":
        rare = rng.random((rows, steps)) < 0.02
        return {
            "ids": np.where(rare, rng.integers(0, 512, rare.shape), rng.integers(0, 64, rare.shape))
        }
    if name in ("transformer", "deep"):
        lengths = rng.integers(4, steps + 1, rows)
        mask = (np.arange(steps) < np.maximum(lengths, 1)[:, None]).astype(np.int64)
        return {
            "input_ids": rng.integers(1, VOCABULARY, (rows, steps)) * mask,
            "attention_mask": mask,
        }
    if name in ("mlp", "external"):
        return {"x": rng.standard_normal((rows, 32), np.float32)}
    raise KeyError(f"no toy model {name!r}; there are: {', '.join(_TOYS)}")


def save_toys(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Writes every toy, and "external", the mlp with its weights in a file of their own."""
    paths = {}
    for name, model in toy_models(seed).items():
        paths[name] = folder / f"{name}.onnx"
        onnx.save(model, paths[name])
    paths["external"] = folder / "external.onnx"
    onnx.save(
        toy_models(seed)["mlp"],
        paths["external"],
        save_as_external_data=True,
        location="external.data",
        size_threshold=0,
    )
    return paths


@dataclass(frozen=True)
class _Batch:
    name: str

    def __call__(self, rows: int, seed: int) -> Arrays:
        return toy_batch(self.name, rows, seed)


@dataclass(frozen=True)
class _Reference:
    """ONNX's own evaluator in plain numpy."""

    path: Path

    def __call__(self, batch: Arrays) -> Arrays:
        evaluator = ReferenceEvaluator(onnx.load(self.path))
        return dict(zip(evaluator.output_names, evaluator.run(None, dict(batch)), strict=True))


def specimens(folder: Path) -> list[Specimen]:
    """The toys for the runtime laws."""
    engine = runtime("onnx")
    return [
        Specimen(name, engine.open(path), _Batch(name), _Reference(path))
        for name, path in save_toys(folder).items()
    ]
