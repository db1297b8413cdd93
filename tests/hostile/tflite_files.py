"""TensorFlow Lite files that nobody honest wrote: name -> (its bytes, words of the refusal)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from sartor.testing_tflite import save_toys
from sartor.tflite_write import packed, unpacked


def good(name: str = "mlp") -> bytes:
    with TemporaryDirectory() as folder:
        return save_toys(Path(folder), only=(name,))[name].read_bytes()


def changed(change: Callable[[Any], None], name: str = "mlp") -> Callable[[], bytes]:
    def make() -> bytes:
        model = unpacked(good(name))
        change(model)
        return packed(model)

    return make


def _tensor(at: int, **fields: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for name, value in fields.items():
            setattr(model.subgraphs[0].tensors[at], name, value)

    return change


def _operator(**fields: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for name, value in fields.items():
            setattr(model.subgraphs[0].operators[0], name, value)

    return change


def _scale(value: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[0].quantization.scale = [value]

    return change


def _zero_point(model: Any) -> None:
    model.subgraphs[0].tensors[0].quantization.zeroPoint = [-(2**40)]


def _signature(model: Any) -> None:
    model.signatureDefs[0].inputs[0].tensorIndex = 999


def _endless(model: Any) -> None:
    """A graph whose only operator runs the graph itself."""
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.WHILE
    code.deprecatedBuiltinCode, code.version = schema.BuiltinOperator.WHILE, 1
    model.operatorCodes.append(code)
    step = model.subgraphs[0].operators[0]
    step.opcodeIndex = len(model.operatorCodes) - 1
    step.builtinOptionsType = schema.BuiltinOptions.WhileOptions
    step.builtinOptions = schema.WhileOptionsT()
    step.builtinOptions.condSubgraphIndex = step.builtinOptions.bodySubgraphIndex = 0


def _unknown(model: Any) -> None:
    model.operatorCodes[0].builtinCode = 5000


def _pointing(where: int, value: int) -> Callable[[], bytes]:
    """A good file whose number at `where` is another."""

    def make() -> bytes:
        data = bytearray(good())
        data[where : where + 4] = value.to_bytes(4, "little")
        return bytes(data)

    return make


def _short(model: Any) -> None:
    model.buffers[1].data = model.buffers[1].data[:-4]


FILES: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "cut short"),
    "short": (lambda: good()[:12], "cut short"),
    "half": (lambda: good()[: len(good()) // 2], "damaged"),
    "random": (lambda: bytes(random.Random(0).randbytes(4096)), "does not begin like one"),
    "random behind the mark": (
        lambda: b"\x10\0\0\0TFL3" + random.Random(1).randbytes(4096),
        "damaged",
    ),
    "another format": (lambda: b"\x08\x08" + good("cnn")[2:4] + b"ONNX" + good()[8:], "begin like"),
    "root outside": (_pointing(0, 2**31), "out of the file"),
    "huge shape": (
        changed(_tensor(0, shape=[2**31 - 1] * 4, shapeSignature=None)),
        "would take",
    ),
    "negative size": (changed(_tensor(0, shape=[-4, 32], shapeSignature=None)), "negative size"),
    "unknown type": (changed(_tensor(0, type=99)), "unknown type"),
    "text": (changed(_tensor(0, type=5)), "holds text"),
    "buffer outside": (changed(_tensor(1, buffer=77)), "names the number 77"),
    "constant cut short": (changed(_short), "its shape asks for"),
    "operator's input outside": (changed(_operator(inputs=[0, 1, 4000])), "names the number 4000"),
    "operator without its input": (changed(_operator(inputs=[-1, 1, 2])), "names the number -1"),
    "operator without its output": (changed(_operator(outputs=[-1])), "names the number -1"),
    "operator's code outside": (changed(_operator(opcodeIndex=9)), "names the number 9"),
    "unknown operator": (changed(_unknown), "operator 5000"),
    "graph that runs itself": (changed(_endless), "without an end"),
    "signature outside": (changed(_signature), "names the number 999"),
    "scale of zero": (changed(_scale(0.0), "whole"), "not above 0"),
    "scale that is no number": (changed(_scale(float("nan")), "whole"), "not above 0"),
    "zero point outside": (changed(_zero_point, "whole"), "cannot hold"),
    "another version": (changed(lambda model: setattr(model, "version", 9)), "version 9"),
    "no graph": (changed(lambda model: setattr(model, "subgraphs", [])), "no graph"),
}


def mutated(count: int, seed: int = 0) -> list[bytes]:
    """Good files with a few bytes changed, at their ends more often, where the tables lie."""
    rng = random.Random(seed)
    toys = [good(name) for name in ("mlp", "cnn", "attention", "whole")]
    found = []
    for _ in range(count):
        data = bytearray(rng.choice(toys))
        for _ in range(rng.choice((1, 2, 4))):
            near = rng.randrange(min(len(data), 2500))
            at = rng.choice((rng.randrange(len(data)), near, len(data) - 1 - near)) & ~3
            value = rng.choice((2**32 - 1, 2**31 - 1, 2**31, 1 << 20, 7, 0, rng.randrange(2**32)))
            data[at : at + 4] = value.to_bytes(4, "little")
        found.append(bytes(data))
    return found


def zeros(signature: Any) -> dict[str, np.ndarray]:
    return {
        port.name: np.zeros([1 if n is None else n for n in port.shape], port.dtype)
        for port in signature.inputs
    }
