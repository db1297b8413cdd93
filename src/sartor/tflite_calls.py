"""TensorFlow Lite's files called: LiteRT's interpreter with XNNPACK, shared by the runtime, which
times it, and by the techniques, which compare what they made.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert

from sartor.contracts import Arrays, Failed, Port, Signature, WrongRequest
from sartor.libraries import one_line
from sartor.sessions import Entry
from sartor.tflite_file import Flat, read

MOST = os.cpu_count() or 1  # interpreters of one session: as many calls at once


class Caller:
    """A model that runs. Threads may call it at the same time: each call has an interpreter to
    itself, and more of them are made while others are busy.

    `signature`: what it takes and gives, where that differs from the file's: ports whose type is
    float32 where the file has integers of a scale are converted on the way in and out."""

    def __init__(self, path: Path, signature: Signature | None = None, threads: int = 1) -> None:
        self.path, self.threads = Path(path), threads
        self.flat: Flat | None = read(self.path)
        stated = signature or self.flat.signature
        self.inputs = _matched(self.path, self.flat, "inputs", stated.inputs)
        self.outputs = _matched(self.path, self.flat, "outputs", stated.outputs)
        self.entry = Entry(stated.inputs)
        self.remembers = self.flat.remembers
        self._free: list[Run] = []
        self._made = 0
        self._turn = threading.Condition()
        self._free.append(self._interpreter())

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Raises WrongRequest where names, dtypes or shapes do not fit, Failed where LiteRT gives
        up on values that fit."""
        if self.flat is None:
            raise Failed("the session was closed; start another one")
        self.entry.arrays(batch)
        run = self._take()
        try:
            answers = self._answers(run, batch)
        except (RuntimeError, ValueError) as error:
            self._give(None)  # one that failed may be half set up: it is not asked again
            raise Failed(f"LiteRT: {one_line(error)}") from None
        except BaseException:
            self._give(None)
            raise
        self._give(run)
        return answers

    def _answers(self, run: Run, batch: Arrays) -> dict[str, np.ndarray]:
        if not run.fit(self.inputs, batch) and self.remembers:
            run.interpreter.reset_all_variables()
        for port, tensor in self.inputs:
            run.interpreter.set_tensor(tensor.at, tensor.into(batch[port.name]))
        run.interpreter.invoke()
        return {
            port.name: tensor.out(run.interpreter.get_tensor(tensor.at))
            for port, tensor in self.outputs
        }

    def _take(self) -> Run:
        with self._turn:
            while not self._free and self._made >= MOST:
                self._turn.wait()
            if self._free:
                return self._free.pop()
            return self._interpreter()

    def _give(self, run: Run | None) -> None:
        with self._turn:
            if run is None:
                self._made -= 1
            elif self.flat is not None:
                self._free.append(run)
            self._turn.notify()

    def _interpreter(self) -> Run:
        try:
            made = Run(self.path, self.threads)
        except (RuntimeError, ValueError) as error:
            raise Failed(f"LiteRT cannot start {self.path.name}: {one_line(error)}") from None
        self._made += 1
        return made

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exc: object) -> None:
        self.flat = None
        self._free.clear()


class Run:
    """One interpreter, ready to be called. `keeping`: the values on the way can be read after a
    call, which keeps LiteRT from sharing their memory and from fusing across them."""

    def __init__(self, path: Path, threads: int, keeping: bool = False) -> None:
        resolver = litert.OpResolverType
        self.interpreter = litert.Interpreter(
            model_path=str(path),
            num_threads=threads,
            experimental_op_resolver_type=(
                resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES if keeping else resolver.AUTO
            ),
            experimental_preserve_all_tensors=keeping,
        )
        self.allocate()

    def allocate(self) -> None:
        self.interpreter.allocate_tensors()
        told = self.interpreter.get_input_details()
        self._shapes = {each["index"]: tuple(map(int, each["shape"])) for each in told}

    def fit(self, inputs: Sequence[tuple[Port, _Tensor]], batch: Arrays) -> bool:
        """Gives the inputs of free sizes those of the batch; whether any was another."""
        resized = False
        for port, tensor in inputs:
            shape = batch[port.name].shape
            if None in port.shape and self._shapes[tensor.at] != shape:
                self.interpreter.resize_tensor_input(tensor.at, shape)
                resized = True
        if resized:
            self.allocate()
        return resized


class _Tensor:
    """A tensor of the file behind a port: its index, and the scale where floats stand for its
    integers."""

    def __init__(self, at: int, dtype: str, how: Mapping[str, Any] | None) -> None:
        self.at, self.dtype = at, np.dtype(dtype)
        self.scale = float(how["scale"][0]) if how else 0.0
        self.zero = int(how["zero_point"][0]) if how else 0

    def into(self, array: np.ndarray) -> np.ndarray:
        if not self.scale:
            return array
        kept = np.iinfo(self.dtype)
        steps = np.round(array / np.float32(self.scale)) + self.zero
        return np.clip(steps, kept.min, kept.max).astype(self.dtype)

    def out(self, array: np.ndarray) -> np.ndarray:
        if not self.scale:
            return array
        return (array.astype(np.float32) - self.zero) * np.float32(self.scale)


def _matched(
    path: Path, flat: Flat, role: str, stated: Sequence[Port]
) -> list[tuple[Port, _Tensor]]:
    own = dict(
        zip((p.name for p in getattr(flat.signature, role)), getattr(flat, role), strict=True)
    )
    ports = {port.name: port for port in getattr(flat.signature, role)}
    if own.keys() != {port.name for port in stated}:
        raise WrongRequest(f"{path}: its {role} are {', '.join(own)}, not as they were stated")
    found = []
    for port in stated:
        have, how = ports[port.name].dtype, None
        if port.dtype != have:
            how = flat.tensors[own[port.name]].get("quantization") or {}
            whole = np.dtype(have).kind in "iu" and port.dtype == "float32"
            if not whole or len(how.get("scale", ())) != 1 or len(how.get("zero_point", ())) != 1:
                raise WrongRequest(f"{path}: {port.name} is {have}, not {port.dtype} as was stated")
        found.append((port, _Tensor(own[port.name], have, how)))
    return found
