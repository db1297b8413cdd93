"""TensorFlow's SavedModels on the CPU. What reads the folder stands in `savedmodel_file`, which
needs no TensorFlow; TensorFlow takes seconds to load, and is imported where a model is run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sartor import savedmodel_file as files
from sartor.contracts import Arrays, Model, Part, Session, Signature, Target, WrongRequest
from sartor.sessions import AT_LEAST_ONE, check_session, copy_files

REQUIRES = ("tensorflow",)  # for the registry: `savedmodel_calls` imports it
SETTINGS: Mapping[str, tuple[Any, ...] | str] = {"threads": AT_LEAST_ONE}
WHOLE = "model"
WARM = 3  # calls before those of a profile: the first ones rewrite the graph


class Savedmodel:
    """The runtime of SavedModels: folders with `saved_model.pb` and `variables/`, called by their
    signature serving_default. A model's payload is the absolute path of its `saved_model.pb`.

    Settings of a model, optional: `threads` (at most this many)."""

    kind: ClassVar[str] = "savedmodel"
    suffixes: ClassVar[tuple[str, ...]] = (".pb",)
    folders: ClassVar[tuple[str, ...]] = ("saved_model.pb",)

    def open(self, path: Path, known: Signature | None = None) -> Model:
        """The model in a folder. Raises WrongRequest with a sentence for anything unusable, and for
        a graph that does more than compute."""
        path = files.place(path)
        return Model(self.kind, path, known or files.read(path).signature)

    def save(self, model: Model, folder: Path) -> Path:
        path = Path(model.payload)
        return copy_files(path, files.names_of(path), folder)

    def reads(self, model: Model) -> tuple[str, ...]:
        """The variables, which TensorFlow looks for beside the file."""
        return files.names_of(Path(model.payload))[1:]

    def digest(self, model: Model) -> str:
        check_session(model.settings, SETTINGS, "TensorFlow")
        return files.digest(Path(model.payload), model.settings)

    def size(self, model: Model) -> int:
        path = Path(model.payload)
        return sum((path.parent / name).stat().st_size for name in files.names_of(path))

    def start(self, model: Model, target: Target) -> Session:
        """A session that computes on at most the target's threads. Raises WrongRequest for a graph
        that does more than compute, and for a setting or device that is not known; Failed where
        TensorFlow refuses the model."""
        check_session(model.settings, SETTINGS, "TensorFlow")
        if target.device != "cpu":
            raise WrongRequest(f"SavedModels run on 'cpu' here, not on {target.device!r}")
        from sartor.savedmodel_calls import Caller

        threads = min(model.settings.get("threads", target.threads), target.threads)
        return Caller(Path(model.payload), model.signature, threads)

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """One part as a whole: TensorFlow rewrites the graph before it runs it."""
        saved = files.read(Path(model.payload))
        size = min(saved.bytes, self.size(model))
        return (Part(WHOLE, "SavedModel", saved.parameters, size, None),)

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
        for package in ("tensorflow", "tensorflow-cpu"):
            with contextlib.suppress(PackageNotFoundError):
                told["tensorflow"] = version(package)
        return told
