"""Rows that are mixed with one another, and trainings on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_loss_onnx import Fixed, bench, worn

from sartor.contracts import Failed, Port, Signature, Task
from sartor.techniques._graph_onnx import read as graph_of
from sartor.techniques.recover_onnx import Recover

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from stopping import stopped  # noqa: E402

from sartor.techniques import _training_onnx as trainer  # noqa: E402
from sartor.techniques._loss_onnx import Loss, Plan  # noqa: E402
from sartor.techniques._mixing_onnx import Mixing  # noqa: E402

ROWS = np.arange(64)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "threads", lambda: 1)


def test_numbers_are_means_of_two_rows(tmp_path: Path) -> None:
    made = bench(tmp_path)
    batch = made.pick("train", ROWS)
    mixed, own = Mixing(0.3, graph_of(made.toy.model), made)(batch, ROWS, (0, 1))
    assert 16 < own.sum() < 48
    np.testing.assert_array_equal(mixed["x"][own], batch["x"][own])
    assert (mixed["x"][~own] != batch["x"][~own]).any(axis=1).all()
    lowest, highest = batch["x"].min(0), batch["x"].max(0)
    assert ((mixed["x"] >= lowest - 1e-6) & (mixed["x"] <= highest + 1e-6)).all()
    assert mixed["x"].dtype == batch["x"].dtype
    again, _ = Mixing(0.3, graph_of(made.toy.model), made)(batch, ROWS, (0, 1))
    np.testing.assert_array_equal(again["x"], mixed["x"])
    other, _ = Mixing(0.3, graph_of(made.toy.model), made)(batch, ROWS, (0, 2))
    assert (other["x"] != mixed["x"]).any()


def test_words_come_from_another_row_and_never_from_behind_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, "transformer")
    batch = made.pick("train", ROWS)
    lengths = batch["attention_mask"].sum(1)
    monkeypatch.setattr(made, "lengths", lambda part: lengths)
    mixed, own = Mixing(0.3, graph_of(made.toy.model), made)(batch, ROWS, (0, 1))
    np.testing.assert_array_equal(mixed["attention_mask"], batch["attention_mask"])
    changed = mixed["input_ids"] != batch["input_ids"]
    assert not changed[own].any()
    assert 0.1 < changed[~own][batch["attention_mask"][~own] == 1].mean() < 0.4
    np.testing.assert_array_equal(mixed["input_ids"] == 0, batch["input_ids"] == 0)  # the padding


def test_what_cannot_be_mixed_is_said(tmp_path: Path) -> None:
    made = bench(tmp_path, "transformer")
    model = made.toy.model
    flags = Signature((Port("flag", "bool", (None, 3)),), model.signature.outputs)
    flagged = SimpleNamespace(
        teacher=dataclasses.replace(model, signature=flags), lengths=lambda part: None
    )
    with pytest.raises(Failed, match="cannot be mixed"):
        Mixing(0.3, graph_of(model), flagged)  # type: ignore[arg-type]
    reason = Recover(mixed=0.3, teacher=0.0).refuse(model, made)
    assert reason == "mixed rows have no label: only the original can teach them"


def test_mixed_rows_have_no_label() -> None:

    task = Task("classification", "y", "accuracy", classes=3, form="logits")
    label, logits = np.array([0, 1, 2, 0]), np.zeros((4, 3), np.float32)
    logits[2, 0] = 9.0  # far from its label
    made = Fixed(task, label, logits, shape=(None, 3))
    loss = Loss(Plan(1, teacher=0.5), made)  # type: ignore[arg-type]
    given = {"y": torch.from_numpy(logits)}
    own = np.array([True, True, False, True])
    free = float(loss(given, {"label": label}, None, lesson={"y": logits}, own=own))
    assert free == pytest.approx(0.5 * 3 / 4 * np.log(3))
    assert float(loss(given, {"label": label}, None, lesson={"y": logits})) > free + 0.5


@pytest.mark.parametrize("hints", ["none", "hidden"])
def test_an_interrupted_training_on_mixed_rows_ends_as_one_that_was_not(
    hints: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path)
    graphs = [worn(made) for _ in range(4)]
    plan = trainer.Plan(30, mixed=0.3, hints=hints)
    monkeypatch.setattr(trainer, "_PATIENCE", 99)
    trainer.train(graphs[0], plan, made)
    stopped(lambda: trainer.train(graphs[1], plan, made), 17)
    trainer.train(graphs[2], plan, made)
    assert graphs[2].digest() == graphs[0].digest() != worn(made).digest()
    trainer.train(graphs[3], dataclasses.replace(plan, mixed=0.0), made)
    assert graphs[3].digest() != graphs[0].digest()
