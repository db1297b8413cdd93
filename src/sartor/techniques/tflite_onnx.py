"""ONNX to TensorFlow Lite: the graph is run as PyTorch would and written by litert-torch, so that
what was pruned and trained before is converted as it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import torch

from sartor.contracts import Arrays, Bench, Failed, Model, Signature, Step, Technique
from sartor.fitting import fixed, to_compare
from sartor.techniques._autograd_onnx import GraphModule, followed
from sartor.techniques._graph_onnx import foreign, peek, read
from sartor.techniques._operators_onnx import called
from sartor.tflite_export import by_names, example, traced, written
from sartor.tflite_form import compare

REQUIRES = ("litert_torch", "ai_edge_litert", "torch")  # imported where they are used
_INTEGERS = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger",
    "DynamicQuantizeMatMul", "MatMulNBits", "QLinearConv", "QLinearMatMul", "GatherBlockQuantized",
})  # fmt: skip


@dataclass(frozen=True)
class ToTflite(Technique):
    """Writes the graph as a `.tflite` file for LiteRT, with the names and types of its inputs and
    outputs. Sizes become fixed: as the target asks (`Target.fixed`), and else the target's batch;
    another free size is refused. LiteRT's answers are held against ONNX Runtime's on rows of the
    training data (else of the search part): where they differ by more than 1e-3 of their spread, or
    more than one answer of a thousand is another, it fails. Parts are the nodes."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "tflite"

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        try:
            fixed(model.signature, bench)
        except Failed as free:
            return str(free)
        for node in peek(model).nodes:
            if node.op_type in _INTEGERS:
                return (
                    f"{called(node)} computes in integers of ONNX Runtime's: convert the floats "
                    "and round afterwards"
                )
            if node.op_type != "Constant" and not followed(node):
                return f"the operator {called(node)} has no counterpart in PyTorch here"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        signature = fixed(model.signature, bench)
        batches = to_compare(bench, signature, free=1)
        net: Any = GraphModule(graph).eval()
        net.settle()  # what is computed of weights would be rounded as activations are
        arguments = list(example(signature).values())
        first = [torch.from_numpy(batches[0][port.name]) for port in signature.inputs]
        module = traced(by_names(net, signature), first)
        path, signature = written(module, arguments, signature, bench.scratch)
        compare(path, signature, _answers(model, signature), batches, bench.task.output)
        names = dict.fromkeys(node.name or node.output[0] for node in graph.nodes)
        step = Step(self, tuple(names))
        return dataclasses.replace(
            model, kind="tflite", payload=path, signature=signature, settings={},
            lineage=(*model.lineage, step),
        )  # fmt: skip


def _answers(model: Model, signature: Signature) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    path = str(Path(model.payload))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in signature.outputs]

    def answer(batch: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(batch)), strict=True))

    return answer
