"""Real small models, trained here on real data from scikit-learn, for the end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As in Sartor's own processes (workers.THREADS), and before numpy is loaded: sums on several
# threads round in another order, and a model made here would not be, to the last bit, one of there.
for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[pool] = "1"

# ruff: noqa: E402
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sartor import cli

FLOAT = TensorProto.FLOAT

# A shell starts what runs in its background with Ctrl-C ignored; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Case:
    """A trained model and rows that it was not trained on: some for a run, `fresh` ones for
    another day."""

    model: Path
    arrays: dict[str, np.ndarray]
    fresh: dict[str, np.ndarray]

    def data(self, folder: Path, name: str = "eval.npz", **changed: Any) -> str:
        """The rows as a file in a folder of their own: the ledger lies beside the data, and each
        test spends its own. `changed` replaces arrays; None leaves one out."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {k: v for k, v in {**self.arrays, **changed}.items() if v is not None}
        np.savez(folder / name, **arrays)
        return str(folder / name)


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found


@pytest.fixture
def sartor(capsys: pytest.CaptureFixture[str]) -> Any:
    """`sartor("optimize", ...)` runs the command line in this process."""

    def run(*arguments: Any) -> Said:
        capsys.readouterr()
        try:
            status = cli.main([str(each) for each in arguments])
        except SystemExit as end:  # argparse ends --help and mistyped flags so
            status = int(end.code or 0)
        told = capsys.readouterr()
        return Said(status, told.out, told.err)

    return run


def command(*arguments: Any) -> list[str]:
    """The command line for a process of its own."""
    return [sys.executable, "-m", "sartor.cli", *(str(each) for each in arguments)]


def run(*arguments: Any) -> Said:
    """The command line in a process of its own, run to its end."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def save_perceptron(
    path: Path, layers: Sequence[tuple[np.ndarray, np.ndarray]], names: tuple[str, str]
) -> Path:
    """An ONNX file of Gemm and Relu: `layers` are (weights [in, out], bias [out])."""
    nodes, weights, here = [], [], names[0]
    for number, (weight, bias) in enumerate(layers):
        last = number == len(layers) - 1
        for stem, array in (("w", weight), ("b", bias)):
            tensor = np.ascontiguousarray(array, dtype=np.float32)
            weights.append(numpy_helper.from_array(tensor, f"{stem}{number}"))
        out = names[1] if last else f"h{number}"
        nodes.append(
            helper.make_node(
                "Gemm", [here, f"w{number}", f"b{number}"], [out], name=f"gemm{number}"
            )
        )
        here = out
        if not last:
            nodes.append(helper.make_node("Relu", [here], [f"r{number}"], name=f"relu{number}"))
            here = f"r{number}"
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info(names[0], FLOAT, ["batch", layers[0][0].shape[0]])],
        [helper.make_tensor_value_info(names[1], FLOAT, ["batch", layers[-1][0].shape[1]])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def _fit(estimator: Any, x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    with warnings.catch_warnings():
        # A fixed, small number of passes is enough here; scikit-learn warns that more would help.
        warnings.simplefilter("ignore")
        estimator.fit(x, y)
    return list(zip(estimator.coefs_, estimator.intercepts_, strict=True))


def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels [N, 64] in 0..1, labels, thickness of the stroke by quartile, and the trained rows."""
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    ink = pixels.sum(1)
    thick = np.array(["thin", "thick"])[(ink > np.median(ink)).astype(int)]
    rows = np.random.default_rng(0).permutation(len(pixels))
    return pixels, label, thick, rows


def digit_case(path: Path, hidden: tuple[int, ...], passes: int) -> Case:
    from sklearn.neural_network import MLPClassifier

    pixels, label, thick, rows = _digits()
    trained, rest = rows[:500], rows[500:]
    layers = _fit(
        MLPClassifier(hidden, max_iter=passes, batch_size=100, random_state=0),
        pixels[trained],
        label[trained],
    )
    save_perceptron(path, layers, ("pixels", "logits"))
    return _case(path, rest, 1000, pixels=pixels, label=label, thickness=thick)


def _case(path: Path, rows: np.ndarray, first: int, **arrays: np.ndarray) -> Case:
    now, later = rows[:first], rows[first:]
    return Case(path, *({k: v[some] for k, v in arrays.items()} for some in (now, later)))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def digits(models: Path) -> Case:
    """Digits, a network of 2 MB: bound by memory, so that eight bits gain time and size."""
    return digit_case(models / "digits.onnx", (640, 640), 6)


@pytest.fixture(scope="session")
def tiny(models: Path) -> Case:
    """Digits, a network of 10 kB: a call costs more than its sums, so that nothing gains time."""
    return digit_case(models / "tiny.onnx", (32,), 60)


@pytest.fixture(scope="session")
def cancer(models: Path) -> Case:
    """Breast cancer, two classes, one logit."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.neural_network import MLPClassifier

    table, label = load_breast_cancer(return_X_y=True)
    table = ((table - table.mean(0)) / table.std(0)).astype(np.float32)
    rows = np.random.default_rng(0).permutation(len(table))
    layers = _fit(
        MLPClassifier((64,), max_iter=60, random_state=0), table[rows[:150]], label[rows[:150]]
    )
    path = save_perceptron(models / "cancer.onnx", layers, ("features", "logit"))
    return _case(path, rows[150:], 350, features=table, label=label)


@pytest.fixture(scope="session")
def diabetes(models: Path) -> Case:
    """Disease progression: a regression."""
    from sklearn.datasets import load_diabetes
    from sklearn.neural_network import MLPRegressor

    table, value = load_diabetes(return_X_y=True)
    table = (table / table.std(0)).astype(np.float32)
    value = ((value - value.mean()) / value.std()).astype(np.float32)
    rows = np.random.default_rng(0).permutation(len(table))
    layers = _fit(
        MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=30, alpha=1.0, random_state=0),
        table[rows[:140]],
        value[rows[:140]],
    )
    path = save_perceptron(models / "diabetes.onnx", layers, ("features", "value"))
    return _case(path, rows[140:], 250, features=table, label=value)


TRIALS = 5


@dataclass(frozen=True)
class Tailored:
    """A finished run on `digits`: its folder, its data and what the command said."""

    case: Case
    folder: Path
    data: str
    said: Said

    def arguments(self, place: Path, *more: Any, trials: int = TRIALS) -> tuple[Any, ...]:
        """The same request in a folder of its own, with data and ledger of its own; latencies are
        taken from this run's journal where it holds them, which saves most of the time."""
        if not (place / "eval.npz").exists():
            self.case.data(place)
        replay = ("--replay", self.folder / "run.jsonl", *more)
        return _request(self.case, place, trials, *replay)


def _request(case: Case, place: Path, trials: int, *more: Any) -> tuple[Any, ...]:
    return (
        *("optimize", case.model, "--data", place / "eval.npz", "--segment", "thickness"),
        *("--limit", "accuracy >= baseline - 0.03", "--limit", "size <= 0.5 x baseline"),
        *("--trials", trials, "--out", place / "run", "--json", *more),
    )


@pytest.fixture(scope="session")
def tailored(digits: Case, tmp_path_factory: pytest.TempPathFactory) -> Tailored:
    place = tmp_path_factory.mktemp("tailored")
    data = digits.data(place)
    said = run(*_request(digits, place, TRIALS))
    assert said.status == 0, said.err
    return Tailored(digits, place / "run", data, said)
