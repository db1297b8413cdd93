"""ONNX models in ONNX Runtime, on the CPU.

A session needs onnxruntime alone: that is all that is imported to run a bundle and to verify it.
What looks into the file (opening what a stranger gave us, counting) needs the onnx package and
stands in `_onnx_file` and `_onnx_parts`, imported when first asked for.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from sartor.contracts import Arrays, Failed, Model, Part, Signature, Target, WrongRequest
from sartor.libraries import needing
from sartor.runtimes._onnx_bytes import digest, externals, names_of
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
        return copy_files(path, (path.name, *externals(path)), folder)

    def reads(self, model: Model) -> tuple[str, ...]:
        """The external data that the file names, as it names them, whether or not they are there:
        a bundle is asked this whenever it is loaded."""
        return names_of(Path(model.payload))

    def digest(self, model: Model) -> str:
        check_session(model.settings, SETTINGS, "ONNX")
        return digest(Path(model.payload), model.settings)

    def size(self, model: Model) -> int:
        path = Path(model.payload)
        return sum((path.parent / name).stat().st_size for name in (path.name, *externals(path)))

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

    def elsewhere(self, model: Model, rows: Arrays, batch: int) -> str:
        """How TensorRT would run it, in one line; "" where it would not take the graph as quantized
        or the onnx package, which looks into it, is not here."""
        try:
            proto = _file().read(Path(model.payload))
        except WrongRequest:
            return ""
        from sartor.runtimes._onnx_tensorrt import command, tensorrt_obstacle

        if tensorrt_obstacle(proto):
            return ""
        call = command(Path(model.payload).name, proto, rows, batch)
        return (
            f"TensorRT, from version 10 on: `{call}` (unverified: the graph keeps to TensorRT's "
            "rules for explicit int8, but there was no GPU here and TensorRT was not run)"
        )

    def versions(self) -> Mapping[str, str]:
        told = {"onnxruntime": ort.__version__, "numpy": np.__version__}
        with contextlib.suppress(PackageNotFoundError):  # by which its techniques work
            told["onnx"] = version("onnx")
        return told


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


def _options(settings: Mapping[str, Any], target: Target) -> ort.SessionOptions:
    check_session(settings, SETTINGS, "ONNX")
    if target.device != "cpu":
        raise WrongRequest(f"ONNX models run on 'cpu' here, not on {target.device!r}")
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    threads = min(settings.get("threads", target.threads), target.threads)
    mode = settings.get("execution_mode", "sequential")
    options.execution_mode = MODES[mode]
    # Two branches at a time; both pools together have no more threads than the target allows.
    options.inter_op_num_threads = 2 if mode == "parallel" and threads > 1 else 1
    options.intra_op_num_threads = threads - options.inter_op_num_threads + 1
    options.graph_optimization_level = GRAPH_LEVELS[settings.get("graph_level", "all")]
    options.enable_cpu_mem_arena = settings.get("arena", True)
    options.enable_mem_pattern = settings.get("mem_pattern", True)
    # Spinning threads burn the cores that the other processes of a measurement wait for.
    spinning = "1" if settings.get("spinning", False) else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    options.add_session_config_entry("session.force_spinning_stop", "1")  # once it has answered
    return options


def _file() -> ModuleType:
    with needing("looking into an ONNX file", "pip install 'sartor[onnx]'"):
        from sartor.runtimes import _onnx_file
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
