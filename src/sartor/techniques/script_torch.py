"""PyTorch's own runtime at its best without a compiler: TorchScript, frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from sartor.contracts import Arrays, Bench, Failed, Model, Step, Technique
from sartor.fitting import to_compare
from sartor.libraries import first_line
from sartor.space import choice
from sartor.techniques._rows_torch import ROWS, compare, parts_of, room, tensors
from sartor.torch_graph import Script, load, silent
from sartor.torch_saving import write_script


@dataclass(frozen=True)
class FreezeScript(Technique):
    """Writes the model as frozen TorchScript (torch.jit.freeze): weights are constants, batch norms
    lie in the convolutions before them, and no Python runs between two operators.

    `fused`: where it is started, neighbours are fused and weights laid out for oneDNN's kernels
    (torch.jit.optimize_for_inference); the file holds plain tensors all the same. The answers are
    held against the model's on rows of the training data (else of the search part) and on one row
    alone: what depends on the sizes of the rows that were followed is seen. Parts are the calls of
    the graph; TorchScript that came in is one."""

    kinds: ClassVar[frozenset[str]] = frozenset({"torch"})
    stage: ClassVar[str] = "tuning"
    claims: ClassVar[frozenset[str]] = frozenset({"latency"})

    fused: bool = choice(True, values=(True, False))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes PyTorch models, not {model.kind}"
        return "it is frozen already" if "fused" in model.settings else None

    def apply(self, model: Model, bench: Bench) -> Model:
        module = load(Path(model.payload))
        rows = to_compare(bench, model.signature, ROWS)
        try:
            frozen, names = _frozen(module, model, rows[0])
        except Exception as error:  # PyTorch's tracer raises anything
            raise Failed(f"PyTorch cannot freeze it: {first_line(error, 200)}") from None
        path = write_script(frozen, room(bench), names, model.signature)
        _compare(module, model, load(path, self.fused), rows, bench.task.output)
        return dataclasses.replace(
            model,
            payload=path.absolute(),
            settings={"fused": self.fused},
            lineage=(*model.lineage, Step(self, tuple(parts_of(module)))),
        )


def _frozen(module: nn.Module, model: Model, batch: Arrays) -> tuple[Any, Sequence[str]]:
    """And the parameters of its `forward`. A program is followed through one call; TorchScript as
    it came may branch: it stays as it stands."""
    with silent(), torch.no_grad():
        if not isinstance(module, Script):
            given = tensors(model, batch)
            traced = torch.jit.trace(module, given, check_trace=False)  # type: ignore[no-untyped-call]
            return torch.jit.freeze(traced.eval()), ["*"]
        whole: Any = module.module
        frozen = whole if not hasattr(whole, "training") else torch.jit.freeze(whole)
        return frozen, module.names


def _compare(
    module: nn.Module, model: Model, made: nn.Module, rows: Sequence[Arrays], output: str
) -> None:
    def answer(batch: Arrays) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            return [each.numpy() for each in made(*tensors(model, batch))]

    compare(module, model, answer, rows, output, "the frozen model")
