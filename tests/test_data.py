import json
import pickle
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sartor import rows as by_rows
from sartor.contracts import Port, Signature, WrongRequest
from sartor.data import Part, Sealed, fresh, read
from sartor.readers import _open_npz

N = 300


def signature(*inputs, output=("y", "float32", (None, 3))):
    return Signature(tuple(Port(*each) for each in inputs), (Port(*output),))


X = signature(("x", "float32", (None, 4)))
TOKENS = signature(("ids", "int64", (None, None)), ("attention_mask", "int64", (None, None)))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(N, 4)).astype(np.float32),
        "label": rng.integers(0, 3, N),
        "sex": rng.choice(["f", "m"], N),
        "age": rng.integers(20, 80, N),
    }


def save(folder: Path, arrays, name="eval.npz"):
    np.savez(folder / name, allow_pickle=True, **arrays)
    return folder / name


def rows_of(data):
    parts = {"search": data.search, "holdout": data.holdout.open()}
    return parts | ({"train": data.train} if data.train else {})


# --- reading


def test_npz(tmp_path, arrays):
    data = read(save(tmp_path, arrays), tmp_path / "d", X)
    parts = rows_of(data)
    assert sum(len(part) for part in parts.values()) == N
    assert data.labelled
    assert data.facts["rows"] == {name: len(parts[name]) for name in ("train", "search", "holdout")}
    assert data.facts["segments"] == ["age", "sex"]
    json.dumps(data.facts, allow_nan=False)
    by_row = {tuple(x): i for i, x in enumerate(arrays["x"])}
    for part in parts.values():
        x = part.inputs(slice(None))["x"]
        picked = [by_row[tuple(row)] for row in x]
        assert part.label.tolist() == arrays["label"][picked].tolist()
        assert part.segments["sex"].tolist() == arrays["sex"][picked].tolist()
        assert part.segments["age"].tolist() == arrays["age"][picked].tolist()


def test_a_mapping_a_frame_and_files_are_the_same_data(tmp_path, arrays):
    table = pd.DataFrame(arrays["x"], columns=list("abcd"))
    table["y"], table["sex"] = arrays["label"], arrays["sex"]
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    data = [
        read(arrays, tmp_path / "1", X, segments=["sex"]),
        read(table, tmp_path / "2", X, label="y"),
        read(tmp_path / "t.parquet", tmp_path / "3", X, label="y"),
        read(tmp_path / "t.csv", tmp_path / "4", X, label="y", segments=["sex"]),
    ]
    assert len({each.holdout.digest for each in data}) == 1
    assert len({each.search.digest for each in data}) == 1
    assert data[3].facts["casts"] == ["x: float64 -> float32"]
    assert data[1].search.segments["sex"].dtype.kind == "U"


def test_columns_named_as_inputs(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.integers(20, 60, N),
            "job": rng.choice(["a", "b"], N),
            "label": rng.integers(0, 2, N),
            "note": "x",
        }
    )
    model = signature(("age", "float32", (None, 1)), ("job", "str", (None, 1)))
    data = read(table, tmp_path, model)
    batch = data.search.example(0)
    assert (batch["age"].shape, batch["age"].dtype) == ((1, 1), np.float32)
    assert (batch["job"].shape, batch["job"].dtype.kind) == ((1, 1), "U")
    assert data.facts["segments"] == ["note"]
    table.loc[3, "job"] = None
    with pytest.raises(WrongRequest, match="column job misses 1 values, the first in row 3"):
        read(table, tmp_path, model)


