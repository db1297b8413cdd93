"""TensorFlow Lite's models in LiteRT with XNNPACK, on the CPU.

A file's shapes are fixed as a rule: a model of batch 1 is given one row at a time. What reads the
file stands in `tflite_file`, which needs no LiteRT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from sartor import tflite_file as files
from sartor.contracts import Arrays, Model, Part, Signature, Target, WrongRequest
from sartor.sessions import AT_LEAST_ONE, check_session, copy_files
from sartor.tflite_calls import Caller

FLOATS = "float32"
SETTINGS: Mapping[str, tuple[Any, ...] | str] = {
    "threads": AT_LEAST_ONE,
    "interface": (FLOATS,),
}
REQUIRES = ("ai_edge_litert",)  # for the registry: `tflite_calls` imports it


class Tflite:
    """The runtime of `.tflite` files. A model's payload is the absolute path of one.

    Settings of a model, all optional: `threads` (at most this many), `interface` ("float32": the
    inputs and outputs that are integers of a scale in the file are given and taken as floats)."""

    kind: ClassVar[str] = "tflite"
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)
    static: ClassVar[bool] = True

    def open(self, path: Path, known: Signature | None = None) -> Model:
        """The model in a file. Raises WrongRequest with a sentence for anything unusable."""
        path = Path(path).absolute()
        return Model(self.kind, path, known or files.read(path).signature)

    def save(self, model: Model, folder: Path) -> Path:
        path = Path(model.payload)
        return copy_files(path, (path.name,), folder)

    def digest(self, model: Model) -> str:
        check_session(model.settings, SETTINGS, "TensorFlow Lite")
        path = Path(model.payload)
        stat = path.stat()
        whole = hashlib.sha256(_digest(path, stat.st_mtime_ns, stat.st_size, stat.st_ino))
        whole.update(json.dumps(dict(model.settings), sort_keys=True).encode())
        return whole.hexdigest()

    def size(self, model: Model) -> int:
        return Path(model.payload).stat().st_size

    def start(self, model: Model, target: Target) -> Caller:
        """A session that uses at most the target's threads. Raises Failed where LiteRT refuses the
        model, WrongRequest for a file, a setting or a device that it does not know."""
        check_session(model.settings, SETTINGS, "TensorFlow Lite")
        if target.device != "cpu":
            raise WrongRequest(
                f"TensorFlow Lite models run on 'cpu' here, not on {target.device!r}"
            )
        threads = min(model.settings.get("threads", target.threads), target.threads)
        return Caller(Path(model.payload), self.facing(model), threads)

    def facing(self, model: Model) -> Signature:
        """The signature of a session: with floats where the model's settings ask for them."""
        if model.settings.get("interface") != FLOATS:
            return model.signature
        sides = (
            tuple(dataclasses.replace(p, dtype=FLOATS) if _integers(p.dtype) else p for p in side)
            for side in (model.signature.inputs, model.signature.outputs)
        )
        return Signature(*sides)

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """One part an operator. MACs are those of one call with the file's shapes, divided by its
        batch."""
        counted: tuple[Part, ...] = _parts().count(Path(model.payload))
        return counted

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        """Part -> median seconds of one batch, of each operator in a model of its own: LiteRT's
        own profiler cannot be asked from Python."""
        with self.start(model, target) as session:
            session(batches[0])  # what does not fit is refused here
        found: Mapping[str, float] = _parts().seconds(
            Path(model.payload), self.facing(model), batches, target.threads
        )
        return found

    def versions(self) -> Mapping[str, str]:
        told = {"numpy": np.__version__}
        # The others are those by which the techniques of this kind, and what leads to it, work.
        for package in ("ai-edge-litert", "ai-edge-quantizer", "litert-torch"):
            with contextlib.suppress(PackageNotFoundError):
                told[package] = version(package)
        return told


def _integers(dtype: str) -> bool:
    return dtype in ("int8", "uint8", "int16")


@lru_cache(maxsize=512)
def _digest(path: Path, *_: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _parts() -> ModuleType:
    from sartor.runtimes import _tflite_parts

    return _tflite_parts
