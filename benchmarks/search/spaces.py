"""The finite spaces whose every candidate is recorded: the real techniques with fewer settings.

A space names, for each technique, the values that its settings may take; all other settings stay
at their defaults. Its recipes are all that the search can ask of such techniques: at most one of
each stage, and graph techniques in any order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from sartor.contracts import STAGES, Recipe, Technique, to_json
from sartor.registry import techniques
from sartor.space import choice, domains

Grid = Mapping[str, Mapping[str, tuple[Any, ...]]]

_WEIGHT_ONLY = {"matmul": (0, 8), "embeddings": (4, 8), "block": (32,)}

_CONVOLUTIONS: Grid = {  # beside what factorizes them
    "simplify": {},
    "dynamic-int8": {"exceptions": (0, 1)},
    "static-int8": {
        "per_channel": (True, False), "bias_correction": (False, True),
        "calibration": ("minmax", "percentile"), "exceptions": (0, 1, 2, 4),
    },
    "float16-storage": {},
}  # fmt: skip

SPACES: Mapping[str, Grid] = {
    "adult": {  # a network of three dense layers
        "low-rank": {"share": (0.5, 0.7)},
        "optimize-offline": {"level": ("extended",)},
        "dynamic-int8": {"per_channel": (True, False), "smooth": (0.0, 0.8), "exceptions": (0, 1)},
        "static-int8": {
            "smooth": (0.0, 0.8), "bias_correction": (False, True), "exceptions": (0, 1, 2),
        },
        "float16-storage": {},
    },
    "digits": {  # a convolutional network
        "low-rank": {"share": (0.5,)},
        **_CONVOLUTIONS,
    },
    "fashion": {  # a residual convolutional network
        "low-rank": {"share": (0.7,)},
        **_CONVOLUTIONS,
    },
    "tweets-lstm": {  # an embedding and an LSTM
        "optimize-offline": {"level": ("extended",)},
        "dynamic-int8": {
            "per_channel": (True, False), "smooth": (0.0, 0.8), "exceptions": (0, 1, 2),
        },
        "weight-only": {**_WEIGHT_ONLY, "block": (32, 64)},
        "float16-storage": {},
    },
    "tweets-bert": {  # a small transformer
        "fuse-transformer": {},
        "separate-norm": {},
        "dynamic-int8": {"smooth": (0.0, 0.5, 0.8), "exceptions": (0, 1, 2, 4)},
        "static-int8": {"ops": ("matmul",), "smooth": (0.8,)},
        "weight-only": {"matmul": (0, 8), "embeddings": (8,)},
    },
    "minilm": {  # a transformer of six layers
        "fuse-transformer": {},
        "separate-norm": {},
        "dynamic-int8": {"smooth": (0.0, 0.8), "exceptions": (0, 2, 8)},
        "static-int8": {"ops": ("matmul",), "smooth": (0.8,)},
        "weight-only": _WEIGHT_ONLY,
    },
}  # fmt: skip


def narrowed(cls: type[Technique], grid: Mapping[str, tuple[Any, ...]]) -> type[Technique]:
    """The technique with fewer values for its settings: those of the grid, else the default."""
    body: dict[str, Any] = {"__annotations__": {}, "__doc__": cls.__doc__}
    for field in dataclasses.fields(cls):
        if field.name not in domains(cls):
            continue
        values = grid.get(field.name, (field.default,))
        default = field.default if field.default in values else values[0]
        body["__annotations__"][field.name] = field.type
        body[field.name] = choice(default, values=values)
    made = type(cls.__name__, (cls,), body)
    return dataclasses.dataclass(frozen=True)(made)


def restricted(space: Grid, kind: str = "onnx") -> dict[str, type[Technique]]:
    """Name -> narrowed class of every technique of the space."""
    known = techniques(kind)
    return {name: narrowed(known[name], grid) for name, grid in sorted(space.items())}


def variants(cls: type[Technique]) -> list[Technique]:
    """The technique with every combination of its settings."""
    names = {name: domain.grid(1000) for name, domain in domains(cls).items()}
    return [
        cls(**dict(zip(names, values, strict=True)))
        for values in itertools.product(*names.values())
    ]


def recipes(known: Mapping[str, type[Technique]]) -> list[Recipe]:
    """Every recipe that the search can ask of these techniques, the original among them."""
    choices: list[list[Recipe]] = []
    for stage in STAGES:
        held = [variants(cls) for cls in known.values() if cls.stage == stage]
        most = min(3 if stage == "graph" else 1, len(held))
        choices.append([each for n in range(most + 1) for each in _ordered(held, n)])
    return [tuple(itertools.chain(*picked)) for picked in itertools.product(*choices)]


def _ordered(held: list[list[Technique]], n: int) -> Iterator[Recipe]:
    """Every way to take one variant each of `n` different techniques, in every order."""
    for some in itertools.permutations(held, n):
        yield from itertools.product(*some)


def entries(recipe: Recipe) -> list[dict[str, Any]]:
    return [to_json(each) for each in recipe]
