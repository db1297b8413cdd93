"""ONNX models in ONNX Runtime, on the CPU.

A session needs onnxruntime alone: that is all a bundle imports to run. What reads the file itself
(opening what a stranger gave us, digests, counting) needs the onnx package and stands in
`_onnx_file` and `_onnx_parts`, imported when first asked for.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from sartor.contracts import Arrays, Failed, Model, Part, Signature, Target, WrongRequest
from sartor.sessions import AT_LEAST_ONE, Entry, check_session, copy_files

GRAPH_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
MODES = {
    "sequential": ort.ExecutionMode.ORT_SEQUENTIAL,
    "parallel": ort.ExecutionMode.ORT_PARALLEL,
}
SETTINGS: Mapping[str, tuple[Any, ...] | str] = {
    "threads": AT_LEAST_ONE,
    "execution_mode": tuple(MODES),
    "graph_level": tuple(GRAPH_LEVELS),
    "spinning": (True, False),
    "arena": (True, False),
    "mem_pattern": (True, False),
}
ERRORS_ONLY = 3
WARM = 3  # calls before those of a profile: the first ones allocate


class Onnx:
    """The runtime of ONNX files. A model's payload is the absolute path of its `.onnx` file.

    Settings of a model, all optional: `threads` (at most this many), `execution_mode`
    ("sequential", "parallel"), `graph_level` ("all", "extended", "basic", "none"), `spinning`,
    `arena` and `mem_pattern` (true or false)."""

    kind: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    takes: ClassVar[tuple[str, ...]] = ("onnx",)

    def open(self, path: Path, known: Signature | None = None) -> Model:
        """The model in a file. Raises WrongRequest with a sentence for anything unusable."""
        path = Path(path).absolute()
        return Model(self.kind, path, known or _file().signature(path))

    def adopt(self, given: Any, folder: Path, look: Any = None, trust: bool = False) -> Model:
        """The model of an `onnx.ModelProto` in memory, written into `folder`."""
        return self.open(_file().write(given, folder))

    def save(self, model: Model, folder: Path) -> Path:
        """Copies the file and its external data, which keeps its name, into `folder`."""
        path = Path(model.payload)
        return copy_files(path, (path.name, *_file().externals(path)), folder)

    def reads(self, model: Model) -> tuple[str, ...]:
        """The external data that the file names, as it names them, whether or not they are there.
        Needs no onnx package: a bundle is asked this whenever it is loaded."""
        with Path(model.payload).open("rb") as file:
            empty = file.seek(0, os.SEEK_END) == 0
            data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return external_names(data)

    def digest(self, model: Model) -> str:
        check_session(model.settings, SETTINGS, "ONNX")
        digest: str = _file().digest(Path(model.payload), model.settings)
        return digest

    def size(self, model: Model) -> int:
        path = Path(model.payload)
        names = (path.name, *_file().externals(path))
        return sum((path.parent / name).stat().st_size for name in names)

    def start(self, model: Model, target: Target) -> OnnxSession:
        """A session that uses at most the target's threads. Raises Failed where ONNX Runtime
        refuses the model, WrongRequest for a setting or device that it does not know."""
        return OnnxSession(model, _options(model.settings, target))

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """One part a node. MACs are those of the one example in `sample`."""
        counted: tuple[Part, ...] = _parts().count(Path(model.payload), sample)
        return counted

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        """Part -> median seconds of one batch. Nodes that ONNX Runtime fused are under the name of
        the node whose name the fused one bears, or under a name of their own."""
        with tempfile.TemporaryDirectory(prefix="sartor-profile-") as folder:
            named = _parts().named(Path(model.payload), Path(folder))
            options = _options(model.settings, target)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            model = Model(self.kind, named, model.signature)
            with OnnxSession(model, options) as session:
                for batch in (*batches[:WARM], *batches):
                    session(batch)
                profile = Path(session.end_profiling())
            found: Mapping[str, float] = _parts().seconds(named, profile, len(batches))
        return found

    def versions(self) -> Mapping[str, str]:
        return {"onnxruntime": ort.__version__, "onnx": version("onnx"), "numpy": np.__version__}


class OnnxSession:
    """A model that runs. Threads may call it at the same time."""

    def __init__(self, model: Model, options: ort.SessionOptions) -> None:
        ort.disable_telemetry_events()
        self.path = Path(model.payload)
        try:
            self.session: ort.InferenceSession | None = ort.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its classes share no base but Exception
            raise Failed(f"ONNX Runtime cannot start {self.path.name}: {said(error)}") from None
        self.entry = Entry(model.signature.inputs)
        self.names = [port.name for port in self.session.get_outputs()]

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Raises WrongRequest where names, dtypes or shapes do not fit, Failed where ONNX Runtime
        gives up on values that fit."""
        if self.session is None:
            raise Failed("the session was closed; start another one")
        self.entry.arrays(batch)
        try:
            answers = self.session.run(self.names, dict(batch))
        except Exception as error:  # its classes share no base but Exception
            raise Failed(f"ONNX Runtime: {said(error)}") from None
        return dict(zip(self.names, answers, strict=True))

    def end_profiling(self) -> str:
        if self.session is None:
            raise Failed("the session was closed; start another one")
        written: str = self.session.end_profiling()
        return written

    def __enter__(self) -> OnnxSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.session = None


