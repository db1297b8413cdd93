"""Train a ResNet-18 in its CIFAR form, 32 channels wide, on Fashion-MNIST.

    python benchmarks/models/resnet18.py --out build/resnet18 [--epochs 8]

Written are `model.safetensors` (with `resnet18.py:make` the model as PyTorch code), `model.onnx`
("image" float32 [N,1,28,28] in 0..1 -> "logits" [N,10]) and `eval.npz` (`image`, `label`, `split`)
with all training images, since training techniques want them. The images come from the Debian
package dataset-fashion-mnist (`make data`).
"""

from __future__ import annotations

import argparse
import math
import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from fashion_cnn import (
    SEED,
    Block,
    accuracy,
    batches,
    check_parity,
    count_macs,
    export,
    load,
    unseen,
)
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sartor.machine import features, multiplies_bfloats

OUT = Path(__file__).resolve().parent.parent.parent / "build" / "resnet18"
WIDTH = 32
SEARCH = 3_000
BRIEF = multiplies_bfloats(features())  # bfloat16 is twice as fast then, else slower


def network(width: int = WIDTH) -> nn.Sequential:
    """ResNet-18 (He et al., CVPR 2016) for small images: a stem of 3x3, four stages of two blocks,
    from `width` to eight times as many channels."""
    widths = [width * factor for factor in (1, 1, 1, 2, 2, 4, 4, 8, 8)]
    blocks = [Block(a, b) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
    return nn.Sequential(*stem, *blocks, *head)


def make() -> nn.Module:
    """The trained network, for `sartor optimize benchmarks/models/resnet18.py:make`."""
    made = network()
    made.load_state_dict(load_file(OUT / "model.safetensors"))
    return made.eval()


def train(
    made: nn.Module, images: Tensor, labels: Tensor, epochs: float = 8, seconds: float = math.inf
) -> None:
    """SGD under a one-cycle rate for so many epochs, or for `seconds`: the rate follows the clock
    then."""
    rng = torch.Generator().manual_seed(SEED)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = torch.optim.SGD(
        made.parameters(), lr=0.15, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = int(epochs * (len(images) // 128 + 1))
    made.train()
    start, done, losses = time.perf_counter(), 0, []
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda _: one_cycle(_share(start, done, steps, seconds))
    )
    while _share(start, done, steps, seconds) < 1:
        for x, y in batches(images, labels, 28, 128, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=BRIEF):
                loss = loss_of(made(x).float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            high = one_cycle(_share(start, done, steps, seconds))
            optimizer.param_groups[0]["momentum"] = 0.95 - 0.1 * high
            losses.append(loss.item())
            done += 1
            if done % 100 == 0:
                spent = time.perf_counter() - start
                print(f"{done} of {steps}: {np.mean(losses[-100:]):.3f}, {spent:.0f} s", flush=True)
            if _share(start, done, steps, seconds) >= 1:
                break


def _share(start: float, done: int, steps: int, seconds: float) -> float:
    """Of the training that is behind: of the time where that is what ends it, else of the steps."""
    spent = time.perf_counter() - start
    return spent / seconds if math.isfinite(seconds) else done / steps


def one_cycle(share: float) -> float:
    """The rate as a share of its highest: up to a quarter of the training, then down, along
    cosines (Smith and Topin 2019)."""
    if share < 0.25:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * share / 0.25)) / 2
    return (1 + math.cos(math.pi * min((share - 0.25) / 0.75, 1))) / 2


def evaluation() -> dict[str, NDArray[np.generic]]:
    """All training images and the test images, none twice."""
    (images, labels), (tests, answers) = load("train"), load("t10k")
    rng = np.random.default_rng(SEED)
    seen: set[bytes] = set()
    known, judged = unseen(images, seen), rng.permutation(unseen(tests, seen))
    sizes = [len(known), SEARCH, len(judged) - SEARCH]
    return {
        "image": (np.concatenate([images[known], tests[judged]])[:, None] / 255).astype(np.float32),
        "label": np.concatenate([labels[known], answers[judged]]),
        "split": np.repeat(np.array(["train", "search", "holdout"]), sizes),
    }


def write(made: nn.Module, out: Path) -> None:
    """The trained network as an ONNX file and as weights, and the data it is judged by."""
    data = evaluation()
    export(made, out / "model.onnx")
    save_file(
        {name: value.contiguous() for name, value in made.state_dict().items()},
        out / "model.safetensors",
    )
    check_parity(made, out / "model.onnx", data["image"][:256].astype(np.float32))
    np.savez_compressed(out / "eval.npz", **data)
    for part in ("search", "holdout"):
        print(f"accuracy on {part}: {accuracy(out / 'model.onnx', data, part):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--epochs", type=float, default=8)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(SEED)
    images, labels = load("train")
    made = network().to(memory_format=torch.channels_last)
    print(f"{count_macs(made):,} MACs an image", flush=True)
    train(made, torch.from_numpy(images.copy()), torch.from_numpy(labels), given.epochs)
    write(made, given.out)


if __name__ == "__main__":
    main()
