"""Answers, latencies and memory of models, measured in child processes.

Nothing here runs a model in the driver: a crash, a hang or a kill is one trial's `Failed`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sartor import lanes, machine
from sartor.contracts import Arrays, Failed, Model, Signature, Target, Task
from sartor.data import Part
from sartor.fitting import natural_batch
from sartor.records import WATTS, Timing
from sartor.registry import runtime
from sartor.turns import Turn
from sartor.workers import Pool, Worker

TURN_SECONDS = 0.04  # what a lane's turn should take
MOST_CALLS = 128  # in a turn, however fast the model
ROWS = 32  # different batches that the lanes answer
LEAST_ROUNDS = 5
BLOCKS = 6  # times that every process is started anew for a verdict that counts
SAME_CORE = 20  # rounds after which the idlest core is looked for anew
PATIENCE = 50  # a candidate may be this many times slower than the original
ALLOWANCE = 60.0  # seconds for starting a process and loading a model on a busy machine
LANES = ("original", "candidate", "twin")

_Block = tuple[dict[str, list[Turn]], float | None]  # lane -> turns; cores others kept busy


def digest(model: Model) -> str:
    return runtime(model.kind).digest(model)


def answers(
    pool: Pool,
    model: Model,
    part: Part,
    rows: np.ndarray,
    task: Task,
    target: Target,
    timeout: float | None = None,
    sample: np.ndarray | None = None,
) -> np.ndarray:
    """The task's output for these rows of the part, in this order: [len(rows), ...].

    Rows are batched only where that is measured to change no answer, on the first of these rows
    or of `sample`: answers given in portions are then the same in whatever process. Raises
    Failed where the model crashes or needs more than `timeout` seconds."""
    rows = np.asarray(rows)
    return pool.call(
        lanes.answer_rows, model, digest(model), part, rows, task.output, target, sample,
        timeout=timeout,
    )  # fmt: skip


def answering(signature: Signature, sample: Mapping[str, np.ndarray]) -> Signature:
    """The signature with those outputs alone that answer row by row, as `lanes.sample_outputs`
    found them: what a task may be about."""
    outputs = tuple(port for port in signature.outputs if port.name in sample)
    return replace(signature, outputs=outputs)


def footprint(
    model: Model, target: Target, example: Arrays, timeout: float = 10 * ALLOWANCE
) -> int:
    """Peak resident bytes of a fresh process that imports the runtime, loads the model and runs
    it on `example` (a batch)."""
    with Worker("footprint") as worker:
        return worker.call(lanes.footprint, model, target, dict(example), timeout=timeout)


def heaviest(part: Part, signature: Signature, target: Target) -> Arrays:
    """One batch of the longest rows, as many as the target asks for or the model insists on."""
    order = np.arange(len(part))
    if part.lengths is not None:
        order = np.argsort(-np.asarray(part.lengths), kind="stable")
    rows = np.resize(order, natural_batch(signature) or target.batch)  # too few rows: repeated
    return lanes.feed(part, rows, signature)


def footprints(
    original: Model, candidate: Model, target: Target, part: Part, repeats: int = 3,
    timeout: float = 10 * ALLOWANCE,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Bytes of `footprint` on the heaviest batch, `repeats` times each in turn, every time in a
    fresh process: two arrays [repeats]."""
    pair = (original, candidate)
    batches = [heaviest(part, model.signature, target) for model in pair]
    taken = np.empty((2, repeats), np.int64)
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            taken[which, turn] = footprint(pair[which], target, batches[which], timeout)
    return taken[0], taken[1]


def memory_pair(
    original: Model, candidate: Model, target: Target, part: Part,
    timeout: float = 10 * ALLOWANCE,
) -> tuple[int, int]:  # fmt: skip
    """What a limit on memory is judged by: the least that the original took in three runs and the
    most that the candidate took. Peaks vary from run to run by pages and by the allocator's mood;
    this pair errs on the side of the limit. The original beside itself takes what it takes."""
    if digest(original) == digest(candidate):
        once = footprint(original, target, heaviest(part, original.signature, target))
        return once, once
    first, second = footprints(original, candidate, target, part, timeout=timeout)
    return int(first.min()), int(second.max())


