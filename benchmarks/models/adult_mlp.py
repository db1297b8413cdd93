"""Train a small network on the Adult income table and export it to ONNX.

This is the benchmark's tabular case: a model and data that Sartor was not built on, with a
segment (`sex`) whose accuracy must not suffer unnoticed.

    python benchmarks/models/adult_mlp.py --out build/adult

The table comes from the PyPI package fairness 0.1.8 (Apache-2.0), of which nothing is run.
Written are `model.onnx` ("features" float32 [N,F] -> "logits" [N,2]), `model.safetensors` (with
`adult_mlp.py:make` the model as PyTorch code) and `eval.npz` (`features`, `label`, `split`, `sex`).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

OUT = Path(__file__).resolve().parent.parent.parent / "build" / "adult"
PACKAGE = "fairness==0.1.8"
MEMBER = "fairness/data/raw/adult.csv"
SHA256 = "c30ce1e55a965b04950321870db74c19f4aa437120a692f32e72f6a4fa31c418"
SEED = 20
CALIBRATION = 2_000  # training rows kept in eval.npz
SEARCH, HOLDOUT = 4_000, 8_000  # rows the model never saw; the others train it
PARITY = 1e-4
NUMERIC = ["age", "education-num", "capital-gain", "capital-loss", "hours-per-week"]
CATEGORIES = [
    *["workclass", "marital-status", "occupation", "relationship"],
    *["race", "sex", "native-country"],
]


def fetch_table(path: Path) -> None:
    """Download the package into a temporary folder and unpack the one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The package states a malformed requirement, which pip from 24.1 on refuses even with
        # --no-deps; so an older pip, in an environment of its own, downloads it.
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        pip = [f"{folder}/venv/bin/python", "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", "pip<24.1"], check=True)
        subprocess.run([*pip, "download", "--no-deps", "--dest", folder, PACKAGE], check=True)
        with zipfile.ZipFile(next(folder.glob("fairness-*.whl"))) as wheel:
            content = wheel.read(MEMBER)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{MEMBER} of {PACKAGE} is not the expected file")
    path.write_bytes(content)


def read_table(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_]]:
    """Features, labels (1: earns more than 50K) and sex of every distinct row, shuffled.

    `fnlwgt` (a survey weight) and `education` (the words for education-num) are left out, and of
    rows with the same features only the first is kept: none can stand in two splits.
    """
    table = pd.read_csv(path, skipinitialspace=True)
    table = table.drop_duplicates(NUMERIC + CATEGORIES)
    table = table.sample(frac=1, random_state=np.random.RandomState(SEED))
    numbers = table[NUMERIC].astype(float)
    # The capital columns span 0 to 99,999 and are mostly 0: logarithms make them usable.
    for column in ("capital-gain", "capital-loss"):
        numbers[column] = np.log1p(numbers[column])
    one_hot = pd.get_dummies(table[CATEGORIES], dtype=float)  # "?" (unknown) is a category too
    features = np.concatenate([numbers.to_numpy(), one_hot.to_numpy()], axis=1)
    labels = table["income-per-year"].str.startswith(">50K").to_numpy()
    sex = table["sex"].to_numpy().astype(np.str_)
    return features.astype(np.float32), labels.astype(np.int64), sex


def standardize(features: NDArray[np.float32], training: slice) -> None:
    """Bring the numeric columns to mean 0 and deviation 1, as the training rows have it."""
    numbers = features[:, : len(NUMERIC)]
    numbers -= numbers[training].mean(0)
    numbers /= numbers[training].std(0)


def make_network(width: int) -> nn.Sequential:
    """Three layers for rows of `width` features."""
    return nn.Sequential(
        *[nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.3)],
        *[nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.3), nn.Linear(512, 2)],
    )


def make() -> nn.Module:
    """The trained network, for `sartor optimize benchmarks/models/adult_mlp.py:make`."""
    known = load_file(OUT / "model.safetensors")
    made = make_network(known["0.weight"].shape[1])
    made.load_state_dict(known)
    return made.eval()


def train(
    features: NDArray[np.float32], labels: NDArray[np.int64], epochs: int = 8, size: int = 256
) -> nn.Sequential:
    """A three-layer network trained with AdamW under a one-cycle learning rate."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the sums, and so the weights, depend on the number of threads
    network = make_network(features.shape[1])
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = -(-len(x) // size) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(size):
            loss = nn.functional.cross_entropy(network(x[chosen]), y[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(network: nn.Module, path: Path, width: int) -> None:
    """Write the network as ONNX with a free batch axis."""
    torch.onnx.export(
        network,
        (torch.zeros(2, width),),
        str(path),
        input_names=["features"],
        output_names=["logits"],
        dynamic_axes={"features": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,  # the old exporter takes a second, the new one many
    )


def run_exported(path: Path, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the exported file."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"features": features})
    return np.asarray(logits, dtype=np.float32)


def check_parity(network: nn.Module, path: Path, features: NDArray[np.float32]) -> float:
    """Largest difference between the logits of torch and of the exported file."""
    with torch.inference_mode():
        reference = network(torch.from_numpy(features)).numpy()
    difference = float(np.abs(run_exported(path, features) - reference).max())
    if difference > PARITY:
        raise SystemExit(f"the exported model differs from torch by {difference:.1e}")
    return difference


def report(path: Path, data: dict[str, NDArray[np.generic]]) -> None:
    """Print the accuracy on each split and, on the holdout, of each segment."""
    right = run_exported(path, data["features"].astype(np.float32)).argmax(1) == data["label"]
    for split in ("train", "search", "holdout"):
        rows = data["split"] == split
        print(f"accuracy on {split}: {right[rows].mean():.4f} ({rows.sum()} rows)")
    for sex in np.unique(data["sex"]):
        rows = (data["split"] == "holdout") & (data["sex"] == sex)
        print(f"accuracy on holdout, {sex}: {right[rows].mean():.4f} ({rows.sum()} rows)")
    print(f"share of the larger class: {1 - data['label'].astype(float).mean():.4f}")


def main() -> None:
    """Fetch, train, export, check, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=OUT)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    table, model = out / "adult.csv", out / "model.onnx"
    start = time.perf_counter()
    if not table.is_file():
        fetch_table(table)

    features, labels, sex = read_table(table)
    training = slice(SEARCH + HOLDOUT, None)
    standardize(features, training)
    network = train(features[training], labels[training])
    export(network, model, features.shape[1])
    save_file(network.state_dict(), out / "model.safetensors")
    difference = check_parity(network, model, features[:1000])

    kept = slice(0, SEARCH + HOLDOUT + CALIBRATION)
    names = np.array(["search", "holdout", "train"])
    data: dict[str, NDArray[np.generic]] = {
        "features": features[kept],
        "label": labels[kept],
        "split": np.repeat(names, [SEARCH, HOLDOUT, CALIBRATION]),
        "sex": sex[kept],
    }
    np.savez_compressed(out / "eval.npz", allow_pickle=False, **data)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{parameters:,} parameters, {features.shape[1]} features, {len(features):,} rows in all")
    report(model, data)
    print(f"parity with torch: {difference:.1e}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
