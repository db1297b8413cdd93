"""What a PyTorch program is made of: its calls, their weights and their multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sartor.contracts import Arrays, Part, Signature
from sartor.fitting import fitted, natural_batch
from sartor.torch_graph import Graph, load
from sartor.torch_program import Block, Call, Program, Ref, Stored

WHOLE = "model"  # the one part of what cannot be looked into
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def names(module: nn.Module | None) -> dict[str, str]:
    """Call -> part: the layer whose weights the call reads, the call's own name where it reads
    none or another one is called so. TorchScript has one call, ""."""
    if not isinstance(module, Graph):
        return {"": WHOLE}
    found: dict[str, str] = {}
    for call, weights in _firsts(module.program).items():
        layer = weights[0].name.rpartition(".")[0] if weights else ""
        taken = layer in found.values()
        found[call] = layer if layer and not taken else call
    return found


def count(path: Path, signature: Signature, sample: Arrays) -> tuple[Part, ...]:
    """One part a call, of the graph's outermost block."""
    module = load(path)
    rows = natural_batch(signature) or 1
    tensors = [
        torch.from_numpy(np.array(fitted(sample[port.name], port, rows)))
        for port in signature.inputs
    ]
    if not isinstance(module, Graph):
        weights = list({each.data_ptr(): each for each in module.state_dict().values()}.values())
        numbers = sum(each.numel() for each in weights)
        held = sum(each.numel() * each.element_size() for each in weights)
        return (Part(WHOLE, "TorchScript", numbers, held, None),)
    work, shapes = _work(module, tensors)
    called, firsts = names(module), _firsts(module.program)
    return tuple(
        Part(
            called[call.name],
            _operator(call),
            sum(_numbers(each) for each in firsts[call.name]),
            sum(_numbers(each) * _width(each) for each in firsts[call.name]),
            _share(
                _recurrent(call, module.program, shapes) if _operator(call) in _RECURRENT
                else work[call.name], rows,
            ),
        )
        for call in module.program.block.calls
        if call.name in work
    )  # fmt: skip


def _share(macs: int | None, rows: int) -> int | None:
    return None if macs is None else macs // rows


def _work(
    module: Graph, tensors: list[torch.Tensor]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Call -> its multiply-accumulates, as PyTorch's own counter has them, two operations each."""
    counter = FlopCounterMode(display=False)
    work: dict[str, int] = {}
    shapes = {
        name: tuple(each.shape) for name, each in zip(module.program.inputs, tensors, strict=True)
    }

    @contextmanager
    def watch(call: str) -> Iterator[None]:
        before = counter.get_total_flops()
        yield
        work[call] = (counter.get_total_flops() - before) // 2

    with torch.inference_mode(), counter:
        module.watched(tensors, watch, shapes)
    return work, shapes


def _firsts(program: Program) -> dict[str, list[Stored]]:
    """Call -> the weights that it is the first to read."""
    waiting = dict(program.weights)
    records: set[str] = set()
    found: dict[str, list[Stored]] = {}
    for call in program.block.calls:
        read = [waiting.pop(name) for name in _read(call) if name in waiting]
        found[call.name] = [each for each in read if each.record not in records]
        records |= {each.record for each in read}
    return found


def _read(call: Call) -> Iterator[str]:
    waiting: list[Any] = [value for _, value in call.arguments]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, Ref):
            yield value.name
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, Block):
            waiting.extend(value.outputs)


def _recurrent(call: Call, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Each weight matrix is applied once a step; the counter does not look into the kernel."""
    values = [value for _, value in call.arguments]
    shape = shapes.get(values[0].name) if isinstance(values[0], Ref) else None
    if shape is None or len(shape) != 3 or not isinstance(values[-1], bool):
        return None
    lists = [each for each in values if isinstance(each, list)]
    weights = [program.weights.get(ref.name) for ref in lists[-1] if isinstance(ref, Ref)]
    steps = shape[0] * shape[1]
    return steps * sum(_numbers(each) for each in weights if each and len(each.sizes) == 2)


def _operator(call: Call) -> str:
    parts = call.target.split(".")
    return parts[3] if call.target.startswith("torch.ops.") else parts[-1]


def _numbers(stored: Stored) -> int:
    numbers = 1
    for size in stored.sizes:
        numbers *= size
    return numbers


def _width(stored: Stored) -> int:
    return torch.empty(0, dtype=getattr(torch, stored.dtype)).element_size()
