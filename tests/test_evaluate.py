"""Answers, races and footprints: what is measured, and what happens when a model misbehaves."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from toy_part import toy_part, write_part

from sartor import evaluate, lanes, turns
from sartor.contracts import Failed, Model, Target, Task, WrongRequest
from sartor.data import Part
from sartor.evaluate import (
    Race,
    answering,
    answers,
    footprint,
    heaviest,
    memory_pair,
    middle_call,
    throughputs,
    timed_rows,
    turn_size,
)
from sartor.fitting import natural_batch
from sartor.records import Timing
from sartor.registry import open_model, runtime
from sartor.testing_onnx import Draft, save_toys
from sartor.turns import Turn
from sartor.workers import Pool

TASK = Task("classification", "logits", "accuracy", classes=4)
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    paths = save_toys(tmp_path_factory.mktemp("toys"))
    return {name: open_model(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Part:
    return toy_part(tmp_path_factory.mktemp("parts") / "tokens", "transformer", 90)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Part:
    return toy_part(tmp_path_factory.mktemp("parts") / "numbers", "mlp", 80)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool() as made:
        yield made


def _alone(model: Model, part: Part, rows: np.ndarray) -> np.ndarray:
    with runtime("onnx").start(model, Target()) as run:
        return np.concatenate([run(part.example(int(row)))["logits"] for row in rows])


def _model(nodes: list[onnx.NodeProto], path: Path, size: int | None = 32) -> Model:
    """x [batch, size] in, logits out."""
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", size])
    y = helper.make_tensor_value_info("logits", FLOAT, ["batch", None])
    graph = helper.make_graph(nodes, "made", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return open_model(path)


def _endless(path: Path) -> Model:
    """A loop that would take years."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Abs", ["state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", INT, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    trips = helper.make_tensor("trips", INT, [], [10**15])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Constant", [], ["trips"], value=trips),
        helper.make_node("Constant", [], ["yes"], value=yes),
        helper.make_node("Loop", ["trips", "yes", "x"], ["logits"], body=body),
    ]
    return _model(nodes, path)


def _greedy(path: Path) -> Model:
    """Asks for 64 GB on the first call."""
    size = helper.make_tensor("size", INT, [2], [1 << 17, 1 << 17])
    nodes = [
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["logits"]),
    ]
    return _model(nodes, path)


# -- answers --------------------------------------------------------------------------------------


