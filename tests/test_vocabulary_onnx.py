from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.spatial.distance import cdist
from toy_onnx import answer, bench_of

from sartor.contracts import Failed, Unneeded
from sartor.lab import ToyBench
from sartor.registry import runtime
from sartor.techniques import vocabulary_onnx
from sartor.techniques.vocabulary_onnx import TrimVocabulary, nearest

ROWS, WIDTH = 1000, 24
TABLE = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)


def words(rows: int, seed: int) -> dict[str, np.ndarray]:
    """In the training rows (seed 1) the words 0, 3, 6 ... 297, word 0 once and all others more
    often; in the rows of other seeds all words."""
    rng = np.random.default_rng(seed)
    if seed != 1:
        return {"ids": rng.integers(-ROWS, ROWS, (rows, 7))}
    ids = 3 * rng.integers(1, 100, (rows, 7))
    ids[:, :2] = 3 * np.resize(np.arange(1, 100), (rows, 2))
    ids[0, 6] = 0
    return {"ids": ids}


SEEN = np.arange(0, 300, 3)


def model(
    table: np.ndarray = TABLE,
    nodes: Sequence[onnx.NodeProto] = (),
    indices: str = "ids",
    kind: int = TensorProto.INT64,
    shape: Sequence[int | str] = ("n", "words"),
    more: Sequence[onnx.NodeProto] = (),
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """The rows of a table, by indices that `nodes` make of the input."""
    look_up = helper.make_node("Gather", ["table", indices], ["rows"], "look-up")
    out = helper.make_node("Cast", ["rows"], ["y"], "out", to=TensorProto.FLOAT)
    stored = [numpy_helper.from_array(v, n) for n, v in {"table": table, **weights}.items()]
    graph = helper.make_graph(
        [*nodes, look_up, *more, out],
        "words",
        [helper.make_tensor_value_info("ids", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bench_with(proto: onnx.ModelProto, folder, batch=words, **facts) -> ToyBench:
    return bench_of(proto, folder, batch, **facts)


def tables(path) -> dict[str, tuple[int, ...]]:
    return {each.name: tuple(each.dims) for each in onnx.load(path).graph.initializer}


def angles(rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    return cdist(rows.astype(np.float64), among.astype(np.float64), "cosine")


def test_rows_that_stay_are_read_to_the_bit_and_the_others_as_the_nearest(tmp_path):
    bench = bench_with(model(), tmp_path)
    made = TrimVocabulary().apply(bench.toy.model, bench)
    assert tables(made.payload) == {"table_trimmed": (100, WIDTH), "table_places": (ROWS,)}
    assert made.lineage[-1].touched == ("table (900 of 1,000 rows go)",)
    got = answer(made, {"ids": np.arange(ROWS)[None]})["y"][0]
    assert np.array_equal(got[SEEN], TABLE[SEEN])
    gone = np.setdiff1d(np.arange(ROWS), SEEN)
    expected = SEEN[angles(TABLE[gone], TABLE[SEEN]).argmin(1)]
    assert np.array_equal(got[gone], TABLE[expected])
    size = runtime("onnx").size
    assert size(made) < 0.16 * size(bench.toy.model)  # a tenth of the rows, 4 bytes for each index


def test_indices_below_zero_count_from_the_end(tmp_path):
    def turned(rows, seed):
        ids = words(rows, seed)["ids"]
        return {"ids": ids - ROWS} if seed == 1 else {"ids": ids}

    bench = bench_with(model(), tmp_path, turned)
    made = TrimVocabulary().apply(bench.toy.model, bench)
    assert tables(made.payload)["table_trimmed"] == (100, WIDTH)
    for ids in (SEEN, SEEN - ROWS):
        got = answer(made, {"ids": ids[None]})["y"][0]
        assert np.array_equal(got, TABLE[SEEN])


def test_the_mean_stands_for_all_that_are_gone(tmp_path):
    bench = bench_with(model(), tmp_path)
    made = TrimVocabulary(unknown="mean").apply(bench.toy.model, bench)
    assert tables(made.payload)["table_trimmed"] == (101, WIDTH)
    got = answer(made, {"ids": np.arange(ROWS)[None]})["y"][0]
    assert np.array_equal(got[SEEN], TABLE[SEEN])
    gone = np.setdiff1d(np.arange(ROWS), SEEN)
    assert got[gone] == pytest.approx(np.tile(TABLE[gone].mean(0), (900, 1)), abs=1e-6)


def kept(bench: ToyBench, **settings) -> set[int]:
    """The rows that stay: those that are read as before."""
    made = TrimVocabulary(**settings).apply(bench.toy.model, bench)
    got = answer(made, {"ids": np.arange(ROWS)[None]})["y"][0]
    return set(np.flatnonzero((got == TABLE).all(1)).tolist())


def test_more_occurrences_leave_fewer_rows_and_what_is_spared_comes_back_in_order(tmp_path):
    bench = bench_with(model(), tmp_path)
    counts = np.bincount(words(64, 1)["ids"].ravel(), minlength=ROWS)
    for least in (1, 2, 4, 8):
        assert kept(bench, occurrences=least) == set(np.flatnonzero(counts >= least).tolist())
    # First the rare ones by how often they occur, then those that would change most.
    rare = np.flatnonzero((counts < 4) & (counts > 0))
    few = kept(bench, occurrences=4, spare=0.02)
    assert len(few) == (counts >= 4).sum() + round(0.02 * (counts < 4).sum())
    back = few - set(np.flatnonzero(counts >= 4).tolist())
    assert back < set(rare.tolist())
    assert counts[list(back)].min() >= max(counts[r] for r in set(rare.tolist()) - back)
    gone = np.setdiff1d(np.arange(ROWS), SEEN)
    for unknown, stand in (
        ("nearest", TABLE[SEEN[angles(TABLE[gone], TABLE[SEEN]).argmin(1)]]),
        ("mean", TABLE[gone].mean(0)),
    ):
        change = np.linalg.norm(TABLE[gone] - stand, axis=1)
        most = set(gone[np.argsort(-change)[:90]].tolist())
        assert kept(bench, unknown=unknown, spare=0.1) == set(SEEN.tolist()) | most
    before: set[int] = set()
    for spare in (0.0, 0.3, 0.6, 0.9):
        now = kept(bench, occurrences=2, spare=spare)
        assert before < now
        before = now
    same = TrimVocabulary(spare=1.0).apply(bench.toy.model, bench)
    assert same.payload == bench.toy.model.payload
    assert same.lineage[-1].skipped == (("table", "spare=1 leaves every row"),)


def test_what_is_spared_stands_for_nothing_else(tmp_path):
    # A row that lies in the middle of all, as those of words that training never met often do.
    table = TABLE.copy()
    table[1] = TABLE[500:].sum(0)
    bench = bench_with(model(table), tmp_path)
    made = TrimVocabulary(spare=0.1).apply(bench.toy.model, bench)
    got = answer(made, {"ids": np.arange(ROWS)[None]})["y"][0]
    assert np.array_equal(got[1], table[1])
    gone = np.flatnonzero((got != table).any(1))
    assert len(gone) == 810
    assert np.array_equal(got[gone], table[SEEN[angles(table[gone], table[SEEN]).argmin(1)]])


MOVED = {
    "cast": ([helper.make_node("Cast", ["ids"], ["at"], to=TensorProto.INT64)], TensorProto.FLOAT),
    "unsqueezed": (
        [
            helper.make_node("Unsqueeze", ["ids", "one"], ["wide"]),
            helper.make_node("Identity", ["wide"], ["at"]),
        ],
        TensorProto.INT32,
    ),
    "columns": ([helper.make_node("Gather", ["ids", "some"], ["at"], axis=1)], TensorProto.INT64),
}


@pytest.mark.parametrize("how", MOVED)
def test_indices_may_be_moved_about(tmp_path, how):
    nodes, kind = MOVED[how]
    proto = model(
        nodes=nodes, indices="at", kind=kind, one=np.array([1]), some=np.array([0, 1, 2, 3, 4, 6])
    )

    def batch(rows, seed):
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        return {"ids": np.abs(words(rows, seed)["ids"]).astype(dtype) % ROWS}

    bench = bench_with(proto, tmp_path, batch)
    made = TrimVocabulary().apply(bench.toy.model, bench)
    assert tables(made.payload)["table_trimmed"][0] in range(98, 101)
    known = batch(64, 1)
    assert np.array_equal(answer(made, known)["y"], answer(bench.toy.model, known)["y"])
    before, after = (answer(each, batch(9, 5))["y"] for each in (bench.toy.model, made))
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_two_look_ups_in_one_table_count_together(tmp_path):
    more = [
        helper.make_node("Gather", ["table", "others"], ["second"], "look-up 2"),
        helper.make_node("Add", ["first", "second"], ["rows"], "sum"),
    ]
    proto = model(more=more)
    proto.graph.node[0].output[0] = "first"
    proto.graph.input.append(
        helper.make_tensor_value_info("others", TensorProto.INT64, ["n", "words"])
    )

    def batch(rows, seed):
        ids = words(rows, seed)["ids"]
        return {"ids": ids, "others": ids + 1 if seed == 1 else ids}

    bench = bench_with(proto, tmp_path, batch)
    made = TrimVocabulary().apply(bench.toy.model, bench)
    assert tables(made.payload)["table_trimmed"] == (200, WIDTH)
    known = batch(64, 1)
    assert np.array_equal(answer(made, known)["y"], answer(bench.toy.model, known)["y"])


def test_half_precision_and_tables_of_blocks(tmp_path):
    for number, table in enumerate((TABLE.astype(np.float16), TABLE.reshape(ROWS, 4, 6))):
        (tmp_path / str(number)).mkdir()
        bench = bench_with(model(table), tmp_path / str(number))
        made = TrimVocabulary().apply(bench.toy.model, bench)
        assert tables(made.payload)["table_trimmed"] == (100, *table.shape[1:])
        got = answer(made, {"ids": SEEN[None]})["y"][0]
        assert np.array_equal(got, table[SEEN].astype(np.float32))


REASONS = {
    "its indices are computed": model(
        nodes=[helper.make_node("Abs", ["ids"], ["at"], "abs")], indices="at"
    ),
    "it is read by MatMul back too": model(
        more=[
            helper.make_node("Transpose", ["table"], ["turned"], "turn"),
            helper.make_node("MatMul", ["first", "turned"], ["rows"], "back"),
        ]
    ),
    "fewer than 256 rows": model(TABLE[:200]),
    "its rows are single numbers": model(TABLE[:, 0].copy()),
}


@pytest.mark.parametrize("reason", REASONS)
def test_tables_are_skipped_for_their_own_reasons(tmp_path, reason):
    proto = onnx.ModelProto()
    proto.CopyFrom(REASONS[reason])
    if "MatMul" in reason:
        proto.graph.node[0].output[0] = "first"
        reason = "it is read by Transpose turn too"
    bench = bench_with(proto, tmp_path)
    assert TrimVocabulary().refuse(bench.toy.model, bench) == f"no table can lose rows: {reason}"


def test_a_table_beside_a_good_one_is_skipped(tmp_path):
    more = [
        helper.make_node("Shape", ["ids"], ["shape"], "shape", start=1),
        helper.make_node("Squeeze", ["shape"], ["length"], "length"),
        helper.make_node("Range", ["zero", "length", "step"], ["places"], "range"),
        helper.make_node("Gather", ["positions", "places"], ["second"], "look-up 2"),
        helper.make_node("Add", ["first", "second"], ["rows"], "sum"),
    ]
    positions = np.random.default_rng(1).standard_normal((512, WIDTH), np.float32)
    proto = model(more=more, positions=positions, zero=np.int64(0), step=np.int64(1))
    proto.graph.node[0].output[0] = "first"
    bench = bench_with(proto, tmp_path)
    made = TrimVocabulary(spare=0.5).apply(bench.toy.model, bench)
    assert made.lineage[-1].touched == ("table (450 of 1,000 rows go)",)
    assert made.lineage[-1].skipped == (("positions", "its indices are computed"),)
    again = TrimVocabulary().refuse(made, bench)
    assert again == "no table can lose rows: its indices are computed"
    known = words(64, 1)
    assert np.array_equal(answer(made, known)["y"], answer(bench.toy.model, known)["y"])


def test_what_is_not_worth_it_is_unneeded(tmp_path):
    cases = {
        "only 50 of 1,000 rows": (TABLE, np.arange(950)),
        "smaller than what finds them anew": (TABLE[:, :1].copy(), np.arange(500)),
    }
    for number, (reason, (table, ids)) in enumerate(cases.items()):
        (tmp_path / str(number)).mkdir()

        def batch(rows, seed, ids=ids):
            return {"ids": np.resize(ids, (rows, 20))}

        bench = bench_with(model(table), tmp_path / str(number), batch)
        with pytest.raises(Unneeded, match=reason):
            TrimVocabulary().apply(bench.toy.model, bench)
    bench = bench_with(model(), tmp_path, lambda rows, seed: {"ids": np.resize(SEEN, (rows, 1))})
    with pytest.raises(Unneeded, match="none of its rows occurs 8 times"):
        TrimVocabulary(occurrences=8).apply(bench.toy.model, bench)


def test_without_training_rows_or_with_impossible_ones(tmp_path):
    bench = bench_with(model(), tmp_path, parts=("search",))
    assert "counts in training rows" in TrimVocabulary().refuse(bench.toy.model, bench)
    wrong = bench_with(model(), tmp_path)
    wrong.batches = lambda split, size=1, most=None: iter([{"ids": np.array([[ROWS]])}])
    with pytest.raises(Failed, match="outside the 1000 rows"):
        TrimVocabulary().apply(wrong.toy.model, wrong)
    infinite = TABLE.copy()
    infinite[7] = np.inf
    odd = bench_with(model(infinite), tmp_path)
    with pytest.raises(Unneeded, match="infinities"):
        TrimVocabulary().apply(odd.toy.model, odd)


def test_counts_and_neighbours_are_remembered_for_other_settings_but_not_for_other_models(tmp_path):
    asked = []
    for number, table in enumerate((TABLE, TABLE[::-1].copy())):
        (tmp_path / str(number)).mkdir()
        bench = bench_with(model(table), tmp_path / str(number))

        def spy(key, compute, remember=bench.remember):
            asked.append(key)
            return remember(key, compute)

        bench.remember = spy
        for settings in ({}, {"spare": 0.5}, {"occurrences": 4}, {"unknown": "mean"}):
            TrimVocabulary(**settings).apply(bench.toy.model, bench)
    # Of each model the counts, the neighbours twice, those of the rows that occur four times.
    assert [asked.count(key) for key in dict.fromkeys(asked)] == [4, 2, 1] * 2


@pytest.mark.parametrize("chunk", [1, 777, 1 << 20])
def test_the_nearest_row_does_not_depend_on_the_chunks(monkeypatch, chunk):
    monkeypatch.setattr(vocabulary_onnx, "_CHUNK", chunk)
    rng = np.random.default_rng(4)
    among = rng.standard_normal((300, 16), np.float32)
    among[200:] = among[:100]  # of equal rows the first is taken
    rows = rng.standard_normal((123, 16), np.float32)
    rows[:100] = among[:100]
    found = nearest(rows, among)
    assert np.array_equal(found, angles(rows, among).argmin(1))
    assert np.array_equal(found[:100], np.arange(100))
