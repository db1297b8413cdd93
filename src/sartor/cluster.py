"""Workers on Ray: `--cluster ray` on this machine, or the address of a cluster that is there.

Ray (https://docs.ray.io) is imported when it is called for, and nowhere else. One actor is one
`Workshop`; Ray never restarts it, so that every loss is seen, journaled and made good by `Crew`.
The driver alone times, and holds the workers of its machine still meanwhile. What travels does so
as bytes: no folder has to be shared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from sartor import machine
from sartor.ahead import Crew, Lost
from sartor.contracts import HUNG, Failed, Training, WrongRequest
from sartor.libraries import lines_of
from sartor.records import Journal
from sartor.trials import Laboratory
from sartor.workers import Pool
from sartor.workshop import Entries, Job, Made, Workshop, job_of, likeness

LOCAL = "ray"
SCRATCH = "sartor-ray-"
MOST_WORKERS = 32
REACHABLE_SECONDS = 5.0
CONNECT_SECONDS = 60.0  # for a connection, in a process that may hang over it
JOIN_SECONDS = 120.0  # for a worker to start
END_SECONDS = 10.0  # for workers to go
STORE_BYTES = 2_000_000_000  # of results in memory; what is more goes to disk


def check(address: str | None) -> None:
    """Raises WrongRequest, within a minute or so, where there is no Ray or nobody at the
    address: before any other work is done."""
    if address is None:
        return
    if importlib.util.find_spec("ray") is None:
        raise WrongRequest(
            f"--cluster {address} needs Ray, which is not installed; write: "
            "pip install 'sartor[cluster]'"
        )
    if address == LOCAL:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHABLE_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error) or "no answer") from None
    # Whatever else may listen there: Ray's client ends or hangs a process that meets it.
    with Pool() as pool:
        for left in (2, 1, 0):  # a busy head starts its first servers of clients too late
            try:
                pool.call(_knock, address, timeout=CONNECT_SECONDS)
                return
            except Failed as failure:
                if not left or str(failure).startswith(HUNG):
                    raise _unreachable(address, str(failure).splitlines()[0]) from None


def _unreachable(address: str, why: str) -> WrongRequest:
    return WrongRequest(
        f"--cluster {address}: no Ray cluster answers there ({why[:300]}); write HOST:6379 or "
        "ray://HOST:10001 of one that runs, or ray for this machine"
    )


def _knock(address: str) -> None:
    """In a child: connects once."""
    with _connected(address):
        pass


@contextlib.contextmanager
def crew(
    address: str | None, lab: Laboratory, journal: Journal, work: Path
) -> Iterator[Crew | None]:
    """Workers for this laboratory until the context ends; nobody without an address."""
    if address is None:
        yield None
        return
    with _connected(address), RayHands(address, lab, work / "workers") as hands:
        found = Crew(hands, journal, likeness(lab.original.kind))
        journal.add(
            "cluster",
            address=address,
            workers=[hands.about(worker) for worker in hands.workers],
            left_out=hands.left_out,
        )
        lab.quiet = found.quiet
        try:
            yield found
        finally:
            lab.quiet = contextlib.nullcontext
            journal.add("ahead", given=found.given, brought=found.brought)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to the cluster. One on this machine is started for it and ended with it; none
    but this process may use it, and it tells nobody."""
    before = signal.getsignal(signal.SIGTERM)
    own = {"RAY_USAGE_STATS_ENABLED": "0"}  # Ray tells its makers nothing
    if address == LOCAL:  # Ray listens on every interface: only who knows the token gets in
        own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with _environment(own), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        if ray.is_initialized():
            raise WrongRequest("this process uses Ray already: call ray.shutdown() first")
        _sweep()
        scratch = tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-")
        try:
            try:
                _start(ray, address, scratch)
            finally:
                _restore(before)  # Ray's own would abort with a stack trace
            yield
        finally:
            ray.shutdown()
            _restore(before)
            shutil.rmtree(scratch, ignore_errors=True)


