"""Graphs in PyTorch written as TensorFlow Lite files, and what came out held against them.

litert-torch takes seconds to load: it is imported where it is used.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sartor.contracts import Arrays, Bench, Failed, Port, Signature
from sartor.libraries import lines_of
from sartor.nearness import difference
from sartor.tflite_calls import Caller
from sartor.tflite_write import packed, text, unpacked
from sartor.torch_graph import silent

Answers = Callable[[Arrays], Arrays]

# litert-torch loads JAX, which warns of every fork after it; the workers of a user's loader, which
# are forked later in the same process, never call JAX.
warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)


def fixed(signature: Signature, bench: Bench) -> Signature:
    """The signature with every size fixed, as LiteRT needs it: as the target asks, and else the
    target's batch. Raises Failed, naming the input, where a size stays free."""
    asked = dict(bench.target.fixed)
    ports = []
    for port in signature.inputs:
        shape = asked.get(port.name, port.shape)
        if port.name not in asked and shape[:1] == (None,):
            shape = (bench.target.batch, *shape[1:])
        if port.shape and shape[:1] not in ((None,), (bench.target.batch,)):
            raise Failed(
                f"the input {port.name!r} is fixed to {shape[0]} rows and the target asks for "
                f"{bench.target.batch} at a time: write --batch {shape[0]}"
            )
        if len(shape) != len(port.shape) or any(
            have not in (None, wanted) for have, wanted in zip(port.shape, shape, strict=True)
        ):
            raise Failed(
                f"the target fixes {port.name!r} to {list(shape)}, which does not fit its shape"
            )
        if None in shape:
            sizes = ",".join("N" if each is None else str(each) for each in shape)
            raise Failed(
                f"the input {port.name!r} has a free length and LiteRT takes fixed shapes only: "
                f"write --fix {port.name}={sizes} with a number for each N"
            )
        ports.append(Port(port.name, port.dtype, tuple(shape)))
    return Signature(tuple(ports), signature.outputs)


def example(signature: Signature) -> dict[str, Tensor]:
    """Zeros of the shapes of a signature that is fixed."""
    return {
        port.name: torch.zeros(port.shape, dtype=getattr(torch, port.dtype))  # type: ignore[arg-type]
        for port in signature.inputs
    }


def traced(
    run: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor]
) -> torch.fx.GraphModule:
    """The calls that `run` makes on such arguments, as a module. What it computes of shapes and of
    constants alone is computed once and for all, so that a graph may read sizes out of tensors."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), silent():
        return make_fx(run, tracing_mode="real", pre_dispatch=True)(*arguments)


def written(
    module: nn.Module, arguments: Sequence[Tensor], signature: Signature, scratch: Path
) -> tuple[Path, Signature]:
    """The file that litert-torch makes of a module, which takes the inputs in their order and gives
    a tuple of the outputs, and its signature. Raises Failed with the converter's own reason."""
    with silent():
        import litert_torch

        try:
            made = litert_torch.convert(module.eval(), tuple(arguments), enable_x64=True)
            data = bytes(made.model_content())
        except Exception as error:  # a converter raises anything
            raise Failed(f"litert-torch: {reason(error)}") from None
    data, found = _named(data, signature)
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"totflite-{hashlib.sha256(data).hexdigest()[:20]}.tflite"
    path.write_bytes(data)
    return path.absolute(), found


def _named(data: bytes, signature: Signature) -> tuple[bytes, Signature]:
    """Inputs and outputs under the signature's names and in its order."""
    model = unpacked(data)
    told = model.signatureDefs[0]
    graph = model.subgraphs[told.subgraphIndex]
    found = []
    for side, ports, stem in (
        (told.inputs, signature.inputs, "args_"),
        (told.outputs, signature.outputs, "output_"),
    ):
        known = {text(each.name): each for each in side}
        wanted = [f"{stem}{at}" for at in range(len(ports))]
        missing = [port.name for port, name in zip(ports, wanted, strict=True) if name not in known]
        if missing or len(known) != len(ports):
            lost = ", ".join(missing or sorted(set(known) - set(wanted)))
            raise Failed(f"litert-torch gives other inputs or outputs than the model: {lost}")
        ordered = [known[name] for name in wanted]
        for each, port in zip(ordered, ports, strict=True):
            each.name = port.name
        side[:] = ordered
        tensors = [graph.tensors[each.tensorIndex] for each in ordered]
        found.append([tuple(map(int, each.shape)) for each in tensors])
    graph.inputs = [each.tensorIndex for each in told.inputs]
    graph.outputs = [each.tensorIndex for each in told.outputs]
    outputs = zip(signature.outputs, found[1], strict=True)
    made = tuple(Port(port.name, port.dtype, shape) for port, shape in outputs)
    return packed(model), Signature(signature.inputs, made)


def compare(
    path: Path, signature: Signature, right: Answers, batches: Sequence[Arrays], output: str
) -> None:
    """Raises Failed where LiteRT answers otherwise than the model did."""
    names = [port.name for port in signature.outputs]

    def listed(answers: Arrays) -> list[np.ndarray]:
        return [answers[name] for name in names]

    wanted = [listed(right(batch)) for batch in batches]
    with Caller(path, signature) as caller:
        found = (listed(caller(batch)) for batch in batches)
        wrong = difference(wanted, found, names, output, "LiteRT", "the model's")
    if wrong:
        raise Failed(wrong[0])


def reason(error: BaseException) -> str:
    """What a converter's error says, and the operator that it names, on one line."""
    lines = lines_of(error)
    telling = [line for line in lines if re.search(r"aten\.|tfl\.|stablehlo\.|not supported", line)]
    return (telling or lines)[0][:300]


def by_names(
    run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], signature: Signature
) -> Callable[..., tuple[Tensor, ...]]:
    """A function of mappings as one of tensors in the signature's order."""
    inputs = [port.name for port in signature.inputs]
    outputs = [port.name for port in signature.outputs]

    def called(*arguments: Tensor) -> tuple[Tensor, ...]:
        found = run(dict(zip(inputs, arguments, strict=True)))
        return tuple(found[name] for name in outputs)

    return called
