"""ONNX files as bytes: which files they name, and what they are known by. Needs no onnx package."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sartor.contracts import WrongRequest


def names_of(path: Path) -> tuple[str, ...]:
    """The external data that a file names, as it names them, each once."""
    stat = path.stat()
    return _names(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=256)
def _names(path: Path, *_: int) -> tuple[str, ...]:
    with path.open("rb") as file:
        empty = file.seek(0, os.SEEK_END) == 0
        data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return external_names(data)


def externals(path: Path) -> tuple[str, ...]:
    """The external files' names, relative to the model's folder. Raises WrongRequest where one is
    missing or lies elsewhere."""
    names = names_of(path)
    for name in names:
        inside(path, name)
    return names


def inside(path: Path, name: str) -> Path:
    """The external file. Raises WrongRequest where it is missing or lies elsewhere."""
    folder = path.parent.resolve()
    place = folder / name
    if (
        not name
        or "\0" in name
        or Path(name).is_absolute()
        or folder not in place.resolve().parents
    ):
        raise WrongRequest(
            f"{path}: its external data {name!r} lie outside the model's folder; put them beside "
            "the model and save it with a plain file name as location"
        )
    if not place.is_file():
        raise WrongRequest(
            f"{path}: its external data {name!r} are missing; put the file beside it"
        )
    return place


def digest(path: Path, settings: Mapping[str, Any]) -> str:
    """sha256 over the file, its external files and the settings."""
    whole = hashlib.sha256()
    for name in (path.name, *externals(path)):
        file = path.parent / name
        stat = file.stat()
        whole.update(_digest(file, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    whole.update(json.dumps(dict(settings), sort_keys=True).encode())
    return whole.hexdigest()


@lru_cache(maxsize=512)
def _digest(path: Path, *_: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# The fields of onnx.proto on the way to a tensor's external data: message -> field -> message.
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}


def external_names(data: bytes | mmap.mmap) -> tuple[str, ...]:
    """The locations of external data in an ONNX file's bytes, each once, sorted. Reads protobuf's
    wire format and skips all else, weights included. Raises WrongRequest where it is not
    well-formed."""
    found: set[str] = set()
    view, waiting = memoryview(data), [("model", 0, len(data))]
    while waiting:
        message, start, end = waiting.pop()
        entry: dict[str, str] = {}
        for field, first, last in _chunks(view, start, end):
            inner = FIELDS[message].get(field)
            if message == "entry" and inner is not None:
                entry[inner] = bytes(view[first:last]).decode(errors="replace")
            elif inner is not None:
                waiting.append((inner, first, last))
        if entry.get("key") == "location":
            found.add(entry.get("value", ""))
    return tuple(sorted(found))


def _chunks(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field, start, end) of everything with a length in a message: texts, bytes, messages."""
    while at < end:
        tag, at = _varint(view, at, end)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(view, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(view, at, end)
            yield field, at, min(at + length, end)
            at += length
        if at > end or wire not in (0, 1, 2, 5):
            raise WrongRequest("the artifact is not an ONNX file or was cut short")


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise WrongRequest("the artifact is not an ONNX file or was cut short")
