"""Toy models of OpenVINO for the laws: some of the ONNX toys, converted by OpenVINO itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sartor import testing_onnx
from sartor.contracts import Model
from sartor.openvino_core import opened, written
from sartor.registry import runtime
from sartor.testing_runtimes import Specimen

SOME = ("mlp", "cnn", "several", "embedding")  # every sort of port and of number, and quick


def save_toys(folder: Path, names: Sequence[str] = SOME) -> dict[str, Model]:
    """Name -> model, for these of the ONNX toys."""
    paths = testing_onnx.save_toys(folder)
    engine = runtime("openvino")
    return {name: engine.open(written(opened(paths[name]), folder, name)) for name in names}


def specimens(folder: Path) -> list[Specimen]:
    """The toys for the runtime laws; ONNX's own evaluator says what is right."""
    made = save_toys(folder)
    known = {each.name: each for each in testing_onnx.specimens(folder)}
    return [dataclasses.replace(known[name], model=model) for name, model in made.items()]
