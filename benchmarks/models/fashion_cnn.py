"""Train a small residual CNN on Fashion-MNIST and export it to ONNX.

This is the benchmark's stand-in for "a trained vision model": large enough (>= 0.1 GMAC an image)
that its speed is worth improving, small enough to train on two CPU cores in some ten minutes.

    python benchmarks/models/fashion_cnn.py --out build/fashion

The images come from the Debian package dataset-fashion-mnist (see benchmarks/fetch_data.sh).
Written are `model.onnx` ("image" float32 [N,1,28,28] in 0..1 -> "logits" [N,10]),
`model.safetensors` (with `fashion_cnn.py:make` the model as PyTorch code) and `eval.npz` (`image`,
`label`, `split`).
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

OUT = Path(__file__).resolve().parent.parent.parent / "build" / "fashion"
DATA = Path("/usr/share/datasets/fashion-mnist")
SEED = 20
CALIBRATION = 1_000  # training images kept in eval.npz: enough to calibrate a quantizer
SEARCH = 3_000  # test images the search may look at; the other test images are the holdout
PARITY = 1e-4
# Side of the square images in each epoch. The network pools globally, so it can be trained on
# smaller images first: an epoch at 20 px costs half of one at 28 px.
SIDES = (20, 20, 24, 28)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; halves the image when the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def make_network() -> nn.Sequential:
    """A residual network of 0.11 GMAC an image of 28x28.

    It takes pixels in 0..1 as they are: the first batch norm does the standardising.
    """
    widths = [32, 32, 64, 64, 64, 128, 128, 128, 128]
    blocks = [Block(a, b) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
    return nn.Sequential(*stem, *blocks, *head)


def make() -> nn.Module:
    """The trained network, for `sartor optimize benchmarks/models/fashion_cnn.py:make`."""
    made = make_network()
    made.load_state_dict(load_file(OUT / "model.safetensors"))
    return made.eval()


def count_macs(network: nn.Module) -> int:
    """Multiply-adds for one image, counted where they happen: convolutions and linear layers."""
    total = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = module.get_parameter("weight")
        # Each output position of each output channel is one dot product with weight[channel].
        total += output[0].numel() * weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    network.eval()
    with torch.inference_mode():
        network(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return total


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one gzipped idx file of unsigned bytes (magic 0, 0, 8, number of dimensions)."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, 4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load(part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N,28,28] and labels of "train" or "t10k"."""
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is missing: run `make data` first")
    images = read_idx(DATA / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(DATA / f"{part}-labels-idx1-ubyte.gz")
    return images, labels.astype(np.int64)


def augment(images: Tensor, rng: torch.Generator, shift: int = 2) -> Tensor:
    """Shift each image by up to `shift` pixels and mirror every other one, at random."""
    count, _, side, _ = images.shape
    padded = F.pad(images, [shift] * 4)
    grid = torch.arange(side)
    rows = grid + torch.randint(0, 2 * shift + 1, (count, 1), generator=rng)
    columns = grid + torch.randint(0, 2 * shift + 1, (count, 1), generator=rng)
    mirrored = torch.rand(count, generator=rng) < 0.5
    columns[mirrored] = columns[mirrored].flip(1)
    picked = padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    return picked[:, None]


def batches(
    images: Tensor, labels: Tensor, side: int, size: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, augmented batches, scaled down to side x side."""
    for chosen in torch.randperm(len(images), generator=rng).split(size):
        x = augment(images[chosen, None].float() / 255, rng)
        if side != images.shape[-1]:
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        yield x.contiguous(memory_format=torch.channels_last), labels[chosen]


def train(network: nn.Module, images: Tensor, labels: Tensor, size: int = 128) -> None:
    """Train in place with SGD under a one-cycle learning rate, a size of image an epoch."""
    rng = torch.Generator().manual_seed(SEED)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = -(-len(images) // size) * len(SIDES)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.15, total_steps=steps, pct_start=0.25
    )
    network.train()
    start = time.perf_counter()
    for epoch, side in enumerate(SIDES, 1):
        losses = []
        for x, y in batches(images, labels, side, size, rng):
            loss = loss_of(network(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - start
        tail = np.mean(losses[-100:])
        print(f"epoch {epoch} at {side} px: loss {tail:.3f}, {seconds:.0f} s", flush=True)


def export(network: nn.Module, path: Path) -> None:
    """Write the network as ONNX with a free batch axis."""
    # channels_last is a matter of training speed; the exported weights are in the usual order.
    network.eval().to(memory_format=torch.contiguous_format)
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, 28, 28),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,  # the old exporter takes a second, the new one many
    )


def check_parity(network: nn.Module, path: Path, images: NDArray[np.float32]) -> float:
    """Largest difference between the logits of torch and of the exported file."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {"image": images})
    with torch.inference_mode():
        reference = network(torch.from_numpy(images)).numpy()
    difference = float(np.abs(exported - reference).max())
    if difference > PARITY:
        raise SystemExit(f"the exported model differs from torch by {difference:.1e}")
    return difference


def unseen(images: NDArray[np.uint8], seen: set[bytes]) -> NDArray[np.int64]:
    """Indices of the images whose content is not in `seen`; adds them to it."""
    kept = []
    for index, image in enumerate(images):
        content = image.tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(index)
    return np.array(kept, dtype=np.int64)


def make_eval(
    train_part: tuple[NDArray[np.uint8], NDArray[np.int64]],
    test_part: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> dict[str, NDArray[np.generic]]:
    """The evaluation arrays: some training images to calibrate, test images to judge.

    A test image that also stands among the 60,000 training images would be judged by memory, and
    one that stands twice could be in both search and holdout: both are dropped.
    """
    rng = np.random.default_rng(SEED)
    seen: set[bytes] = set()
    calibration = rng.permutation(unseen(train_part[0], seen))[:CALIBRATION]
    judged = rng.permutation(unseen(test_part[0], seen))
    images = np.concatenate([train_part[0][calibration], test_part[0][judged]])
    sizes = [len(calibration), SEARCH, len(judged) - SEARCH]
    return {
        "image": (images[:, None] / 255).astype(np.float32),
        "label": np.concatenate([train_part[1][calibration], test_part[1][judged]]),
        "split": np.repeat(np.array(["train", "search", "holdout"]), sizes),
    }


def accuracy(path: Path, data: dict[str, NDArray[np.generic]], *splits: str) -> float:
    """Share of right answers of the exported model on some splits."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    chosen = np.flatnonzero(np.isin(data["split"], splits))
    hits = 0
    for part in np.array_split(chosen, -(-len(chosen) // 500)):
        (logits,) = session.run(None, {"image": data["image"][part]})
        hits += int((logits.argmax(1) == data["label"][part]).sum())
    return hits / len(chosen)


def main() -> None:
    """Train, export, check, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)

    start = time.perf_counter()
    train_part, test_part = load("train"), load("t10k")
    network = make_network().to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{parameters:,} parameters, {count_macs(network):,} MACs an image", flush=True)
    train(network, torch.from_numpy(train_part[0].copy()), torch.from_numpy(train_part[1]))

    model, data = out / "model.onnx", make_eval(train_part, test_part)
    export(network, model)
    save_file(network.state_dict(), out / "model.safetensors")
    difference = check_parity(network, model, data["image"][:256].astype(np.float32))
    np.savez_compressed(out / "eval.npz", **data)
    counts = {name: int((data["split"] == name).sum()) for name in ("train", "search", "holdout")}
    print(f"parity with torch: {difference:.1e}; rows: {counts}")
    for splits in (("train",), ("search",), ("holdout",), ("search", "holdout")):
        print(f"accuracy on {'+'.join(splits)}: {accuracy(model, data, *splits):.4f}")
    print(f"{model.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
