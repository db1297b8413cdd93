"""ExecuTorch's programs on the CPU, with XNNPACK. What reads the file stands in `executorch_file`,
which needs no ExecuTorch; that loads PyTorch, and is imported where a program is run."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sartor import executorch_file as files
from sartor.contracts import Arrays, Model, Part, Session, Signature, Target, WrongRequest
from sartor.sessions import check_session, copy_files

REQUIRES = ("executorch", "torch")  # for the registry: `executorch_calls` imports them
SETTINGS: Mapping[str, tuple[Any, ...] | str] = {}
WHOLE = "model"
WARM = 3  # calls before those of a profile


class Executorch:
    """The runtime of `.pte` files. A model's payload is the absolute path of one. A model has no
    settings: the number of threads is the process', and so the target's."""

    kind: ClassVar[str] = "executorch"
    suffixes: ClassVar[tuple[str, ...]] = (".pte",)
    static: ClassVar[bool] = True

    def open(self, path: Path, known: Signature | None = None) -> Model:
        """The model in a file. Raises WrongRequest with a sentence for anything unusable."""
        path = Path(path).absolute()
        return Model(self.kind, path, known or files.read(path).signature)

    def save(self, model: Model, folder: Path) -> Path:
        path = Path(model.payload)
        return copy_files(path, (path.name,), folder)

    def digest(self, model: Model) -> str:
        check_session(model.settings, SETTINGS, "ExecuTorch")
        path = Path(model.payload)
        stat = path.stat()
        return _digest(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def size(self, model: Model) -> int:
        return Path(model.payload).stat().st_size

    def start(self, model: Model, target: Target) -> Session:
        """A session that computes on the target's threads. Raises WrongRequest for a file that is
        not sound and for a device that is not known; Failed where ExecuTorch refuses the model."""
        check_session(model.settings, SETTINGS, "ExecuTorch")
        if target.device != "cpu":
            raise WrongRequest(f"ExecuTorch's programs run on 'cpu' here, not on {target.device!r}")
        from sartor.executorch_calls import Caller

        return Caller(Path(model.payload), model.signature, target.threads)

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """One part as a whole, whose parameters are not counted: what XNNPACK holds is packed for
        it, and ExecuTorch's wheel is built without its profiler."""
        called = len(files.read(Path(model.payload)).calls)
        return (Part(WHOLE, f"ExecuTorch, {called} calls", 0, self.size(model), None),)

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        """The median seconds of one batch."""
        taken = []
        with self.start(model, target) as session:
            for batch in (*batches[:WARM], *batches):
                began = time.perf_counter()
                session(batch)
                taken.append(time.perf_counter() - began)
        return {WHOLE: float(np.median(taken[len(batches[:WARM]) :]))}

    def versions(self) -> Mapping[str, str]:
        told = {"numpy": np.__version__}
        # torchao is that by which the technique that rounds works.
        for package in ("executorch", "torch", "torchao"):
            with contextlib.suppress(PackageNotFoundError):
                told[package] = version(package)
        return told


@lru_cache(maxsize=512)
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
