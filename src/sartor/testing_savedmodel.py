"""Toy SavedModels for the laws, with seeded weights.

Public, for authors of techniques and runtimes. Needs TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Arrays, Model
from sartor.registry import runtime
from sartor.savedmodel_calls import silent, tf
from sartor.testing_runtimes import Specimen

Weights = dict[str, np.ndarray]


def weights(name: str, seed: int = 0) -> Weights:
    rng = np.random.default_rng((seed, *name.encode()))

    def made(*shape: int) -> np.ndarray:
        fan = int(np.prod(shape[:-1])) or 1
        values: np.ndarray = rng.standard_normal(shape) * np.sqrt(2 / fan)
        return values.astype(np.float32)

    if name == "mlp":
        return {"a": made(32, 64), "b": made(64), "c": made(64, 4)}
    return {"a": made(3, 3, 3, 32), "b": made(32), "c": made(32, 4)}


def _mlp(held: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    def answer(x: Any) -> dict[str, Any]:
        inner = tf.nn.relu(tf.matmul(x, held["a"]) + held["b"])
        return {"logits": tf.matmul(inner, held["c"]), "inner": inner}

    return answer, tf.TensorSpec((None, 32), tf.float32, name="x")


def _cnn(held: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    def answer(image: Any) -> dict[str, Any]:
        x = tf.nn.relu(tf.nn.conv2d(image, held["a"], 1, "SAME") + held["b"])
        return {"logits": tf.matmul(tf.reduce_mean(x, (1, 2)), held["c"])}

    return answer, tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image")


_TOYS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Callable[..., Any], Any]]] = {
    "mlp": _mlp,
    "cnn": _cnn,
}


def save_toys(folder: Path, only: Sequence[str] = ()) -> dict[str, Model]:
    """Name -> the model; of the toys named in `only`, where some are."""
    found = {}
    for name, make in _TOYS.items():
        if not only or name in only:
            with silent():
                holder = tf.Module()
                holder.held = {k: tf.Variable(v, name=k) for k, v in weights(name).items()}
                answer, taken = make(holder.held)
                made = tf.function(answer).get_concrete_function(taken)
                tf.saved_model.save(holder, str(folder / name), signatures=made)
            found[name] = runtime("savedmodel").open(folder / name)
    return found


def toy_batch(name: str, rows: int, seed: int = 0) -> Arrays:
    """`rows` examples that the toy of this name takes."""
    rng = np.random.default_rng((seed, *name.encode()))
    if name == "cnn":
        return {"image": rng.standard_normal((rows, 16, 16, 3), np.float32)}
    return {"x": rng.standard_normal((rows, 32), np.float32)}


@dataclass(frozen=True)
class _Batch:
    name: str

    def __call__(self, rows: int, seed: int) -> Arrays:
        return toy_batch(self.name, rows, seed)


@dataclass(frozen=True)
class _Reference:
    """What the toy ought to answer, in plain numpy."""

    name: str

    def __call__(self, batch: Arrays) -> Arrays:
        held = weights(self.name)
        if self.name == "mlp":
            inner = np.maximum(batch["x"] @ held["a"] + held["b"], 0)
            return {"logits": inner @ held["c"], "inner": inner}
        padded = np.pad(batch["image"], [(0, 0), (1, 1), (1, 1), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("nhwcij,ijco->nhwo", windows, held["a"]) + held["b"]
        return {"logits": np.maximum(x, 0).mean((1, 2)) @ held["c"]}


def specimens(folder: Path) -> list[Specimen]:
    """The toys for the runtime laws."""
    made = save_toys(folder)
    return [Specimen(name, model, _Batch(name), _Reference(name)) for name, model in made.items()]
