"""A small network trained here, as PyTorch has it, through the commands that take models."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Said
from torch import nn
from torch.nn import functional

import sartor
from sartor import registry
from sartor.records import Journal

SOURCE = '''
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Digits of 8 x 8: two convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.norm, self.drop, self.head = nn.BatchNorm2d(32), nn.Dropout(0.2), nn.Linear(64, 10)

    def forward(self, image):
        x = functional.max_pool2d(torch.relu(self.norm(self.first(image))), 2)
        return self.head(self.drop(torch.relu(self.second(x)).mean((2, 3))))


def make():
    return Net(), "net.pt"
'''


@dataclass(frozen=True)
class Digits:
    """The trained module in training mode, where its source and weights lie, and rows."""

    module: nn.Module
    folder: Path
    rows: dict[str, np.ndarray]
    fresh: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(SOURCE)
    names: dict[str, Any] = {}
    exec(compile(SOURCE, "net.py", "exec"), names)
    found = load_digits()
    pixels, label = (found.images / 16).astype(np.float32)[:, None], found.target
    order = np.random.default_rng(0).permutation(len(label))
    fit, rest, fresh = order[:500], order[500:1500], order[1500:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = names["Net"]()
        optimizer = torch.optim.Adam(module.parameters(), 4e-3)
        x, y = torch.from_numpy(pixels[fit]), torch.from_numpy(label[fit])
        for _ in range(20):
            for at in range(0, len(x), 50):
                optimizer.zero_grad()
                functional.cross_entropy(module(x[at : at + 50]), y[at : at + 50]).backward()
                optimizer.step()
    torch.save(module.state_dict(), folder / "net.pt")
    taken = [{"image": pixels[each], "label": label[each]} for each in (rest, fresh)]
    return Digits(module, folder, *taken)


LIMITS = ["accuracy >= baseline - 0.03", "size <= 0.5 x baseline"]


@pytest.fixture(scope="module")
def run(trained: Digits, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on the live module, which must become an ONNX model to meet its limits here."""
    out = tmp_path_factory.mktemp("runs") / "live"
    data = str(out.parent / "eval.npz")
    np.savez(data, **trained.rows)  # type: ignore[arg-type]
    known = registry.reachable("torch").items()
    others = [n for n, cls in known if "torch" in cls.kinds or cls.makes]
    without = [name for name in others if name != "to-onnx"]
    return sartor.optimize(trained.module, data, limits=LIMITS, trials=4, out=out, without=without)


def test_a_live_module_is_optimized(run: Any, trained: Digits) -> None:
    journal = Journal(Path(run.folder) / "run.jsonl")
    first = journal.last("request")
    assert first is not None
    assert first["request"]["kind"] == "torch"
    assert {"torch", "onnxruntime"} <= set(first["versions"])
    trials = list(journal.events("trial"))
    assert trials[0]["recipe"] == []
    assert [each["technique"] for each in trials[1]["recipe"]] == ["to-onnx"]
    assert all(each["recipe"][0]["technique"] == "to-onnx" for each in trials[1:])
    assert any(len(each["recipe"]) > 1 for each in trials)
    assert run.status == 0, run.answer["message"]
    assert trained.module.training
    with run.best as best:
        found = best.predict({"image": trained.fresh["image"]})
        assert best.facts["kind"] == "onnx"
    right = (found["output"].argmax(1) == trained.fresh["label"]).mean()
    assert right > 0.85


def test_its_certificate_is_verified_with_the_module_at_hand(
    run: Any, trained: Digits, tmp_path: Path
) -> None:
    data = str(tmp_path / "fresh.npz")
    np.savez(data, **trained.fresh)  # type: ignore[arg-type]
    found = sartor.verify(Path(run.folder), data, original=str(trained.folder / "net.py:make"))
    assert found["status"] in (0, 4)
    other = copy.deepcopy(trained.module)
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1)
    with pytest.raises(sartor.WrongRequest, match="not the original"):
        sartor.verify(Path(run.folder), data, original=other)


@pytest.mark.slow
def test_the_commands_take_it(trained: Digits, tmp_path: Path, sartor: Any) -> None:
    data = str(tmp_path / "eval.npz")
    np.savez(data, pixels=trained.rows["image"][:400], label=trained.rows["label"][:400])
    model = f"{trained.folder / 'net.py'}:make"
    said: Said = sartor("profile", model, "--data", data, "--json")
    assert said.status == 0, said.err
    parts = {row["name"]: row for row in said.json["rows"]}
    assert parts["second"]["macs"] == 32 * 64 * 9 * 16
    assert parts["second"]["seconds"] > 0
    said = sartor(
        "optimize", model, "--data", data, "--limit", "size <= 1 kB", "--trials", "2", "--json",
        "--technique", "static-int8", "--out", tmp_path / "small",
    )  # fmt: skip
    assert said.status == 3, said.err
    said = sartor("optimize", model, "--data", data, "--technique", "nonsense")
    assert said.status == 2
    assert "no technique 'nonsense' for torch; there are:" in said.err


@pytest.mark.slow
def test_a_model_that_is_best_left_alone_is_its_own_answer(trained: Digits, tmp_path: Path) -> None:
    """Without the conversion there is nothing to try; the bundle then holds the program."""
    np.savez(tmp_path / "eval.npz", **trained.rows)  # type: ignore[arg-type]
    run = sartor.optimize(
        trained.module, str(tmp_path / "eval.npz"), limits=["accuracy >= 0.5"], trials=2,
        without=["to-onnx"], out=tmp_path / "kept",
    )  # fmt: skip
    assert run.status == 0, run.answer["message"]
    with sartor.load(tmp_path / "kept") as kept:
        assert kept.facts["kind"] == "torch"
        found = kept.predict({"image": trained.fresh["image"]})["output"].argmax(1)
    assert (found == trained.fresh["label"]).mean() > 0.85


def test_wrong_data_are_one_sentence(trained: Digits, tmp_path: Path, sartor: Any) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((9, 1, 8, 8)), b=np.zeros((9, 3)), label=np.zeros(9))
    np.savez(tmp_path / "odd.npz", image=np.zeros((9, 4, 8, 8)), label=np.zeros(9))
    model = f"{trained.folder / 'net.py'}:make"
    for name, words in (("two", "takes image and the data have"), ("odd", "does not run on rows")):
        said = sartor("optimize", model, "--data", tmp_path / f"{name}.npz")
        assert said.status == 2
        assert words in said.err
        assert said.err.count("\n") == 1
