"""Toy PyTorch modules for the laws: every shape of network in miniature, with seeded weights.

Public, for authors of techniques and runtimes. `toy_modules` gives live modules, `save_toys` the
files that the runtime makes of them: programs, and TorchScript of the one that does not export.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sartor.contracts import Arrays, Glimpse, Model
from sartor.registry import runtime
from sartor.testing_runtimes import Specimen

VOCABULARY = 128


class Residual(nn.Module):
    """Convolutions with batch norm, a shortcut, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = functional.max_pool2d(torch.relu(x + self.inner(x)), 2)
        x = functional.hardswish(self.pointwise(self.depthwise(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        logits: Tensor = self.head(states[:, -1])
        return logits


class Attending(nn.Module):
    """One block of a transformer over tokens of free length, pooled under a mask; its answer is a
    mapping."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.table = nn.Embedding(VOCABULARY, width)
        self.joined = nn.Linear(width, 3 * width)
        self.out, self.up, self.down = (
            nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width),
        )  # fmt: skip
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        rows, length = input_ids.shape
        x = self.table(input_ids)
        split = (rows, length, self.heads, self.width // self.heads)
        q, k, v = (each.view(split).transpose(1, 2) for each in self.joined(x).chunk(3, -1))
        far = (1.0 - attention_mask.to(x.dtype))[:, None, None, :] * -1e4
        scores = q @ k.transpose(-1, -2) / split[-1] ** 0.5 + far
        seen = (self.drop(scores.softmax(-1)) @ v).transpose(1, 2).reshape(rows, length, self.width)
        x = self.first(x + self.out(seen))
        x = self.second(x + self.down(functional.gelu(self.up(x))))
        weight = attention_mask.to(x.dtype)[:, :, None]
        pooled = (x * weight).sum(1) / weight.sum(1)
        return {"logits": self.head(pooled), "embedding": pooled}


class Several(nn.Module):
    """Two inputs, two outputs without names, and one weight read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(32, 64), nn.Linear(16, 64)
        self.once, self.twice = nn.Linear(64, 64), nn.Linear(64, 64)
        self.twice.weight = self.once.weight
        self.head = nn.Linear(64, 3)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.relu(self.left(left)) + torch.tanh(self.right(right))
        both = torch.relu(self.once(both)) + torch.relu(self.twice(both.abs()))
        return self.head(both), both.mean(1, keepdim=True)


class Branching(nn.Module):
    """Asks for a value on the way: it does not export, only trace."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.inner(x))
        if float(inner.sum()) < 0:  # a sum of what is never negative
            inner = -inner
        logits: Tensor = self.head(inner)
        return logits


def _mlp() -> nn.Module:
    layers = [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)]
    return nn.Sequential(*layers)


_TOYS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "cnn": Residual,
    "lstm": Recurrent,
    "transformer": Attending,
    "several": Several,
    "branching": Branching,
}


def toy_modules(seed: int = 0) -> dict[str, nn.Module]:
    """Name -> a small float32 module in eval mode; the same seed, the same weights. PyTorch's own
    random state is left as it was."""
    found = {}
    for at, (name, make) in enumerate(_TOYS.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + at)
            found[name] = make().eval()
            for each in found[name].buffers():  # of batch norms, as if they had seen data
                if each.is_floating_point():
                    each.add_(torch.rand_like(each) * 0.5)
    return found


def toy_batch(name: str, rows: int, seed: int = 0) -> Arrays:
    """`rows` examples that the toy of this name takes; sentences are 6 to 20 tokens long."""
    rng = np.random.default_rng((seed, *name.encode()))
    if name == "cnn":
        return {"image": rng.standard_normal((rows, 3, 16, 16), np.float32)}
    if name == "lstm":
        return {"x": rng.standard_normal((rows, 12, 16), np.float32)}
    if name == "several":
        sizes = {"left": 32, "right": 16}
        return {key: rng.standard_normal((rows, size), np.float32) for key, size in sizes.items()}
    if name == "transformer":
        steps = int(rng.integers(6, 21))
        lengths = rng.integers(4, steps + 1, rows)
        mask = (np.arange(steps) < lengths[:, None]).astype(np.int64)
        return {
            "input_ids": rng.integers(1, VOCABULARY, (rows, steps)) * mask,
            "attention_mask": mask,
        }
    if name in ("mlp", "branching"):
        return {"x": rng.standard_normal((rows, 32), np.float32)}
    raise KeyError(f"no toy module {name!r}; there are: {', '.join(_TOYS)}")


def taken_in(module: Any, folder: Path, batch: Callable[[int, int], Arrays]) -> Model:
    """What the runtime makes of a module, with rows of `batch` for data."""
    engine: Any = runtime("torch")
    model: Model = engine.adopt(module, folder, lambda: Glimpse(batch(8, 0)))
    return model


def save_toys(folder: Path, seed: int = 0, only: Sequence[str] = ()) -> dict[str, Model]:
    """Name -> the model at rest below `folder`; of the toys named in `only`, where some are."""
    return {
        name: taken_in(module, folder / name, functools.partial(toy_batch, name))
        for name, module in toy_modules(seed).items()
        if not only or name in only
    }


@dataclass(frozen=True)
class _Reference:
    """The live module, as PyTorch runs it."""

    module: nn.Module
    names: tuple[str, ...]

    def __call__(self, batch: Arrays) -> Arrays:
        with torch.inference_mode():
            found = self.module(**{name: torch.from_numpy(each) for name, each in batch.items()})
        listed = found.values() if isinstance(found, dict) else found
        tensors = [found] if isinstance(found, Tensor) else listed
        return {name: each.numpy() for name, each in zip(self.names, tensors, strict=True)}


def specimens(folder: Path) -> list[Specimen]:
    """The toys for the runtime laws."""
    modules = toy_modules()
    made = []
    for name, model in save_toys(folder).items():
        outputs = tuple(port.name for port in model.signature.outputs)
        module = _renamed(modules[name])
        batch = functools.partial(toy_batch, name)
        made.append(Specimen(name, model, batch, _Reference(module, outputs)))
    return made


def _renamed(module: nn.Module) -> Any:
    """A Sequential calls its parameter `input`; the data call it x."""
    return (lambda x: module(x)) if isinstance(module, nn.Sequential) else module
