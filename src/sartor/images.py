"""A folder of images as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Port, Signature, WrongRequest
from sartor.libraries import needing
from sartor.records import allocate
from sartor.table import SPLITS, Table

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_images(folder: Path, signature: Signature, scratch: Path) -> Table:
    """Images by class: `folder/CLASS/*.png`, or `folder/SPLIT/CLASS/*.png`. Classes in the order
    of their names are 0..C-1."""
    if (folder / "dataset_info.json").exists() or (folder / "state.json").exists():
        raise WrongRequest(
            f"{folder} is a saved Hugging Face dataset; write it with `to_parquet`, or load it in "
            "a file.py:factory"
        )
    tops = sorted(each for each in folder.iterdir() if each.is_dir())
    given = bool(tops) and all(each.name.lower() in SPLITS for each in tops)
    homes = [(top.name, top) for top in tops] if given else [("", folder)]
    files = [
        (split, kind.name, path)
        for split, home in homes
        for kind in sorted(home.iterdir())
        if kind.is_dir()
        for path in sorted(kind.iterdir())
    ]
    images = [each for each in files if each[2].suffix.lower() in SUFFIXES]
    classes = sorted({kind for _, kind, _ in images})
    if len(classes) < 2:
        raise WrongRequest(
            f"{folder}: a folder of images needs one sub-folder for each class, with "
            f"{', '.join(sorted(SUFFIXES))} files; found {len(classes)}"
        )
    port, high, wide, last = _image_port(folder, signature)
    pixels = _pixels([path for _, _, path in images], port, (high, wide), last, scratch)
    at = {name: index for index, name in enumerate(classes)}
    notes = [f"classes by sub-folder: {', '.join(f'{at[n]}={n}' for n in classes[:20])}"]
    if len(images) < len(files):
        notes.append(f"{len(files) - len(images)} files that are no images were left out")
    return Table(
        {port.name: pixels},
        np.array([at[kind] for _, kind, _ in images], np.int64),
        split=np.array([split for split, _, _ in images]) if given else None,
        notes=tuple(notes),
    )


def few_images(folder: Path, most: int) -> np.ndarray:
    """[images, channels, height, width], float32 from 0 to 1: the first images below the folder,
    as a PyTorch model takes them. Raises WrongRequest where they differ in size."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = []
    for path in paths[:most]:
        values = np.asarray(_opened(path), np.float32) / np.float32(255)
        found.append(values.reshape(*values.shape[:2], -1).transpose(2, 0, 1))
    if len({each.shape for each in found}) != 1:
        what = "differ in size" if found else "are not there"
        raise WrongRequest(
            f"{folder}: the images {what}, and the model does not say which size it takes: export "
            "it with torch.export.save, or write a file.py:factory that gives arrays"
        )
    return np.stack(found)


def _opened(path: Path, grey: bool | None = None, size: tuple[int, int] | None = None) -> Any:
    """The image, grey or in colours (as it is, where that is not said), resized to `size`: width
    and height."""
    with needing("reading images", "pip install 'sartor[data]'"):
        from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            grey = opened.mode in ("1", "L", "I", "I;16") if grey is None else grey
            image = opened.convert("L" if grey else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise WrongRequest(f"{path} is not an image that can be read: {error}") from None
    return image if size is None else image.resize(size, Image.Resampling.BILINEAR)


def _image_port(folder: Path, signature: Signature) -> tuple[Port, int, int, bool]:
    """The input that takes images, its height and width, and whether channels come last."""
    port = signature.inputs[0]
    sentence = (
        f"{folder}: a folder of images needs a model with one input [N, 3, H, W] or [N, H, W, 3] "
        "(1 for grey) of fixed height and width, in floating point or uint8; this one takes "
        + ", ".join(f"{each.name} {each.dtype} {list(each.shape)}" for each in signature.inputs)
        + "; write a file.py:factory"
    )
    if len(signature.inputs) != 1 or len(port.shape) != 4:
        raise WrongRequest(sentence)
    last = port.shape[1] not in (1, 3)
    high, wide = (port.shape[1:3]) if last else (port.shape[2:4])
    depth = port.shape[3] if last else port.shape[1]
    fits = port.dtype == "uint8" or port.dtype.startswith("float")
    if depth not in (1, 3) or high is None or wide is None or not fits:
        raise WrongRequest(sentence)
    return port, high, wide, last


def _pixels(
    paths: list[Path], port: Port, size: tuple[int, int], last: bool, scratch: Path
) -> np.ndarray:
    """Images resized to the model's size: float 0..1, or uint8, in a file in `scratch`."""
    shape = (len(paths), *(int(each or 1) for each in port.shape[1:]))
    grey = shape[3 if last else 1] == 1
    pixels = np.lib.format.open_memmap(
        scratch / "pixels.npy", mode="w+", dtype=np.dtype(port.dtype), shape=shape
    )
    allocate(scratch / "pixels.npy")
    for row, path in enumerate(paths):
        values = np.asarray(_opened(path, grey, (size[1], size[0]))).reshape(*size, -1)
        values = values if last else values.transpose(2, 0, 1)
        pixels[row] = values if port.dtype == "uint8" else values / np.float32(255)
    return pixels
