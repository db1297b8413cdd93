"""The forest kernel: equal to the bit in every layout and instruction set; hostile files."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from forest_cases import adversarial, grown, slowly

from sartor import forest_catboost, forest_lightgbm, forest_xgboost, kernels, ubjson
from sartor.contracts import WrongRequest
from sartor.forest import LEAF, LEFT, Forest, checked
from sartor.forest_packing import NARROW, OBLIVIOUS, WIDE, pack
from sartor.forest_predictor import Predictor

LEVELS = range(3)  # portable, AVX2, AVX-512: those that the machine lacks run as the best it has


def small(**changes: Any) -> Forest:
    """x[0] <= 1.5 ? -1 : (x[1] <= 0 ? 2 : 3), and a tree of one leaf."""
    told: dict[str, Any] = {
        "features": 2, "starts": np.array([0, 5, 6]),
        "feature": np.array([0, LEAF, 1, LEAF, LEAF, LEAF]),
        "threshold": np.array([1.5, 0, 0, 0, 0, 0]), "left": np.array([1, 0, 3, 0, 0, 0]),
        "right": np.array([2, 0, 4, 0, 0, 0]), "missing": np.full(6, LEFT),
        "leaf": np.array([[0.0], [-1], [0], [2], [3], [0.25]]), "output": np.zeros(2, np.int64),
        "base": np.array([10.0]), "inputs": "float64", "sums": "float64",
    }  # fmt: skip
    return Forest(**{**told, **changes})


def test_margins_are_sums_of_leaves() -> None:
    rows = np.array([[1.5, 0], [np.nextafter(1.5, 2), -0.0], [9, 5e-324], [np.nan, np.nan]])
    predictor = Predictor(small())
    assert predictor.margins(rows).ravel().tolist() == [9.25, 12.25, 13.25, 9.25]
    assert predictor.margins(rows[2]).tolist() == [13.25]


def test_links_and_averages() -> None:
    row = np.array([9.0, 1.0])
    both = Predictor(small(link="two-classes", steepness=0.5)).predict(row)
    assert both == pytest.approx([1 - 1 / (1 + np.exp(-6.625)), 1 / (1 + np.exp(-6.625))])
    assert Predictor(small(divide=2.0)).predict(row).tolist() == [6.625]
    assert Predictor(small(divide=2.0)).margins(row).tolist() == [13.25]
    assert Predictor(small(factor=2.0, offset=np.array([1.0]))).margins(row).tolist() == [27.5]


@pytest.mark.parametrize("seed", range(30))
def test_random_forests_answer_as_their_arrays_say(seed: int) -> None:
    fuzz(seed)


@pytest.mark.slow
def test_ten_thousand_random_forests() -> None:
    for seed in range(1000, 11_000):
        fuzz(seed)


def fuzz(seed: int) -> None:
    forest = grown(np.random.default_rng(seed))
    rows = adversarial(forest, 6, seed)
    wanted = slowly(forest, rows)
    for layout in (None, WIDE):
        packed = pack(forest, layout=layout)
        for level in LEVELS:
            predictor = Predictor(packed, level=level)
            np.testing.assert_array_equal(
                predictor.margins(rows), wanted, f"{seed} {layout} {level}"
            )
            one = np.stack([predictor.margins(row) for row in rows])
            np.testing.assert_array_equal(one, wanted, f"{seed} {layout} {level} row by row")


def test_float32_and_float64_rows_and_views() -> None:
    forest = grown(np.random.default_rng(5))
    with np.errstate(over="ignore"):
        rows = adversarial(forest, 300, 5).astype(np.float32)
    predictor = Predictor(forest)
    wanted = predictor.margins(rows)
    np.testing.assert_array_equal(predictor.margins(rows.astype(np.float64)), wanted)
    np.testing.assert_array_equal(predictor.margins(np.asfortranarray(rows)), wanted)
    np.testing.assert_array_equal(predictor.margins(rows[::3]), wanted[::3])
    np.testing.assert_array_equal(predictor.margins(rows[:0]), wanted[:0])


def test_threads_change_nothing() -> None:
    forest = grown(np.random.default_rng(7))
    rows = np.tile(adversarial(forest, 50, 7), (100, 1))
    one, four = Predictor(forest), Predictor(forest, threads=4)
    assert len(rows) * forest.trees > 4 * 16384  # enough that four threads are worth their start
    np.testing.assert_array_equal(one.margins(rows), four.margins(rows))


@pytest.mark.parametrize(
    ("rows", "said"),
    [(np.zeros((3, 5)), "rows of 2 numbers"), (np.array([["a", "b"]]), "rows of 2 numbers")],
)
def test_rows_that_do_not_fit_are_refused(rows: np.ndarray, said: str) -> None:
    with pytest.raises(WrongRequest, match=said):
        Predictor(small()).predict(rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": np.array([np.nan, 0, 0, 0, 0, 0])}, "threshold of the forest is NaN"),
        ({"left": np.array([1, 0, 9, 0, 0, 0])}, "has the child 9"),
        ({"left": np.array([0, 0, 3, 0, 0, 0])}, "has the child 0"),
        ({"left": np.array([2, 0, 3, 0, 0, 0])}, "two parents"),
        ({"right": np.array([2, 0, 2, 0, 0, 0])}, "two parents"),
        ({"feature": np.array([0, LEAF, 2, LEAF, LEAF, LEAF])}, "none of its 2"),
        ({"leaf": np.full((6, 1), np.inf)}, "not a finite number"),
        ({"output": np.array([0, 1])}, "an output that it does not have"),
        ({"starts": np.array([0, 5, 5, 6]), "output": np.zeros(3, np.int64)}, "without nodes"),
        ({"divide": 0.0}, "base score or scale"),
    ],
)
def test_what_is_no_forest_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongRequest, match=said):
        checked(small(**changes))


def test_a_chain_deeper_than_any_recursion() -> None:
    depth = 3_000
    size = 2 * depth + 1
    inner = np.arange(size) % 2 == 0
    inner[-1] = False
    at = np.arange(size)
    forest = small(
        starts=np.array([0, size]), feature=np.where(inner, 0, LEAF),
        threshold=at.astype(float), left=np.where(inner, at + 1, 0),
        right=np.where(inner, at + 2, 0), missing=np.zeros(size, np.int64),
        leaf=at[:, None].astype(float), output=np.zeros(1, np.int64),
    )  # fmt: skip
    for level in LEVELS:
        answers = Predictor(forest, level=level).margins(np.array([[0.5, 0], [1e9, 0]]))
        assert answers.ravel().tolist() == [10.0 + 3, 10.0 + size - 1]


def damaged(packed: bytes, rounds: int, seed: int) -> None:
    """Packed bytes with changed words either are refused or run without a crash."""
    draw = np.random.default_rng(seed)
    kernel = kernels.forest().Forest
    rows = np.array([[0.0, 1.0], [np.nan, 3.0]])
    for _ in range(rounds):
        broken = bytearray(packed)
        for _ in range(int(draw.integers(1, 4))):
            at = int(draw.integers(8, len(broken) - 8)) // 4 * 4
            words = (0, 1, 0xFFFFFFFF, int(draw.integers(1 << 32)), int(draw.integers(256)))
            struct.pack_into("<I", broken, at, words[int(draw.integers(len(words)))])
        cut = len(broken) if draw.random() < 0.8 else int(draw.integers(len(broken)))
        try:
            made = kernel(bytes(broken[:cut]))
        except ValueError:  # a sentence; which one depends on what was hit
            continue
        if made.features != 2:
            continue
        kind = np.float64 if made.double else np.float32
        for level in LEVELS:
            made.predict(rows, np.empty((2, made.outputs(0)), kind), 0, 1, level)


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_damaged_packed_bytes_never_crash(layout: int) -> None:
    damaged(pack(small(), layout=layout), 300, layout)


def test_packed_bytes_are_looked_through() -> None:
    packed = pack(small())
    for cut in (0, 7, 100, len(packed) - 1):
        with pytest.raises(WrongRequest, match="packed forest"):
            Predictor(packed[:cut])
    with pytest.raises(WrongRequest, match="a count that no forest has"):
        Predictor(packed[:80] + struct.pack("<Q", 10**9) + packed[88:])  # 10^9 trees announced


XGB = {
    "version": [3, 2, 0],
    "learner": {
        "learner_model_param": {"base_score": "[5E-1]", "num_class": "0", "num_feature": "2"},
        "objective": {"name": "reg:squarederror"},
        "gradient_booster": {
            "name": "gbtree",
            "model": {
                "gbtree_model_param": {"num_trees": "1"},
                "tree_info": [0],
                "trees": [
                    {
                        "tree_param": {"size_leaf_vector": "1"},
                        "left_children": [1, -1, -1], "right_children": [2, -1, -1],
                        "split_conditions": [0.5, -1.0, 1.0], "split_indices": [1, 0, 0],
                        "split_type": [0, 0, 0], "default_left": [1, 0, 0],
                    }
                ],
            },
        },
    },
}  # fmt: skip


def changed(*path: Any, value: Any) -> bytes:
    told = json.loads(json.dumps(XGB))
    holder = told["learner"]["gradient_booster"]["model"]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return json.dumps(told).encode()


def test_an_xgboost_model_written_by_hand() -> None:
    forest = forest_xgboost.read(json.dumps(XGB).encode())
    answers = Predictor(forest).margins(np.array([[0, 0.4999], [0, 0.5], [0, np.nan]]))
    assert answers.ravel().tolist() == [-0.5, 1.5, -0.5]


@pytest.mark.parametrize(
    ("read", "data", "said"),
    [
        (forest_xgboost.read, b"", "no JSON"),
        (forest_xgboost.read, json.dumps(XGB).encode()[:-40], "no JSON"),
        (forest_xgboost.read, b"[" * 200_000, "no JSON"),
        (forest_xgboost.read, b'{"learner": 3}', "damaged"),
        (forest_xgboost.read, b"{L" + b"\x7f" * 8, "cut short"),
        (ubjson.read, b"[" * 1000, "nested deeper"),
        (ubjson.read, b"[$Z#L" + struct.pack(">q", 10**9), "beyond its end"),
        (ubjson.read, b"[$d#L" + struct.pack(">q", 10**9), "cut short"),
        (forest_lightgbm.read, b"nothing", "no LightGBM model"),
        (forest_lightgbm.read, b"tree\nversion=v4\n", "cut short"),
        (forest_lightgbm.read, b"tree\nnum_tree_per_iteration=1\nmax_feature_idx=0\n\nTree=0\n"
         b"num_leaves=1000000000\nleaf_value=1\n\nend of trees", "states 1000000000 leaves"),
        (forest_catboost.read, b"{}", "damaged"),
        (forest_catboost.read, b'{"model_info": {"params": {"loss_function": {"type": "Focal"}}}}',
         "damaged"),
        (forest_catboost.read, b'{"a":' * 100_000, "no JSON"),
        (forest_xgboost.read, changed("gbtree_model_param", "num_trees", value="1000000000"),
         "states 1000000000 trees"),
        (forest_xgboost.read, changed("trees", 0, "left_children", value=[0, -1, -1]), "child 0"),
        (forest_xgboost.read, changed("trees", 0, "left_children", value=[7, -1, -1]), "child 7"),
        (forest_xgboost.read, changed("trees", 0, "split_indices", value=[5, 0, 0]), "of its 2"),
        (forest_xgboost.read, changed("trees", 0, "split_conditions", value=[None, -1, 1]), "NaN"),
        (forest_xgboost.read, changed("trees", 0, "split_conditions", value=[1, 1]), "different"),
    ],
)  # fmt: skip
def test_hostile_models_are_refused(read: Callable[[bytes], Any], data: bytes, said: str) -> None:
    with pytest.raises(WrongRequest, match=said):
        read(data)


def test_symmetric_trees_take_the_short_way() -> None:
    full = small(
        starts=np.array([0, 3, 6]), feature=np.array([0, LEAF, LEAF, 1, LEAF, LEAF]),
        left=np.array([1, 0, 0, 1, 0, 0]), right=np.array([2, 0, 0, 2, 0, 0]),
    )  # fmt: skip
    rows = np.array([[1.0, 1.0], [2.0, -1.0]])
    wanted = slowly(full, rows)
    for layout in (OBLIVIOUS, NARROW, WIDE):
        for level in LEVELS:
            answers = Predictor(pack(full, layout=layout), level=level).margins(rows)
            np.testing.assert_array_equal(answers, wanted)
    with pytest.raises(WrongRequest, match="do not ask the same"):
        pack(dataclasses.replace(small()), layout=OBLIVIOUS)
