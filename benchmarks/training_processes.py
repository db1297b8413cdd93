"""A training in one process with all threads against several that share them, in turns.

    python benchmarks/training_processes.py MODEL DATA [--processes 2] [--steps 5] [--rounds 5]

Both trainings are there at the same time, the one that is not measured waits. Told are the median,
the least and the largest seconds of a step over the rounds, the ratio of the two round by round,
and how busy others kept the machine meanwhile, by which all of it must be read.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import torch

from sartor.bench import LocalBench
from sartor.contracts import Target, Task, Training
from sartor.data import read
from sartor.machine import features
from sartor.registry import open_model
from sartor.techniques import _training_onnx as trainer
from sartor.techniques._graph_onnx import read as graph_of
from sartor.techniques._loss_onnx import Plan


def benched(place: Path, model: Path, source: str, processes: int) -> LocalBench:
    opened = open_model(model)
    data = read(source, place / "data", opened.signature)
    output = opened.signature.outputs[0]
    task = Task("classification", output.name, "accuracy", classes=output.shape[-1], form="logits")
    (place / f"{processes}").mkdir()
    return LocalBench(
        model=opened, teacher=opened, limits=(), target=Target(features=features()), task=task,
        train=data.train, search=data.search, scratch=place / f"{processes}",
        memory=place / "memory", training=Training(600, 0.1, 1), processes=processes,
    )  # fmt: skip


def cpu_seconds() -> float:
    """Of this process and all below it, so far."""
    here = psutil.Process()
    times = [each.cpu_times() for each in (here, *here.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def timed(training: trainer._Training, first: int, steps: int) -> tuple[float, float]:
    """Seconds of a step, and of all cores together."""
    torch.set_num_threads(training.rank.threads)
    training.step(first)
    began, spent = time.perf_counter(), cpu_seconds()
    for at in range(first + 1, first + 1 + steps):
        training.step(at)
    seconds = time.perf_counter() - began
    return seconds / steps, (cpu_seconds() - spent) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    plan = Plan((asked.steps + 1) * asked.rounds, teacher=0.0)
    found: dict[int, list[tuple[float, float]]] = {1: [], asked.processes: []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = benched(Path(folder), asked.model, asked.data, 1)
        trainings = {}
        for count in found:
            own = dataclasses.replace(bench, processes=count)
            trainings[count] = stack.enter_context(
                trainer._together(graph_of(bench.model), plan, own)
            )
            trainings[count].meet()
        busy = psutil.cpu_times()
        began, spent = time.perf_counter(), cpu_seconds()
        for turn in range(asked.rounds):
            for count, training in trainings.items():
                found[count].append(timed(training, turn * (asked.steps + 1), asked.steps))
        seconds, own_seconds = time.perf_counter() - began, cpu_seconds() - spent
        after = psutil.cpu_times()
    others = after.user + after.system - busy.user - busy.system - own_seconds
    for count, each in found.items():
        wall, cpu = [one for one, _ in each], [two for _, two in each]
        threads = trainings[count].rank.threads
        print(
            f"{count} x {threads} threads: {statistics.median(wall):.3f} s a step "
            f"({min(wall):.3f} to {max(wall):.3f}), {statistics.median(cpu):.3f} s of all cores"
        )
    ratios = [two[0] / one[0] for one, two in zip(*found.values(), strict=True)]
    print(f"ratio by round: {' '.join(f'{each:.2f}' for each in ratios)}")
    print(f"others kept {max(others, 0) / seconds:.2f} cores busy")


if __name__ == "__main__":
    main()
