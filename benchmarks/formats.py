"""One Keras model delivered in four formats, and a phone's classifier under a phone's limits.

    python benchmarks/formats.py keras [--budget 12m]
    python benchmarks/formats.py mobile [--budget 8m]

`keras`: a small convolutional network is trained on Fashion-MNIST (`make data`) and compiled as
Keras users do, and its file is given to one `sartor optimize --format onnx openvino tflite pt2`;
each bundle's answers are held against Keras' own `predict` on 1,000 rows of the holdout.

`mobile`: EfficientNet-Lite0 (benchmarks/models/lite0.py), full-int8 and dynamic-range variants as
`.tflite`: at most 20 MB, 50 ms for 95 of 100 calls and nine tenths of the accuracy; then at most
2 MB and 98 % of the accuracy, with all that Sartor has.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from main_job import BUILD, NEAR, STATES, flags, optimized, table

sys.path.append(str(Path(__file__).resolve().parent / "models"))

FORMATS = ("onnx", "openvino", "tflite", "pt2")
PHONE = ("size <= 20 MB", "latency.p95 <= 50 ms", "accuracy >= 0.9 x baseline")
TIGHT = ("size <= 2 MB", "latency.p95 <= 50 ms", "accuracy >= 0.98 x baseline")
MOBILE: tuple[tuple[str, Sequence[str], Sequence[str]], ...] = (
    ("full-int8", PHONE, ("full-int8",)),
    ("dynamic-range", PHONE, ("dynamic-range",)),
    ("tight", TIGHT, ()),
)
PARITY = 1000
EPOCHS = 3


def cells(name: str, answer: dict[str, Any]) -> list[str]:
    """What the certificate says; the figures of what came nearest where there is none."""
    figures = answer["figures"]
    limits = [
        f"{each['limit']}: {each['outcome']} ({each['low']:.4g} to {each['high']:.4g})"
        for each in answer["limits"]
        if each["low"] is not None
    ]
    return [
        name, STATES[answer["status"]],
        f"{figures.get('original.size', 0) / 1e6:.2f} / {figures['size'] / 1e6:.2f}",
        f"{figures.get('latency.ratio', float('nan')):.3f}", "; ".join(limits),
        f"{answer['elapsed']:.0f}", answer["chosen"] or "as it came",
    ]  # fmt: skip


COLUMNS = ["", "status", "MB before / after", "latency ratio", "limits (95 %)", "s", "chosen"]


def network(folder: Path) -> None:
    """Trains and saves `model.keras`, and `eval.npz` as Keras takes the images (channels last)."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    from fashion_cnn import load

    layers = keras.layers
    folder.mkdir(parents=True, exist_ok=True)
    read = {part: load(part) for part in ("train", "t10k")}
    images = {part: (each[0][..., None] / 255).astype(np.float32) for part, each in read.items()}
    labels = {part: each[1] for part, each in read.items()}
    keras.utils.set_random_seed(20)
    image = keras.Input((28, 28, 1), name="image")
    x = image
    for width in (32, 64):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.3)(layers.Dense(256, activation="relu")(x))
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="class")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images["train"], labels["train"], batch_size=128, epochs=EPOCHS, verbose=2)
    model.save(folder / "model.keras")
    split = np.repeat(["search", "holdout", "train"], [3000, 7000, 2000])
    few = {"image": images, "label": labels}
    taken = {k: np.concatenate([v["t10k"], v["train"][:2000]]) for k, v in few.items()}
    np.savez(folder / "eval.npz", **taken, split=split)


def parity(bundle: Path, model: Path, images: np.ndarray) -> str:
    """How the bundle answers beside Keras' own `predict`."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    import sartor

    right = keras.saving.load_model(model).predict(images, verbose=0)
    found = next(iter(sartor.load(bundle).predict({"image": images}).values()))
    same = (right.argmax(1) == found.argmax(1)).mean()
    return f"{same:.1%} of {len(images)} the same, {np.abs(right - found).max():.2g} off at most"


def keras_formats(budget: str) -> None:
    folder, rows = BUILD / "keras", []
    if not (folder / "model.keras").is_file():
        network(folder)
    with np.load(folder / "eval.npz") as data:
        images = data["image"][data["split"] == "holdout"][:PARITY]
    place, model = BUILD / "formats", folder / "model.keras"
    asked = ["--minimize", "latency", "--budget", budget, "--limit", NEAR, "--format", *FORMATS]
    told = optimized(model, folder / "eval.npz", place, asked)["formats"]
    for name, answer in told.items():
        bundle = place / "run" / name / "bundle"
        beside = parity(bundle, model, images) if answer["status"] == 0 else ""
        rows.append([*cells(name, answer), beside])
    print(table([*COLUMNS, "beside Keras"], rows))


def mobile(budget: str) -> None:
    source, rows = BUILD / "lite0", []
    for name, limits, techniques in MOBILE:
        print(f"== {name}", file=sys.stderr, flush=True)
        asked = ["--minimize", "latency", "--budget", budget, "--format", "tflite"]
        asked += [*flags("--limit", limits), *flags("--technique", techniques)]
        place = BUILD / "mobile" / name
        answer = optimized(source / "model.onnx", source / "eval.npz", place, asked)
        rows.append(cells(name, answer))
    print(table(COLUMNS, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["keras", "mobile"])
    parser.add_argument("--budget")
    given = parser.parse_args()
    if given.what == "keras":
        keras_formats(given.budget or "12m")
    else:
        mobile(given.budget or "8m")


if __name__ == "__main__":
    main()
