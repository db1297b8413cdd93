"""One training in several processes."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Case
from toy_part import toy_part

import sartor
from sartor.bench import LocalBench
from sartor.contracts import Arrays, Failed, Target, Task, Training
from sartor.lab import Toy, ToyBench
from sartor.pace import Pace
from sartor.records import Journal
from sartor.registry import runtime, training_cost
from sartor.spec import Spec, load, merge
from sartor.techniques._graph_onnx import Graph, read
from sartor.testing_onnx import save_toys, toy_batch
from sartor.workers import Pool

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from stopping import stopped  # noqa: E402

from sartor.techniques import _ranks_onnx as ranks  # noqa: E402
from sartor.techniques import _training_onnx as trainer  # noqa: E402
from sartor.techniques._loss_onnx import Plan  # noqa: E402

Trained = tuple[Graph, trainer.Trained]


@dataclasses.dataclass(frozen=True)
class Batches:
    """A toy's source of inputs, without `functools.partial`'s unknown types."""

    name: str

    def __call__(self, rows: int, seed: int) -> Arrays:
        return toy_batch(self.name, rows, seed)


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "threads", lambda: 1)


def bench(folder: Path, name: str = "mlp", **facts: Any) -> ToyBench:
    (folder / "toys").mkdir(exist_ok=True, parents=True)
    toy = Toy(name, runtime("onnx").open(save_toys(folder / "toys")[name]), Batches(name))
    return ToyBench(toy, folder / "bench", training=Training(120, 0.01, 10**12), **facts)


def worn(made: ToyBench) -> Graph:
    graph, rng = read(made.toy.model), np.random.default_rng(0)
    for name, tensor in list(graph.constants()):
        value = graph.constant(name)
        if tensor.data_type == 1 and value is not None and value.ndim >= 2:
            noise = 0.5 * value.std() * rng.standard_normal(value.shape)
            graph.set_constant(name, (value + noise).astype(np.float32))
    return graph


def trained(made: ToyBench, steps: int = 20, **more: Any) -> Trained:
    graph = worn(made)
    return graph, trainer.train(graph, Plan(steps, **more), made)


def nothing_is_left(made: ToyBench) -> bool:
    return not psutil.Process().children(recursive=True) and not list(made.scratch.iterdir())


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Steps of three rows: the two of one process count twice as much as the one of the other."""
    one = trained(bench(tmp_path / "one"), 6, batch=3)
    made = bench(tmp_path / "two", processes=2)
    two = trained(made, 6, batch=3)
    assert nothing_is_left(made)
    assert two[1].after == pytest.approx(one[1].after, rel=1e-4)
    for name, tensor in one[0].constants():
        if tensor.data_type == 1:
            assert two[0].constant(name) == pytest.approx(one[0].constant(name), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_training_ends_as_one_that_was_not(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, "cnn", processes=processes)
    whole = trained(made)
    assert whole[1].after < whole[1].before
    stopped(lambda: trained(made), 13)
    left = list(made.scratch.iterdir())
    assert [each.suffix for each in left] == [".partial"]
    assert not psutil.Process().children(recursive=True)
    done: list[int] = []
    step = trainer._Training.step

    def noted(self: Any, at: int) -> None:
        done.append(at)
        step(self, at)

    monkeypatch.setattr(trainer._Training, "step", noted)
    assert trained(made)[0].digest() == whole[0].digest()
    assert done == list(range(13, 20))


def others() -> list[psutil.Process]:
    """The second processes, below their keepers."""
    return [below for each in psutil.Process().children() for below in each.children()]


def test_a_process_that_is_killed_ends_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, processes=2)
    step = trainer._Training.step

    def kills(self: Any, at: int) -> None:
        if at == 3:
            listens = [
                each.laddr.ip
                for process in (psutil.Process(), *others())
                for each in process.net_connections("inet")
            ]
            assert set(listens) <= {"127.0.0.1"}, "nobody else can reach them"
            for each in others():
                each.kill()
        step(self, at)

    monkeypatch.setattr(trainer._Training, "step", kills)
    with pytest.raises(Failed, match=r"process 2 of 2 of the training: killed \(SIGKILL"):
        trained(made)
    assert nothing_is_left(made)


class Breaks:
    """An augmentation that fails in one of the processes, at one step."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, batch: Any, *seed: int) -> Any:
        if seed[1:] == (2, 1):
            if self.how == "hang":
                time.sleep(600)
            raise Failed("changes.py:shift failed: ValueError: no")
        return batch


@pytest.mark.slow
def test_what_fails_in_one_process_is_said(tmp_path: Path) -> None:
    made = bench(tmp_path, processes=2, augment=Breaks("raise"))
    with pytest.raises(Failed, match=r"process 2 of 2 of the training: changes\.py:shift failed"):
        trained(made)
    assert nothing_is_left(made)


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_TELL", 0.5)
    made = bench(tmp_path, processes=2, augment=Breaks("hang"), patience=20.0)
    with pytest.raises(Failed, match=r"process 2 of 2 of the training: hung: no answer"):
        trained(made)
    assert nothing_is_left(made)


@pytest.mark.slow
def test_of_three_that_lose_one_another_the_cause_is_told(tmp_path: Path) -> None:
    made = bench(tmp_path, processes=3, augment=Breaks("raise"))
    with pytest.raises(Failed, match=r"process 2 of 3 of the training: changes\.py:shift failed"):
        trained(made)
    assert nothing_is_left(made)


def test_a_step_too_small_to_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="a step takes 2 rows, too few for 3 processes"):
        ranks.Rank(0, 3).part(np.arange(2))
    parts = [ranks.Rank(index, 3).part(np.arange(8)).tolist() for index in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


class Dies:
    """An augmentation that ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


