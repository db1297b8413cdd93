"""PyTorch models written as files without code: exported programs, TorchScript.

What PyTorch writes holds more than the model: places in its author's files, guards, rows with which
it was traced. Only what is read here is kept, and beside it what the file does not say of itself.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sartor import torch_archive as archives
from sartor.contracts import Signature
from sartor.libraries import quiet
from sartor.torch_script import read_members

PROGRAM, SCRIPT = "model.pt2", "model.ts"


def write_program(
    made: torch.export.ExportedProgram,
    folder: Path,
    names: Mapping[str, str],
    out: Sequence[str],
    remarks: Sequence[str] = (),
) -> Path:
    """Writes the program, cleaned; `names` are the data's for its inputs, `out` those of its
    outputs (none: its own)."""
    told = {"inputs": dict(names), "outputs": list(out), "remarks": list(remarks)}
    with tempfile.TemporaryDirectory() as place:
        saved = Path(place) / "saved.pt2"
        with quiet():
            torch.export.save(made, saved)
        archives.write(folder / PROGRAM, archives.cleaned(archives.opened(saved), told))
    return folder / PROGRAM


def write_script(
    made: Any,
    folder: Path,
    parameters: Sequence[str],
    signature: Signature,
    remarks: Sequence[str] = (),
) -> Path:
    """Writes TorchScript; `parameters` are those of its `forward` in the order of the signature's
    inputs, "*" alone where it is called by position."""
    with tempfile.TemporaryDirectory() as place:
        saved = Path(place) / "saved.ts"
        with quiet():  # that TorchScript is no longer the way to go
            torch.jit.save(made, str(saved))
        members = read_members(archives.opened(saved))
    told = {
        "parameters": list(parameters),
        "signature": dataclasses.asdict(signature),
        "remarks": list(remarks),
    }
    members[archives.FACTS] = archives.text(told)
    archives.write(folder / SCRIPT, members)
    return folder / SCRIPT
