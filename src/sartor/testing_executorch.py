"""Toy ExecuTorch programs for the laws, written from PyTorch's toys.

Public, for authors of techniques and runtimes. All insist on one row. Needs ExecuTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sartor.contracts import Arrays, Model, Port, Signature
from sartor.executorch_export import exported, rounded, written
from sartor.registry import runtime
from sartor.testing_runtimes import Specimen
from sartor.testing_torch import toy_batch, toy_modules

TOYS = {"mlp": ("logits",), "cnn": ("logits",), "several": ("logits", "mean")}


class _Listed(torch.nn.Module):
    """Answers as a tuple, as `exported` wants them."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.module(*arrays)
        return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def program(name: str) -> tuple[Any, Signature]:
    """The toy as PyTorch exports it, and what it takes and gives."""
    module = toy_modules()[name].requires_grad_(False)
    batch = toy_batch(name, 1)
    inputs = tuple(Port(key, str(each.dtype), each.shape) for key, each in batch.items())
    outputs = tuple(Port(key, "float32", ()) for key in TOYS[name])
    signature = Signature(inputs, outputs)
    return exported(_Listed(module), signature), signature


def save_toys(folder: Path, only: Sequence[str] = (), whole: bool = False) -> dict[str, Model]:
    """Name -> the model; of the toys named in `only`, where some are. `whole`: in eight bits."""
    found = {}
    for name in only or TOYS:
        made, signature = program(name)
        if whole:
            rows = [toy_batch(name, 1, seed) for seed in range(8)]
            made, _ = rounded(made, False, rows, signature)
        path, _ = written(made, signature, folder / name)
        found[name] = runtime("executorch").open(path)
    return found


@dataclass(frozen=True)
class _Batch:
    """One row, however many are asked for."""

    name: str

    def __call__(self, rows: int, seed: int) -> Arrays:
        return toy_batch(self.name, 1, seed)


@dataclass(frozen=True)
class _Reference:
    """What PyTorch answers."""

    name: str

    def __call__(self, batch: Arrays) -> Arrays:
        module = _Listed(toy_modules()[self.name])
        with torch.inference_mode():
            found = module(*(torch.from_numpy(each) for each in batch.values()))
        return {key: each.numpy() for key, each in zip(TOYS[self.name], found, strict=True)}


def specimens(folder: Path) -> list[Specimen]:
    """The toys for the runtime laws."""
    made = save_toys(folder)
    return [Specimen(name, model, _Batch(name), _Reference(name)) for name, model in made.items()]
