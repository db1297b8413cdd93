"""A few rows of the data before the model is known, from every kind of source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from sartor.contracts import Glimpse, WrongRequest
from sartor.glimpse import ROWS, looker, repeatable


def shapes(found: Glimpse) -> tuple[dict[str, tuple[int, ...]], list[tuple[int, ...]]]:
    return {k: v.shape for k, v in found.named.items()}, [each.shape for each in found.unnamed]


def test_arrays_by_name_without_what_is_no_input(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "pixels": np.zeros((99, 4)), "label": np.zeros(99), "split": np.array(["train"] * 99),
        "group": np.zeros(99), "age": np.zeros(99), "kind": np.zeros((99, 2)), "one": np.array(3),
    }  # fmt: skip
    np.savez(tmp_path / "rows.npz", **arrays)
    for source in (str(tmp_path / "rows.npz"), arrays):
        found = shapes(looker(source, segments=("age",), label="kind")())
        assert found == ({"pixels": (ROWS, 4), "label": (ROWS,)}, [])
    assert shapes(looker(np.zeros((3, 4)))()) == ({}, [(3, 4)])


def test_columns_by_name_and_as_one_matrix(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"a": [1.5, 2, 3], "b": [1, 2, 3], "sex": list("mfm"), "label": 1})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    for source in (frame, str(tmp_path / "rows.csv")):
        named, unnamed = shapes(looker(source)())
        assert named == {"a": (3,), "b": (3,), "sex": (3,)}
        assert unnamed == [(3, 2)]
    lists = pandas.DataFrame({"x": [[1.0, 2.0]] * 3, "age": [1, 2, 3], "label": 0})
    assert shapes(looker(lists)()) == ({"x": (3, 2), "age": (3,)}, [])


class Pairs:
    """A data set of single examples, as PyTorch has them."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, at: int) -> Any:
        return np.full((3, 8), at), at % 2


class Dictionaries(Pairs):
    def __getitem__(self, at: int) -> Any:
        return {"x": np.zeros(5), "mask": np.ones(5), "label": 1}


def batches() -> Iterator[Any]:
    for _ in range(3):
        yield (np.zeros((16, 8)), np.zeros((16, 2))), np.zeros(16)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Pairs(), ({}, [(ROWS, 3, 8)])),
        (Dictionaries(), ({"x": (ROWS, 5), "mask": (ROWS, 5)}, [])),
        ([(np.zeros((16, 8)), np.zeros(16))] * 2, ({}, [(16, 8)])),
        ((np.zeros((16, 8)), np.zeros(16)), ({}, [(16, 8)])),
        ([{"x": np.zeros((16, 8)), "label": np.zeros(16)}], ({"x": (16, 8)}, [])),
        ([(np.zeros(8), 1), (np.zeros(8), 0), (np.zeros(9), 0)], ({}, [(2, 8)])),
    ],
)
def test_examples_and_batches(source: Any, expected: Any) -> None:
    assert shapes(looker(source)()) == expected


def test_what_can_be_read_once_is_kept() -> None:
    source = repeatable(batches())
    assert shapes(looker(source)()) == ({}, [(16, 8), (16, 2)])
    assert len(list(source.value)) == 3
    whole = np.zeros(3)
    assert repeatable(whole).value is whole
    assert repeatable("rows.npz") == "rows.npz"


def test_it_looks_once_and_not_before_it_is_asked() -> None:
    seen = []

    class Watched(Pairs):
        def __len__(self) -> int:
            seen.append(1)
            return 2

    look = looker(Watched())
    assert not seen
    look()
    count = len(seen)
    look()
    assert len(seen) == count


def test_images_as_pytorch_takes_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "rgb" / name).mkdir(parents=True)
        (tmp_path / "grey" / name).mkdir(parents=True)
        for at in range(2):
            Image.new("RGB", (6, 4), (255, 0, at)).save(tmp_path / "rgb" / name / f"{at}.png")
            Image.new("L", (6, 4), 9).save(tmp_path / "grey" / name / f"{at}.png")
    (found,) = looker(str(tmp_path / "rgb"))().unnamed
    assert (found.shape, found.dtype, found.max()) == ((4, 3, 4, 6), np.float32, 1.0)
    assert shapes(looker(str(tmp_path / "grey"))()) == ({}, [(4, 1, 4, 6)])
    Image.new("RGB", (7, 4)).save(tmp_path / "rgb" / "cat" / "9.png")
    with pytest.raises(WrongRequest, match="differ in size"):
        looker(str(tmp_path / "rgb"))()
    (tmp_path / "none").mkdir()
    with pytest.raises(WrongRequest, match="are not there"):
        looker(str(tmp_path / "none"))()
    (tmp_path / "none" / "broken.png").write_bytes(b"no image")
    with pytest.raises(WrongRequest, match=r"broken\.png is not an image"):
        looker(str(tmp_path / "none"))()


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for source, words in (
        (3, "cannot be read"),
        ([], "not one row"),
        (str(tmp_path / "gone.npz"), "no such file"),
        (str(tmp_path / "rows.pkl"), "--trust"),
    ):
        (tmp_path / "rows.pkl").write_bytes(b"x")
        with pytest.raises(WrongRequest, match=words):
            looker(source)()
