"""ExecuTorch's programs called: its runtime, quiet, shared by ours, which times it, and by the
techniques, which compare what they made.

ExecuTorch keeps Python's lock while it computes, and a method is for one caller at a time: calls
wait for each other. It has one pool of threads for the whole process, whose number may only be
changed while no method lives: they keep pointers to it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Arrays, Failed, Signature, WrongRequest
from sartor.executorch_file import read
from sartor.libraries import one_line, quiet
from sartor.sessions import Entry

_turn = threading.RLock()
_alive = 0  # sessions with a method
_threads = 0  # of the pool; 0 before it was set


@contextmanager
def hushed() -> Iterator[None]:
    """Without what ExecuTorch and its libraries print, also past Python to standard error."""
    with _turn, quiet():
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


with hushed():
    import torch  # before the next one, which links to it

    # Not `executorch.runtime`: that loads the compiler too, and takes six seconds.
    from executorch.extension.pybindings import _C as native


class Caller:
    """A program that runs, by its method `forward`. Threads may call it at the same time; they
    wait for each other. Raises WrongRequest for a file that is not sound, Failed where ExecuTorch
    refuses it, or where other sessions of the process run with another number of threads."""

    def __init__(self, path: Path, signature: Signature | None = None, threads: int = 1) -> None:
        path = Path(path)
        flat = read(path)
        stated = signature or flat.signature
        if stated != flat.signature:
            raise WrongRequest(f"{path} has other inputs or outputs than were stated")
        self.entry = Entry(stated.inputs)
        self.names = [port.name for port in stated.outputs]
        self.method: Any = None
        self._first = True
        with _turn, hushed():
            _pool(threads)
            try:
                checked = native.Verification.InternalConsistency
                self.program: Any = native._load_program(str(path), program_verification=checked)
                self.method = self.program.load_method(flat.method)
            except (RuntimeError, ValueError) as error:
                raise Failed(f"ExecuTorch cannot start {path.name}: {one_line(error)}") from None
            _count(1)

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Raises WrongRequest where names, dtypes or shapes do not fit, Failed where ExecuTorch
        gives up on values that fit."""
        arrays = self.entry.arrays(batch)
        given = [torch.from_numpy(each if _plain(each) else each.copy()) for each in arrays]
        with _turn:
            method = self.method
            if method is None:
                raise Failed("the session was closed; start another one")
            try:
                if self._first:  # XNNPACK is set up now, and says so
                    with hushed():
                        found = method(given)
                    self._first = False
                else:
                    found = method(given)
            except (RuntimeError, ValueError) as error:
                raise Failed(f"ExecuTorch: {one_line(error)}") from None
        return {name: each.numpy() for name, each in zip(self.names, found, strict=True)}

    def close(self) -> None:
        with _turn:
            if self.method is not None:
                self.method = self.program = None
                _count(-1)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "method", None) is not None:
            self.close()


def _plain(array: np.ndarray) -> bool:
    """Whether PyTorch can share its memory without a word."""
    return array.flags.writeable and array.flags.c_contiguous


def _count(by: int) -> None:
    global _alive
    _alive += by


def _pool(threads: int) -> None:
    global _threads
    if threads == _threads:
        return
    if _alive:
        raise Failed(
            f"ExecuTorch computes with {_threads} threads in this process, which other sessions "
            f"use: close them before one with {threads} is started"
        )
    native._unsafe_reset_threadpool(threads)
    _threads = threads
