"""How much each node's quantization alone changes the answer of the task: measured, not guessed.

One graph holds every node twice, as it is and with its weights and its input rounded, inside an
If on the number of the node to be rounded. So one session answers for all nodes, a run each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from sartor.contracts import Arrays, Bench
from sartor.techniques._calibration_onnx import examples, mark
from sartor.techniques._graph_onnx import Graph, start, watch, write

# Multiply-accumulates granted to one measurement: some 15 seconds of one core.
_WORK = 3e11
_FEWEST, _MOST = 8, 64
_WHICH = "sartor_which"


@dataclass(frozen=True)
class Rounding:
    """How one node is imitated: its weights by input index, and its input 0 as "dynamic" uint8,
    as uint8 with this (scale, zero point), or untouched (None)."""

    weights: Mapping[int, np.ndarray] = field(default_factory=dict)
    activation: str | tuple[np.float32, np.uint8] | None = None


def worst(graph: Graph, roundings: Mapping[str, Rounding], bench: Bench, how: str) -> list[str]:
    """Node names, the one whose rounding changes the answer most first; ties in graph order.

    `how` names the settings that the roundings come from (for the key under which the result is
    remembered). At most 64 calibration examples, fewer for large models."""
    key = f"sensitivity {how} {mark(graph)}"
    error = bench.remember(key, lambda: {"error": errors(graph, roundings, bench)})["error"]
    names = list(roundings)
    return [names[index] for index in np.argsort(-error, kind="stable")]


def errors(graph: Graph, roundings: Mapping[str, Rounding], bench: Bench) -> np.ndarray:
    """For each node the mean squared change of the task's output when only it is rounded."""
    batches = list(examples(bench, _affordable(graph, roundings, bench)))
    board = _switchboard(graph, roundings)
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        session = start(write(board.proto, Path(folder)), bench.target.threads)
    output = bench.task.output if bench.task.output in graph.outputs else graph.outputs[0]
    feeds = [port.name for port in session.get_inputs() if port.name != _WHICH]

    def answer(batch: Arrays, which: int) -> np.ndarray:
        inputs = {name: batch[name] for name in feeds} | {_WHICH: np.array(which, np.int64)}
        return np.asarray(session.run([output], inputs)[0], np.float64)

    wrong = np.zeros(len(roundings))
    for batch in batches:
        right = answer(batch, -1)
        for which in range(len(roundings)):
            change = np.square(answer(batch, which) - right)
            wrong[which] += np.nan_to_num(change, nan=np.inf).mean()
    return wrong / len(batches)


def _affordable(graph: Graph, roundings: Mapping[str, Rounding], bench: Bench) -> int:
    """How many examples fit into the work granted: a count of operations, not a stopwatch, so that
    the ranking is the same on every run."""
    nodes = [node for node in graph.nodes if node.name in roundings]
    work = 0.0
    for values in watch(graph, [node.output[0] for node in nodes], examples(bench, 1), bench):
        for node in nodes:
            for weight in roundings[node.name].weights.values():
                channels = max(weight.shape) if weight.ndim == 2 else weight.shape[0]
                work += values[node.output[0]].size * weight.size / channels
    return int(np.clip(_WORK / max(work * len(nodes), 1), _FEWEST, _MOST))


def _switchboard(graph: Graph, roundings: Mapping[str, Rounding]) -> Graph:
    """The graph with one more input, the number of the node to be rounded (-1: none)."""
    proto = onnx.ModelProto()
    proto.CopyFrom(graph.proto)
    board = Graph(proto)
    proto.graph.input.append(helper.make_tensor_value_info(_WHICH, TensorProto.INT64, []))
    numbers = {name: number for number, name in enumerate(roundings)}
    nodes: list[onnx.NodeProto] = []
    for node in board.nodes:
        if node.name in roundings:
            nodes += _switched(board, node, roundings[node.name], numbers[node.name])
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return Graph(proto)


def _switched(
    board: Graph, node: onnx.NodeProto, rounding: Rounding, number: int
) -> list[onnx.NodeProto]:
    stem = f"sartor_{number}"
    board.set_constant(f"{stem}_number", np.array(number, np.int64))
    made = [name for name in node.output if name]
    changed = _renamed(node, f"{stem}_then")
    before, changed.input[0] = _rounded_input(board, node.input[0], rounding, stem)
    for index, weight in rounding.weights.items():
        board.set_constant(f"{stem}_weight_{index}", weight)
        changed.input[index] = f"{stem}_weight_{index}"
    branches = {
        "then_branch": _body([*before, changed], f"{stem}_then", made),
        "else_branch": _body([_renamed(node, f"{stem}_else")], f"{stem}_else", made),
    }
    return [
        helper.make_node("Equal", [_WHICH, f"{stem}_number"], [f"{stem}_here"]),
        helper.make_node("If", [f"{stem}_here"], made, name=f"{stem}_if", **branches),
    ]


def _rounded_input(
    board: Graph, name: str, rounding: Rounding, stem: str
) -> tuple[list[onnx.NodeProto], str]:
    kind = rounding.activation
    if kind is None:
        return [], name
    q, scale, zero, back = (f"{stem}_{each}" for each in ("q", "scale", "zero", "back"))
    if isinstance(kind, str):
        first = helper.make_node("DynamicQuantizeLinear", [name], [q, scale, zero])
    else:
        board.set_constant(scale, np.array(kind[0], np.float32))
        board.set_constant(zero, np.array(kind[1], np.uint8))
        first = helper.make_node("QuantizeLinear", [name, scale, zero], [q])
    return [first, helper.make_node("DequantizeLinear", [q, scale, zero], [back])], back


def _renamed(node: onnx.NodeProto, stem: str) -> onnx.NodeProto:
    """A copy whose outputs (and itself) bear other names: a body must not shadow the outside."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = stem
    for index, name in enumerate(node.output):
        copy.output[index] = f"{stem}_{name}" if name else ""
    return copy


def _body(nodes: list[onnx.NodeProto], stem: str, made: list[str]) -> onnx.GraphProto:
    ports = [
        helper.make_tensor_value_info(f"{stem}_{name}", TensorProto.FLOAT, None) for name in made
    ]
    return helper.make_graph(nodes, stem, [], ports)
