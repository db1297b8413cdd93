"""Rows to try a PyTorch model on, and whether it answers on them as before in another form."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.contracts import Arrays, Bench, Failed, Model, Port, Signature, technique_name
from sartor.nearness import gap, spread
from sartor.torch_graph import Graph

ROWS, BATCH = 512, 32  # on which the answers are compared
NEAR = 1e-3  # of the answers' spread
FLIPS = 1e-3  # of the rows


def rows_of(bench: Bench, signature: Signature) -> list[Arrays]:
    """Batches of inputs of the size that the model insists on; else the last one a single row."""
    fixed = next((p.shape[0] for p in signature.inputs if p.shape[0] is not None), None)
    size = fixed or BATCH
    most = max(ROWS, size)
    batches = bench.batches("train", size, most) or bench.batches("search", size, most)
    found = [{port.name: batch[port.name] for port in signature.inputs} for batch in batches or ()]
    if not found:
        raise Failed("there are no rows to compare the converted model on")
    found = [_fitting(each, signature.inputs) for each in found]
    if fixed is None:
        return [*found, {name: array[:1] for name, array in found[0].items()}]
    again = np.arange(fixed)
    return [
        {name: array[again % len(array)] for name, array in each.items()}  # the last may be short
        for each in found
    ]


def _fitting(batch: Arrays, ports: Sequence[Port]) -> dict[str, np.ndarray]:
    """Batches are cut to their longest row; a model of fixed length is given zeros behind it."""
    made = {}
    for port in ports:
        array = batch[port.name]
        wanted = zip(port.shape[1:], array.shape[1:], strict=True)
        behind = [(0, (size or have) - have) for size, have in wanted]
        made[port.name] = np.pad(array, [(0, 0), *behind])
    return made


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
    """Raises Failed where `answer`, which is `who`'s, answers otherwise than the module: by more
    than 1e-3 of the answers' spread, or with another class for more than one row of a thousand."""
    names = [port.name for port in model.signature.outputs]
    with torch.inference_mode():
        answers = [[each.numpy() for each in module(*tensors(model, batch))] for batch in rows]
    spreads = [spread([each[at] for each in answers]) for at in range(len(names))]
    flipped = seen = 0
    for batch, right in zip(rows, answers, strict=True):
        found = answer(batch)
        for name, one, two, usual in zip(names, found, right, spreads, strict=True):
            off = gap(one, two) / usual
            if not off <= NEAR:
                raise Failed(
                    f"{who}'s {name} differs from PyTorch's by {off:.1e} of its spread for "
                    f"{len(next(iter(batch.values())))} rows"
                )
            if name == output and two.ndim > 1 and two.shape[-1] > 1 and two.dtype.kind == "f":
                changed = one.argmax(-1) != two.argmax(-1)
                flipped, seen = flipped + int(changed.sum()), seen + changed.size
    if flipped > FLIPS * seen:
        raise Failed(f"{flipped} of {seen} answers are others than PyTorch's")
