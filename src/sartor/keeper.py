"""The process between the driver and a child that may do anything: nothing outlives it.

A worker is two processes. The keeper forks the one that works, reads what that one says on stderr
(its end is kept, however much it says), and waits. When the worker ends, when the driver asks, or
when the driver is gone, however it went, the keeper kills everything that descends from the worker,
removes its temporary files and ends as the worker did. Being the subreaper of its descendants
(prctl(2), Linux) it gets those too that put themselves into sessions of their own. Elsewhere than
on Linux it kills what is found below it at the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

LINUX = sys.platform == "linux"
PARENT_DEATH_SIGNAL, CHILD_SUBREAPER = 1, 36  # of prctl
TAIL = 4000  # bytes of stderr that are kept
TICK = 200  # milliseconds between looks, where the system does not tell who ended
FIRST_TO_GO = "700"  # for the system's out-of-memory killer: before the driver and the keeper


class _Asked(BaseException):
    """The driver wants the worker gone."""


def keep(driver: int, pipe: int) -> None:
    """Forks. Returns in the worker; the calling process stays behind as its keeper and never
    returns. `driver` is the process to outlive by nothing, `pipe` the descriptor to it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it can be heeded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    if LINUX:
        _prctl(CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
    place = tempfile.mkdtemp(prefix="sartor-worker-")
    said, telling = os.pipe()
    keeper = os.getpid()
    child = os.fork()
    if child:
        os.close(telling)
        _watch(driver, child, said, place)
    os.close(said)
    os.dup2(telling, 2)
    os.close(telling)
    os.set_inheritable(pipe, False)
    os.environ["TMPDIR"] = tempfile.tempdir = place
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if LINUX:
        _prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    if os.getppid() != keeper:
        os._exit(1)  # it was gone before it could be told to take us along


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _asked(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise _Asked


def _watch(driver: int, child: int, said: int, place: str) -> NoReturn:
    tail, status = bytearray(), None
    try:
        signal.signal(signal.SIGTERM, _asked)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        status = _wait(driver, child, said, tail)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except _Asked:
        pass
    finally:
        sweep()
        with contextlib.suppress(OSError):
            os.set_blocking(said, False)
            while _read(said, tail):
                pass
            os.write(2, bytes(tail))
        shutil.rmtree(place, ignore_errors=True)
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(0 if status is None else os.waitstatus_to_exitcode(status))


def _wait(driver: int, child: int, said: int, tail: bytearray) -> int | None:
    """Until the child has ended (its status) or the driver is gone (None)."""
    poll = select.poll()
    poll.register(said, select.POLLIN)
    tick: int | None = None
    for process in (driver, child):
        try:
            poll.register(os.pidfd_open(process), select.POLLIN)
        except (AttributeError, OSError):  # not Linux, or one that does not tell
            tick = TICK
    while True:
        ended = _reap(child)
        if ended is not None or os.getppid() != driver:
            return ended
        for descriptor, _ in poll.poll(tick):
            if descriptor == said and not _read(said, tail):
                poll.unregister(said)


def _read(said: int, tail: bytearray) -> bool:
    data = os.read(said, 1 << 16)
    tail += data
    del tail[:-TAIL]
    return bool(data)


def _reap(child: int) -> int | None:
    """Takes leave of all that have ended; the child's status where it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            if process == child:
                found = status
    return found


def sweep() -> None:
    """Kills everything below this process, and waits until it is gone."""
    while True:
        for process in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def descendants(process: int) -> list[int]:
    """The processes below one, in no order; those of a process that has ended are its reaper's."""
    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        return _descendants_slowly(process)
    found: list[int] = []
    waiting = [process]
    while waiting:
        here = waiting.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{here}/task"):
                with contextlib.suppress(OSError):
                    below = Path(f"/proc/{here}/task/{task}/children").read_text().split()
                    waiting += map(int, below)
                    found += map(int, below)
    return found


def _descendants_slowly(process: int) -> list[int]:
    """By the parent of every process that there is."""
    below: dict[int, list[int]] = {}
    for each, parent in _parents():
        below.setdefault(parent, []).append(each)
    found, waiting = [], [process]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _parents() -> Iterator[tuple[int, int]]:
    if not LINUX:
        told = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False
        )
        for line in told.stdout.splitlines():
            each, parent = line.split()
            yield int(each), int(parent)
        return
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(place.name), int(status(int(place.name))[1])


def status(process: int) -> list[str]:
    """What Linux tells of a process (proc(5), /proc/PID/stat), from its state on. Raises OSError
    where it has ended."""
    # What stands before the last parenthesis is the program's name, spaces and all.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