def test_a_segment_may_be_a_feature_where_the_width_says_so(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(N, 4)), columns=list("abcd"))
    table["label"] = 1
    assert read(table, tmp_path, X, segments=["d"]).search.segments.keys() == {"d"}
    table["e"] = 1
    data = read(table, tmp_path, X, segments=["e"])
    assert data.search.segments["e"].tolist() == [1] * len(data.search)
    table["label"] = pd.array([1, None] * (N // 2), dtype="Int64")
    with pytest.raises(WrongRequest, match=r"150 of 300 labels are NaN.*row 1"):
        read(table, tmp_path, X, segments=["e"])


def test_gaps_in_segments_are_a_value(tmp_path, arrays):
    table = pd.DataFrame(arrays["x"], columns=list("abcd"))
    table["job"], table["income"] = ["a", None, "b"] * 100, [1.5, np.nan, 2.0] * 100
    data = read(table, tmp_path, X, segments=["job", "income"])
    assert set(data.search.segments["job"]) == {"a", "b", "missing"}
    assert set(data.search.segments["income"]) == {"1.5", "2.0", "missing"}
    assert not data.labelled
    assert data.search.label is None


def test_images_by_class(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("dog", "cat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (10, 8, 3)).astype(np.uint8)
            pixels[..., 0] = 255 if name == "dog" else 0
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{i}.png")
    (tmp_path / "in" / "cat" / "notes.txt").write_text("x")
    first = signature(("x", "float32", (None, 3, 4, 5)))
    data = read(tmp_path / "in", tmp_path / "a", first)
    batch = next(data.search.batches(4, labels=True))
    assert batch["x"].shape == (4, 3, 4, 5)
    np.testing.assert_allclose(batch["x"][:, 0].mean((1, 2)), batch["label"], atol=0.01)
    assert batch["x"].max() <= 1
    assert "1 files that are no images were left out" in data.facts["notes"]
    last = read(tmp_path / "in", tmp_path / "b", signature(("x", "uint8", (None, 10, 8, 3))))
    kept = {each.tobytes() for each in last.search.inputs(slice(None))["x"]}
    original = {
        np.asarray(Image.open(path)).tobytes() for path in (tmp_path / "in").glob("*/*.png")
    }
    assert kept <= original
    with pytest.raises(WrongRequest, match="fixed height and width"):
        read(tmp_path / "in", tmp_path / "c", signature(("x", "float32", (None, 3, None, None))))
    (tmp_path / "in" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(WrongRequest, match=r"cat/0.png is not an image"):
        read(tmp_path / "in", tmp_path / "d", first)
    assert not list(tmp_path.glob("*/.reading*"))


def test_images_by_split_and_class(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("0", "1"):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (4, 4)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "in" / split / name / f"{i}.png")
    data = read(tmp_path / "in", tmp_path / "d", signature(("x", "float32", (None, 1, 4, 4))))
    assert data.facts["rows"] == {"train": 6, "search": 6, "holdout": 6}


FACTORY = """
    import numpy as np

    X = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    Y = np.arange(300) % 3

    def mapping():
        return {"x": X, "label": Y}

    def pair():
        return X, Y

    def batches():
        return [(X[i : i + 7], Y[i : i + 7]) for i in range(0, 300, 7)]

    def stream():
        yield from (({"x": X[i : i + 7]}, Y[i : i + 7]) for i in range(0, 300, 7))

    class DataSet:
        def __len__(self):
            return 300

        def __getitem__(self, row):
            return X[row], Y[row]

    class Tables(DataSet):
        def __getitem__(self, row):
            return {"x": X[row].tolist(), "label": int(Y[row])}

    def broken():
        raise RuntimeError("no disk")
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "make.py"
    path.write_text(textwrap.dedent(FACTORY))
    return path


@pytest.mark.parametrize("name", ["mapping", "pair", "batches", "stream", "DataSet", "Tables"])
def test_factories(tmp_path, factory, name):
    data = read(f"{factory}:{name}", tmp_path / name, X)
    assert data.holdout.digest == read(f"{factory}:mapping", tmp_path / "m", X).holdout.digest
    assert data.search.inputs(slice(0, 2))["x"].dtype == np.float32


def test_torch_batches(tmp_path):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    rows = TensorDataset(torch.randn(N, 4, requires_grad=True).detach(), torch.arange(N) % 3)
    loaded = read(DataLoader(rows, batch_size=32), tmp_path / "a", X)
    assert loaded.holdout.digest == read(rows, tmp_path / "b", X).holdout.digest


def test_batches_of_different_length_are_padded_where_there_is_a_mask(tmp_path):
    rng = np.random.default_rng(0)
    items = []
    for i in range(60):
        long = 3 + i % 4
        ids = rng.integers(1, 9, (2, long))
        items.append(({"ids": ids, "attention_mask": np.ones_like(ids)}, np.array([0, 1])))
    data = read(items, tmp_path, TOKENS)
    assert data.search.inputs(slice(None))["ids"].shape[1] == 6
    assert set(data.search.lengths) == {3, 4, 5, 6}
    for item in items:
        item[0]["x"] = item[0].pop("attention_mask")
    free = signature(("ids", "int64", (None, None)), ("x", "int64", (None, None)))
    with pytest.raises(WrongRequest, match="rows of ids differ in shape"):
        read(items, tmp_path, free)


def test_factories_fail_with_a_sentence(tmp_path, factory):
    with pytest.raises(WrongRequest, match="failed: RuntimeError: no disk"):
        read(f"{factory}:broken", tmp_path, X)
    with pytest.raises(WrongRequest, match="has no function 'none'; it has: mapping"):
        read(f"{factory}:none", tmp_path, X)
    with pytest.raises(WrongRequest, match="no such file"):
        read(f"{tmp_path}/no.py:none", tmp_path, X)
    with pytest.raises(WrongRequest, match="data of type int cannot be read"):
        read(3, tmp_path, X)
    with pytest.raises(WrongRequest, match="not one row"):
        read([], tmp_path, X)


def test_pickles_need_trust(tmp_path, arrays):
    path = tmp_path / "d.pkl"
    path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(WrongRequest, match="--trust"):
        read(path, tmp_path / "d", X)
    assert read(path, tmp_path / "d", X, trust=True).labelled


# --- what does not fit


def changed(arrays, **more):
    return {**arrays, **more}


def test_files_that_cannot_be_read(tmp_path, arrays):
    with pytest.raises(WrongRequest, match="no such file or folder"):
        read(tmp_path / "none.npz", tmp_path / "d", X)
    path = save(tmp_path, arrays)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", np.random.default_rng(0).bytes(999)):
        path.write_bytes(broken)
        with pytest.raises(WrongRequest, match=r"is not an \.npz file"):
            read(path, tmp_path / "d", X)
    for suffix in (".csv", ".parquet"):
        (tmp_path / f"t{suffix}").write_bytes(b"")
        with pytest.raises(WrongRequest, match=f"is not a {suffix} file"):
            read(tmp_path / f"t{suffix}", tmp_path / "d", X)
    objects = save(tmp_path, {"x": np.array([{}], dtype=object)}, "o.npz")
    with pytest.raises(WrongRequest, match="holds Python objects"):
        read(objects, tmp_path / "d", X)
    (tmp_path / "a.dat").write_text("x")
    with pytest.raises(WrongRequest, match=r"data come as \.npz"):
        read(tmp_path / "a.dat", tmp_path / "d", X)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WrongRequest, match="one sub-folder for each class"):
        read(tmp_path / "empty", tmp_path / "d", signature(("x", "float32", (None, 3, 4, 4))))


def test_damaged_bytes_are_one_sentence(tmp_path, arrays):
    rng = np.random.default_rng(0)
    whole = save(tmp_path, arrays).read_bytes()
    damaged = tmp_path / "damaged.npz"
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            # The end holds the directory, where most kinds of damage are.
            low = len(content) - 600 if rng.random() < 0.7 else 0
            content[rng.integers(low, len(content))] = rng.integers(256)
        damaged.write_bytes(content)
        try:
            _open_npz(damaged)
        except WrongRequest as error:
            assert str(damaged) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 200


def nan_at(x, row):
    x = x.copy()
    x[row, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: {"z": a["x"]}, "no array x; the model's inputs are x and the data have z"),
        (lambda a: changed(a, x=a["x"][:, :3]), r"shape \(300, 3\); the model takes \[N, 4\]"),
        (lambda a: changed(a, x=a["x"][:, :, None]), r"the model takes \[N, 4\]"),
        (lambda a: changed(a, x=a["x"].astype(str)), "cannot hold it without loss"),
        (lambda a: changed(a, x=a["x"].astype(complex)), "cannot hold it without loss"),
        (lambda a: changed(a, x=nan_at(a["x"], 7)), "x has NaN .* 1 of 300 rows.* row 7"),
        (lambda a: changed(a, x=a["x"] * 1e300), "x has NaN or inf"),
        (lambda a: changed(a, label=a["label"][:9]), "numbers of rows: x 300, label 9"),
        (lambda a: changed(a, label=nan_at(a["x"], 4)[:, 1]), "1 of 300 labels are NaN.*row 4"),
        (lambda a: {k: v[:0] for k, v in a.items()}, "not one row"),
        (lambda a: {k: v[:1] for k, v in a.items()}, "is empty: .*too few different rows"),
        (lambda a: changed(a, split=np.array(["search"] * N)), "holdout is empty: the split names"),
        (lambda a: changed(a, split=np.array(["blue"] * N)), r"unknown parts \(blue\)"),
        (lambda a: changed(a, group=a["x"]), "group has shape"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, change, sentence):
    with np.errstate(over="ignore"), pytest.raises(WrongRequest, match=sentence):
        read(change(arrays), tmp_path, X)


def test_names_that_are_not_there(tmp_path, arrays):
    with pytest.raises(WrongRequest, match="no label 'lable'; did you mean 'label'"):
        read(arrays, tmp_path, X, label="lable")
    with pytest.raises(WrongRequest, match="no segment 'region'; there are: sex, age"):
        read(arrays, tmp_path, X, segments=["region"])
    with pytest.raises(WrongRequest, match="no group 'user'"):
        read(arrays, tmp_path, X, group="user")
    table = pd.DataFrame(arrays["x"][:, :3], columns=list("abc"))
    with pytest.raises(WrongRequest, match=r"takes 4 numbers a row and the data have 3.*: a, b, c"):
        read(table, tmp_path, X)
    two = signature(("a", "float32", (None, 1)), ("q", "float32", (None, 1)))
    with pytest.raises(WrongRequest, match="no column q; the model's inputs are a, q"):
        read(table, tmp_path, two)


def test_integers_and_floats(tmp_path):
    ids = signature(("ids", "int64", (None, 2)))
    small = np.arange(2 * N, dtype=np.int32).reshape(N, 2)
    assert read({"ids": small}, tmp_path, ids).facts["casts"] == ["ids: int32 -> int64"]
    with pytest.raises(WrongRequest, match="ids is float64 and the model takes int64"):
        read({"ids": small.astype(float)}, tmp_path, ids)
    byte = signature(("ids", "uint8", (None, 2)))
    with pytest.raises(WrongRequest, match="without loss"):
        read({"ids": small}, tmp_path, byte)
    real = signature(("ids", "float32", (None, 2)))
    assert read({"ids": small}, tmp_path, real).search.inputs(slice(1))["ids"].dtype == np.float32
    with pytest.raises(WrongRequest, match="without loss"):
        read({"ids": small.astype(np.int64) + 2**40}, tmp_path, real)


def test_images_the_wrong_way_round(tmp_path):
    model = signature(("x", "float32", (None, 3, 8, 6)))
    with pytest.raises(WrongRequest, match=r"transposed by \(0, 3, 1, 2\)"):
        read({"x": np.zeros((5, 8, 6, 3), np.float32)}, tmp_path, model)


def test_an_input_without_rows(tmp_path):
    model = signature(("x", "float32", (None, 4)), ("rate", "int64", ()))
    with pytest.raises(WrongRequest, match="rate is a single number"):
        read({"x": np.zeros((5, 4)), "rate": np.array(8000)}, tmp_path, model)


# --- the split


def test_the_split_is_of_content(tmp_path, arrays):
    once = read(arrays, tmp_path / "1", X)
    order = np.random.default_rng(1).permutation(N)
    turned = read({k: v[order] for k, v in arrays.items()}, tmp_path / "2", X)
    assert turned.holdout.digest == once.holdout.digest
    assert turned.search.digest == once.search.digest
    assert turned.train.digest == once.train.digest
    more = {k: np.concatenate([v, v[:50]]) for k, v in arrays.items()}
    more["x"][N:] += 1
    rows = {
        name: {x.tobytes() for x in p.inputs(slice(None))["x"]} for name, p in rows_of(once).items()
    }
    for name, part in rows_of(read(more, tmp_path / "3", X)).items():
        assert rows[name] <= {x.tobytes() for x in part.inputs(slice(None))["x"]}
    other = read(arrays, tmp_path / "4", X, seed=1)
    assert other.holdout.digest != once.holdout.digest


def test_the_shares_of_the_split(tmp_path):
    x = np.random.default_rng(0).normal(size=(20_000, 1)).astype(np.float32)
    for seed in (0, 1):
        part = by_rows.by_content(by_rows.places(by_rows.digests({"x": x}), seed))
        np.testing.assert_allclose(np.bincount(part) / len(x), [0.2, 0.3, 0.5], atol=0.012)


def test_the_first_rows_of_a_part_are_a_random_sample(tmp_path):
    """Data sorted by class must not calibrate on one class."""
    rng = np.random.default_rng(0)
    label = np.sort(rng.integers(0, 2, 4000))
    data = read({"x": rng.normal(size=(4000, 4)), "label": label}, tmp_path, X)
    for part in (data.train, data.search):
        assert 0.4 < part.label[:200].mean() < 0.6


def test_duplicates_stay_together(tmp_path, arrays):
    doubled = {k: np.concatenate([v, v]) for k, v in arrays.items()}
    doubled["label"][N] = (doubled["label"][0] + 1) % 3
    data = read(doubled, tmp_path, X)
    assert data.facts["leaks"] == {"train": 0, "search": 0}
    for name, part in rows_of(data).items():
        assert data.facts["duplicates"][name] == len(part) // 2
    assert data.facts["conflicting"] <= 1


def test_repeated_rows_are_one_unit(tmp_path, arrays):
    assert read(arrays, tmp_path / "1", X).search.unit is None
    doubled = {k: np.concatenate([v, v]) for k, v in arrays.items()}
    data = read(doubled, tmp_path / "2", X)
    parts = [*rows_of(data).values(), fresh(doubled, tmp_path / "3", X).open()]
    for part in parts:
        x = [row.tobytes() for row in part.inputs(slice(None))["x"]]
        pairs = set(zip(x, part.unit.tolist(), strict=True))
        assert len(pairs) == len(set(x)) == len(set(part.unit.tolist())) == len(part) // 2
        assert part.group is None


def test_conflicts_are_counted_outside_the_holdout(tmp_path, arrays):
    doubled = {k: np.concatenate([v, v]) for k, v in arrays.items()}
    doubled["label"][N:] = (doubled["label"][:N] + 1) % 3
    data = read(doubled, tmp_path, X)
    assert data.facts["conflicting"] == (len(data.train) + len(data.search)) // 2
    assert any("different labels" in each for each in data.facts["warnings"])


def test_a_given_split_and_its_leaks(tmp_path, arrays):
    split = np.array(["calibration", "validation", "test"] * (N // 3))
    for row, copy in ((0, 2), (3, 5), (1, 2), (6, 4)):  # train, train, search, train of search
        arrays["x"][row] = arrays["x"][copy]
    data = read({**arrays, "split": split}, tmp_path, X)
    assert data.facts["split"] == "given"
    assert data.facts["leaks"] == {"train": 3, "search": 1}
    assert data.facts["rows"] == {"train": 97, "search": 99, "holdout": 100}
    assert "4 rows stand in more than one part" in data.facts["warnings"][0]
    held = {x.tobytes() for x in data.holdout.open().inputs(slice(None))["x"]}
    for part in (data.train, data.search):
        assert not held & {x.tobytes() for x in part.inputs(slice(None))["x"]}
    two = read({**arrays, "split": np.array(["search", "holdout"] * (N // 2))}, tmp_path, X)
    assert two.train is None


def test_nothing_left_of_a_part(tmp_path, arrays):
    both = {k: np.concatenate([v, v]) for k, v in arrays.items()}
    both["split"] = np.repeat(["search", "holdout"], N)
    with pytest.raises(WrongRequest, match="search is empty: every row of it is in the holdout"):
        read(both, tmp_path, X)


def test_groups_stay_together(tmp_path, arrays):
    group = np.repeat(np.arange(60), 5)
    data = read({**arrays, "group": group}, tmp_path, X)
    groups = [set(part.group.tolist()) for part in rows_of(data).values()]
    assert sum(len(each) for each in groups) == 60
    assert data.facts["split"].endswith("groups kept together")
    first = data.search.group[:10]
    assert len(set(first.tolist())) == 2  # whole groups one after the other
    split = np.array(["search", "holdout"] * (N // 2))
    with pytest.raises(WrongRequest, match="search is empty"):
        read({**arrays, "group": group, "split": split}, tmp_path, X)


def contents(part):
    return {x.tobytes() for x in part.inputs(slice(None))["x"]}


def test_groups_that_share_a_row_stay_together(tmp_path, arrays):
    group = np.repeat(np.arange(60), 5)
    for one in range(0, 60, 3):  # the first two of every three groups share a row
        arrays["x"][5 * one] = arrays["x"][5 * one + 7]
    data = read({**arrays, "group": group}, tmp_path, X)
    parts = list(rows_of(data).values())
    assert data.facts["leaks"] == {"train": 0, "search": 0}
    assert sum(len(part) for part in parts) == N
    for part in parts:
        there = set(part.group.tolist())
        assert all((one in there) == (one + 1 in there) for one in range(0, 60, 3))
        assert len(set(part.unit.tolist())) < len(there)


def test_a_group_does_not_hide_a_leak(tmp_path, arrays):
    group, split = np.arange(N), np.array(["train", "search", "holdout"] * (N // 3))
    arrays["x"][0], arrays["x"][4] = arrays["x"][2], arrays["x"][5]
    data = read({**arrays, "group": group, "split": split}, tmp_path / "1", X)
    assert data.facts["leaks"] == {"train": 1, "search": 1}
    assert not (contents(data.train) | contents(data.search)) & contents(data.holdout.open())
    arrays["x"][::5] = 0  # a row that says nothing, in every group: no split could keep them whole
    data = read({**arrays, "group": np.repeat(np.arange(60), 5)}, tmp_path / "2", X)
    assert any("share rows" in each for each in data.facts["warnings"])
    assert not (contents(data.train) | contents(data.search)) & contents(data.holdout.open())


def test_the_holdout_is_known_by_its_rows_and_labels(tmp_path, arrays):
    digest = read(arrays, tmp_path / "1", X).holdout.digest
    assert read(arrays, tmp_path / "2", X, segments=["sex"]).holdout.digest == digest
    as_int8 = {**arrays, "label": arrays["label"].astype(np.int8)}
    assert read(as_int8, tmp_path / "3", X).holdout.digest == digest
    other = {**arrays, "label": (arrays["label"] + 1) % 3}
    assert read(other, tmp_path / "4", X).holdout.digest != digest


def test_hashing_is_fast():
    x = np.random.default_rng(0).normal(size=(10_000, 784)).astype(np.float32)
    began = time.perf_counter()
    by_rows.digests({"x": x})
    assert time.perf_counter() - began < 1


# --- parts


def test_the_seal(tmp_path, arrays):
    data = read(arrays, tmp_path, X)
    assert isinstance(data.holdout, Sealed)
    assert str(tmp_path) not in repr(data.holdout)
    assert not hasattr(data.holdout, "inputs")
    part = data.holdout.open()
    assert isinstance(part, Part)
    assert len(part) == data.holdout.rows
    assert part.folder.name == "sealed"


def test_parts_are_cheap_and_read_only(tmp_path, arrays):
    part = read(arrays, tmp_path, X).search
    assert part.label is not None
    assert part.segments
    part.inputs(slice(None))
    sent = pickle.dumps(part)
    assert len(sent) < 400
    again = pickle.loads(sent)
    assert again == part
    np.testing.assert_array_equal(again.label, part.label)
    with pytest.raises(ValueError, match="read-only"):
        part.label[0] = 3
    rows = np.array([4, 1])
    np.testing.assert_array_equal(part.inputs(rows)["x"], part.inputs(slice(None))["x"][rows])


def test_batches(tmp_path, arrays):
    part = read(arrays, tmp_path, X).search
    batches = list(part.batches(7, most=20, labels=True))
    assert [len(each["x"]) for each in batches] == [7, 7, 6]
    joined = np.concatenate([each["x"] for each in batches])
    np.testing.assert_array_equal(joined, part.inputs(slice(20))["x"])
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), part.label[:20])
    assert "label" not in next(part.batches())
    assert sum(len(each["x"]) for each in part.batches(64)) == len(part)


def tokens(lengths, width=12, left=False):
    lengths = np.asarray(lengths)
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    mask = mask[:, ::-1] if left else mask
    ids = np.random.default_rng(0).integers(1, 1000, mask.shape) * mask
    return {"ids": ids, "attention_mask": mask}


def test_rows_are_trimmed_to_the_longest_of_a_batch(tmp_path):
    lengths = np.random.default_rng(1).integers(1, 10, N)
    data = read({**tokens(lengths), "label": lengths % 3}, tmp_path, TOKENS)
    part = data.search
    assert part.mask == "attention_mask"
    assert data.facts["mask"]["trims"] == "attention_mask"
    assert sorted(np.concatenate([p.lengths for p in rows_of(data).values()])) == sorted(lengths)
    for row in range(5):
        one = part.example(row)
        assert one["ids"].shape == one["attention_mask"].shape == (1, part.lengths[row])
        assert one["ids"].all()
    for start, batch in zip(range(0, 16, 8), part.batches(8, most=16), strict=True):
        longest = part.lengths[start : start + 8].max()
        assert batch["ids"].shape == (8, longest)
        np.testing.assert_array_equal(
            batch["ids"], part.inputs(slice(start, start + 8))["ids"][:, :longest]
        )
    assert part.inputs(slice(3))["ids"].shape == (3, 12)


@pytest.mark.parametrize(
    ("arrays", "model", "why"),
    [
        (tokens([3] * N, left=True), TOKENS, "padding on the left"),
        (tokens([0, 3] * (N // 2)), TOKENS, "some rows are all padding"),
        (
            tokens([3] * N),
            signature(("ids", "int64", (None, 12)), ("attention_mask", "int64", (None, 12))),
            "ids has the fixed length 12",
        ),
        (
            tokens([3] * N),
            signature(
                ("ids", "int64", (None, None)),
                ("attention_mask", "int64", (None, None)),
                output=("tags", "float32", (None, None, 5)),
            ),
            "every output has the length",
        ),
    ],
)
def test_rows_that_are_not_trimmed(tmp_path, arrays, model, why):
    data = read(arrays, tmp_path, model)
    assert data.search.mask is None
    assert data.search.lengths is None
    assert why in data.facts["mask"]["why"]
    assert data.search.example(0)["ids"].shape == (1, 12)


def test_a_mask_of_another_name(tmp_path):
    arrays = tokens([3, 5] * (N // 2))
    arrays["m"] = arrays.pop("attention_mask")
    model = signature(("ids", "int64", (None, None)), ("m", "int64", (None, None)))
    assert read(arrays, tmp_path, model).search.mask is None
    assert read(arrays, tmp_path, model, mask="m").search.mask == "m"
    with pytest.raises(WrongRequest, match="there is no input 'k'"):
        read(arrays, tmp_path, model, mask="k")


def test_fresh_data_are_all_holdout(tmp_path, arrays):
    arrays["split"] = np.array(["train"] * N)
    sealed = fresh(save(tmp_path, arrays), tmp_path / "d", X)
    part = sealed.open()
    assert len(part) == sealed.rows == N
    assert set(part.segments) == {"sex", "age"}
    assert sorted(part.label) == sorted(arrays["label"])
    shuffled = {k: v[::-1] for k, v in arrays.items()}
    assert fresh(shuffled, tmp_path / "e", X).digest == sealed.digest


def test_reading_again_replaces(tmp_path, arrays):
    first = read(arrays, tmp_path, X)
    held = first.holdout.digest
    assert read(arrays, tmp_path, X).holdout.digest == held
    short = {k: v[:200] for k, v in arrays.items()}
    again = read(short, tmp_path, X)
    assert len(again.search) == len(again.search.label) < len(first.search)
