"""Small networks trained for the landscapes, beside those of benchmarks/models: a convolutional
network on scikit-learn's digits, an LSTM and a small transformer on the demo's tweets.

    python benchmarks/search/nets.py digits|tweets-lstm|tweets-bert --out FOLDER

Written are `model.onnx` and `eval.npz` (inputs, `label`, `split`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 20
ROOT = Path(__file__).resolve().parent.parent.parent
TWEETS = ROOT / "build" / "demo" / "input" / "eval.npz"
Data = dict[str, NDArray[Any]]


class Recurrent(nn.Module):
    """Token ids and mask in, three logits out: an embedding, an LSTM, the mean of its states."""

    def __init__(self, words: int, width: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask.to(torch.float32)[:, :, None]
        states, _ = self.lstm(self.table(input_ids) * weight)
        pooled = (states * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.head(F.dropout(pooled, 0.3, self.training))
        return logits


def convolutional() -> nn.Module:
    def block(a: int, b: int, groups: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32), *block(32, 64), *block(64, 64), nn.MaxPool2d(2), *block(64, 128),
        *block(128, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def transformer(words: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    from sartor.demo import SentimentModel

    config = BertConfig(
        vocab_size=words, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=64, hidden_dropout_prob=0.2,
        attn_implementation="eager",
    )  # fmt: skip
    model = SentimentModel(BertModel(config, add_pooling_layer=False), 128)
    with torch.no_grad():
        model.head.weight.mul_(8.0)  # its input has length one
    return model


def digits() -> tuple[nn.Module, Data, Data]:
    from sklearn.datasets import load_digits

    table = load_digits()
    order = np.random.default_rng(SEED).permutation(len(table.target))
    images = (table.images[order, None] / 16).astype(np.float32)
    labels = table.target[order].astype(np.int64)
    split = np.repeat(["train", "search", "holdout"], [700, 700, len(order) - 1400])
    # Noise makes the task hard enough for quantization to matter.
    rng = np.random.default_rng(SEED + 1)
    images += rng.normal(0, 0.25, images.shape).astype(np.float32)
    return (
        convolutional(),
        {"image": images[:700], "label": labels[:700]},
        {"image": images, "label": labels, "split": split},
    )


def tweets() -> tuple[int, Data, Data]:
    """Number of words, what trains (the demo's holdout), and what the landscape is measured on
    (its search part, and its calibration rows)."""
    with np.load(TWEETS) as file:
        data = {name: file[name] for name in file.files}
    used, codes = np.unique(data["input_ids"], return_inverse=True)
    data["input_ids"] = codes.reshape(data["input_ids"].shape).astype(np.int64)
    training = data["split"] == "holdout"
    fit = {name: values[training] for name, values in data.items() if name != "split"}
    kept = {name: values[~training] for name, values in data.items()}
    later = np.flatnonzero(kept["split"] == "search")[-2000:]
    kept["split"] = kept["split"].copy()
    kept["split"][later] = "holdout"
    return len(used), fit, kept


def train(model: nn.Module, data: Data, epochs: int, rate: float, size: int = 32) -> None:
    """Adam with a one-cycle learning rate, in place."""
    rng = torch.Generator().manual_seed(SEED)
    names = [name for name in data if name != "label"]
    inputs = [torch.from_numpy(data[name]) for name in names]
    labels = torch.from_numpy(data["label"])
    steps = -(-len(labels) // size) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    model.train()
    began = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(labels), generator=rng).split(size):
            longest = (
                int(inputs[names.index("attention_mask")][rows].sum(1).max())
                if ("attention_mask" in names)
                else None
            )
            batch = [each[rows] if longest is None else each[rows, :longest] for each in inputs]
            loss = F.cross_entropy(model(*batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss) * len(rows)
        print(f"epoch {epoch}: {total / len(labels):.3f}, {time.monotonic() - began:.0f} s")


def accuracy(model: nn.Module, data: Data) -> float:
    rows = np.flatnonzero(data["split"] != "train")[:2000]
    names = [name for name in data if name not in ("label", "split")]
    with torch.inference_mode():
        found = model.eval()(*(torch.from_numpy(data[name][rows]) for name in names)).argmax(1)
    return float((found.numpy() == data["label"][rows]).mean())


def export(model: nn.Module, data: Data, path: Path) -> None:
    names = [name for name in data if name not in ("label", "split")]
    axes = {name: {0: "batch"} for name in (*names, "logits")}
    for name in names:
        if data[name].ndim == 2:
            axes[name][1] = "length"
    torch.onnx.export(
        model.eval(), tuple(torch.from_numpy(data[name][:2]) for name in names), str(path),
        input_names=names, output_names=["logits"], dynamic_axes=axes, opset_version=17,
        dynamo=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("net", choices=["digits", "tweets-lstm", "tweets-bert"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # spinning threads fight on a shared machine
    if given.net == "digits":
        model, fit, kept = digits()
        train(model, fit, 12, 3e-3)
    else:
        words, fit, kept = tweets()
        recurrent = given.net == "tweets-lstm"
        model = Recurrent(words) if recurrent else transformer(words)
        train(model, fit, 3, 3e-3 if recurrent else 1e-3)
    given.out.mkdir(parents=True, exist_ok=True)
    export(model, kept, given.out / "model.onnx")
    np.savez_compressed(given.out / "eval.npz", **kept)
    print(f"{given.net}: accuracy {accuracy(model, kept):.4f}")


if __name__ == "__main__":
    main()