class Race:
    """Latency side by side: the original, its twin (the A/A control) and one candidate, each in
    a process of its own, in interleaved rounds with one process active at a time.

    In every round all lanes answer the same rows, in an order that turns from round to round; a
    turn begins with unrecorded calls, since the other lanes have cooled the caches. Original and
    twin stay loaded from candidate to candidate. A candidate may use `memory` bytes of address
    space, and has `allowance` seconds on top of 50 times what the original needs. With `pin` and
    one thread all lanes share a core, the idlest at the time: on cores of their own, a busy
    neighbour of one would look like a difference. A context manager."""

    def __init__(
        self,
        original: Model,
        target: Target,
        part: Part,
        seed: int = 0,
        *,
        memory: int | None = None,
        allowance: float = ALLOWANCE,
        pin: bool = True,
    ) -> None:
        self.original, self.target, self.part = original, target, part
        self.memory, self.allowance = memory, allowance
        self.rows = timed_rows(part, target.batch, seed)
        self.pin = pin and target.threads == 1
        self.counters: tuple[str, ...] = ()
        self.watts = WATTS
        self.core: int | None = None
        self.load_seconds = 0.0  # of the last candidate's session
        self.block_seconds = 0.0  # that the last block took, starts included
        self._workers: dict[str, Worker] = {}
        self._calls: tuple[int, int] | None = None  # in a turn, and to warm up
        self._opened = (0.0, 0.0)  # the original's seconds to load, and of a call

    def time(
        self,
        candidate: Model,
        rounds: int,
        seconds: float | None = None,
        least: int = LEAST_ROUNDS,
        blocks: int = 1,
        *,
        runs: int = 0,
        further: Callable[[Timing], int] | None = None,
        patience: float = math.inf,
    ) -> Timing:
        """Times the candidate, which has `patience` seconds to load, until `rounds` rounds are done
        or `seconds` have passed (`least` rounds at least), in that many `blocks`: for each but a
        single one, original and twin are started anew too. `runs`: calls of every lane that are
        wanted, which may take more rounds.
        `further`: asked once, after the last block, how many more like it there shall be. Raises
        Failed where the candidate crashes, hangs or runs out of memory; the race goes on with the
        next one."""
        share = None if seconds is None else seconds / blocks
        each = (-(-rounds // blocks), share, -(-least // blocks), -(-runs // blocks))
        found: list[_Block] = []

        def add(count: int) -> Timing:
            for _ in range(count):
                if blocks > 1:
                    self.close()
                began = time.monotonic()
                found.append(self._block(candidate, *each, patience))
                self.block_seconds = time.monotonic() - began
            return replace(_together(found, self.target), watts=self.watts)

        timing = add(blocks)
        more = 0 if further is None else further(timing)
        return replace(add(more), first=blocks) if more > 0 else timing

    def _block(
        self, candidate: Model, rounds: int, seconds: float | None, least: int, runs: int,
        patience: float,
    ) -> _Block:  # fmt: skip
        with Worker("candidate", self.memory) as worker:  # it loads beside the others
            worker.send(lanes.open_lane, candidate, self.target, self.part, self.rows)
            self._residents("original", "twin")
            load, call = self._opened
            self._workers["candidate"] = worker
            try:
                deadline = self.allowance + PATIENCE * (load + 20 * call)
                loading = self.allowance + 2 * load  # beside others, that is no hang
                self.load_seconds, _ = worker.receive(min(deadline, max(patience, loading)))
                return self._rounds(rounds, seconds, least, runs)
            finally:
                del self._workers["candidate"]

    def _rounds(self, rounds: int, seconds: float | None, least: int, runs: int) -> _Block:
        if self._calls is None:  # the same in every block, so that rounds can be put together
            load, _ = self._opened  # timed anew: when it was opened, others were loading
            deadline = self.allowance + PATIENCE * load
            call = self._workers["original"].call(lanes.call_seconds, timeout=deadline)
            self._opened = (load, call)
            self._calls = turn_size(call, len(self.rows))
        calls, warm = self._calls
        rounds = max(rounds, least, -(-runs // calls))
        taken: dict[str, list[Turn]] = {name: [] for name in LANES}
        began = time.monotonic()
        watch = machine.Watch(self._workers[name].process.pid for name in LANES)
        for number in range(rounds):
            passed = time.monotonic() - began
            if seconds is not None and number >= least and passed >= seconds:
                break
            if self.pin and number % SAME_CORE == 0:
                self.core = machine.idlest_core()
            for name in _turned(LANES, number):
                taken[name].append(self._turn(name, number * calls, calls, warm))
        return taken, watch.others()

    def _turn(self, name: str, first: int, calls: int, warm: int) -> Turn:
        deadline = self.allowance + PATIENCE * (calls + warm) * self._opened[1]
        turn = (lanes.take_turn, first, calls, warm, self.core, self.counters)
        try:
            return self._workers[name].call(*turn, timeout=deadline)
        except Failed as failure:
            if name == "candidate":
                raise
            reason = failure
        # Not the candidate's fault: the original (or its twin) is started once more.
        try:
            self._residents(name)
            return self._workers[name].call(*turn, timeout=deadline)
        except Failed as failure:
            raise Failed(f"the {name} failed twice: {reason}; then {failure}") from None

    def _residents(self, *names: str) -> None:
        """Sees to it that the warm processes of the original and its twin are alive; those that
        must be started load side by side."""
        started: dict[str, Worker] = {}
        missing = [n for n in names if n not in self._workers or not self._workers[n].alive]
        for name in missing:
            if name in self._workers:
                self._workers.pop(name).close()
        try:
            for name in missing:
                started[name] = Worker(name)
                request = (self.original, self.target, self.part, self.rows)
                started[name].send(lanes.open_lane, *request)
            for name, worker in started.items():
                opened = worker.receive(10 * ALLOWANCE)
                if name == "original":
                    self._opened = opened
        except BaseException:  # half opened: their answers would be taken for others
            for worker in started.values():
                worker.close()
            raise
        self._workers.update(started)

    def meter(self, metrics: Iterable[str], watts: float | None = None) -> None:
        """Prepares for energy where the metrics name it: by the machine's counters where they
        follow the load, else by CPU time, a core at `watts`."""
        self.watts = watts or WATTS
        self.counters = machine.energy_counters() if "energy" in metrics and not watts else ()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _together(found: list[_Block], target: Target) -> Timing:
    """The blocks one after the other."""
    lane = {name: [turn for taken, _ in found for turn in taken[name]] for name in LANES}
    took = {name: np.stack([turn.took for turn in turns]) * 1e-9 for name, turns in lane.items()}
    waited = [[turn.queued for turn in lane[name]] for name in LANES]
    told = all(each is not None for turns in waited for each in turns)
    spent = [[(turn.cpu * 1e-9, turn.joules) for turn in lane[name]] for name in LANES]
    cpu, joules = np.moveaxis(np.array(spent), 2, 0) / took["original"].shape[1]
    return Timing(
        baseline=took["original"],
        candidate=took["candidate"],
        twin=took["twin"],
        batch=target.batch,
        threads=target.threads,
        blocks=tuple(len(taken["original"]) for taken, _ in found),
        queued=np.array(waited, np.float64) * 1e-9 if told else None,
        cpu=cpu,
        joules=joules if np.isfinite(joules).all() else None,
        others=tuple(others for _, others in found if others is not None),
    )


THROUGHPUT_BATCHES = (1, 8, 32)


def throughputs(
    model: Model, part: Part, target: Target, seconds: float = 0.5, seed: int = 0
) -> dict[str, float]:
    """Rows a second at several batch sizes, under "throughput.b8" and the like: those that the
    model takes. By the median call of a few turns of a process of its own, one batch size after
    the other: to be read and not judged, for a limit is on the target's batch alone."""
    fixed = natural_batch(model.signature)
    found = {}
    for batch in THROUGHPUT_BATCHES if fixed is None else (fixed,):
        rows = timed_rows(part, batch, seed)
        with Worker("throughput") as worker:
            try:
                _, call = worker.call(
                    lanes.open_lane, model, replace(target, batch=batch), part, rows,
                    timeout=ALLOWANCE,
                )  # fmt: skip
                calls, warm = turn_size(call, len(rows))
                turns = int(np.clip(seconds / max(calls * call, 1e-6), 1, 20))
                took = [
                    worker.call(lanes.take_turn, at * calls, calls, warm, timeout=ALLOWANCE)
                    for at in range(turns)
                ]
            except Failed:  # what it does not take has no figure
                continue
        found[f"throughput.b{batch}"] = batch * 1e9 / middle_call(took)
    return found


def middle_call(turns: Sequence[Turn]) -> float:
    """Nanoseconds of the median call without its waits for a processor. Threads that wait at once
    may wait longer, added up, than the call lasts: where that leaves nothing, with the waits."""
    whole = np.concatenate([turn.took for turn in turns])
    left = [turn.took if turn.queued is None else turn.took - turn.queued for turn in turns]
    found = float(np.median(np.concatenate(left)))
    return found if found > 0 else float(np.median(whole))


def timed_rows(part: Part, batch: int, seed: int) -> np.ndarray:
    """Which rows the lanes answer: [batches, rows in each].

    Where rows differ in length the sample takes the quantiles of the lengths, so that the mixture
    of short and long requests is that of the data; its order is shuffled."""
    rng = np.random.default_rng(seed)
    wanted = ROWS * batch
    order = rng.permutation(len(part))
    if part.lengths is not None:
        order = order[np.argsort(np.asarray(part.lengths)[order], kind="stable")]
    picks = ((np.arange(wanted) + 0.5) * len(part) / wanted).astype(np.int64)
    return rng.permutation(order[picks]).reshape(ROWS, batch)


def turn_size(call: float, batches: int) -> tuple[int, int]:
    """Calls and warm-up calls of a turn, given the seconds of one call of the original."""
    calls = int(np.clip(TURN_SECONDS / max(call, 1e-7), 1, MOST_CALLS))
    if calls > batches:
        calls -= calls % batches  # every round then answers the same mixture
    return calls, 1 if call > TURN_SECONDS else 2


def _turned(names: tuple[str, ...], number: int) -> Iterator[str]:
    at = number % len(names)
    return iter(names[at:] + names[:at])
