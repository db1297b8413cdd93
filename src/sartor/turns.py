"""A timed turn of a model in this process: what each call took, and what of it was not its own."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from sartor import machine
from sartor.contracts import Arrays, Session

READ_EVERY = 200_000  # nanoseconds of calls between two looks at what was queued


@dataclass(frozen=True)
class Turn:
    """What a turn's calls took. `took`: nanoseconds of each; `queued`: those of them in which the
    process was ready to run and another one had the core (None where the system does not tell);
    `cpu`: nanoseconds of processor time of all calls together; `joules`: the same by the counter,
    NaN without one."""

    took: np.ndarray
    queued: np.ndarray | None
    cpu: int
    joules: float


@dataclass
class Lane:
    """One model in one process, between its turns."""

    run: Session
    batches: list[Arrays]

    def turn(self, first: int, calls: int, warm: int, counters: tuple[str, ...] = ()) -> Turn:
        """Times `calls` calls, from batch `first` on, in turning order. `counters`: files of energy
        counters in microjoules."""
        count = len(self.batches)
        run, batches, clock = self.run, self.batches, time.perf_counter_ns
        took = np.empty(calls, np.int64)
        for at in range(first - warm, first):  # the other lanes have cooled the caches
            run(batches[at % count])
        with Queue() as queue:
            joules, cpu = machine.joules(counters), time.process_time_ns()
            gc.disable()
            try:
                for at in range(calls):
                    batch = batches[(first + at) % count]
                    began = clock()
                    run(batch)
                    ended = clock()
                    took[at] = ended - began
                    if ended - queue.seen > READ_EVERY:
                        queue.read(at + 1, ended)
            finally:
                gc.enable()
            cpu = time.process_time_ns() - cpu
            queue.read(calls, clock())
            return Turn(took, queue.share(took), cpu, machine.joules(counters) - joules)


class Queue:
    """How long this process' threads stood in the queue for a core, by Linux's own account: the
    second figure of /proc/PID/task/TID/schedstat, in nanoseconds. It is read between calls, for
    short ones not after each: a reading takes about a microsecond."""

    def __init__(self) -> None:
        paths = Path("/proc/self/task").glob("*/schedstat")
        self.files = [os.open(path, os.O_RDONLY) for path in paths]
        self.seen = time.perf_counter_ns()
        self.readings = [(0, self._total())]

    def _total(self) -> int:
        return sum(int(os.pread(file, 80, 0).split()[1]) for file in self.files)

    def read(self, calls: int, now: int) -> None:
        """Notes what was queued until `calls` calls were done."""
        if self.files and calls > self.readings[-1][0]:
            self.readings.append((calls, self._total()))
            self.seen = now

    def share(self, took: np.ndarray) -> np.ndarray | None:
        """Nanoseconds of each call: of those between two readings the longest had to wait."""
        if not self.files:
            return None
        queued = np.zeros(len(took), np.int64)
        for (begin, before), (end, after) in pairwise(self.readings):
            longest = begin + int(took[begin:end].argmax())
            queued[longest] = min(after - before, took[longest])
        return queued

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self.files:
            os.close(file)