def test_answers_are_those_of_single_rows_in_the_order_asked(
    pool: Pool, toys: dict[str, Model], tokens: Part
) -> None:
    rows = np.random.default_rng(1).permutation(len(tokens))
    found = answers(pool, toys["transformer"], tokens, rows, TASK, Target(), timeout=60)
    expected = _alone(toys["transformer"], tokens, rows)
    assert np.allclose(found, expected, atol=1e-5)
    more = answers(pool, toys["transformer"], tokens, rows[:7], TASK, Target(), timeout=60)
    assert np.allclose(more, expected[:7], atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_depends_on_its_company_is_answered_at_the_targets_batch(
    toys: dict[str, Model], tokens: Part, tmp_path: Path
) -> None:
    """Dynamic quantization takes its ranges over the batch: batching would change the answers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(toys["transformer"].payload, tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    model = open_model(tmp_path / "q.onnx")
    rows = np.arange(len(tokens))
    run = lanes.Answerer(model, runtime("onnx").start(model, Target()), tokens, "logits")
    batched = np.empty((len(rows), 4), np.float32)
    for group in run.equal_batches(rows):
        batched[group] = run(rows[group])
    alone = _alone(model, tokens, rows)
    assert np.abs(batched - alone).max() > 1e-3 * np.ptp(alone)  # the premise
    assert not run.independent(rows)
    found = lanes.answer_rows(model, "q", tokens, rows, "logits", Target())
    assert np.array_equal(found, alone)
    pairs = lanes.answer_rows(model, "q", tokens, rows, "logits", Target(batch=2))
    assert np.array_equal(pairs[:2], run(rows[:2]))


def test_equal_batches_hold_rows_of_one_length(toys: dict[str, Model], tokens: Part) -> None:
    run = lanes.Answerer(
        toys["transformer"], runtime("onnx").start(toys["transformer"], Target()), tokens, "logits"
    )
    rows = np.arange(len(tokens))
    groups = list(run.equal_batches(rows))
    lengths = tokens.lengths
    assert lengths is not None
    assert all(len(set(lengths[rows[group]].tolist())) == 1 for group in groups)
    assert sorted(np.concatenate(groups).tolist()) == rows.tolist()
    assert max(map(len, groups)) <= lanes.BATCH
    assert len(groups) < len(rows)


def test_a_fixed_batch_is_filled_up(tmp_path: Path, numbers: Part) -> None:
    draft = Draft(0)
    draft.gemm("x", 32, 4)
    proto = draft.model(
        "fixed",
        [helper.make_tensor_value_info("x", FLOAT, [3, 32])],
        [helper.make_tensor_value_info("logits", FLOAT, [3, 4])],
    )
    onnx.save(proto, tmp_path / "fixed.onnx")
    model = open_model(tmp_path / "fixed.onnx")
    found = lanes.answer_rows(model, "fixed", numbers, np.arange(7), "logits", Target())
    with runtime("onnx").start(model, Target()) as run:
        expected = run(numbers.inputs(np.array([6, 6, 6])))["logits"][:1]
    assert found.shape == (7, 4)
    assert np.allclose(found[6:], expected, atol=1e-6)


def test_fixed_lengths_are_padded_not_trimmed(tmp_path: Path) -> None:
    """A model of 8 steps exactly, data of 6: zeros behind, which the mask says."""
    ids = np.arange(1, 25).reshape(4, 6)
    part = write_part(
        tmp_path / "six", {"ids": ids, "mask": np.ones((4, 6), np.int64)}, mask="mask"
    )
    ports = [helper.make_tensor_value_info(name, INT, [1, 8]) for name in ("ids", "mask")]
    axis = helper.make_tensor("axis", INT, [1], [1])
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["ids", "mask"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis"], ["logits"], keepdims=1),
        ],
        "sum",
        ports,
        [helper.make_tensor_value_info("logits", INT, [1, 1])],
        [axis],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "eight.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    found = lanes.answer_rows(open_model(path), "e", part, np.arange(4), "logits", Target())
    assert found[:, 0].tolist() == ids.sum(1).tolist()


def test_answers_for_each_token_have_the_data_s_width(tmp_path: Path, tokens: Part) -> None:
    ports = [helper.make_tensor_value_info(p, INT, ["b", "t"]) for p in tokens.names]
    graph = helper.make_graph(
        [helper.make_node("Mul", list(tokens.names), ["logits"])],
        "tokens",
        ports,
        [helper.make_tensor_value_info("logits", INT, ["b", "t"])],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "tokens.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    rows = np.arange(len(tokens))
    found = lanes.answer_rows(open_model(path), "t", tokens, rows, "logits", Target())
    assert np.array_equal(found, tokens.inputs(rows)["input_ids"])


def test_an_unknown_output_fails(pool: Pool, toys: dict[str, Model], numbers: Part) -> None:
    wrong = dataclasses.replace(TASK, output="scores")
    with pytest.raises(Failed, match="no output 'scores'; it has logits"):
        answers(pool, toys["mlp"], numbers, np.arange(4), wrong, Target(), timeout=60)


def test_data_that_do_not_fit_are_refused(pool: Pool, toys: dict[str, Model], tokens: Part) -> None:
    with pytest.raises(WrongRequest, match=r"the model takes x float32\[\?, 32\]"):
        answers(pool, toys["mlp"], tokens, np.arange(4), TASK, Target(), timeout=60)


def test_a_hang_is_a_failure_and_the_pool_goes_on(
    toys: dict[str, Model], numbers: Part, tmp_path: Path
) -> None:
    with Pool() as pool:
        with pytest.raises(Failed, match="hung: no answer within 2 s"):
            answers(
                pool, _endless(tmp_path / "loop.onnx"), numbers, np.arange(4), TASK, Target(), 2
            )
        found = answers(pool, toys["mlp"], numbers, np.arange(4), TASK, Target(), timeout=60)
        assert found.shape == (4, 4)


def test_only_the_last_two_models_stay_loaded(toys: dict[str, Model]) -> None:
    lanes._sessions.clear()
    first = lanes.session(toys["mlp"], Target(), "a")
    assert lanes.session(toys["mlp"], Target(), "a") is first
    for key in "bc":
        lanes.session(toys["mlp"], Target(), key)
    assert [key for key, _ in lanes._sessions] == ["b", "c"]
    with pytest.raises(Failed, match="closed"):
        first({})


# -- races ----------------------------------------------------------------------------------------


def test_timed_rows_have_the_mixture_of_the_data(tokens: Part) -> None:
    rows = timed_rows(tokens, 2, seed=0)
    assert rows.shape == (32, 2)
    assert np.array_equal(rows, timed_rows(tokens, 2, seed=0))
    lengths = np.asarray(tokens.lengths)
    shares = (0.1, 0.5, 0.9)
    assert np.allclose(np.quantile(lengths[rows], shares), np.quantile(lengths, shares), atol=1)


@pytest.mark.parametrize(
    ("call", "size"),
    [(1e-6, (128, 2)), (3e-4, (128, 2)), (1e-3, (32, 2)), (4e-3, (10, 2)), (0.3, (1, 1))],
)
def test_a_turn_takes_about_40_ms(call: float, size: tuple[int, int]) -> None:
    assert turn_size(call, 32) == size


def _burnt(worker: object) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rsplit(")", 1)[1].split()  # type: ignore[attr-defined]
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_race_survives_what_its_candidates_do(
    toys: dict[str, Model], numbers: Part, tmp_path: Path
) -> None:
    """One race through everything: a good candidate, one that hangs, one that is killed, one that
    wants too much memory, a death of the original, and a good one again."""
    with Race(toys["mlp"], Target(), numbers, seed=0, memory=8 << 30, allowance=3) as race:
        timing = race.time(toys["mlp"], rounds=6)
        assert timing.baseline.shape == timing.candidate.shape == (6, 128)
        assert timing.twin is not None
        assert timing.twin.shape == (6, 128)
        assert (timing.baseline > 0).all()
        assert race.load_seconds > 0
        assert 1 / 3 < np.median(timing.candidate) / np.median(timing.baseline) < 3
        idle = [race._workers[name] for name in ("original", "twin")]
        burnt = sum(map(_burnt, idle))
        time.sleep(0.5)
        assert sum(map(_burnt, idle)) - burnt <= 0.02  # blocked in a read, not waiting actively
        with pytest.raises(Failed, match="hung"):
            race.time(_endless(tmp_path / "loop.onnx"), rounds=5)
        patient = threading.Timer(1.5, lambda: _kill(race, "candidate"))
        patient.start()
        with pytest.raises(Failed, match="SIGKILL"):
            race.time(_endless(tmp_path / "loop.onnx"), rounds=5)
        patient.join()
        with pytest.raises(Failed, match=r"(?i)memory|alloc"):
            race.time(_greedy(tmp_path / "greedy.onnx"), rounds=5)
        _kill(race, "original")
        race._workers["twin"].close()
        assert race.time(toys["mlp"], rounds=5).baseline.shape == (5, 128)
    assert not race._workers


def _kill(race: Race, name: str) -> None:
    os.kill(race._workers[name].process.pid, signal.SIGKILL)


def test_an_original_that_dies_in_a_round_is_started_once_more(
    toys: dict[str, Model], numbers: Part
) -> None:
    with Race(toys["mlp"], Target(), numbers) as race:
        race._residents("original", "twin")
        first = race._workers["original"]
        _kill(race, "original")
        first.process.wait()
        assert race._turn("original", 0, 8, 1).took.shape == (8,)
        assert race._workers["original"] is not first


def test_every_block_starts_every_process_anew(toys: dict[str, Model], numbers: Part) -> None:
    with Race(toys["mlp"], Target(), numbers) as race:
        race.time(toys["mlp"], rounds=2, least=2)
        first = race._workers["original"]
        timing = race.time(toys["mlp"], rounds=6, least=6, blocks=3)
        assert timing.blocks == (2, 2, 2)
        assert timing.candidate.shape == timing.baseline.shape == (6, 128)
        assert race._workers["original"] is not first


def test_a_race_adds_starts_once_where_it_is_told_to(toys: dict[str, Model], numbers: Part) -> None:
    asked = []

    def further(timing: Timing) -> int:
        asked.append(timing.blocks)
        return 1

    with Race(toys["mlp"], Target(), numbers) as race:
        race.watts = 7.0
        timing = race.time(toys["mlp"], rounds=4, least=4, blocks=2, further=further)
        assert asked == [(2, 2)]
        assert (timing.blocks, timing.first, timing.watts) == ((2, 2, 2), 2, 7.0)
        assert race.time(toys["mlp"], 4, None, 4, 2, further=lambda _: 0).first == 0


def test_a_tail_gets_the_rounds_that_its_calls_take(toys: dict[str, Model], numbers: Part) -> None:
    with Race(toys["mlp"], Target(), numbers) as race:
        timing = race.time(toys["mlp"], rounds=2, least=2, runs=1000)
        assert timing.candidate.size >= 1000
        assert timing.candidate.shape == (8, 128)
        hurried = race.time(toys["mlp"], rounds=2, seconds=0.0, least=2, runs=1000)
        assert hurried.candidate.shape == (2, 128)


def test_a_race_tells_cpu_time_and_what_others_took(toys: dict[str, Model], numbers: Part) -> None:
    """CPU seconds are at most the wall's (one thread, its readings apart), and what was queued is
    never more than the call."""
    with Race(toys["mlp"], Target(), numbers) as race:
        timing = race.time(toys["mlp"], rounds=8)
    assert timing.cpu is not None
    assert timing.cpu.shape == (3, 8)
    assert (timing.cpu > 0).all()
    assert timing.joules is None
    if Path("/proc/self/schedstat").exists():
        assert timing.queued is not None
        assert timing.queued.shape == (3, 8, 128)
        assert 0 <= timing.disturbed < 1
        assert (timing.queued <= np.stack(timing.lanes)).all()


def test_a_turn_finds_the_calls_that_had_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a made-up account of the queue: 5 ms more after the third call of six."""
    waited = iter([0, 0, 0, 5_000_000, 5_000_000, 5_000_000, 5_000_000, 5_000_000])
    monkeypatch.setattr(turns.Queue, "_total", lambda self: next(waited))
    monkeypatch.setattr(turns, "READ_EVERY", -1)
    lane = turns.Lane(lambda batch: time.sleep(0.006) or batch, [{}])  # type: ignore[arg-type]
    turn = lane.turn(0, 6, 0)
    if turn.queued is not None:
        assert turn.queued.tolist() == [0, 0, 5_000_000, 0, 0, 0]
    assert turn.cpu < turn.took.sum()


def test_throughput_at_the_batch_sizes_that_the_model_takes(
    toys: dict[str, Model], numbers: Part, tmp_path: Path
) -> None:
    free = throughputs(toys["mlp"], numbers, Target(), 0.01)
    assert list(free) == ["throughput.b1", "throughput.b8", "throughput.b32"]
    assert all(rate > 0 for rate in free.values())
    draft = Draft(0)
    draft.gemm("x", 32, 4)
    ports = [
        helper.make_tensor_value_info(name, FLOAT, [4, size])
        for name, size in (("x", 32), ("logits", 4))
    ]
    onnx.save(draft.model("four", ports[:1], ports[1:]), tmp_path / "four.onnx")
    fixed = throughputs(open_model(tmp_path / "four.onnx"), numbers, Target(), 0.01)
    assert list(fixed) == ["throughput.b4"]


def test_waits_as_long_as_the_calls_leave_a_throughput() -> None:
    took = np.array([100, 120, 140])
    assert middle_call([Turn(took, None, 0, math.nan)]) == 120
    assert middle_call([Turn(took, np.array([10, 10, 10]), 0, math.nan)]) == 110
    assert middle_call([Turn(took, took + 5, 0, math.nan)]) == 120


def test_the_time_limit_ends_a_race_after_five_rounds_at_least(
    toys: dict[str, Model], numbers: Part
) -> None:
    with Race(toys["mlp"], Target(threads=2), numbers) as race:
        assert not race.pin
        assert len(race.time(toys["mlp"], rounds=10_000, seconds=0.0).baseline) == 5
        began = time.monotonic()
        rounds = len(race.time(toys["mlp"], rounds=10_000, seconds=1.0).baseline)
        assert 5 < rounds < 10_000
        assert time.monotonic() - began < 6


def test_a_slower_candidate_is_seen_to_be_slower(
    toys: dict[str, Model], numbers: Part, tmp_path: Path
) -> None:
    """The same network three times in a row on wide layers."""
    draft, x = Draft(0), "x"
    for into in (32, 512, 512):
        x = draft.op("Relu", draft.gemm(x, into, 512))
    draft.gemm(x, 512, 4)
    ports = [
        helper.make_tensor_value_info(name, FLOAT, ["batch", size])
        for name, size in (("x", 32), ("logits", 4))
    ]
    onnx.save(draft.model("wide", ports[:1], ports[1:]), tmp_path / "wide.onnx")
    with Race(toys["mlp"], Target(), numbers) as race:
        timing = race.time(open_model(tmp_path / "wide.onnx"), rounds=5)
    assert np.median(timing.candidate) > 1.5 * np.median(timing.baseline)


# -- memory ---------------------------------------------------------------------------------------


def test_footprint_sees_the_weights(tmp_path: Path, toys: dict[str, Model], numbers: Part) -> None:
    draft = Draft(0)
    draft.gemm(draft.gemm("x", 32, 8192), 8192, 1024)  # 33 MB of weights
    ports = [
        helper.make_tensor_value_info(name, FLOAT, ["batch", size])
        for name, size in (("x", 32), ("logits", 1024))
    ]
    onnx.save(draft.model("heavy", ports[:1], ports[1:]), tmp_path / "heavy.onnx")
    small = footprint(toys["mlp"], Target(), numbers.example(0))
    large = footprint(open_model(tmp_path / "heavy.onnx"), Target(), numbers.example(0))
    assert 20e6 < small < 200e6
    assert 30e6 < large - small < 150e6


def test_footprint_is_not_the_driver_s(toys: dict[str, Model], numbers: Part) -> None:
    """A large driver must not show in the figure of its child."""
    before = footprint(toys["mlp"], Target(), numbers.example(0))
    ballast = np.ones(40_000_000)
    after = footprint(toys["mlp"], Target(), numbers.example(0))
    assert abs(after - before) < 0.1 * ballast.nbytes


def test_the_heaviest_batch_holds_the_longest_rows(toys: dict[str, Model], tokens: Part) -> None:
    lengths = np.asarray(tokens.lengths)
    assert lengths[0] < lengths.max()  # the premise: the first row is not the longest
    batch = heaviest(tokens, toys["transformer"].signature, Target(batch=4))
    longest = np.sort(lengths)[-4:]
    assert sorted(batch["attention_mask"].sum(1).tolist()) == longest.tolist()
    assert batch["input_ids"].shape == (4, lengths.max())
    many = heaviest(tokens, toys["transformer"].signature, Target(batch=len(tokens) + 5))
    assert len(many["input_ids"]) == len(tokens) + 5


def test_memory_is_judged_at_the_target_s_batch(tmp_path: Path, numbers: Part) -> None:
    """A model whose activations are large: 64 rows of 32 MB in all."""
    draft = Draft(0)
    draft.gemm(draft.op("Relu", draft.gemm("x", 32, 1 << 17)), 1 << 17, 4)
    ports = [
        helper.make_tensor_value_info(name, FLOAT, ["batch", size])
        for name, size in (("x", 32), ("logits", 4))
    ]
    onnx.save(draft.model("broad", ports[:1], ports[1:]), tmp_path / "broad.onnx")
    model = open_model(tmp_path / "broad.onnx")
    one, many = (
        footprint(model, target, heaviest(numbers, model.signature, target))
        for target in (Target(), Target(batch=64))
    )
    assert many - one > 25e6


def test_the_pair_of_memories_errs_on_the_side_of_the_limit(
    toys: dict[str, Model], numbers: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least of the original's runs, the most of the candidate's; they take turns."""
    asked: list[str] = []
    figures = {"mlp": iter((50, 40, 60)), "wide": iter((30, 20, 45))}
    wide = dataclasses.replace(toys["mlp"], settings={"arena": False})

    def measured(model: Model, target: Target, example: object, timeout: float = 0) -> int:
        name = "wide" if model.settings else "mlp"
        asked.append(name)
        return next(figures[name])

    monkeypatch.setattr(evaluate, "footprint", measured)
    assert memory_pair(toys["mlp"], wide, Target(), numbers) == (40, 45)
    assert asked == ["mlp", "wide", "wide", "mlp", "mlp", "wide"]


def test_the_original_takes_no_more_memory_than_itself(
    toys: dict[str, Model], numbers: Part
) -> None:
    first, second = memory_pair(toys["mlp"], toys["mlp"], Target(), numbers)
    assert first == second > 20e6


# -- a fixed batch --------------------------------------------------------------------------------


def _fixed(folder: Path, batch: int) -> Model:
    draft = Draft(0)
    draft.gemm("x", 32, 4)
    proto = draft.model(
        "fixed",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 32])],
        [helper.make_tensor_value_info("logits", FLOAT, [batch, 4])],
    )
    onnx.save(proto, folder / "fixed.onnx")
    return open_model(folder / "fixed.onnx")


def test_the_natural_batch(toys: dict[str, Model], tmp_path: Path) -> None:
    assert natural_batch(toys["transformer"].signature) is None
    assert natural_batch(_fixed(tmp_path, 8).signature) == 8


@pytest.mark.parametrize("rows", [1, 3, 8, 21, 500])
def test_a_sample_of_a_fixed_batch(rows: int, tmp_path: Path, numbers: Part) -> None:
    """Rows that are no multiple of the batch; the part has 80."""
    model = _fixed(tmp_path, 8)
    found = lanes.sample_outputs(model, Target(), numbers, rows)
    expected = lanes.answer_rows(
        model, f"fixed {tmp_path}", numbers, np.arange(min(rows, 80)), "logits", Target()
    )
    assert found.keys() == {"logits"}
    assert np.array_equal(found["logits"], expected)
    assert footprint(model, Target(), heaviest(numbers, model.signature, Target())) > 20e6


# -- several outputs ------------------------------------------------------------------------------


def _with_tokens(folder: Path) -> Model:
    """Per token [B, L, 1], per token with a mark before it [B, L + 1], logits [B, 1], a scalar."""
    axis = helper.make_tensor("axis", INT, [1], [1])
    last = helper.make_tensor("last", INT, [1], [2])
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
            helper.make_node("Unsqueeze", ["kept", "last"], ["hidden"]),
            helper.make_node("ReduceSum", ["kept", "axis"], ["logits"], keepdims=1),
            helper.make_node("Concat", ["logits", "kept"], ["marked"], axis=1),
            helper.make_node("ReduceSum", ["kept"], ["total"], keepdims=0),
        ],
        "tokens",
        [
            helper.make_tensor_value_info(name, INT, ["b", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("hidden", INT, ["b", "t", 1]),
            helper.make_tensor_value_info("marked", INT, ["b", "more"]),
            helper.make_tensor_value_info("total", INT, []),
            helper.make_tensor_value_info("logits", INT, ["b", 1]),
        ],
        [axis, last],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = folder / "several.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return open_model(path)


@pytest.mark.parametrize("batch", [1, 4])
def test_outputs_of_different_lengths_are_filled_up(
    batch: int, tmp_path: Path, tokens: Part
) -> None:
    """Hidden states beside logits, rows of different lengths."""
    model = _with_tokens(tmp_path)
    found = lanes.sample_outputs(model, Target(batch=batch), tokens, 50)
    ids = tokens.inputs(np.arange(50))["input_ids"]
    assert found.keys() == {"hidden", "marked", "logits"}
    assert np.array_equal(found["hidden"][:, :, 0], ids)
    assert np.array_equal(found["logits"][:, 0], ids.sum(1))
    assert np.array_equal(found["marked"][:, 0], ids.sum(1))
    widest = found["marked"].shape[1] - 1
    assert np.array_equal(found["marked"][:, 1:], ids[:, :widest])
    known = answering(model.signature, found)
    assert [port.name for port in known.outputs] == ["hidden", "marked", "logits"]


def test_a_model_that_answers_for_no_row_alone(tmp_path: Path, numbers: Part) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["logits"], keepdims=0)]
    model = _model(nodes, tmp_path / "sum.onnx")
    with pytest.raises(Failed, match="first axis"):
        lanes.sample_outputs(model, Target(), numbers, 5)