# The fields of onnx.proto on the way to a tensor's external data: message -> field -> message.
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}


def external_names(data: bytes | mmap.mmap) -> tuple[str, ...]:
    """The locations of external data in an ONNX file's bytes, each once. Reads protobuf's wire
    format and skips all else, weights included. Raises WrongRequest where it is not well-formed."""
    found: dict[str, None] = {}
    view, waiting = memoryview(data), [("model", 0, len(data))]
    while waiting:
        message, start, end = waiting.pop()
        entry: dict[str, str] = {}
        for field, first, last in _chunks(view, start, end):
            inner = FIELDS[message].get(field)
            if message == "entry" and inner is not None:
                entry[inner] = bytes(view[first:last]).decode(errors="replace")
            elif inner is not None:
                waiting.append((inner, first, last))
        if entry.get("key") == "location":
            found[entry.get("value", "")] = None
    return tuple(found)


def _chunks(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field, start, end) of everything with a length in a message: texts, bytes, messages."""
    while at < end:
        tag, at = _varint(view, at, end)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(view, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(view, at, end)
            yield field, at, min(at + length, end)
            at += length
        if at > end or wire not in (0, 1, 2, 5):
            raise WrongRequest("the artifact is not an ONNX file or was cut short")


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise WrongRequest("the artifact is not an ONNX file or was cut short")


def _options(settings: Mapping[str, Any], target: Target) -> ort.SessionOptions:
    check_session(settings, SETTINGS, "ONNX")
    if target.device != "cpu":
        raise WrongRequest(f"ONNX models run on 'cpu' here, not on {target.device!r}")
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = min(settings.get("threads", target.threads), target.threads)
    mode = settings.get("execution_mode", "sequential")
    options.execution_mode = MODES[mode]
    options.inter_op_num_threads = 1 if mode == "sequential" else options.intra_op_num_threads
    options.graph_optimization_level = GRAPH_LEVELS[settings.get("graph_level", "all")]
    options.enable_cpu_mem_arena = settings.get("arena", True)
    options.enable_mem_pattern = settings.get("mem_pattern", True)
    # Spinning threads burn the cores that the other processes of a measurement wait for.
    spinning = "1" if settings.get("spinning", False) else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    return options


def _file() -> ModuleType:
    try:
        from sartor.runtimes import _onnx_file
    except ModuleNotFoundError as error:
        raise WrongRequest(
            f"opening an ONNX file needs {error.name}; write: pip install 'sartor[onnx]'"
        ) from None
    return _onnx_file


def _parts() -> ModuleType:
    _file()
    from sartor.runtimes import _onnx_parts

    return _onnx_parts


def said(error: Exception) -> str:
    """ONNX Runtime's own words on one line, without its codes and places in its source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0])
    return re.sub(r"/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])", "", words)[:400]
