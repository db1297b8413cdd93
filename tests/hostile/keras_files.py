"""Hostile and unusable Keras files, each with words that the refusal must contain.

Those that hold code would leave a file `ran` in the working folder if it were run."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sartor.keras_archive import CONFIG, WEIGHTS
from sartor.runtimes._torch_keras import keras

Make = Callable[[], bytes]
Config = dict[str, Any]

RAN = "open('ran', 'w').write('code of a file was run')"


@cache
def _good() -> dict[str, bytes]:
    """The members of a good file, made once: a compiled model of two layers."""
    model = keras.Sequential(
        [keras.Input((6,), name="x"), keras.layers.Dense(5, activation="relu", name="inner")]
    )
    model.compile("sgd", "mse")
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "good.keras")
        with zipfile.ZipFile(Path(folder) / "good.keras") as file:
            return {name: file.read(name) for name in file.namelist()}


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def _member(name: str, data: bytes) -> Make:
    return lambda: zipped({**_good(), name: data})


def _config(change: Callable[[Config], Any]) -> Make:
    """A good file whose layers were changed."""

    def make() -> bytes:
        config = json.loads(_good()[CONFIG])
        change(config)
        return zipped({**_good(), CONFIG: json.dumps(config).encode()})

    return make


def _layer(**changed: Any) -> Make:
    return _config(lambda config: config["config"]["layers"][1].update(changed))


def _setting(**changed: Any) -> Make:
    return _config(lambda config: config["config"]["layers"][1]["config"].update(changed))


def _function(module: str, name: str) -> Make:
    """The layer's activation is a function that the file names."""
    found = {"class_name": "function", "config": name, "module": module, "registered_name": name}
    return _setting(activation=found)


def _weights(change: Callable[[Any], Any]) -> Make:
    """A good file whose weights were changed."""

    def make() -> bytes:
        buffer = io.BytesIO(_good()[WEIGHTS])
        with h5py.File(buffer, "r+") as file:
            change(file)
        return zipped({**_good(), WEIGHTS: buffer.getvalue()})

    return make


def _link(link: Any) -> Make:
    return _weights(lambda file: file.__setitem__("other", link))


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/nowhere/secret.h5", "data", (4,))
    file.create_virtual_dataset("other", layout)


def _circle(file: Any) -> None:
    file["circle"] = file["/"]


def _outside(file: Any) -> None:
    file.create_dataset("other", (4,), "f4", external=[("/nowhere/secret", 0, 16)])


def _wide(config: Config) -> None:
    """A layer of a million times a million weights: four terabytes."""
    layers = config["config"]["layers"]
    for each in layers[1:]:
        each["config"]["units"] = 10**6
        each["build_config"] = {"input_shape": [None, 10**6]}
    layers[0]["config"]["batch_shape"] = [None, 10**6]
    config["build_config"] = {"input_shape": [None, 10**6]}


def _claims() -> bytes:
    """A member that says that it grows to a terabyte when it is unpacked."""
    data = bytearray(zipped(_good(), zipfile.ZIP_DEFLATED))
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    return bytes(data)


LAMBDA = {"class_name": "__lambda__", "config": {"value": "4wAAAA==", "defaults": None}}

