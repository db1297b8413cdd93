"""OpenVINO's models on the CPU: a graph in `.xml`, its weights in the `.bin` of the same name."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from sartor import openvino_ir as files
from sartor.contracts import Arrays, Failed, Model, Part, Signature, Target, WrongRequest
from sartor.openvino_core import SETTINGS, compiled, ov, properties, said
from sartor.sessions import Entry, check_session, copy_files

REQUIRES = ("openvino",)  # imported in openvino_core, so that it tells nobody
WARM = 3  # calls before those of a profile: the first ones allocate


class Openvino:
    """The runtime of OpenVINO's files. A model's payload is the absolute path of its `.xml`.

    Settings of a model, all optional: `threads` (at most this many), `hint` ("latency": one stream
    with all threads; "throughput": a stream a thread), `precision` in which floats are computed
    ("f32", "bf16", "f16"), `dynamic_quantization` (values that share a scale when the input of a
    product with compressed weights is rounded to eight bits; 0: it is not)."""

    kind: ClassVar[str] = "openvino"
    suffixes: ClassVar[tuple[str, ...]] = (".xml",)

    def open(self, path: Path, known: Signature | None = None) -> Model:
        """The model in a file. Raises WrongRequest with a sentence for anything unusable."""
        path = Path(path).absolute()
        return Model(self.kind, path, known or files.signature(path))

    def save(self, model: Model, folder: Path) -> Path:
        path = Path(model.payload)
        return copy_files(path, files.names_of(path), folder)

    def reads(self, model: Model) -> tuple[str, ...]:
        """The weights, which the file does not name: OpenVINO looks for them under its name."""
        return files.names_of(Path(model.payload))[1:]

    def digest(self, model: Model) -> str:
        check_session(model.settings, SETTINGS, "OpenVINO")
        return files.digest(Path(model.payload), model.settings)

    def size(self, model: Model) -> int:
        path = Path(model.payload)
        return sum((path.parent / name).stat().st_size for name in files.names_of(path))

    def start(self, model: Model, target: Target) -> OpenvinoSession:
        """A session that computes on at most the target's threads. Raises WrongRequest for a file
        that is not safe to read, and for a setting or device that is not known; Failed where
        OpenVINO refuses the model."""
        return OpenvinoSession(model, _wanted(model, target))

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """One part a layer that computes. MACs are those of the one example in `sample`."""
        files.signature(Path(model.payload))
        counted: tuple[Part, ...] = _parts().count(Path(model.payload), model.signature, sample)
        return counted

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        """Part -> median seconds of one batch. Layers that OpenVINO fused are under the name of the
        one that it runs, as are those that it brought in."""
        taken: list[Mapping[str, float]] = []
        with OpenvinoSession(model, {**_wanted(model, target), "PERF_COUNT": True}) as session:
            for batch in (*batches[:WARM], *batches):
                taken.append(session.timed(batch))
        measured = taken[len(batches[:WARM]) :]
        names = dict.fromkeys(name for each in measured for name in each)
        return {
            name: float(np.median([each.get(name, 0.0) for each in measured])) for name in names
        }

    def versions(self) -> Mapping[str, str]:
        told = {"openvino": version("openvino"), "numpy": np.__version__}
        with contextlib.suppress(PackageNotFoundError):  # by which its techniques work
            told["nncf"] = version("nncf")
        return told


class OpenvinoSession:
    """A model that runs. Threads may call it at the same time: each call takes a request of its
    own, made when all others are taken."""

    def __init__(self, model: Model, wanted: Mapping[str, Any]) -> None:
        path = Path(model.payload)
        files.signature(path)
        self.entry = Entry(model.signature.inputs)
        self.names = [port.name for port in model.signature.outputs]
        self.compiled: ov.CompiledModel | None = compiled(path, wanted)
        have = (len(self.compiled.inputs), len(self.compiled.outputs))
        if have != (len(self.entry.ports), len(self.names)):
            raise WrongRequest(
                f"{path} has {have[0]} inputs and {have[1]} outputs, not the "
                f"{len(self.entry.ports)} and "
                f"{len(self.names)} that are stated; it was changed: convert it again"
            )
        self.free: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Raises WrongRequest where names, dtypes or shapes do not fit, Failed where OpenVINO gives
        up on values that fit."""
        return self._run(batch)[0]

    def timed(self, batch: Arrays) -> Mapping[str, float]:
        """Layer -> seconds of this batch."""
        return self._run(batch, profile=True)[1]

    def _run(
        self, batch: Arrays, profile: bool = False
    ) -> tuple[dict[str, np.ndarray], Mapping[str, float]]:
        compiled_model = self.compiled
        if compiled_model is None:
            raise Failed("the session was closed; start another one")
        arrays = self._arrays(batch)
        try:
            request = self.free.get_nowait()
        except queue.Empty:
            request = compiled_model.create_infer_request()
        try:
            found = request.infer(arrays, share_inputs=True)
            answers = [np.array(found[at]) for at in range(len(self.names))]
            taken = _seconds(request) if profile else {}
        except Exception as error:  # RuntimeError and what else its C++ side raises
            raise Failed(f"OpenVINO: {said(error)}") from None
        self.free.put(request)  # not one that failed
        return dict(zip(self.names, answers, strict=True)), taken

    def _arrays(self, batch: Arrays) -> dict[int, np.ndarray]:
        return {
            at: np.ascontiguousarray(array) if array.ndim else array
            for at, array in enumerate(self.entry.arrays(batch))
        }

    def __enter__(self) -> OpenvinoSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.compiled, self.free = None, queue.SimpleQueue()


def _wanted(model: Model, target: Target) -> dict[str, Any]:
    if target.device != "cpu":
        raise WrongRequest(f"OpenVINO models run on 'cpu' here, not on {target.device!r}")
    return properties(model.settings, target.threads)


def _seconds(request: ov.InferRequest) -> Mapping[str, float]:
    taken: dict[str, float] = {}
    for each in request.profiling_info:
        if each.status == ov.ProfilingInfo.Status.EXECUTED:
            seconds = each.real_time.total_seconds()
            taken[each.node_name] = taken.get(each.node_name, 0.0) + seconds
    return taken


def _parts() -> ModuleType:
    from sartor.runtimes import _openvino_parts

    return _openvino_parts
