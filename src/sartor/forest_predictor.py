"""A packed forest that answers: rows in, margins or predictions out."""

from __future__ import annotations

from typing import Any

import numpy as np

from sartor import kernels
from sartor.contracts import WrongRequest
from sartor.forest import Forest
from sartor.forest_packing import pack

PORTABLE, AVX2, AVX512 = range(3)


class Predictor:
    """What the kernel makes of a forest, or of packed bytes. Threads may call it at the same time.

    `threads` is a ceiling for batches. `level` forbids instruction sets above it.
    """

    def __init__(self, given: Forest | bytes, *, threads: int = 1, level: int = AVX512) -> None:
        packed = pack(given) if isinstance(given, Forest) else given
        try:
            self._kernel = kernels.forest().Forest(packed)
        except ValueError as error:
            raise WrongRequest(str(error)) from None
        self.threads, self.level = threads, level
        self.features: int = self._kernel.features
        self.dtype = np.dtype(np.float64 if self._kernel.double else np.float32)
        self._widths = (self._kernel.outputs(0), self._kernel.outputs(1))
        self._run = self._kernel.predict

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """[N, features] -> [N, outputs], or [features] -> [outputs]: the link applied."""
        return self._answer(rows, 1)

    def margins(self, rows: np.ndarray) -> np.ndarray:
        """The same before the link: what the library calls raw predictions."""
        return self._answer(rows, 0)

    def _answer(self, rows: np.ndarray, finished: int) -> np.ndarray:
        width = self._widths[finished]
        out = np.empty((len(rows), width) if rows.ndim == 2 else (width,), self.dtype)
        try:
            self._run(rows, out, finished, self.threads, self.level)
        except (ValueError, BufferError):
            self._run(self._fitted(rows), out, finished, self.threads, self.level)
        return out

    def _fitted(self, rows: Any) -> np.ndarray:
        if (
            rows.ndim not in (1, 2)
            or rows.shape[-1] != self.features
            or rows.dtype.kind not in "fiub"
        ):
            raise WrongRequest(
                f"the forest takes rows of {self.features} numbers; it was given "
                f"{rows.dtype}{list(rows.shape)}"
            )
        real = np.float32 if rows.dtype in (np.float16, np.int8, np.uint8, np.bool_) else np.float64
        return np.ascontiguousarray(rows, real)