FILES: dict[str, tuple[Make, str]] = {
    "empty": (lambda: b"", "is empty"),
    "random": (lambda: os.urandom(4096), "no archive of Keras's"),
    "cut": (lambda: zipped(_good())[:-90], "cut short"),
    "packed": (lambda: zipped(_good(), zipfile.ZIP_BZIP2), "packed otherwise"),
    "bomb": (_claims, "packed otherwise"),
    "twice": (
        lambda: zipped({**_good(), "assets/a": b"", "assets/b": b""}).replace(b"ts/b", b"ts/a"),
        "a name twice",
    ),
    "up": (_member("../ran", b"x"), "no model of numbers needs"),
    "up from a folder": (_member("assets/../../ran", b"x"), "no model of numbers needs"),
    "absolute": (_member("/tmp/ran", b"x"), "no model of numbers needs"),
    "pickle": (_member("assets/words.pkl", b"x"), "no model of numbers needs"),
    "no layers": (lambda: zipped({"metadata.json": b"{}"}), "not whole"),
    "no weights": (lambda: zipped({CONFIG: b"{}"}), "not whole"),
    "no JSON": (_member(CONFIG, b"{"), "damaged"),
    "deep": (_member(CONFIG, b"[" * 100_000 + b"]" * 100_000), "damaged"),
    "a list": (_member(CONFIG, b"[]"), "no model"),
    "a number": (_member(CONFIG, b"7"), "no model"),
    "a layer": (
        _config(lambda config: config.update(config["config"]["layers"][1])),
        "a Dense, which is no model",
    ),
    "class of another kind": (_layer(class_name=["Dense"]), "names no class"),
    "lambda": (_setting(activation=LAMBDA), "holds a lambda, which is code"),
    "Lambda": (_layer(class_name="Lambda"), "holds a Lambda, which is code"),
    "pickled module": (_layer(class_name="TorchModuleWrapper"), "which is code"),
    "saved graph": (_layer(class_name="TFSMLayer"), "which is code"),
    "system": (_layer(module="os", class_name="system", registered_name=None), "names os.system"),
    "exec": (_function("builtins", "exec"), "cannot be read by Keras"),
    "download": (_function("keras.utils", "get_file"), "names keras.utils.get_file"),
    "other loader": (_function("keras.models", "load_model"), "names keras.models.load_model"),
    "loader as a layer": (
        _layer(module="keras.models", class_name="load_model"),
        "names keras.models.load_model",
    ),
    "loader": (_function("keras.saving", "load_model"), "names keras.saving.load_model"),
    "unsafe": (
        _function("keras.config", "enable_unsafe_deserialization"),
        "names keras.config.enable_unsafe_deserialization",
    ),
    "of the root": (_function("keras", "device"), "names keras.device"),
    "inside": (_layer(module="keras.src.saving.saving_lib"), "names keras.src.saving"),
    "beside": (_layer(module="keras.layers.x", class_name="y"), "names keras.layers.x.y"),
    "own class": (_layer(registered_name="mine>Dense"), "a class or function of your own"),
    "words": (
        _layer(class_name="StringLookup", config={"vocabulary": "/nowhere/secret"}),
        "which reads words",
    ),
    "wide": (_config(_wide), "describes a model of"),
    "another file": (
        _link(h5py.ExternalLink("/nowhere/secret.h5", "/")),
        "refers to another place",
    ),
    "a link": (_link(h5py.SoftLink("/layers")), "refers to another place"),
    "outside": (_weights(_outside), "no plain array"),
    "virtual": (_weights(_virtual), "no plain array"),
    "objects": (
        _weights(lambda file: file.create_dataset("other", data=["text"])),
        "no plain array",
    ),
    "circle": (_weights(_circle), "goes round in circles"),
    "sparse": (
        _weights(lambda file: file.create_dataset("other", (10**12,), "f4", chunks=(100,))),
        "more than its own size",
    ),
    "squeezed": (
        _weights(lambda f: f.create_dataset("z", data=np.zeros(10**6), compression="gzip")),
        "more than its own size",
    ),
    "no HDF5": (_member(WEIGHTS, b"weights"), "damaged"),
    "fewer weights": (_weights(lambda file: file["layers"].clear()), "cannot be read by Keras"),
}
"""Name -> how a file is made, and words of the sentence that refuses it."""


def _evil_loss(config: Config) -> None:
    config["compile_config"] = {"loss": LAMBDA, "optimizer": {"class_name": "x", "module": "os"}}


HARMLESS: dict[str, Make] = {
    "training": _config(_evil_loss),
    "folder": _member("assets/", b""),
}
"""What is never looked at."""