@pytest.mark.slow
def test_a_process_that_never_gets_ready_is_said(tmp_path: Path) -> None:
    made = bench(tmp_path, processes=2, augment=Dies())  # type: ignore[arg-type]
    with pytest.raises(Failed, match="process 2 of 2 of the training: the process ended with sta"):
        trained(made)
    assert nothing_is_left(made)


def endless(folder: Path) -> None:
    """In a worker, as in a run."""
    trained(bench(folder, processes=2, patience=math.inf), 10**6)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_nothing_outlives_what_trains(how: str, tmp_path: Path) -> None:
    """Neither Ctrl-C in the driver nor the death of the first process leaves the second one."""
    seen: list[int] = []

    def act() -> None:
        while Pace.read(tmp_path / "bench") is None:
            time.sleep(0.1)
        seen.extend(each.pid for each in psutil.Process().children(recursive=True))
        if how == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            (keeper,) = psutil.Process().children()
            keeper.children()[0].kill()

    thread = threading.Thread(target=act, daemon=True)
    with Pool() as pool:
        thread.start()
        with pytest.raises(KeyboardInterrupt if how == "interrupted" else Failed):
            pool.call(endless, tmp_path, timeout=500)
    thread.join()
    assert len(seen) == 4  # two that train, and their keepers
    assert not any(map(psutil.pid_exists, seen))


# -- how it is asked for -------------------------------------------------------------------------


def test_how_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "request.toml").write_text("[train]\nprocesses = 2\n")
    assert load(tmp_path / "request.toml").train_processes == 2
    assert Spec().train_processes == 1
    for wrong, sentence in (
        ({"train_processes": 0}, "train_processes 0: this machine has"),
        ({"train_processes": 9999}, r"train_processes 9999: .* cores; write 1 to \d+"),
        ({"train_processes": "two"}, "train_processes must be a whole number; it is 'two'"),
    ):
        with pytest.raises(sartor.WrongRequest, match=sentence):
            merge(Spec(), wrong).check()


def test_it_belongs_to_what_is_trained_and_to_nothing_else(tmp_path: Path) -> None:
    toy = bench(tmp_path).toy
    one = LocalBench(
        model=toy.model, teacher=toy.model, task=Task("classification", "logits", "accuracy"),
        limits=(), target=Target(), train=None, scratch=tmp_path, memory=tmp_path,
        search=toy_part(tmp_path / "search", "mlp", 20, seed=2),
    )  # fmt: skip
    two = dataclasses.replace(one, processes=2)
    assert two.facts() == one.facts()
    assert two.facts(trains=True) == {**one.facts(trains=True), "processes": 2}


@pytest.mark.slow
def test_what_a_step_costs_is_measured_in_as_many(tmp_path: Path) -> None:
    toy = bench(tmp_path, name="mlp").toy
    (tmp_path / "scratch").mkdir()
    made = LocalBench(
        model=toy.model, teacher=toy.model, limits=(), target=Target(),
        task=Task("classification", "logits", "accuracy", classes=4, form="logits"),
        train=toy_part(tmp_path / "train", "mlp", 128, seed=1),
        search=toy_part(tmp_path / "search", "mlp", 64, seed=2),
        scratch=tmp_path / "scratch", memory=tmp_path / "memory", processes=2,
    )  # fmt: skip
    with Pool(20_000_000_000) as pool:
        seconds, work = pool.call(training_cost, toy.model, made, timeout=580)
        assert pool.worker is not None
        assert not pool.worker.littered
    assert seconds > 0
    assert work > 32 * 64 + 64 * 64 + 64 * 4
    assert not list(made.scratch.iterdir())


THIN = {"technique": "structured-prune", "share": 0.3}
TRAIN = {"technique": "recover", "effort": 0.1, "rate": 0.02, "teacher": 0.5}


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_run_trains_in_two_processes_and_the_same_again(digits: Case, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        split = np.repeat(["train", "search", "holdout"], [400, 200, 400])
        runs.append(
            sartor.optimize(
                digits.model, digits.data(tmp_path / name, split=split),
                ["accuracy >= baseline - 0.1"], trials=3, out=tmp_path / name / "run",
                recipes=[[THIN], [THIN, TRAIN]], train_processes=2,
            )
        )  # fmt: skip
    one, two = (run.trials[2] for run in runs)
    assert one.state in ("done", "dropped"), one.reason
    assert one.figures["accuracy"] >= runs[0].trials[1].figures["accuracy"]
    assert one.model == two.model
    (told,) = Journal(runs[0].folder / "run.jsonl").events("request")
    assert told["request"]["train_processes"] == 2
    assert told["spec"]["train_processes"] == 2
