"""Child processes that do one thing at a time and may die without harm.

A `Worker` runs functions of ours, by reference, in a process of its own with a ceiling on memory
and a deadline. A crash, a hang or a kill becomes `Failed` with its reason, in one sentence;
whatever the process started goes with it (see `keeper`). Plain `subprocess` and a pipe: unlike
multiprocessing's spawn it never runs the caller's main module again, so that `sartor.optimize(...)`
works in a script without a guard.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from sartor.contracts import HUNG, Failed, Unneeded, WrongRequest
from sartor.keeper import descendants, keep
from sartor.records import disk_full

Result = TypeVar("Result")

STUCK = 60  # seconds after which half a message counts as a hang
LONGEST = 500  # characters of a reason
PATIENCE = 10  # seconds for a keeper to clear up

# One thread each unless a session asks for more: idle pools of several libraries fight.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_CALM = {
    **THREADS,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
}


class DiskFull(Failed):
    """There was no room left on the disk."""


class Worker:
    """One child process. A context manager; `close` ends it and all that it started."""

    def __init__(self, name: str = "worker", memory: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        for wait in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, wait, struct.pack("ll", STUCK, 0))
        self.told = tempfile.TemporaryFile()  # noqa: SIM115  (a full pipe would block the child)
        with theirs:
            numbers = (theirs.fileno(), memory or 0, os.getpid())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sartor.workers", *map(str, numbers)],
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
        except BlockingIOError:
            raise self._hung(STUCK) from None

    def receive(self, timeout: float | None = None) -> Any:
        if not self.pipe.poll(timeout):
            raise self._hung(timeout or 0.0)
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise Failed(self._died()) from None
        except BlockingIOError:
            raise self._hung(STUCK) from None
        except OSError:  # it died in the middle of its answer
            raise Failed(self._died()) from None
        if kind == "ok":
            return value
        raise _RAISED[kind](value)

    def _hung(self, seconds: float) -> Failed:
        self.close()
        return Failed(f"{HUNG}: no answer within {seconds:.0f} s")

    def _died(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
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
        if code is None:
            return "it closed its connection" + _tail(told)
        return f"the process ended with status {code}" + _tail(told)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def littered(self) -> bool:
        """Whether processes that it started are still there."""
        return self.alive and len(descendants(self.process.pid)) > 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.close()
        if self.alive:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # the keeper itself is stuck
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.told.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _tail(told: bytes) -> str:
    lines = told.decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:200]}" if lines else ""


_RAISED = {"wrong": WrongRequest, "unneeded": Unneeded, "full": DiskFull, "failed": Failed}


class Pool:
    """Workers for work that is not timed: made when needed, used again, replaced when one dies,
    fails or leaves processes behind, so that nothing of it reaches the next call."""

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory
        self.worker: Worker | None = None

    def ready(self) -> Worker:
        """The worker, started where there is none: it loads while the caller does other things."""
        if self.worker is None or not self.worker.alive:
            self.worker = Worker("pool", self.memory)
        return self.worker

    def call(self, function: Callable[..., Result], *args: Any, **kw: Any) -> Result:
        worker = self.ready()
        try:
            result = worker.call(function, *args, **kw)
        except Unneeded:
            raise
        except Failed:
            self.close()
            raise
        if worker.littered:
            self.close()
        return result

    def close(self) -> None:
        if self.worker:
            self.worker.close()
            self.worker = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
        except Exception as error:  # whatever a framework raises is this trial's failure
            answer = _told(error)
        try:
            pipe.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # nothing was sent yet
            pipe.send(("failed", f"the result cannot be pickled: {error}"))


def _told(error: Exception) -> tuple[str, str]:
    """The kind of a failure and its sentence."""
    if isinstance(error, WrongRequest):
        return "wrong", _sentence(str(error))
    if isinstance(error, Unneeded):
        return "unneeded", _sentence(str(error))
    if disk_full(error):
        return "full", "the disk is full: it needed more room than there is"
    if isinstance(error, Failed):
        return "failed", _sentence(str(error))
    if isinstance(error, MemoryError):
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        limited = f": it needed more than {most / 1e9:.1f} GB" if most > 0 else ""
        return "failed", f"out of memory{limited}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"({last.name}, line {last.lineno})"
    return "failed", f"{type(error).__name__}: {_sentence(str(error))} {where}"


def _sentence(text: str) -> str:
    """On one line, and not a page of it."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def main() -> None:
    pipe, memory, driver = map(int, sys.argv[1:])
    keep(driver, pipe)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    serve(Connection(pipe))


if __name__ == "__main__":
    main()
