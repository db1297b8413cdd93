"""The archives that Keras writes (`.keras`), read as data, and what in them could run code.

A `.keras` file is a zip archive: the model's layers as JSON, each named by its class and module,
and the weights as HDF5. Keras imports what the JSON names; so it is given the JSON again only after
every name in it was looked at, and nothing else that is in the file. This module needs no Keras.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sartor.contracts import WrongRequest
from sartor.torch_archive import Archive, opened

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
SAVED = "model.save('model.keras')"

# Where Keras keeps what models are made of. Functions for training, files and downloads lie in
# other modules of its.
_MODULES = re.compile(
    r"keras(\.(activations|constraints|dtype_policies|initializers|layers|models|quantizers"
    r"|regularizers))?|keras\.src\.(applications|layers|models|ops)(\.\w+)*"
)
_FUNCTIONS = (None, "builtins", "keras.activations", "keras.ops")
_OF_KERAS = {"DTypePolicy", "Functional", "InputSpec", "Model", "Sequential"}  # in `keras` itself
_DATA = {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"}
_CODE = {
    "__lambda__", "__typespec__", "FlaxLayer", "JaxLayer", "Lambda", "NnxLayer", "TFSMLayer",
    "TorchModuleWrapper",
}  # fmt: skip
_FILES = {"HashedCrossing", "Hashing", "IntegerLookup", "StringLookup", "TextVectorization"}


def members(path: Path) -> dict[str, bytes]:
    """What Keras may be given of a file: its layers, without how they were trained, and its
    weights. Raises WrongRequest for a file that is none of Keras', or that names code."""
    archive = opened(path, "Keras", SAVED, rooted=False)
    for name in archive.entries:
        if name not in (CONFIG, METADATA, WEIGHTS) and not _is_empty(archive, name):
            raise WrongRequest(
                f"{path} holds {name!r}, which no model of numbers needs: leave what reads text or "
                f"files out of the model and save it again with {SAVED}"
            )
    config = archive.json(CONFIG)
    if not isinstance(config, dict):
        raise WrongRequest(f"{path} holds no model: {CONFIG} is no mapping")
    for each in _objects(config):
        each.pop("compile_config", None)  # losses, metrics and optimizers are not looked for
    for each in _objects(config):
        _check(each, path)
    try:
        written = json.dumps(config).encode()
    except RecursionError:
        raise WrongRequest(f"{path} is damaged ({CONFIG} is nested too deep)") from None
    return {
        CONFIG: written,
        METADATA: archive.read(METADATA),
        WEIGHTS: archive.read(WEIGHTS),
    }


def compile_config(path: Path) -> Any:
    """How the model in the file was compiled, as Keras wrote it; None where it was not."""
    config = opened(path, "Keras", SAVED, rooted=False).json(CONFIG)
    return config.get("compile_config") if isinstance(config, dict) else None


def _is_empty(archive: Archive, name: str) -> bool:
    return name.startswith("assets/") and not archive.entries[name].file_size


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in it that names a class, however deep it lies."""
    waiting = [config]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting.extend(each.values())
            if "class_name" in each:
                yield each
        elif isinstance(each, list):
            waiting.extend(each)


def _check(named: dict[str, Any], path: Path) -> None:
    """Raises WrongRequest where a mapping names anything but a part of Keras that computes."""
    name, module = named["class_name"], named.get("module")
    registered = named.get("registered_name")
    if name == "function":
        name = named.get("config")
    if not isinstance(name, str) or not isinstance(module, (str, type(None))):
        raise WrongRequest(f"{path} is damaged: {CONFIG} names no class where it should")
    if name in _DATA:
        return
    if name in _CODE:
        raise WrongRequest(
            f"{path} holds a {name.strip('_')}, which is code in the file or beside it: write a "
            "function that returns the model and pass file.py:function, or add --trust if you made "
            "the file yourself"
        )
    if name in _FILES:
        raise WrongRequest(
            f"{path} holds a {name}, which reads words: leave it out of the model, and give the "
            "numbers that it makes as data"
        )
    if named["class_name"] == "function":
        allowed = module in _FUNCTIONS
    elif module is None or module == "keras":
        allowed = module is None or name in _OF_KERAS
    else:
        allowed = name[:1].isupper() and _MODULES.fullmatch(module) is not None
    if not allowed or registered not in (None, "function", name):
        raise WrongRequest(
            f"{path} names {'.'.join(filter(None, (module, name)))}, which is no part of Keras "
            "that computes: a class or function of your own is not in the file; write a function "
            "that returns the model and pass file.py:function"
        )
