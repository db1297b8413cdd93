"""Rows to try a PyTorch model on, and whether it answers on them as before in another form."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.contracts import Arrays, Bench, Failed, Model, Signature, technique_name
from sartor.nearness import difference
from sartor.torch_graph import Graph

ROWS = 512  # on which the answers are compared


def tensors(model: Model, batch: Arrays) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.array(batch[p.name])) for p in model.signature.inputs)


def room(bench: Bench) -> Path:
    """A new folder: what a technique makes with other settings may lie in the same scratch."""
    bench.scratch.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=bench.scratch))


def changed_for_torch(model: Model) -> str | None:
    """Why a model is left alone that was frozen, compiled or quantized for PyTorch itself."""
    if not model.lineage:
        return None
    last = technique_name(model.lineage[-1].technique)
    return f"{last} made it for PyTorch's own runtime: nothing is changed behind that"


def parts_of(module: nn.Module) -> list[str]:
    if not isinstance(module, Graph):
        return ["model"]
    return list(dict.fromkeys(call.name for call in module.program.block.calls)) or ["model"]


def dynamic_shapes(signature: Signature) -> tuple[dict[int, Any], ...]:
    """For torch.export: which axes of each input are free."""
    return tuple(
        {at: torch.export.Dim.DYNAMIC for at, size in enumerate(port.shape) if size is None}
        for port in signature.inputs
    )


def compare(
    module: nn.Module,
    model: Model,
    answer: Callable[[Arrays], Sequence[np.ndarray]],
    rows: Sequence[Arrays],
    output: str,
    who: str,
) -> None:
    """Raises Failed where `answer`, which is `who`'s, answers otherwise than the module."""
    with torch.inference_mode():
        right = [[each.numpy() for each in module(*tensors(model, batch))] for batch in rows]
    names = [port.name for port in model.signature.outputs]
    wrong = difference(right, map(answer, rows), names, output, who, "PyTorch's")
    if wrong:
        raise Failed(wrong[0])
