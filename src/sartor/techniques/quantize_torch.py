"""int8 for what runs in PyTorch itself: torchao's, written out as PyTorch's own operators."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sartor.contracts import Arrays, Bench, Failed, Model, Step, Technique
from sartor.fitting import to_compare
from sartor.libraries import first_line
from sartor.space import choice
from sartor.techniques._rows_torch import (
    ROWS,
    changed_for_torch,
    dynamic_shapes,
    room,
    tensors,
)
from sartor.torch_archive import opened
from sartor.torch_graph import Graph, load, refs, silent
from sartor.torch_program import Program, Ref, program
from sartor.torch_saving import write_program

REQUIRES = ("torchao",)  # five seconds of imports: only where it is used

LINEAR = "torch.ops.aten.linear.default"
FEW = 8192  # weights of a layer below which rounding its input costs more than it saves
EXCEPTIONS = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class LinearInt8(Technique):
    """Linear layers with int8 weights, a scale for each output channel (torchao).

    Weights become floats where they are used: a smaller file, no shorter time. `dynamic`: what they
    take in becomes int8 too, with a scale for each row of it, and they multiply in integers; that
    is many small operators, each of which also takes a kilobyte and more of the file. What comes
    out is a program of PyTorch's own operators, without torchao. `exceptions` layers stay
    in float: those whose rounding changes the answer most, by measurement on training examples
    (else those of the search part). Parts are the layers that multiply by weights."""

    kinds: ClassVar[frozenset[str]] = frozenset({"torch"})
    stage: ClassVar[str] = "precision"
    repair: ClassVar[str | None] = "exceptions"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    dynamic: bool = choice(False, values=(False, True))
    exceptions: int = choice(0, values=EXCEPTIONS)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes PyTorch models, not {model.kind}"
        reason = changed_for_torch(model)
        archive = opened(Path(model.payload))
        if reason or archive.sort != "program":
            return reason or "layers are known in exported programs alone, not in TorchScript"
        touched, _ = considered(program(archive))
        if not touched:
            return f"no linear layer has {FEW} weights or more of its own"
        if len(touched) <= self.exceptions:
            return f"all {len(touched)} linear layers would stay in float"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        module: Any = load(Path(model.payload))
        touched, skipped = considered(module.program)
        rows = to_compare(bench, model.signature, ROWS)
        if self.exceptions:
            spared = self._worst(module, model, touched, rows, bench)[: self.exceptions]
            touched = [each for each in touched if each not in spared]
            skipped += [(each, "one of those whose rounding changes the answer most")
                        for each in spared]  # fmt: skip
        _quantize(module, touched, self.dynamic)
        path = _written(module, model, rows[0], room(bench))
        step = Step(self, tuple(touched), tuple(skipped))
        return dataclasses.replace(model, payload=path, settings={}, lineage=(*model.lineage, step))

    def _worst(
        self,
        module: Graph,
        model: Model,
        names: Sequence[str],
        rows: Sequence[Arrays],
        bench: Bench,
    ) -> list[str]:
        """Layers, the one first whose rounding alone changes the answer of the task most."""
        at = [port.name for port in model.signature.outputs].index(bench.task.output)
        given = tensors(model, rows[0])

        def errors() -> dict[str, np.ndarray]:
            with torch.inference_mode():
                right = module(*given)[at]
            found = [_alone(module, name, self.dynamic, given, at, right) for name in names]
            return {"error": np.array(found)}

        key = f"torchao int8 sensitivity, dynamic {self.dynamic}, {len(names)} layers"
        error = bench.remember(key, errors)["error"]
        return [names[place] for place in np.argsort(-error, kind="stable")]


def considered(given: Program) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the linear layers that can be rounded; the other layers, and why they cannot."""
    readers = Counter(
        name for call in given.block.calls for name in refs(call) if name in given.weights
    )
    records = Counter(each.record for each in given.weights.values())
    touched, skipped = [], dict[str, str]()
    for call in given.block.calls:
        read = [given.weights[name] for name in refs(call) if name in given.weights]
        weight = next((each for each in read if len(each.sizes) > 1), None)
        if weight is None:
            continue
        layer, _, last = weight.name.rpartition(".")
        name = layer or "model"
        value = call.arguments[1][1] if call.target == LINEAR else None
        if not isinstance(value, Ref) or given.weights.get(value.name) is not weight:
            skipped[name] = f"{call.target.split('.')[-2]} is no linear layer"
        elif records[weight.record] > 1 or readers[value.name] > 1:
            skipped[name] = "its weights are read elsewhere too"
        elif last != "weight" or not layer or weight.dtype != "float32":
            skipped[name] = "it holds no float32 weight of its own"
        elif weight.sizes[0] * weight.sizes[1] < FEW:
            skipped[name] = f"fewer than {FEW} weights do not pay for rounding its input"
        else:
            touched.append(layer)
    return touched, [(name, why) for name, why in skipped.items() if name not in touched]


def _alone(
    module: Graph, name: str, dynamic: bool, given: Any, at: int, right: torch.Tensor
) -> float:
    """The mean squared change of the answer where this layer alone is rounded."""
    layer: Any = module.get_submodule(name)
    weight = layer.weight
    _quantize(module, [name], dynamic)
    try:
        with torch.inference_mode():
            return float((module(*given)[at].float() - right.float()).square().mean())
    finally:
        layer.weight = weight


def _quantize(module: Graph, names: Sequence[str], dynamic: bool) -> None:
    """Rounds the weights of these layers, in place."""
    with silent():
        from torchao import quantization as ao

        kind = ao.Int8DynamicActivationInt8WeightConfig if dynamic else ao.Int8WeightOnlyConfig
        chosen = set(names)
        ao.quantize_(module, kind(), filter_fn=lambda _, name: name in chosen)


def _written(module: Graph, model: Model, batch: Arrays, folder: Path) -> Path:
    """The program of PyTorch's own operators. Raises Failed where there is none."""
    try:
        with silent(), torch.no_grad():
            made = torch.export.export(
                module,
                tensors(model, batch),
                dynamic_shapes={"arrays": dynamic_shapes(model.signature)},
                strict=False,
            )
            made = made.run_decompositions(dict(_torchao()))
    except Exception as error:  # an exporter raises anything
        raise Failed(f"PyTorch cannot export it quantized: {first_line(error, 200)}") from None
    ports = model.signature.inputs
    names = dict(zip(made.graph_signature.user_inputs, (p.name for p in ports), strict=True))
    outputs = [port.name for port in model.signature.outputs]
    path = write_program(made, folder, {str(key): name for key, name in names.items()}, outputs)
    return path.absolute()


def _torchao() -> Iterator[tuple[Any, Any]]:
    """What torchao's operators are made of; all others stay whole."""
    table: Any = torch.export.default_decompositions()
    for operator, made_of in table.items():
        if str(operator).startswith("torchao"):
            yield operator, made_of
