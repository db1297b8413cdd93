"""A table of arrays, one row per example, as the readers give it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPLITS = {
    "train": "train",
    "training": "train",
    "calibration": "train",
    "search": "search",
    "val": "search",
    "valid": "search",
    "validation": "search",
    "dev": "search",
    "holdout": "holdout",
    "test": "holdout",
}
"""Names of parts as they are written, and what they mean."""


@dataclass(frozen=True)
class Columns:
    """Which arrays or columns are what. Without a name `label`, `group` and `split` are taken
    where they exist; without segments all that is left over is one."""

    label: str | None = None
    segments: tuple[str, ...] = ()
    group: str | None = None
    split: str | None = "split"


@dataclass(frozen=True)
class Table:
    """Arrays with one row per example. `notes` tell what was done or left out on the way."""

    inputs: Mapping[str, np.ndarray]
    label: np.ndarray | None = None
    group: np.ndarray | None = None
    split: np.ndarray | None = None
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def to_array(value: Any) -> np.ndarray:
    """A numpy array of what may be a tensor of another library; text becomes dtype <U."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which numpy does not have
            value = value.float()
    array = np.asarray(value)
    return array.astype(np.str_) if array.dtype.kind in "OS" else array


_TEXT = re.compile(r"str|object|string|<U\d*")


def is_text(dtype: str) -> bool:
    """Whether a port takes text."""
    return _TEXT.fullmatch(dtype) is not None
