"""The control of the ResNet job: a small network of as many multiply-accumulates as the artifact,
trained from scratch for the same time, and its int8 form, beside the artifact.

    python benchmarks/main_job.py --only resnet
    python benchmarks/control.py [--bundle build/bench/resnet/run/bundle] [--minutes 30]

Trained is the same architecture with fewer channels, on the same images. Printed is the table of
`sartor compare` on a copy of the data: interleaved latencies, paired differences.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "models"))

from fashion_cnn import count_macs, load  # noqa: E402
from laboratory import laboratory  # noqa: E402
from resnet18 import network, train, write  # noqa: E402

from sartor.data import Part  # noqa: E402
from sartor.registry import open_model, recipe  # noqa: E402
from sartor.trials import count_flops  # noqa: E402

BUILD = ROOT / "build"


def widest(macs: float) -> int:
    """Channels of the largest network that needs no more multiply-accumulates."""
    return max(width for width in range(2, 33) if count_macs(network(width)) <= macs)


def macs_of(bundle: Path, part: Part) -> float:
    """Multiply-accumulates of one example, counted in the artifact."""
    return count_flops(open_model(next(bundle.glob("*.onnx"))), part) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--bundle", type=Path, default=BUILD / "bench" / "resnet" / "run" / "bundle"
    )
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    place = BUILD / "control"
    place.mkdir(parents=True, exist_ok=True)
    source = BUILD / "resnet18"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    ready, _ = laboratory(source, place / "original", 60.0)
    macs = macs_of(given.bundle, ready.data.search)
    made = network(widest(macs)).to(memory_format=torch.channels_last)
    width = made[0].out_channels
    print(f"artifact {macs:,.0f} MACs; control {width} wide: {count_macs(made):,}", flush=True)
    images, labels = (torch.from_numpy(each.copy()) for each in load("train"))
    train(made, images, labels, seconds=60 * given.minutes)
    write(made, place)
    _, lab = laboratory(place, place / "lab", 600.0)
    eight = {"technique": "static-int8", "bias_correction": True}
    with lab:
        integers = lab.build(recipe("onnx", [eight]))
    models = [source / "model.onnx", given.bundle, place / "model.onnx", integers.payload]
    data = ("--data", place / "lab" / "eval.npz")
    command = [sys.executable, "-m", "sartor.cli", "compare", *map(str, (*models, *data))]
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
