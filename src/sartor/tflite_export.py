"""Graphs in PyTorch written as TensorFlow Lite files.

litert-torch takes seconds to load: it is imported where it is used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sartor.contracts import Failed, Signature
from sartor.libraries import lines_of
from sartor.tflite_form import stored
from sartor.torch_graph import silent

# litert-torch loads JAX, which warns of every fork after it; the workers of a user's loader, which
# are forked later in the same process, never call JAX.
warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)


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
    wanted = [f"args_{at}" for at in range(len(signature.inputs))]
    given = [f"output_{at}" for at in range(len(signature.outputs))]
    return stored(data, signature, (wanted, given), scratch, "litert-torch")


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
