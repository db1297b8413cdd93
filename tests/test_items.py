"""PyTorch's data loaders and data sets, and whatever else gives rows one after another."""

from __future__ import annotations

import textwrap
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Case, Said

import sartor
from sartor import items as reading
from sartor.contracts import Port, Signature, WrongRequest
from sartor.data import Data, read
from sartor.glimpse import looker, repeatable
from sartor.items import items_of
from sartor.records import Journal

torch = pytest.importorskip("torch")
from torch.utils.data import (  # noqa: E402
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

N = 240
RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(N, 4)).astype(np.float32), RNG.normal(size=(N, 2)).astype(np.float32)
Y = np.arange(N) % 3
IDS = RNG.integers(1, 99, (N, 6))
tx, tz, ty, tids = (torch.from_numpy(each) for each in (X, Z, Y, IDS))


def signature(*inputs: Any) -> Signature:
    return Signature(tuple(Port(*each) for each in inputs), (Port("y", "float32", (None, 3)),))


ONE = signature(("x", "float32", (None, 4)))
TWO = signature(("x", "float32", (None, 4)), ("z", "float32", (None, 2)))
TOKENS = signature(("input_ids", "int64", (None, None)), ("attention_mask", "int64", (None, None)))


class Rows(Dataset):  # type: ignore[type-arg]
    """A map-style data set: `give` makes the example of a row."""

    def __init__(self, give: Any, count: int = N) -> None:
        self.give, self.count = give, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        return self.give(row)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Reads each row once and says so; a length is only what its author believes."""

    def __init__(self, give: Any, count: int = N) -> None:
        self.give, self.count, self.begun = give, count, 0

    def __len__(self) -> int:
        return 7 * self.count

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return (self.give(row) for row in range(self.count))


def same(found: Data, expected: Data) -> bool:
    """The same rows with the same labels: the digest of a holdout is over both."""
    parts = ((found.search, expected.search), (found.holdout, expected.holdout))
    return all(one.digest == two.digest for one, two in parts) and found.labelled


def loaders() -> dict[str, Any]:
    pairs, triples = TensorDataset(tx, ty), TensorDataset(tx, tz, ty)
    Row = namedtuple("Row", "z x label")
    return {
        "pairs": DataLoader(pairs, batch_size=32),
        "shuffled": DataLoader(pairs, batch_size=7, shuffle=True),
        "by workers": DataLoader(pairs, batch_size=16, num_workers=1),
        "without batches": DataLoader(pairs, batch_size=None),
        "data set": pairs,
        "all of a subset": Subset(pairs, range(N)),
        "numpy examples": Rows(lambda at: (X[at], int(Y[at]))),
        "lists of numbers": Rows(lambda at: (X[at].tolist(), int(Y[at]))),
        "batches by number": Rows(lambda at: (X[12 * at :][:12], Y[12 * at :][:12]), N // 12),
        "stream": Stream(lambda at: (X[at], Y[at])),
        "stream in batches": DataLoader(
            Stream(lambda at: {"x": X[8 * at :][:8], "label": Y[8 * at :][:8]}, N // 8),
            batch_size=None,
        ),
        "generator": ((tx[at : at + 9], ty[at : at + 9]) for at in range(0, N, 9)),
        "rows of one": Rows(lambda at: (tx[at : at + 1], ty[at])),
        "labels": DataLoader(
            Rows(lambda at: {"labels": Y[at], "x": X[at]}), batch_size=32, drop_last=False
        ),
        "names": Rows(lambda at: Row(Z[at], X[at], Y[at])),
        "three": DataLoader(triples, batch_size=64),
        "three examples": triples,
        "nested": DataLoader(Rows(lambda at: ((X[at], Z[at]), Y[at])), batch_size=10),
    }


@pytest.mark.parametrize("name", list(loaders()))
def test_all_give_the_same_rows(name: str, tmp_path: Path) -> None:
    two = name in ("names", "three", "three examples", "nested")
    arrays = {"x": X, "z": Z, "label": Y} if two else {"x": X, "label": Y}
    expected = read(arrays, tmp_path / "a", TWO if two else ONE)
    source = repeatable(loaders()[name])
    looker(source)()  # as a run does, before the model is known
    assert same(read(source, tmp_path / "b", TWO if two else ONE), expected)


def test_a_stream_is_read_once(tmp_path: Path) -> None:
    stream = Stream(lambda at: (X[at], Y[at]))
    source = repeatable(stream)
    assert looker(source)().unnamed[0].shape == (32, 4)
    assert len(read(source, tmp_path, ONE).search) > 50
    assert stream.begun == 1


def test_text_models_get_their_inputs_by_name(tmp_path: Path) -> None:
    """As Hugging Face's collators give them: padded to the longest of a batch, and more keys than
    the model takes."""

    def batches() -> Iterator[Any]:
        for at in range(0, N, 16):
            width = 3 + at // 16 % 4
            ids = tids[at : at + 16, :width]
            kinds = torch.zeros_like(ids)
            yield {
                "input_ids": ids, "token_type_ids": kinds, "attention_mask": kinds + 1,
                "labels": ty[at : at + 16], "idx": torch.arange(at, at + len(ids)),
            }  # fmt: skip

    found = read(batches(), tmp_path, TOKENS)
    assert found.labelled
    assert found.facts["mask"]["trims"] == "attention_mask"
    assert found.facts["segments"] == ["idx"]
    part = found.search
    assert part.inputs(slice(None))["input_ids"].shape[1] == 6
    assert part.label is not None
    for row in range(len(part)):
        at = int(part.segments["idx"][row])
        length = 3 + at // 16 % 4
        given = part.example(row)["input_ids"][0]
        assert given.tolist() == IDS[at, :length].tolist()
        assert part.label[row] == Y[at]


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (lambda: DataLoader(TensorDataset(tx), batch_size=32), ONE),
        (lambda: DataLoader(tx, batch_size=32), ONE),
        (lambda: Rows(lambda at: (X[at], None)), ONE),
        (lambda: Rows(lambda at: X[at]), ONE),
        (lambda: DataLoader(TensorDataset(tx, tz), batch_size=32), TWO),
        (lambda: Rows(lambda at: {"z": Z[at], "x": X[at]}), TWO),
    ],
)
def test_labels_may_be_missing(source: Any, shape: Signature, tmp_path: Path) -> None:
    held = repeatable(source())
    looker(held)()
    found = read(held, tmp_path, shape)
    assert not found.labelled
    assert len(found.search) + len(found.holdout.open()) > N / 2


def test_labels_of_several_numbers_are_no_batch(tmp_path: Path) -> None:
    rows = Rows(lambda at: (torch.from_numpy(X[at]), torch.from_numpy(X[at] * 2)))
    assert looker(repeatable(rows))().unnamed[0].shape == (32, 4)
    found = read(rows, tmp_path, ONE)
    assert found.search.label is not None
    assert found.search.label.shape == (len(found.search), 4)


def test_one_number_a_row(tmp_path: Path) -> None:
    column = signature(("x", "float32", (None, 1)))
    whole = read({"x": X[:, :1], "label": Y}, tmp_path / "a", column)
    flat = TensorDataset(tx[:, 0], ty)
    for at, source in enumerate((DataLoader(flat, batch_size=9), flat)):
        assert same(read(source, tmp_path / str(at), column), whole)


def test_a_type_that_numpy_does_not_have(tmp_path: Path) -> None:
    half = DataLoader(TensorDataset(tx.bfloat16(), ty), batch_size=32)
    taken = read(half, tmp_path, ONE).search.inputs(slice(None))["x"]
    assert taken.dtype == np.float32
    known = {each.tobytes() for each in tx.bfloat16().float().numpy()}
    assert {each.tobytes() for each in taken} <= known


def test_a_loader_for_each_part(tmp_path: Path) -> None:
    """As training scripts have them: train, validation and test."""
    cuts = {"train": slice(0, 60), "val": slice(60, 120), "test": slice(120, N)}
    parts = {
        name: DataLoader(TensorDataset(tx[cut], ty[cut]), batch_size=32, shuffle=name == "train")
        for name, cut in cuts.items()
    }
    source = repeatable(parts)
    assert looker(source)().unnamed[0].shape[1:] == (4,)
    found = read(source, tmp_path / "a", ONE)
    assert found.facts["rows"] == {"train": 60, "search": 60, "holdout": 120}
    split = np.repeat(["train", "val", "test"], [60, 60, 120])
    assert same(found, read({"x": X, "label": Y, "split": split}, tmp_path / "b", ONE))
    mapped = {name: {"x": X[cut], "label": Y[cut]} for name, cut in cuts.items()}
    assert same(read(mapped, tmp_path / "c", ONE), found)
    del parts["val"]
    with pytest.raises(WrongRequest, match="the part search is empty: the split names no row"):
        read(parts, tmp_path / "d", ONE)
    with pytest.raises(WrongRequest, match="the part test: data of type int cannot be read"):
        read({"train": parts["train"], "test": 3}, tmp_path / "e", ONE)


# -- what goes wrong -----------------------------------------------------------------------------


def fails(at: int) -> Any:
    if at == 100:
        raise ValueError("row 100\nis broken")
    return X[at], Y[at]


def ragged(at: int) -> Any:
    return X[at, : 3 + (at == 70)], Y[at]


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield X, Y


class Lengthless:
    def __getitem__(self, row: int) -> Any:
        return X[row], Y[row]


WRONG = {
    "raises": (
        lambda: DataLoader(Rows(fails), batch_size=32),
        r"^the DataLoader raised ValueError: row 100 after 3 batches$",
    ),
    "raises in a worker": (
        lambda: DataLoader(Rows(lambda at: X[at] if at < 50 else X[N]), 8, num_workers=1),
        r"^the DataLoader raised IndexError: index 240 is out of bounds .* after 6 batches$",
    ),
    "raises at an example": (
        lambda: Rows(fails),
        r"^the Rows raised ValueError: row 100 after 100 examples$",
    ),
    "raises at once": (
        lambda: Stream(lambda at: X[N]),
        r"^the Stream raised IndexError: .* after 0 items$",
    ),
    "raises in one part": (
        lambda: {"train": DataLoader(Rows(fails), batch_size=64), "test": TensorDataset(tx, ty)},
        r"^the DataLoader of train raised ValueError: row 100 after 1 batch$",
    ),
    "no rows": (lambda: DataLoader(Rows(fails, 0)), "^the data are empty: there is not one row$"),
    "no batch of all": (
        lambda: DataLoader(Rows(lambda at: (X[at], Y[at]), 9), batch_size=32, drop_last=True),
        "^the data are empty: there is not one row$",
    ),
    "ragged rows": (
        lambda: Rows(ragged),
        r"^rows of x differ in shape \(\(3,\) at first, \(4,\) in example 71 of the Rows\): pad",
    ),
    "ragged rows in a batch": (
        lambda: DataLoader(Rows(ragged), batch_size=32),
        r"^the DataLoader raised RuntimeError: stack expects each tensor to be equal size.* after "
        r"2 batches$",
    ),
    "ragged lists": (
        lambda: [{"x": [[1, 2, 3, 4], [1, 2, 3]], "label": [0, 1]}],
        r"^item 1 of the list holds rows that differ in shape, .*pad them to one length",
    ),
    "too many": (
        lambda: DataLoader(TensorDataset(tx, tz, tz, ty), batch_size=32),
        r"^the data give 4 arrays without names and the model takes 1: x; give \(x\) or "
        r"\(x, label\), or a mapping",
    ),
    "other names": (
        lambda: Rows(lambda at: {"pixels": X[at], "label": Y[at]}),
        "^the data have no array x; the model's inputs are x and the data have pixels, label$",
    ),
    "names that come and go": (
        lambda: Rows(lambda at: {"x": X[at], "label": Y[at]} | ({"age": 3} if at == 4 else {})),
        r"^the data's items differ: example 5 of the Rows has x, label, age, those before it",
    ),
    "fewer labels": (
        lambda: [(X[:9], Y[:9]), (X[:9], Y[:8])],
        r"^item 2 of the list has different numbers of rows: 9 of x, 8 of label$",
    ),
    "no length": (Lengthless, r"^a Lengthless has no length: write its __len__, or an __iter__"),
    "no end": (Endless, r"^the data have not ended at item \d+ of the Endless, where they fill"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_goes_wrong_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MOST", 1e-6)  # of the free disk
    make, sentence = WRONG[name]
    with pytest.raises(WrongRequest, match=sentence):
        read(repeatable(make()), tmp_path, ONE)
    assert not list(tmp_path.glob("**/items-*"))


def test_what_is_no_data() -> None:
    assert items_of({"x": X, "label": Y}) is None
    assert items_of(X) is None
    for source in (3, "text", lambda: 3):
        with pytest.raises(WrongRequest, match="cannot be read"):
            items_of(source)


def test_unnamed_arrays_go_to_the_parameters_of_a_module() -> None:
    """The last of them is a label, unless the module takes it."""
    from sartor.runtimes._torch_adopt import matched

    both = looker(repeatable(DataLoader(TensorDataset(tx, tz), batch_size=9)))()
    assert (len(both.unnamed), both.last is not None) == (1, True)
    assert list(matched(["a"], ["a"], both)) == ["a"]
    found = matched(["a", "b"], ["a", "b"], both)
    assert [each[1].shape[1] for each in found.values()] == [4, 2]
    three = looker(repeatable(DataLoader(TensorDataset(tx, tz, ty), batch_size=9)))()
    assert list(matched(["a", "b", "c"], ["a", "b"], three)) == ["a", "b"]
    assert list(matched(["a", "mask"], ["a"], three)) == ["a", "mask"]
    with pytest.raises(WrongRequest, match="the model takes a, b, c, d and the data have"):
        matched(list("abcd"), list("abcd"), three)
    nested = looker(repeatable(DataLoader(Rows(lambda at: ((X[at], Z[at]), Y[at])), 9)))()
    assert len(nested.unnamed) == 2
    assert nested.last is None


def test_a_module_with_a_loader(tmp_path: Path) -> None:
    from sartor.profile import profile_model

    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)

        def forward(self, x: Any, z: Any, labels: Any = None) -> Any:
            return self.left(x) + self.right(z)

    triples = DataLoader(TensorDataset(tx, tz, ty), batch_size=64)
    dictionaries = DataLoader(Rows(lambda at: {"z": Z[at], "labels": Y[at], "x": X[at]}), 32)
    for source in (triples, dictionaries):
        found = profile_model(Sum(), data=source)
        assert found.macs == (4 + 2) * 3


# -- inside a run --------------------------------------------------------------------------------

LIMITS = ["accuracy >= baseline - 0.05", "size <= 0.5 x baseline"]


def test_a_run_on_a_loader(digits: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer as on the arrays that the loader gives."""
    monkeypatch.setenv("HOME", str(tmp_path))  # of the ledger
    pixels, label = (torch.from_numpy(digits.arrays[name]) for name in ("pixels", "label"))
    rows = TensorDataset(pixels, label)
    loader = DataLoader(rows, batch_size=64, shuffle=True, num_workers=1)
    run = sartor.optimize(
        digits.model, loader, LIMITS, trials=2, out=tmp_path / "run", techniques=["dynamic-int8"]
    )
    assert run.status == 0, run.answer["message"]
    arrays = {"pixels": digits.arrays["pixels"], "label": digits.arrays["label"]}
    again = sartor.optimize(
        digits.model, arrays, LIMITS, trials=2, out=tmp_path / "two", techniques=["dynamic-int8"]
    )
    first, second = (Journal(each.folder / "run.jsonl").last("request") for each in (run, again))
    assert first is not None
    assert second is not None
    assert first["request"]["data"] == second["request"]["data"]
    assert run.trials[1].figures["accuracy"] == again.trials[1].figures["accuracy"]


def test_a_loader_that_raises_spends_nothing(digits: Case, tmp_path: Path, sartor: Any) -> None:
    code = """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset):
        def __len__(self):
            return 400

        def __getitem__(self, row):
            if row == 300:
                raise OSError("the share is gone")
            return np.zeros(64, np.float32) + row, row % 10

    def loader():
        return DataLoader(Rows(), batch_size=50)
    """
    (tmp_path / "rows.py").write_text(textwrap.dedent(code))
    said: Said = sartor(
        "optimize", digits.model, "--data", f"{tmp_path / 'rows.py'}:loader",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert said.status == 2
    assert said.err.strip().splitlines()[-1] == (
        "sartor: the DataLoader raised OSError: the share is gone after 6 batches"
    )
    assert not list(tmp_path.glob("*ledger*"))
    assert not (tmp_path / "run" / "run.jsonl").exists()
