"""A function as a specimen for the runtime laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sartor.contracts import Arrays, Port, Signature
from sartor.registry import runtime
from sartor.testing_runtimes import Specimen

SOURCE = """
import numpy as np

def factory():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
    return lambda batch: batch["x"] @ weight + batch["shift"]

def named():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
    return lambda batch: {"y": batch["x"] @ weight + batch["shift"], "more": batch["x"]}

named.files = ["weights.bin"]
"""
SIGNATURE = Signature(
    (Port("x", "float32", (None, 4)), Port("shift", "float32", (None, 1))),
    (Port("y", "float32", (None, 3)),),
)


def batch(rows: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 4)).astype(np.float32),
        "shift": rng.normal(size=(rows, 1)).astype(np.float32),
    }


def reference(given: Arrays) -> Arrays:
    weight = np.arange(12).reshape(4, 3) / 12
    return {"y": given["x"].astype(float) @ weight + given["shift"]}


def specimens(folder: Path) -> list[Specimen]:
    """One that returns an array, and one that returns a mapping and names its files."""
    found = []
    for name in ("factory", "named"):
        place = folder / name
        place.mkdir()
        (place / "tool.py").write_text(SOURCE, encoding="utf-8")
        (place / "weights.bin").write_bytes(bytes(5000))
        model = runtime("callable").refer(  # type: ignore[attr-defined]
            f"{place / 'tool.py'}:{name}", SIGNATURE, place / "at-rest"
        )
        found.append(Specimen(name, model, batch, reference))
    return found
