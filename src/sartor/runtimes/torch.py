"""PyTorch models on the CPU: exported programs (`.pt2`), and TorchScript where a model does not
export.

At rest a model is a file without Python code and without pickles. What lives in memory, and files
that are not yet of that form, become such a file when they are taken in (`adopt`, `bring`); what
that needs stands in `_torch_adopt`, `_torch_export` and `_torch_folder`, imported when asked for.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch

from sartor import torch_archive as archives
from sartor.contracts import (
    Arrays,
    Failed,
    Glimpse,
    Model,
    Part,
    Signature,
    Target,
    WrongRequest,
)
from sartor.libraries import first_line
from sartor.sessions import Entry, check_session, copy_files
from sartor.torch_graph import Graph, check, load
from sartor.torch_program import program, signature_of
from sartor.torch_script import check_script, unsaid

Look = Callable[[], Glimpse]
FUSED = "fused"
SETTINGS = {FUSED: (True, False)}  # of frozen TorchScript
WARM = 3  # calls before those of a profile: the first ones allocate


class Torch:
    """The runtime of PyTorch's files. A model's payload is the absolute path of one."""

    kind: ClassVar[str] = "torch"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2", ".ts", ".pt", ".pth", ".keras")
    folders: ClassVar[tuple[str, ...]] = ("config.json",)
    takes: ClassVar[tuple[str, ...]] = ("torch", "keras")

    def open(self, path: Path, known: Signature | None = None) -> Model:
        """The model in a file. Raises WrongRequest with a sentence for anything unusable."""
        path = Path(path).absolute()
        if path.suffix.lower() == ".keras" and path.is_file():
            raise WrongRequest(
                f"{path}: a .keras file is taken in with data: name the file with rows too"
            )
        return Model(self.kind, path, known or _signature(path))

    def adopt(
        self, given: Any, folder: Path, look: Look | None = None, trust: bool = False
    ) -> Model:
        """The model of a module in memory (or of the pair of a module and a file of weights),
        exported into `folder`; `look` gives a few rows of the data to export it with."""
        return self.open(_adopting().adopt(given, folder, look))

    def bring(
        self, path: Path, folder: Path, look: Look | None = None, trust: bool = False
    ) -> Model:
        """The model in a file or a folder that somebody else wrote, brought into the form in which
        models lie here. `trust`: pickles may be read, which can run any code."""
        return self.open(_adopting().bring(Path(path), folder, look, trust))

    def remarks(self, model: Model) -> tuple[str, ...]:
        """What was given up when the model was exported."""
        told = archives.facts(archives.opened(Path(model.payload))).get("remarks")
        return tuple(map(str, told)) if isinstance(told, list) else ()

    def purpose(self, model: Model) -> Mapping[str, str]:
        """What the model's own training says that it is for: the kind of its task, its metric."""
        told = archives.facts(archives.opened(Path(model.payload))).get("purpose")
        return {k: str(v) for k, v in told.items()} if isinstance(told, dict) else {}

    def save(self, model: Model, folder: Path) -> Path:
        path = Path(model.payload)
        return copy_files(path, (path.name,), folder)

    def digest(self, model: Model) -> str:
        check_session(model.settings, SETTINGS, "PyTorch")
        path = Path(model.payload)
        stat = path.stat()
        found = _digest(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if model.settings:
            told = json.dumps(dict(model.settings), sort_keys=True)
            found = hashlib.sha256(f"{found} {told}".encode()).hexdigest()
        return found

    def size(self, model: Model) -> int:
        return Path(model.payload).stat().st_size

    def start(self, model: Model, target: Target) -> TorchSession:
        """A session that uses at most the target's threads. Raises WrongRequest for a file that is
        not safe to run, and for a setting or device that is not known."""
        check_session(model.settings, SETTINGS, "PyTorch")
        if target.device != "cpu":
            raise WrongRequest(f"PyTorch models run on 'cpu' here, not on {target.device!r}")
        return TorchSession(model, target.threads)

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """One part a call of the graph, named by the layer whose weights it reads; TorchScript is
        one part as a whole. MACs are those of the one example in `sample`."""
        counted: tuple[Part, ...] = _parts().count(Path(model.payload), model.signature, sample)
        return counted

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        """Part -> median seconds of one batch, of each call by itself."""
        taken: list[dict[str, float]] = []
        with self.start(model, target) as session:
            names = _parts().names(session.module)
            for batch in (*batches[:WARM], *batches):
                taken.append(session.timed(batch, names))
        measured = taken[len(batches[:WARM]) :]
        return {name: float(np.median([each[name] for each in measured])) for name in measured[0]}

    def versions(self) -> Mapping[str, str]:
        return {"torch": torch.__version__, "numpy": np.__version__}


class TorchSession:
    """A model that runs. Threads may call it at the same time."""

    def __init__(self, model: Model, threads: int) -> None:
        self.threads, self.before = threads, torch.get_num_threads()
        self.entry = Entry(model.signature.inputs)
        self.names = [port.name for port in model.signature.outputs]
        fused = bool(model.settings.get(FUSED))
        self.module: torch.nn.Module | None = load(Path(model.payload), fused)
        self.copies = not isinstance(self.module, Graph) or self.module.writes_inputs

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Raises WrongRequest where names, dtypes or shapes do not fit, Failed where PyTorch gives
        up on values that fit."""
        module = self.module
        if module is None:
            raise Failed("the session was closed; start another one")
        tensors = self._tensors(batch)
        if torch.get_num_threads() != self.threads:  # each thread has a number of its own
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self._answers(module, tensors)

    def _answers(self, module: Any, tensors: list[torch.Tensor]) -> dict[str, np.ndarray]:
        try:
            found = module(*tensors)
        except Exception as error:  # RuntimeError, IndexError and what else its operators raise
            raise Failed(f"PyTorch: {first_line(error)}") from None
        return {
            name: np.array(tensor.numpy()) for name, tensor in zip(self.names, found, strict=True)
        }

    def _tensors(self, batch: Arrays) -> list[torch.Tensor]:
        tensors = []
        for array in self.entry.arrays(batch):
            owned = array.flags.writeable and array.flags.c_contiguous and not self.copies
            tensors.append(torch.from_numpy(array if owned else np.array(array, order="C")))
        return tensors

    def timed(self, batch: Arrays, names: Mapping[str, str]) -> dict[str, float]:
        """Part -> seconds of this batch; `names` gives the part of each call."""
        taken: dict[str, float] = dict.fromkeys(names.values(), 0.0)

        @contextmanager
        def watch(call: str) -> Iterator[None]:
            began = time.perf_counter()
            yield
            taken[names[call]] += time.perf_counter() - began

        if isinstance(self.module, Graph):
            tensors = self._tensors(batch)
            with torch.inference_mode():
                self.module.watched(tensors, watch)
        else:
            with watch(""):
                self(batch)
        return taken

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.module = None
        torch.set_num_threads(self.before)


@lru_cache(maxsize=256)
def _digest(path: Path, *_: int) -> str:
    return archives.digest(path)


def _signature(path: Path) -> Signature:
    stat = path.stat() if path.is_file() else None
    return _known(path, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else ()))


@lru_cache(maxsize=256)
def _known(path: Path, *_: int) -> Signature:
    """The signature of a file that was looked through."""
    archive = archives.opened(path)
    if archive.sort != "script":
        found = program(archive)
        check(found, path)
        return found.signature
    check_script(archive)
    told = archives.facts(archive).get("signature")
    if told is None:
        raise unsaid(path)
    return signature_of(told, path)


def _adopting() -> ModuleType:
    from sartor.runtimes import _torch_adopt

    return _torch_adopt


def _parts() -> ModuleType:
    from sartor.runtimes import _torch_parts

    return _torch_parts
