"""PyTorch to TensorFlow Lite, without ONNX in between."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sartor.contracts import Arrays, Bench, Failed, Model, Step, Technique
from sartor.fitting import fixed, to_compare
from sartor.tflite_export import example, traced, written
from sartor.tflite_form import compare
from sartor.torch_graph import Graph, Script, load, silent

REQUIRES = ("litert_torch", "ai_edge_litert")  # imported where they are used


@dataclass(frozen=True)
class TorchToTflite(Technique):
    """Writes the model as a `.tflite` file by litert-torch, straight from its calls: operators keep
    forms that ONNX does not have. What can be pruned or trained goes by to-onnx instead. Sizes and
    the comparison (with PyTorch's answers) are those of to-tflite. Parts are the calls; TorchScript
    is refused, since its calls cannot be followed."""

    kinds: ClassVar[frozenset[str]] = frozenset({"torch"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "tflite"

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes PyTorch models, not {model.kind}"
        try:
            fixed(model.signature, bench)
        except Failed as free:
            return str(free)
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        module: Any = load(Path(model.payload))
        if isinstance(module, Script):
            raise Failed("TorchScript is converted by to-onnx > to-tflite, not straight away")
        signature = fixed(model.signature, bench)
        batches = to_compare(bench, signature, free=1)
        first = [torch.from_numpy(batches[0][port.name]) for port in signature.inputs]
        module_of_calls = traced(module, first)
        arguments = list(example(signature).values())
        path, signature = written(module_of_calls, arguments, signature, bench.scratch)
        names = [port.name for port in signature.outputs]

        def right(batch: Arrays) -> dict[str, np.ndarray]:
            given = [torch.from_numpy(np.array(batch[p.name])) for p in signature.inputs]
            with torch.inference_mode(), silent():
                found = module(*given)
            return {name: each.numpy() for name, each in zip(names, found, strict=True)}

        compare(path, signature, right, batches, bench.task.output)
        parts = (call.name for call in module.program.block.calls) if _is(module) else ("model",)
        step = Step(self, tuple(dict.fromkeys(parts)))
        return dataclasses.replace(
            model, kind="tflite", payload=path, signature=signature, settings={},
            lineage=(*model.lineage, step),
        )  # fmt: skip


def _is(module: Any) -> bool:
    return isinstance(module, Graph)
