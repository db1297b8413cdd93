"""A technique that misbehaves, for `benchmarks/faults.py`, which brings it in by an entry point."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sartor.contracts import Bench, Failed, Model, Step, Technique
from sartor.space import choice

MEGABYTE = 1 << 20


def segfault(_: Path) -> None:
    ctypes.string_at(0)


def abort(_: Path) -> None:
    os.abort()


def leave(_: Path) -> None:
    os._exit(3)


def killed(_: Path) -> None:
    """What the system's out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def memory(_: Path) -> None:
    taken = []
    while True:
        taken.append(np.ones(64 * MEGABYTE, np.uint8))


def sleep(_: Path) -> None:
    while True:
        time.sleep(1000)


def spin(_: Path) -> None:
    """Hangs without ever letting another thread of its process run."""
    ctypes.PyDLL(None).sleep(100_000)


def disk(scratch: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "much").open("wb") as file:
        while True:
            file.write(bytes(MEGABYTE))


def flood(_: Path) -> None:
    for _number in range(200):
        os.write(2, b"word " * (MEGABYTE // 5))
    raise Failed("gives up after 200 MB of words")


def orphan(_: Path) -> None:
    """A process in a session of its own, whose parent is dead, and then a crash."""
    text = (
        "import subprocess as s; "
        "s.Popen(['sleep', '100000'], start_new_session=True, stdout=s.DEVNULL, stderr=s.DEVNULL)"
    )
    subprocess.run([sys.executable, "-c", text], check=True)
    ctypes.string_at(0)


HOW = {
    "segfault": segfault, "abort": abort, "exit": leave, "killed": killed, "memory": memory,
    "sleep": sleep, "spin": spin, "disk": disk, "flood": flood, "orphan": orphan,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Misbehave(Technique):
    """Never gives a model that runs. "model" gives one that asks for a terabyte when it runs."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "storage"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})
    how: str = choice("segfault", values=(*HOW, "model"))
    again: int = choice(0, values=tuple(range(10)))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        if self.how != "model":
            HOW[self.how](bench.scratch)
        path = bench.scratch / "greedy.onnx"
        bench.scratch.mkdir(parents=True, exist_ok=True)
        onnx.save(greedy(onnx.load(model.payload)), path)
        lineage = (*model.lineage, Step(self, ("greedy",), ()))
        return dataclasses.replace(model, payload=path.absolute(), lineage=lineage)


def greedy(proto: Any) -> Any:
    """The model, its first output plus the sum of 2^38 zeros that are made for it."""
    out = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = ["before" if each == out else each for each in node.output]
    shape = numpy_helper.from_array(np.array([1 << 38], np.int64), "terabyte")
    proto.graph.initializer.append(shape)
    first = proto.graph.input[0].name
    proto.graph.node.extend(
        [
            # The size hangs on the input, so that no optimizer folds it when the model is loaded.
            helper.make_node("Shape", [first], ["rank"], start=0, end=1),
            helper.make_node("Mul", ["rank", "terabyte"], ["sizes"]),
            helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["before", "nothing"], [out]),
        ]
    )
    return proto