def _restore(handler: Any) -> None:
    """What SIGTERM does; only a main thread may say so, and Ray changes it in one only."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _sweep() -> None:
    """Removes Ray's files of processes that were killed. They lie in the system's folder since
    the path of a socket must be short."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        pid = left.name.removeprefix(SCRATCH).split("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _start(ray: Any, address: str, scratch: str) -> Any:
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
        "configure_logging": False,
    }
    try:
        if address != LOCAL:
            return ray.init(address=address, **quiet)
        return ray.init(
            address="local",
            num_cpus=machine.cores(),
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=min(STORE_BYTES, psutil.virtual_memory().total // 4),
            _temp_dir=scratch,
            **quiet,
        )
    except Exception as error:  # of many kinds, also of Ray's own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if address != LOCAL:
            raise _unreachable(address, why) from None
        raise WrongRequest(f"--cluster ray: Ray does not start here: {why}") from None


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _boot() -> str:
    """What two processes on one machine agree on, also across containers."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else platform.node()


class Hired:
    """The actor: one worker. Runs on any machine of the cluster."""

    def __init__(self, job: Job, folder: str | None, name: str) -> None:
        place = Path(folder or tempfile.gettempdir()) / f"sartor-{name}"
        self.shop = Workshop(job, place)

    def hello(self) -> dict[str, Any]:
        return {
            "likeness": likeness(self.shop.kind),
            "boot": _boot(),
            "host": platform.node(),
            "pid": os.getpid(),
        }

    def carry_out(self, entries: Entries, training: Training) -> tuple[bool, Made]:
        """A receipt, which is little, and what was made, which stays where it is until fetched."""
        return True, self.shop.carry_out(entries, training)

    def hold(self) -> None:
        self.shop.pool.hold()

    def release(self) -> None:
        self.shop.pool.release()

    def close(self) -> None:
        self.shop.pool.release()
        self.shop.close()


CONTROL = ("hello", "hold", "release", "close")


class RayHands:
    """`ahead.Hands` on the Ray cluster that this process is connected to."""

    def __init__(self, address: str, lab: Laboratory, place: Path) -> None:
        import ray

        self.ray: Any = ray
        self.lost_errors = ray.exceptions.RayError
        # Holding still is asked for while a recipe is in hand: on another thread.
        control = self.ray.method(concurrency_group="control")
        named = {name: control(getattr(Hired, name)) for name in CONTROL}
        self._hired = type("Hired", (Hired,), named)
        self.local = address == LOCAL
        self.place = place if self.local else None
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
        self.run = secrets.token_hex(6)
        self.job = ray.put(job_of(lab, travels=not self.local))
        self.left_out: list[str] = []
        self.actors: dict[int, Any] = {}
        self.known: dict[int, dict[str, Any]] = {}
        self.starting: dict[int, Any] = {}
        count = min(int(self.ray.cluster_resources().get("CPU", 0)), MOST_WORKERS)
        for worker in range(count):
            self._hire(worker)
        self._welcome(likeness(lab.original.kind), address)

    def _hire(self, worker: int) -> None:
        remote = self.ray.remote(
            num_cpus=1, max_restarts=0, max_task_retries=0, concurrency_groups={"control": 1}
        )
        actor = remote(self._hired)
        folder = None if self.place is None else str(self.place)
        self.actors[worker] = actor.remote(self.job, folder, f"{self.run}-{worker}")
        self.starting[worker] = self._control(worker, "hello")

    def _control(self, worker: int, method: str) -> Any:
        return getattr(self.actors[worker], method).remote()

    def _welcome(self, expected: Mapping[str, Any], address: str) -> None:
        """Waits for the workers, and lets those go that would compute something else."""
        until = time.monotonic() + JOIN_SECONDS
        for worker in list(self.actors):
            try:
                told = self._told(worker, max(until - time.monotonic(), 0.1))
                why = _difference(expected, told["likeness"])
            except Lost as lost:
                why = str(lost)
            if why:
                self.left_out.append(why)
                self.ray.kill(self.actors.pop(worker))
        if not self.actors:
            why = self.left_out[0] if self.left_out else "it has no free processor"
            raise WrongRequest(f"--cluster {address}: no worker can be used: {why}")

    def _told(self, worker: int, seconds: float) -> dict[str, Any]:
        """What the worker said of itself when it came. Raises Lost."""
        if worker not in self.known:
            try:
                self.known[worker] = self.ray.get(self.starting[worker], timeout=seconds)
            except self.lost_errors as error:
                raise Lost(f"a worker did not start: {_last(error)}") from None
        return self.known[worker]

    @property
    def workers(self) -> Sequence[int]:
        return list(self.actors)

    def give(self, worker: int, entries: Entries, training: Training) -> Any:
        method = self.actors[worker].carry_out.options(num_returns=2)
        return tuple(method.remote(list(entries), training))

    def ended(self, tickets: Sequence[Any], seconds: float) -> list[Any]:
        receipts = [ticket[0] for ticket in tickets]
        ready, _ = self.ray.wait(receipts, num_returns=1, timeout=seconds, fetch_local=False)
        if ready:
            ready, _ = self.ray.wait(
                receipts, num_returns=len(receipts), timeout=0, fetch_local=False
            )
        return [ticket for ticket in tickets if ticket[0] in ready]

    def check(self, ticket: Any) -> None:
        self._get(ticket[0])

    def fetch(self, ticket: Any) -> Made:
        made = self._get(ticket[1])
        if not isinstance(made, Made):
            raise Lost("a worker sent something else")
        return made

    def _get(self, ref: Any) -> Any:
        try:
            return self.ray.get(ref, timeout=JOIN_SECONDS)
        except self.lost_errors as error:
            raise Lost(_last(error)) from None

    def forget(self, ticket: Any) -> None:
        with contextlib.suppress(Exception):
            self.ray.cancel(ticket[0])

    def about(self, worker: int) -> Mapping[str, Any]:
        with contextlib.suppress(Lost):
            told = self._told(worker, 1.0)
            return {"host": told["host"], "pid": told["pid"]}
        return {}

    def replace(self, worker: int) -> None:
        with contextlib.suppress(Exception):
            self.ray.kill(self.actors[worker])
        self.known.pop(worker, None)
        self._hire(worker)

    def _near(self) -> list[int]:
        """Workers on this machine; of one that has just been started its word is waited for."""
        near = []
        for worker in list(self.actors):
            with contextlib.suppress(Lost):
                if self._told(worker, JOIN_SECONDS)["boot"] == _boot():
                    near.append(worker)
        return near

    def hold(self) -> None:
        self._all("hold")

    def release(self) -> None:
        self._all("release")

    def _all(self, method: str) -> None:
        for asked in [self._control(worker, method) for worker in self._near()]:
            with contextlib.suppress(Lost):
                self._get(asked)

    def __enter__(self) -> RayHands:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        near = [each["pid"] for each in self.known.values() if each["boot"] == _boot()]
        with contextlib.suppress(Exception):
            closing = [self._control(worker, "close") for worker in self.actors]
            self.ray.wait(closing, num_returns=len(closing), timeout=END_SECONDS)
        for actor in self.actors.values():
            with contextlib.suppress(Exception):
                self.ray.kill(actor)
        _gone(near)
        if self.place is not None:
            shutil.rmtree(self.place, ignore_errors=True)


def _gone(pids: Sequence[int]) -> None:
    """Waits until these processes have ended."""
    until = time.monotonic() + END_SECONDS
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < until:
        time.sleep(0.02)


def _difference(expected: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    for name in sorted({*expected, *told}):
        if expected.get(name) == told.get(name):
            continue
        if name == "instructions":
            return "its processor has other instruction sets, and would compute other numbers"
        return f"it has {name} {told.get(name)}, and this machine {expected.get(name)}"
    return ""


def _last(error: BaseException) -> str:
    return lines_of(error)[-1][:300]
