"""What all conversions to TensorFlow Lite do alike, whatever they come from: names as the model has
them, and the answers held against the model's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sartor.contracts import Arrays, Failed, Port, Signature
from sartor.nearness import difference
from sartor.tflite_calls import Caller
from sartor.tflite_write import packed, text, unpacked

Answers = Callable[[Arrays], Arrays]
Names = tuple[Sequence[str], Sequence[str]]


def stored(
    data: bytes, signature: Signature, names: Names, scratch: Path, who: str
) -> tuple[Path, Signature]:
    """The converter's file, named by its content, and its signature. `names`: what the converter
    calls the signature's inputs and outputs, in their order."""
    data, found = _named(data, signature, names, who)
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"totflite-{hashlib.sha256(data).hexdigest()[:20]}.tflite"
    path.write_bytes(data)
    return path.absolute(), found


def _named(data: bytes, signature: Signature, names: Names, who: str) -> tuple[bytes, Signature]:
    """Inputs and outputs under the signature's names and in its order."""
    model = unpacked(data)
    told = model.signatureDefs[0]
    graph = model.subgraphs[told.subgraphIndex]
    found = []
    for side, ports, wanted in (
        (told.inputs, signature.inputs, names[0]),
        (told.outputs, signature.outputs, names[1]),
    ):
        known = {text(each.name): each for each in side}
        missing = [port.name for port, name in zip(ports, wanted, strict=True) if name not in known]
        if missing or len(known) != len(ports):
            lost = ", ".join(missing or sorted(set(known) - set(wanted)))
            raise Failed(f"{who} gives other inputs or outputs than the model: {lost}")
        ordered = [known[name] for name in wanted]
        for each, port in zip(ordered, ports, strict=True):
            each.name = port.name
        side[:] = ordered
        tensors = [graph.tensors[each.tensorIndex] for each in ordered]
        found.append([tuple(map(int, each.shape)) for each in tensors])
    graph.inputs = [each.tensorIndex for each in told.inputs]
    graph.outputs = [each.tensorIndex for each in told.outputs]
    outputs = zip(signature.outputs, found[1], strict=True)
    made = tuple(Port(port.name, port.dtype, shape) for port, shape in outputs)
    return packed(model), Signature(signature.inputs, made)


def compare(
    path: Path, signature: Signature, right: Answers, batches: Sequence[Arrays], output: str
) -> None:
    """Raises Failed where LiteRT answers otherwise than the model did."""
    names = [port.name for port in signature.outputs]

    def listed(answers: Arrays) -> list[np.ndarray]:
        return [answers[name] for name in names]

    wanted = [listed(right(batch)) for batch in batches]
    with Caller(path, signature) as caller:
        found = (listed(caller(batch)) for batch in batches)
        wrong = difference(wanted, found, names, output, "LiteRT", "the model's")
    if wrong:
        raise Failed(wrong[0])
