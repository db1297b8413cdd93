"""PyTorch's graphs written as ExecuTorch programs, in floats or in eight bits, for XNNPACK.

ExecuTorch's compiler takes seconds to load: it is imported where it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sartor.contracts import Arrays, Failed, Signature
from sartor.executorch_calls import hushed
from sartor.executorch_file import read
from sartor.libraries import lines_of
from sartor.torch_graph import silent

Named = dict[str, Tensor]
Rounded = list[tuple[str, bool]]
"""(an operator of the graph, whether it computes in eight bits)."""


class ByNames(nn.Module):
    """A module of positions as one of mappings: the names stand in the file then."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module = module
        self.inputs = [port.name for port in signature.inputs]
        self.outputs = [port.name for port in signature.outputs]

    def forward(self, arrays: Named) -> Named:
        found = self.module(*(arrays[name] for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))


def exported(module: nn.Module, signature: Signature) -> Any:
    """PyTorch's program of a module, which takes the inputs in their order and gives a tuple of
    the outputs, with the signature's sizes. Raises Failed with PyTorch's reason."""
    zeros = {
        port.name: torch.zeros(port.shape, dtype=getattr(torch, port.dtype))  # type: ignore[arg-type]
        for port in signature.inputs
    }
    try:
        with silent(), torch.no_grad():
            return torch.export.export(ByNames(module, signature), (zeros,), strict=False)
    except Exception as error:  # an exporter raises anything
        raise Failed(f"PyTorch cannot export it with fixed sizes: {reason(error)}") from None


def rounded(
    program: Any, dynamic: bool, rows: Iterable[Arrays], signature: Signature
) -> tuple[Any, Rounded]:
    """The program in eight bits: weights by channel; what operators take in by ranges that are
    seen on `rows`, or found anew at each call where `dynamic`."""
    try:
        with silent(), hushed(), torch.no_grad():
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            how = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
            graph = prepare_pt2e(program.module(), xnnpack.XNNPACKQuantizer().set_global(how))
            found = [(node.name, _in_eight(node)) for node in graph.graph.nodes if _computes(node)]
            for batch in rows:
                graph({p.name: torch.from_numpy(batch[p.name].copy()) for p in signature.inputs})
            zeros = program.example_inputs[0]
            return torch.export.export(convert_pt2e(graph), zeros, strict=False), found
    except Exception as error:  # a quantizer raises anything
        raise Failed(f"XNNPACK's quantizer: {reason(error)}") from None


def _computes(node: Any) -> bool:
    return node.op == "call_function" and "aten" in str(node.target)


def _in_eight(node: Any) -> bool:
    told = node.meta.get("quantization_annotation")
    return bool(told and getattr(told, "_annotated", False))


def written(program: Any, signature: Signature, scratch: Path) -> tuple[Path, Signature]:
    """The `.pte` file of a program, named by its content, and its signature. What XNNPACK knows
    goes to it, all else to ExecuTorch's own kernels. Raises Failed with the compiler's reason."""
    try:
        with silent(), hushed(), torch.no_grad():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            data = bytes(edge.to_executorch().buffer)
    except Exception as error:  # a compiler raises anything
        raise Failed(f"ExecuTorch: {reason(error)}") from None
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"executorch-{hashlib.sha256(data).hexdigest()[:20]}.pte"
    path.write_bytes(data)
    found = read(path).signature
    if found.inputs != signature.inputs or [p.name for p in found.outputs] != [
        p.name for p in signature.outputs
    ]:
        raise Failed("ExecuTorch's program takes or gives something else than the model")
    return path.absolute(), found


def reason(error: BaseException) -> str:
    """What a compiler's error says, and the operator that it names, on one line."""
    lines = lines_of(error)
    telling = [line for line in lines if "aten." in line or "aten::" in line]
    return (telling or lines)[0][:300]
