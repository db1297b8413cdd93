"""A part of the data, made of arrays, for tests of what runs on parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sartor.data import Part
from sartor.testing_onnx import toy_batch


def write_part(
    folder: Path,
    inputs: Mapping[str, np.ndarray],
    *,
    label: np.ndarray | None = None,
    mask: str | None = None,
) -> Part:
    folder.mkdir(parents=True, exist_ok=True)
    for at, array in enumerate(inputs.values()):
        np.save(folder / f"input_{at}.npy", array)
    if label is not None:
        np.save(folder / "label.npy", label)
    (folder / "segments.json").write_text(json.dumps([]))
    rows = len(next(iter(inputs.values())))
    return Part(folder, rows, folder.name, tuple(inputs), mask)


def toy_part(folder: Path, name: str, rows: int, *, seed: int = 0) -> Part:
    """Rows that the toy model of this name takes, with labels of four classes."""
    label = np.random.default_rng(seed).integers(0, 4, rows)
    mask = "attention_mask" if name == "transformer" else None
    return write_part(folder, toy_batch(name, rows, seed), label=label, mask=mask)
