"""ONNX to OpenVINO: the step from all that is done to an ONNX graph to another runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sartor import openvino_ir
from sartor.contracts import Arrays, Bench, Failed, Model, Step, Technique
from sartor.fitting import to_compare
from sartor.machine import multiplies_integers
from sartor.nearness import FLIPS, NEAR, difference, gap, spread
from sartor.openvino_core import compiled, opened, ov, properties, said, written
from sartor.techniques._graph_onnx import Graph, foreign, peek, read, start, watch

REQUIRES = ("openvino",)  # imported in openvino_core, so that it tells nobody
# The largest difference as a share of the answers' spread, and the share of rows whose answer may
# be another: where both compute in float32; and where they round to integers, each in its own way.
FLOAT, ROUNDED = (NEAR, FLIPS), (0.1, 0.05)
_ROUNDING = ("QuantizeLinear", "DynamicQuantize", "Integer", "QLinear", "QAttention", "NBits")


@dataclass(frozen=True)
class ToOpenvino(Technique):
    """Reads the graph with OpenVINO and writes it in OpenVINO's format, float32 as float32.

    Graphs that were pruned, trained or quantized before are taken as they are: pairs of
    QuantizeLinear and DequantizeLinear become OpenVINO's own int8. Its answers in float32 are held
    against ONNX Runtime's on rows of the training data (else of the search part), and on one row
    alone. Where they differ by more than 1e-3 of their spread, or more than one answer of a
    thousand is another, it fails and names the first node that differs; a graph that rounds to
    integers, which each runtime does in its own way, by more than a tenth, or one answer of twenty.
    Parts are the layers."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "openvino"

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return foreign(self, model)

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = opened(Path(model.payload))
        names = {value.get_node().get_friendly_name() for value in graph.outputs}
        onnx_graph = peek(model)
        names |= {node.name for node in onnx_graph.nodes}
        names |= {name for node in onnx_graph.nodes for name in node.output}
        path = written(graph, bench.scratch, "toopenvino", names)
        _check_ports(model, path)
        _compare(model, path, bench)
        layers = openvino_ir.layers(path)
        touched = [each.facts["name"] for each in layers if each.facts["type"] not in _SILENT]
        step = Step(self, tuple(dict.fromkeys(touched)) or ("model",))
        return dataclasses.replace(
            model, kind="openvino", payload=path, settings={}, lineage=(*model.lineage, step)
        )


_SILENT = ("Parameter", "Result", "Const")


def _check_ports(model: Model, path: Path) -> None:
    """Raises Failed where what goes in or out is called or sized otherwise than before."""
    found = openvino_ir.signature(path)
    pairs = (found.inputs, model.signature.inputs), (found.outputs, model.signature.outputs)
    for now, before in pairs:
        told = [[(p.name, p.dtype, len(p.shape)) for p in ports] for ports in (now, before)]
        if told[0] != told[1]:
            raise Failed(f"OpenVINO makes {told[0]} of {told[1]}")


# -- the answers --------------------------------------------------------------------------------


def _compare(model: Model, path: Path, bench: Bench) -> None:
    """Raises Failed where OpenVINO answers otherwise than ONNX Runtime."""
    near, flips = ROUNDED if _rounds(peek(model)) else FLOAT
    theirs = _Openvino(compiled(path, properties({}, bench.target.threads)))
    ours = start(Path(model.payload), bench.target.threads)
    names = [port.name for port in model.signature.outputs]
    rows = to_compare(bench, model.signature)
    right = [ours.run(names, dict(batch)) for batch in rows]
    found = (theirs(list(batch.values())) for batch in rows)
    who = "OpenVINO", "ONNX Runtime's"
    wrong = difference(right, found, names, bench.task.output, *who, near, flips)
    if wrong:
        told, batch = wrong
        raise Failed(f"{told}; {_where(model, rows[batch], bench)}")


def _rounds(graph: Graph) -> bool:
    return any(sort in node.op_type for node in graph.nodes for sort in _ROUNDING)


class _Openvino:
    """A compiled model, asked with inputs in their order."""

    def __init__(self, model: ov.CompiledModel) -> None:
        self.model, self.request = model, model.create_infer_request()

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            found = self.request.infer({at: np.array(each) for at, each in enumerate(arrays)})
        except Exception as error:  # RuntimeError and what else its C++ side raises
            raise Failed(f"OpenVINO: {said(error)}") from None
        return [np.array(found[at]) for at in range(len(self.model.outputs))]


def _where(model: Model, batch: Arrays, bench: Bench) -> str:
    """The first node in the graph's order whose result is another, by running both again with what
    lies within them exposed."""
    if all(port.shape and port.shape[0] is None for port in model.signature.inputs):
        batch = {name: array[:1] for name, array in batch.items()}
    graph = read(model)
    theirs = opened(Path(model.payload))
    known = {
        name for op in theirs.get_ordered_ops() for v in op.outputs() for name in v.get_names()
    }
    nodes = {
        node.output[0]: node for node in graph.nodes if node.output and node.output[0] in known
    }
    near = (ROUNDED if _rounds(graph) else FLOAT)[0]
    try:
        theirs.add_outputs([name for name in nodes if name not in graph.outputs])
        values = next(iter(watch(graph, list(nodes), [batch], bench)))
        engine = _Openvino(_in_memory(theirs, bench))
        found = dict(zip(map(_names, theirs.outputs), engine(list(batch.values())), strict=True))
    except (Failed, RuntimeError) as error:
        return f"where it begins could not be seen ({str(error)[:80]})"
    for name, node in nodes.items():
        here = next((value for names, value in found.items() if name in names), None)
        right = values[name]
        if here is None or right.dtype.kind != "f" or here.shape != right.shape:
            continue
        if not gap(here.astype(right.dtype), right) <= near * spread([right]):
            return f"it begins at the {node.op_type} {node.name!r}"
    return "no single node differs as much"


def _names(value: Any) -> frozenset[str]:
    return frozenset(value.get_names())


def _in_memory(model: ov.Model, bench: Bench) -> ov.CompiledModel:
    return ov.Core().compile_model(model, "CPU", properties({}, bench.target.threads))


# -- what to try first --------------------------------------------------------------------------


def portfolio(model: Model, bench: Bench) -> list[list[Mapping[str, Any]]]:
    """Quantized by ONNX Runtime's tools and run by OpenVINO: the fastest form of large
    convolutions that we have measured."""
    if not multiplies_integers(bench.target.features) or bench.batches("train", 1, 1) is None:
        return []
    graph = peek(model)
    heavy = {node.op_type for node in graph.nodes} & {"Conv", "MatMul", "Gemm"}
    if _rounds(graph) or not heavy:
        return []
    static: dict[str, Any] = {"technique": "static-int8"}
    if any(node.op_type == "Softmax" for node in graph.nodes[:-1]):
        static |= {"ops": "matmul", "smooth": 0.8}
    elif "Conv" in heavy:
        static |= {"bias_correction": True}
    return [[static, {"technique": "to-openvino"}]]
