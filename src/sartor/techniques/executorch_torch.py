"""PyTorch to ExecuTorch: programs for phones and small devices, in floats or in eight bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sartor.contracts import Arrays, Bench, Failed, Model, Signature, Step, Technique, Unneeded
from sartor.executorch_export import exported, rounded, written
from sartor.fitting import batches, fixed, to_compare
from sartor.nearness import difference
from sartor.space import choice
from sartor.techniques._rows_torch import changed_for_torch, parts_of
from sartor.torch_graph import Script, load, silent

REQUIRES = ("executorch", "torchao")  # imported where they are used
WHO = "ExecuTorch"


@dataclass(frozen=True)
class TorchToExecutorch(Technique):
    """Writes the model as a `.pte` file in floats: what XNNPACK knows is computed by it, all else
    by ExecuTorch's own kernels. Sizes become fixed: as the target asks (`Target.fixed`), and else
    the target's batch; another free size is refused. ExecuTorch's answers are held against
    PyTorch's on rows of the training data (else of the search part). Parts are the calls;
    TorchScript is refused, since its calls cannot be followed."""

    kinds: ClassVar[frozenset[str]] = frozenset({"torch"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "executorch"

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return _refused(model, bench)

    def apply(self, model: Model, bench: Bench) -> Model:
        module, signature = _loaded(model), fixed(model.signature, bench, WHO)
        rows = to_compare(bench, signature, free=1)
        path, signature = written(exported(module, signature), signature, bench.scratch)
        names = [port.name for port in signature.outputs]
        right = [_right(module, signature, batch) for batch in rows]
        found = _answers(path, signature, rows)
        wrong = difference(right, found, names, bench.task.output, WHO, "PyTorch's")
        if wrong:
            raise Failed(wrong[0])
        return _made(model, path, signature, Step(self, tuple(parts_of(module))))


@dataclass(frozen=True)
class ExecutorchInt8(Technique):
    """Writes the model as a `.pte` file whose products, sums and convolutions are computed in
    eight bits by XNNPACK: weights with a scale for each output channel, what they take in with
    ranges seen on `rows` training rows. `dynamic`: ranges are found anew at each call, for products
    with weights and convolutions alone. Sizes as of torch-to-executorch. Parts are the operators
    of the exported graph."""

    kinds: ClassVar[frozenset[str]] = frozenset({"torch"})
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "executorch"

    dynamic: bool = choice(False, values=(False, True))
    rows: int = choice(128, values=(32, 128, 512))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = _refused(model, bench)
        if reason is None and not bench.count("train"):
            return "there are no training rows to see the ranges of activations on"
        return reason

    def apply(self, model: Model, bench: Bench) -> Model:
        module, signature = _loaded(model), fixed(model.signature, bench, WHO)
        seen = list(batches(bench, signature, self.rows))
        program, operators = rounded(exported(module, signature), self.dynamic, seen, signature)
        touched = tuple(name for name, whole in operators if whole)
        if not touched:
            raise Unneeded("nothing in it is computed in eight bits by XNNPACK")
        why = "XNNPACK computes it in floats, or only moves numbers for it"
        skipped = tuple((name, why) for name, whole in operators if not whole)
        path, signature = written(program, signature, bench.scratch)
        answers = _answers(path, signature, seen[:8])
        if not all(np.isfinite(each).all() for listed in answers for each in listed):
            raise Failed("ExecuTorch's answers in eight bits are not finite")
        return _made(model, path, signature, Step(self, touched, skipped))


def _refused(model: Model, bench: Bench) -> str | None:
    if model.kind != "torch":
        return f"takes PyTorch models, not {model.kind}"
    try:
        fixed(model.signature, bench, WHO)
    except Failed as free:
        return str(free)
    return changed_for_torch(model)


def _loaded(model: Model) -> Any:
    module: Any = load(Path(model.payload))
    if isinstance(module, Script):
        raise Failed("TorchScript is not converted: write the model as a program (.pt2)")
    return module


def _right(module: Any, signature: Signature, batch: Arrays) -> list[np.ndarray]:
    given = [torch.from_numpy(np.array(batch[port.name])) for port in signature.inputs]
    with torch.inference_mode(), silent():
        return [each.numpy() for each in module(*given)]


def _answers(path: Path, signature: Signature, rows: Sequence[Arrays]) -> list[list[np.ndarray]]:
    """[batch][output]"""
    from sartor.executorch_calls import Caller

    names = [port.name for port in signature.outputs]
    with Caller(path, signature) as caller:
        answers = [caller(batch) for batch in rows]
    return [[each[name] for name in names] for each in answers]


def _made(model: Model, path: Path, signature: Signature, step: Step) -> Model:
    return dataclasses.replace(
        model, kind="executorch", payload=path, signature=signature, settings={},
        lineage=(*model.lineage, step),
    )  # fmt: skip
