"""One training in several processes of this machine, through Lightning Fabric.

    with spread(bench, count, threads, graph, follow, plan, bench) as rank:
        fabric = rank.fabric("32-true")
        rank.average(fabric, gradients)

Every process builds the same training and takes its part of the rows of each step; the gradients
are averaged before anything is done with them, so that all hold the same weights after each step.
The process that asked is the first: it alone looks at the search split, keeps the state and writes
the graph, and it ends the others. They meet in a file and talk over the loopback alone.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from sartor.contracts import Bench, Failed, Unneeded, WrongRequest
from sartor.libraries import first_line
from sartor.techniques._graph_onnx import Graph, write
from sartor.workers import Worker

_BUCKET = 1 << 22  # numbers that are averaged together
_LONGEST = 86400.0  # seconds that one waits for another, where nothing says how long it may take
_LOOK = 0.02  # seconds between looks for a process that is being made ready
_TELL = 10.0  # seconds in which one says why it has gone
_PARTED = "it lost the others"


@dataclass(frozen=True)
class Rank:
    """Which of `count` processes of a training this one is, with so many threads. `meeting` is
    the file in which they find one another, `patience` the seconds that one waits for another;
    the first one knows the `others`."""

    index: int = 0
    count: int = 1
    threads: int = 1
    meeting: Path | None = None
    patience: float = _LONGEST
    others: tuple[Worker, ...] = ()

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def cores(self) -> str:
        """In words that tell trainings apart whose sums are taken in other orders."""
        return f"{self.threads}" if self.count == 1 else f"{self.count} x {self.threads}"

    def part(self, rows: np.ndarray) -> np.ndarray:
        """Its own of these rows: every so manieth, so that rows sorted by length are shared
        evenly. Raises Failed where one would go without."""
        if len(rows) < self.count:
            raise Failed(
                f"a step takes {len(rows)} rows, too few for {self.count} processes: name fewer"
            )
        return rows[self.index :: self.count]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For what the first does while the others wait: all threads."""
        if self.count > 1:
            torch.set_num_threads(self.threads * self.count)
        try:
            yield
        finally:
            if self.count > 1:
                torch.set_num_threads(self.threads)

    def fabric(self, precision: Any) -> Fabric:
        """The engine, once all processes are ready. Raises Failed where one is lost before."""
        if self.count == 1:
            return Fabric(accelerator="cpu", devices=1, precision=precision)
        self._meet()
        fabric = Fabric(
            accelerator="cpu", devices=self.count, precision=precision, strategy=_Averaged(),
            plugins=[_Here(self.index)],
        )  # fmt: skip
        fabric.launch()
        return fabric

    def _meet(self) -> None:
        wait = timedelta(seconds=self.patience)
        store = dist.FileStore(str(self.meeting), self.count)  # type: ignore[attr-defined]
        store.set_timeout(wait)
        store.set(f"ready {self.index}", "yes")
        if self.first:
            for number, other in enumerate(self.others, 1):
                self._await(store, number, other)
        known = os.environ.get("GLOO_SOCKET_IFNAME")
        os.environ["GLOO_SOCKET_IFNAME"] = _loopback()
        try:
            dist.init_process_group(
                "gloo", store=store, rank=self.index, world_size=self.count, timeout=wait
            )
        except RuntimeError as error:
            raise self._lost(error) from error
        finally:
            os.environ.pop("GLOO_SOCKET_IFNAME")
            if known is not None:
                os.environ["GLOO_SOCKET_IFNAME"] = known

    def _await(self, store: Any, number: int, other: Worker) -> None:
        until = time.monotonic() + self.patience
        while not store.check([f"ready {number}"]):
            if other.pipe.poll(_LOOK):  # it can have nothing to say but why it failed
                raise self._lost()
            if time.monotonic() > until:
                raise Failed(
                    f"process {number + 1} of {self.count} of the training was not ready within "
                    f"{self.patience:.0f} s"
                )

    def average(self, fabric: Fabric, tensors: Sequence[Tensor]) -> None:
        """Makes each the mean over all processes, in place and everywhere with the same bits."""
        for bucket in _buckets(tensors):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            try:
                fabric.all_reduce(flat, reduce_op="mean")  # in place
            except RuntimeError as error:
                raise self._lost(error) from error
            _fill(bucket, flat)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Gives all processes what the first one has in these tensors, in place. Numbers travel as
        they are: Fabric would pickle them, and whoever can write to a socket could run code."""
        for bucket in _buckets(tensors):
            flat = torch.cat([each.detach().reshape(-1) for each in bucket])
            try:
                dist.broadcast(flat, 0)
            except RuntimeError as error:
                raise self._lost(error) from error
            if not self.first:
                _fill(bucket, flat)

    def _lost(self, error: Exception | None = None) -> Failed:
        """Why the others do not answer any more: what the first of them says that did not just
        lose the rest."""
        found: str | None = None
        for number, other in enumerate(self.others, 2):
            try:
                other.receive(_TELL)
            except (Failed, Unneeded, WrongRequest) as failure:
                if _PARTED not in str(failure):
                    return Failed(f"process {number} of {self.count} of the training: {failure}")
                found = str(failure)
        return Failed(f"{_PARTED}: {first_line(error)}" if error else found or _PARTED)


@contextmanager
def spread(
    bench: Bench,
    count: int,
    threads: int,
    graph: Graph,
    follow: Callable[..., None],
    *args: Any,
) -> Iterator[Rank]:
    """The first of `count` processes, which share the `threads`. The others call
    `follow(rank, path, *args)`, `path` being a file with the graph, and end with this context,
    however it ends; nothing of them stays."""
    if count == 1:
        yield Rank(threads=threads)
        return
    with ExitStack() as stack:
        stack.callback(_part)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=bench.scratch)))
        path = write(graph.proto, folder)
        patience = min(max(bench.patience, 1.0), _LONGEST)
        each = max(threads // count, 1)
        rank = Rank(0, count, each, folder / "meeting", patience)
        others = []
        for index in range(1, count):
            other = stack.enter_context(Worker(f"process {index + 1} of the training"))
            other.send(follow, replace(rank, index=index), path, *args)
            others.append(other)
        yield replace(rank, others=tuple(others))


@contextmanager
def joined() -> Iterator[None]:
    """For the others: whoever fails leaves the group, so that nobody waits for it."""
    try:
        yield
    finally:
        _part()


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for each in tensors:
        if bucket and sum(e.numel() for e in bucket) + each.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(each)
    if bucket:
        yield bucket


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    pieces = flat.split_with_sizes([each.numel() for each in tensors])
    for each, values in zip(tensors, pieces, strict=True):
        each.copy_(values.view(each.shape))


def _loopback() -> str:
    """The name of the interface that leads nowhere else: lo, lo0."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


class _Averaged(DDPStrategy):
    """Fabric's processes without the wrapper that averages gradients as they come: masks, weights
    without a gradient, and looks of the first process alone do not go with its hooks."""

    def setup_module(self, module: nn.Module) -> Any:
        return module

    def _configure_launcher(self) -> None:
        """The processes are there already."""


class _Here(LightningEnvironment):
    """One machine, whose processes we start; the group is made before Fabric asks for one."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._index

    def node_rank(self) -> int:
        return 0
