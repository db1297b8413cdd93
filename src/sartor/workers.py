"""Child processes that do one thing at a time and may die without harm.

A `Worker` runs functions of ours, by reference, in a process of its own with a ceiling on memory
and a deadline. A crash, a hang or a kill becomes `Failed` with its reason. Plain `subprocess` and
a pipe: unlike multiprocessing's spawn it never runs the caller's main module again, so that
`sartor.optimize(...)` works in a script without a guard.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from sartor.contracts import Failed, Unneeded, WrongRequest

Result = TypeVar("Result")

# One thread each unless a session asks for more: idle pools of several libraries fight.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_CALM = {
    **THREADS,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
}


class Worker:
    """One child process. A context manager; `close` ends it."""

    def __init__(self, name: str = "worker", memory: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.told = tempfile.TemporaryFile()  # noqa: SIM115  (a full pipe would block the child)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sartor.workers", str(theirs.fileno()), str(memory or 0)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_CALM, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.told,
                start_new_session=True,
            )
        self.name = name
        self.pipe = Connection(ours.detach())

    def call(
        self, function: Callable[..., Result], *args: Any, timeout: float | None = None, **kw: Any
    ) -> Result:
        """`function(*args, **kw)` in the child. Raises Failed where the child fails, dies or
        takes longer than `timeout` seconds; after a death or a hang the worker is closed."""
        try:
            self.send(function, *args, **kw)
            return self.receive(timeout)  # type: ignore[no-any-return]
        except (Failed, WrongRequest):
            raise
        except BaseException:
            # Interrupted (Ctrl-C): the answer to come would be taken for that of the next call.
            self.close()
            raise

    def send(self, function: Callable[..., Any], *args: Any, **kw: Any) -> None:
        if self.pipe.closed:
            raise Failed(f"the process of {self.name} has ended before")
        try:
            self.pipe.send((function, args, kw))
        except (BrokenPipeError, ConnectionResetError):
            raise Failed(self._died()) from None

    def receive(self, timeout: float | None = None) -> Any:
        if not self.pipe.poll(timeout):
            self.close()
            raise Failed(f"hung: no answer within {timeout:.0f} s")
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise Failed(self._died()) from None
        if kind == "ok":
            return value
        if kind == "wrong":
            raise WrongRequest(value)
        if kind == "unneeded":
            raise Unneeded(value)
        raise Failed(value)

    def _died(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        self.told.seek(max(self.told.seek(0, os.SEEK_END) - 300, 0))
        told = self.told.read()
        self.close()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            meant = {
                "SIGKILL": "killed (SIGKILL: out of memory, or by hand)",
                "SIGSEGV": "crashed (SIGSEGV: segmentation fault)",
                "SIGABRT": "aborted (SIGABRT)",
            }
            return meant.get(name, f"ended by {name}") + _tail(told)
        return f"the process ended with status {code}" + _tail(told)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.close()
        if self.alive:
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.told.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _tail(told: bytes) -> str:
    lines = told.decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:200]}" if lines else ""


class Pool:
    """Workers for work that is not timed: made when needed, used again, replaced when one dies."""

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory
        self.worker: Worker | None = None

    def call(self, function: Callable[..., Result], *args: Any, **kw: Any) -> Result:
        if self.worker is None or not self.worker.alive:
            self.worker = Worker("pool", self.memory)
        return self.worker.call(function, *args, **kw)

    def close(self) -> None:
        if self.worker:
            self.worker.close()
            self.worker = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _die_with_parent() -> None:
    """The child is killed when the driver dies, however it dies (Linux; elsewhere the closed
    pipe ends it after the call in hand)."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def serve(pipe: Connection) -> None:
    """The child's loop: a function and its arguments in, its result or its failure out."""
    while True:
        try:
            function, args, kw = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        answer: tuple[str, Any]
        try:
            answer = ("ok", function(*args, **kw))
        except WrongRequest as error:
            answer = ("wrong", str(error))
        except Unneeded as error:
            answer = ("unneeded", str(error))
        except Failed as error:
            answer = ("failed", str(error))
        except MemoryError:
            answer = ("failed", "out of memory")
        except Exception as error:  # whatever a framework raises is this trial's failure
            last = traceback.extract_tb(error.__traceback__)[-1]
            answer = (
                "failed",
                f"{type(error).__name__}: {str(error)[:500]} ({last.name}, line {last.lineno})",
            )
        try:
            pipe.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # nothing was sent yet
            pipe.send(("failed", f"the result cannot be pickled: {error}"))


def main() -> None:
    _die_with_parent()
    memory = int(sys.argv[2])
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
