"""What a TensorFlow Lite file is made of: its operators, their constants, their
multiply-accumulates, and the seconds that each takes by itself."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

from sartor.contracts import Arrays, Failed, Part, Signature
from sartor.flat_reader import Table
from sartor.tflite_calls import Caller, Run
from sartor.tflite_file import Flat, part_names, read
from sartor.tflite_write import packed, unpacked

WARM, MOST = 2, 8  # calls before those that count, and batches that do


def count(path: Path) -> tuple[Part, ...]:
    """One part an operator of the graph that is run; a constant counts at its first reader."""
    flat = read(path)
    batch = next((p.shape[0] for p in flat.signature.inputs if p.shape), None) or 1
    seen: set[int] = set()
    found = []
    for name, operator in zip(part_names(flat), flat.operators, strict=True):
        mine = {int(at) for at in operator.get("inputs", ()) if at >= 0} - seen
        seen |= mine
        tensors = [flat.tensors[at] for at in mine]
        held = [each for each in tensors if flat.constant(each)]
        macs = _macs(flat, operator)
        found.append(
            Part(
                name,
                flat.operator(operator),
                sum(math.prod(map(int, each.get("shape", ()))) for each in held),
                sum(flat.constant(each) for each in held),
                None if macs is None else macs // batch,
            )
        )
    return tuple(found)


def _macs(flat: Flat, operator: Table) -> int | None:
    """Of one call, by the shapes that the file states."""
    kind = flat.operator(operator)
    shapes = [
        [int(n) for n in flat.tensors[int(at)].get("shape", ())] if at >= 0 else []
        for at in operator.get("inputs", ())
    ]
    made = operator.get("outputs", ())
    if not len(made):
        return 0
    out = [int(n) for n in flat.tensors[int(made[0])].get("shape", ())]
    if kind == "FULLY_CONNECTED":
        return math.prod(out) * shapes[1][-1]
    if kind in ("CONV_2D", "CONV_3D"):
        return math.prod(out) * (
            math.prod(shapes[1][1:]) if kind == "CONV_2D" else math.prod(shapes[1][:-1])
        )
    if kind == "DEPTHWISE_CONV_2D":
        return math.prod(out) * math.prod(shapes[1][1:3])
    if kind == "TRANSPOSE_CONV":
        return math.prod(shapes[2]) * math.prod(shapes[1][1:3]) * shapes[1][0]
    if kind == "BATCH_MATMUL":
        turned = (operator.get("builtin_options") or {}).get("adj_x", 0)
        return math.prod(out) * shapes[0][-2 if turned else -1]
    return None if kind in ("WHILE", "IF", "CUSTOM", "CALL") else 0


# -- seconds ---------------------------------------------------------------------------------------


def seconds(
    path: Path, signature: Signature, batches: Sequence[Arrays], threads: int
) -> dict[str, float]:
    """Part -> median seconds, each operator run as a model of its own on what it was given."""
    flat = read(path)
    model = unpacked(bytes(flat.data))
    values = _values(path, flat, signature, batches[:MOST])
    found = {}
    for name, operator in zip(part_names(flat), model.subgraphs[0].operators, strict=True):
        taken = _taken(model, operator, values, threads)
        if taken is not None:
            found[name] = taken
    return found


def _values(
    path: Path, flat: Flat, signature: Signature, batches: Sequence[Arrays]
) -> list[dict[int, np.ndarray]]:
    """For each batch the value of every tensor of the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this takes memory
        kept = Run(path, 1, keeping=True)
        run = kept.interpreter
    with Caller(path, signature) as caller:
        into = list(caller.inputs)
    found = []
    for batch in batches:
        kept.fit(into, batch)
        for port, tensor in into:
            run.set_tensor(tensor.at, tensor.into(batch[port.name]))
        run.invoke()
        values = {}
        for at in range(len(flat.tensors)):
            try:
                values[at] = np.array(run.get_tensor(at))
            except ValueError:  # an empty one
                continue
        found.append(values)
    return found


def _taken(
    model: Any, operator: Any, values: Sequence[Mapping[int, np.ndarray]], threads: int
) -> float | None:
    alone, given = _alone(model, operator)
    if not all(at in each for each in values for at in given):
        return None
    try:
        run = litert.Interpreter(model_content=alone, num_threads=threads)
        for place, at in enumerate(given):
            run.resize_tensor_input(place, values[0][at].shape)
        run.allocate_tensors()
    except (RuntimeError, ValueError):  # one that runs other graphs
        return None
    took = []
    for each in (*values[:WARM], *values):
        try:
            for place, at in enumerate(given):
                run.set_tensor(place, each[at])
            began = time.perf_counter()
            run.invoke()
        except ValueError:  # it takes another type or size than what it was given in the whole
            return None
        except RuntimeError as error:
            raise Failed(f"LiteRT: {error}") from None
        took.append(time.perf_counter() - began)
    return float(np.median(took[len(values[:WARM]) :]))


def _alone(model: Any, operator: Any) -> tuple[bytes, list[int]]:
    """A file of this one operator, and which tensors of the model its inputs are; constants stay
    within it."""
    tensors = model.subgraphs[0].tensors
    made_here = () if operator.outputs is None else operator.outputs
    used = [int(at) for at in (*operator.inputs, *made_here) if at >= 0]
    given = [
        at
        for at in dict.fromkeys(int(each) for each in operator.inputs if each >= 0)
        if not _held(model, tensors[at])
    ]
    order = [*given, *(at for at in dict.fromkeys(used) if at not in given)]
    place = {at: new for new, at in enumerate(order)} | {-1: -1}
    made, buffers = [], [schema.BufferT()]
    for at in order:
        tensor = copy.copy(tensors[at])
        if _held(model, tensor):
            buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = len(buffers) - 1
        else:
            tensor.buffer = 0
        made.append(tensor)
    step = copy.copy(operator)
    step.opcodeIndex = 0
    step.inputs = [place[int(at)] for at in operator.inputs]
    step.outputs = [place[int(at)] for at in made_here]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.name = made, [step], "main"
    graph.inputs, graph.outputs = list(range(len(given))), list(step.outputs)
    whole = schema.ModelT()
    whole.version, whole.operatorCodes = 3, [model.operatorCodes[operator.opcodeIndex]]
    whole.subgraphs, whole.buffers = [graph], buffers
    return packed(whole), given


def _held(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
