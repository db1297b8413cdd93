"""An OpenVINO graph in the hand of a technique; shared by the plug-ins of the kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sartor import openvino_ir
from sartor.contracts import Bench, Model, Step, Technique
from sartor.fitting import batches
from sartor.openvino_core import compiled, named, opened, ov, properties, written

WEIGHTY = (
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul", "Gather"),
    *("GroupConvolutionBackpropData", "LSTMSequence", "GRUSequence", "LSTMCell", "GRUCell"),
)
SMALL = frozenset({"i8", "u8", "i4", "u4", "nf4", "f8e4m3", "f8e5m2", "f4e2m1", "i2", "u2"})


def foreign(technique: Technique, model: Model) -> str | None:
    """Why the technique cannot take a model of this kind; None where it can."""
    if model.kind in technique.kinds:
        return None
    return f"it takes models of kind {', '.join(sorted(technique.kinds))}, not {model.kind}"


def operators(model: Model) -> dict[str, int]:
    """Operator -> how many layers; read without OpenVINO: cheap, for `refuse`."""
    found: dict[str, int] = {}
    for layer in openvino_ir.layers(Path(model.payload)):
        sort = layer.facts.get("type", "")
        found[sort] = found.get(sort, 0) + 1
    return found


def rounded(model: Model) -> str | None:
    """Why nothing is left to quantize: some technique did it before."""
    layers = openvino_ir.layers(Path(model.payload))
    if any(each.facts.get("type") == "FakeQuantize" for each in layers):
        return "its activations are quantized already"
    kinds = {each.data.get("element_type", "") for each in layers if each.facts["type"] == "Const"}
    return "its weights are integers already" if kinds & {"i8", "u8", "i4", "u4", "nf4"} else None


def weighty(graph: ov.Model) -> list[ov.Node]:
    """Layers that read learned numbers, as they come."""
    found = []
    for op in graph.get_ordered_ops():
        if op.get_type_name() in WEIGHTY and weight_of(op) is not None:
            found.append(op)
    return found


def weight_of(op: ov.Node) -> ov.Node | None:
    """The constant that its weights are computed from; None where they are no constant."""
    for at in _places(op):
        node = op.input_value(at).get_node()
        if not is_constant(node):
            continue
        while node.get_type_name() != "Constant":
            node = node.input_value(0).get_node()
        kind = node.get_output_element_type(0)
        if kind.is_real() or kind.get_type_name() in SMALL:
            return node
    return None


def is_constant(node: ov.Node) -> bool:
    """Whether it is computed from constants alone."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each.get_type_name() in ("Parameter", "ReadValue"):
            return False
        waiting += [value.get_node() for value in each.input_values()]
    return True


def _places(op: ov.Node) -> Iterable[int]:
    """Which inputs may be weights."""
    sort = op.get_type_name()
    if sort == "Gather":
        return (0,)
    if sort == "MatMul":
        return (1, 0)
    return range(1, min(op.get_input_size(), 7))


def in_integers(op: ov.Node) -> bool:
    """Whether its weights are stored in eight bits or fewer."""
    weight = weight_of(op)
    return weight is not None and weight.get_output_element_type(0).get_type_name() in SMALL


def examples(model: Model, bench: Bench, most: int) -> Iterator[dict[int, np.ndarray]]:
    """Inputs by their place, one example at a time, or as many as the model insists on."""
    for batch in batches(bench, model.signature, most):
        yield dict(enumerate(batch.values()))


def mark(model: Model) -> str:
    """A digest of the graph, for keys of what is remembered about it."""
    return openvino_ir.digest(Path(model.payload), {})


def finish(
    model: Model,
    technique: Technique,
    graph: ov.Model,
    bench: Bench,
    step: Step,
    halves: bool = False,
) -> Model:
    """The changed model in new files, same signature and settings, one more Step. Raises Failed
    where OpenVINO refuses it."""
    keep = named(opened(Path(model.payload)))
    path = written(graph, bench.scratch, type(technique).__name__.lower(), keep, halves)
    compiled(path, properties(model.settings, bench.target.threads))  # NNCF's graphs may not run
    return dataclasses.replace(model, payload=path, lineage=(*model.lineage, step))
