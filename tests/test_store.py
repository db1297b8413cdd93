"""The store: models whole or not at all, found again by everything that matters."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Case

from sartor.contracts import Model, Step
from sartor.registry import from_json, open_model, runtime
from sartor.store import (
    ASIDE,
    Store,
    discard,
    key_of,
    publish,
    read_model,
    step_from_json,
    step_to_json,
    write_model,
)


@pytest.fixture
def model(tiny: Case) -> Model:
    opened = open_model(tiny.model)
    technique = from_json("onnx", {"technique": "dynamic-int8", "per_channel": False})
    step = Step(technique, ("gemm0",), (("gemm1", "an exception"),))
    return Model(opened.kind, opened.payload, opened.signature, {"threads": 1}, (step,))


def test_a_model_comes_back_whole(model: Model, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.get("key") is None
    put, got = store.put("key", model), store.get("key")
    assert got is not None
    for each in (put, got):
        assert each.lineage == model.lineage
        assert each.settings == model.settings
        assert each.signature == model.signature
        assert runtime("onnx").digest(each) == runtime("onnx").digest(model)
    assert tmp_path in Path(got.payload).parents


def test_what_is_half_made_is_never_found(model: Model, tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = store.scratch()
    write_model(model, half)
    (half / "model.json").unlink()  # written last
    os.replace(half, tmp_path / "key")
    assert store.get("key") is None
    assert store.put("key", model).lineage == model.lineage  # and is replaced by what is whole


def test_sweep_removes_what_a_kill_left_and_nothing_else(model: Model, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("key", model)
    write_model(model, store.scratch())
    store.sweep()
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert store.get("key") is not None


def test_no_folder_is_ever_half_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kill interrupts, the place holds the old, the new or nothing."""
    for folder, text in (("old", "old"), ("new", "new")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text(text)
        (tmp_path / folder / "b").write_text(text)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path / "new", tmp_path / "old")
        assert {each.read_text() for each in (tmp_path / "old").iterdir()} == {"new"}
        with pytest.raises(KeyboardInterrupt):
            discard(tmp_path / "old")
        assert not (tmp_path / "old").exists()
    assert all(each.name.startswith(ASIDE) for each in tmp_path.iterdir())


def test_publish_and_discard_leave_nothing_behind(tmp_path: Path) -> None:
    for text in ("first", "second"):
        made = tmp_path / "made"
        made.mkdir()
        (made / "file").write_text(text)
        publish(made, tmp_path / "deep" / "place")
        assert (tmp_path / "deep" / "place" / "file").read_text() == text
    discard(tmp_path / "deep" / "place")
    discard(tmp_path / "deep" / "place")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_key_holds_every_fact_in_any_order() -> None:
    base = key_of(a=1, b=(1, 2), c={"x": 1, "y": None})
    assert base == key_of(c={"y": None, "x": 1}, b=[1, 2], a=1)
    others = [
        key_of(a=2, b=(1, 2), c={"x": 1, "y": None}),
        key_of(a=1, b=(2, 1), c={"x": 1, "y": None}),
        key_of(a=1, b=(1, 2), c={"x": 1, "z": None}),
        key_of(a=1, b=(1, 2)),
        key_of(a="1", b=(1, 2), c={"x": 1, "y": None}),
    ]
    assert len({base, *others}) == 6


def test_a_step_comes_back_equal(model: Model) -> None:
    step = model.lineage[0]
    assert step_from_json(step_to_json(step)) == step


def test_a_stored_model_answers_alike(model: Model, tiny: Case, tmp_path: Path) -> None:
    from sartor.contracts import Target

    write_model(model, tmp_path / "it")
    batch = {"pixels": tiny.arrays["pixels"][:16]}
    engine = runtime("onnx")
    with (
        engine.start(model, Target()) as one,
        engine.start(read_model(tmp_path / "it"), Target()) as other,
    ):
        np.testing.assert_array_equal(one(batch)["logits"], other(batch)["logits"])


def full(folder: Path) -> Store:
    """With twelve entries, the first the longest unused, and room for none."""
    store = Store(folder, most=0)
    for number in range(12):
        entry = store.folder / f"{number:02d}"
        entry.mkdir()
        (entry / "weights").write_bytes(b"x" * 100)
        os.utime(entry, (number, number))
    return store


def test_what_was_longest_unused_goes_first(tmp_path: Path) -> None:
    store = full(tmp_path / "store")
    store._trim()
    assert sorted(each.name for each in store.folder.iterdir()) == [
        f"{number:02d}" for number in range(4, 12)
    ]


def test_what_may_be_the_answer_stays(tmp_path: Path) -> None:
    store = full(tmp_path / "store")
    store.keep({"digest of a finalist": "00"})
    store._trim()
    assert (store.folder / "00").exists()
    assert not (store.folder / "01").exists()
    assert Store(store.folder).kept() == {"digest of a finalist": "00"}
    assert store.shrink((store.folder / "11" / "weights").resolve())
    assert sorted(each.name for each in store._entries()) == ["00", "11"]


def test_a_full_disk_never_takes_the_model_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("store"))  # as with --out FOLDER
    for name in ("one", "two"):
        (store.folder / name).mkdir()
    assert store.shrink((store.folder / "one" / "model").absolute())
    assert [each.name for each in store._entries()] == ["one"]
