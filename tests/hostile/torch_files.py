"""Hostile and unusable PyTorch files, each with words that the refusal must contain.

Those that hold code would leave a file `ran` in the working folder if it were run."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sartor import torch_archive as archives
from sartor.libraries import quiet
from sartor.testing_torch import save_toys

__all__ = ["HARMLESS", "PROGRAMS", "RAN", "SCRIPTS", "Bomb", "pickled", "quiet"]

Make = Callable[[], bytes]

RAN = "open('ran', 'w').write('code of a file was run')"


class Bomb:
    """Runs code as soon as it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (RAN,)


@cache
def _good(toy: str) -> dict[str, bytes]:
    """The members of a good file, made once."""
    with tempfile.TemporaryDirectory() as folder:
        archive = archives.opened(Path(save_toys(Path(folder), only=(toy,))[toy].payload))
        return {name: archive.read(name) for name in archive.entries}


def _members() -> dict[str, bytes]:
    return dict(_good("mlp"))


def _traced() -> dict[str, bytes]:
    return dict(_good("branching"))


def _zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as file:
        for name, data in members.items():
            file.writestr(f"model/{name}", data)
    return buffer.getvalue()


def _renamed(name: bytes) -> bytes:
    """A member whose name is said to be UTF-8, and is not."""
    data = _zipped({**_members(), "\u00e9": b""})
    return data.replace("\u00e9".encode(), name)


def _swollen() -> bytes:
    """A member that is said to take 2**62 bytes, in the field for large archives."""
    data = bytearray(_zipped(_members()))
    at = data.rindex(b"PK\1\2")
    length = int.from_bytes(data[at + 28 : at + 30], "little")
    data[at + 20 : at + 24] = b"\xff" * 4
    data[at + 30 : at + 32] = (12).to_bytes(2, "little")
    more = struct.pack("<HHQ", 1, 8, 2**62)
    end = data.rindex(b"PK\5\6")
    size = int.from_bytes(data[end + 12 : end + 16], "little") + len(more)
    data[end + 12 : end + 16] = size.to_bytes(4, "little")
    data[at + 46 + length : at + 46 + length] = more
    return bytes(data)


def _graph(change: Callable[[dict[str, Any]], None]) -> Make:
    """A good program whose JSON was changed."""

    def make() -> bytes:
        members = _members()
        model = json.loads(members[archives.GRAPH])
        change(model)
        return _zipped({**members, archives.GRAPH: json.dumps(model).encode()})

    return make


def _nodes(model: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = model["graph_module"]["graph"]["nodes"]
    return found


def _call(target: str, *arguments: dict[str, Any]) -> Make:
    """A program whose first call is another one."""

    def change(model: dict[str, Any]) -> None:
        given = [{"name": "", "arg": each, "kind": 1} for each in arguments]
        first = copy.deepcopy(_nodes(model)[0])
        _nodes(model).insert(0, {**first, "target": target, "inputs": given, "name": "evil"})

    return _graph(change)


def _member(name: str, data: bytes) -> Make:
    return lambda: _zipped({**_members(), name: data})


def _config(**changed: Any) -> Make:
    """A good program whose list of weights was changed for the first of them."""

    def make() -> bytes:
        members = _members()
        config = json.loads(members[archives.CONFIGS[0]])
        first = next(iter(config["config"].values()))
        first |= changed
        return _zipped({**members, archives.CONFIGS[0]: json.dumps(config).encode()})

    return make


def _shape(**changed: int) -> Make:
    def make() -> bytes:
        config = json.loads(_members()[archives.CONFIGS[0]])
        meta = next(iter(config["config"].values()))["tensor_meta"]
        for what, value in changed.items():
            if what == "storage_offset":
                meta[what] = {"as_int": value}
            else:
                meta[what][0] = {"as_int": value}
        return _config(tensor_meta=meta)()

    return make


def _guards(model: dict[str, Any]) -> None:
    model["guards_code"] = [RAN]


def _expression(model: dict[str, Any]) -> None:
    """PyTorch's own loader hands such texts to sympy, which evaluates them."""
    for meta in model["graph_module"]["graph"]["tensor_values"].values():
        meta["sizes"] = [{"as_expr": {"expr_str": RAN, "hint": None}}, *meta["sizes"][1:]]


def _version(model: dict[str, Any]) -> None:
    model["schema_version"]["major"] = 99


def _no_graph(model: dict[str, Any]) -> None:
    del model["graph_module"]["graph"]["nodes"][0]["inputs"]


def _weight_name(name: str) -> Callable[[dict[str, Any]], None]:
    def change(model: dict[str, Any]) -> None:
        spec = model["graph_module"]["signature"]["input_specs"][0]
        spec["parameter"]["parameter_name"] = name

    return change


TEXT: dict[str, Any] = {"as_string": "ran"}
NUMBER: dict[str, Any] = {"as_int": 4}

PROGRAMS: dict[str, tuple[Make, str]] = {
    "empty": (lambda: b"", "is empty"),
    "random": (lambda: os.urandom(4096), "no archive"),
    "cut": (lambda: _zipped(_members())[:-900], "no archive"),
    "packed": (lambda: _zipped(_members(), zipfile.ZIP_BZIP2), "packed otherwise"),
    "name of no text": (lambda: _renamed(b"\xff\xfe"), "no archive"),
    "endless member": (lambda: _swollen(), "packed otherwise"),
    "twice": (lambda: _doubled(_members()), "a name twice"),
    "flipped": (lambda: _flipped(), "damaged"),
    "bomb": (_member("data/weights/big", bytes(10)), "can run code"),
    "sample pickle": (_member("data/constants/custom_obj_0", b"x"), "can run code"),
    "opaque object": (_member("data/constants/opaque_obj_0", pickle.dumps(Bomb())), "can run code"),
    "old weights": (_member("data/weights/model.pt", pickle.dumps(Bomb())), "can run code"),
    "library": (_member("data/aotinductor/model/evil.so", b"\x7fELF"), "can run code"),
    "second model": (_member("models/other.json", b"{}"), "can run code"),
    "pickled weight": (_config(use_pickle=True), "is a pickle"),
    "weight outside": (_config(path_name="../../secret"), "is a pickle"),
    "weight beyond its bytes": (_shape(storage_offset=10**9), "within its bytes"),
    "weight of negative size": (_shape(sizes=-5), "within its bytes"),
    "weight of huge size": (_shape(sizes=10**12), "within its bytes"),
    "weight that is not there": (_config(path_name="weight_99"), "within its bytes"),
    "system": (_call("os.system", TEXT), "known to be safe"),
    "hub": (_call("torch.hub.load", TEXT, TEXT), "known to be safe"),
    "load": (_call("torch.load", TEXT), "known to be safe"),
    "file": (_call("torch.ops.aten.from_file.default", TEXT), "known to be safe"),
    "private": (_call("torch.ops.aten._resize_output_.default"), "known to be safe"),
    "own operator": (_call("torch.ops.evil.run.default", TEXT), "known to be safe"),
    "library operator": (_call("torch.ops.load_library", TEXT), "known to be safe"),
    "class": (_call("torch.ops.aten.__class__.__base__", TEXT), "known to be safe"),
    "builtins": (_call("_operator.methodcaller", TEXT), "known to be safe"),
    "higher order": (_call("torch.ops.higher_order.cond", NUMBER), "known to be safe"),
    "strange argument": (_call("torch.ops.aten.relu.default", {"as_code": RAN}), "not known"),
    "two arguments": (_call("torch.ops.aten.relu.default", TEXT | NUMBER), "damaged"),
    "format": (_graph(_version), "format version 99"),
    "half a graph": (_graph(_no_graph), "damaged"),
    "weight called forward": (_graph(_weight_name("forward")), "damaged"),
}
"""Name -> how a `.pt2` file is made, and words of the sentence that refuses it."""

HARMLESS: dict[str, Make] = {
    "guards": _graph(_guards),
    "expressions": _graph(_expression),
    "sample inputs": _member(archives.SAMPLES, pickle.dumps(Bomb())),
    "extra": _member("extra/evil.py", RAN.encode()),
}
"""What PyTorch's own loader runs or may run, and ours never looks at."""


def _doubled(members: dict[str, bytes]) -> bytes:
    return _zipped({**members, "a": b"", "b": b""}).replace(b"model/b", b"model/a")


def _flipped() -> bytes:
    data = bytearray(_zipped(_members()))
    at = bytes(data).index(b'"graph_module"')
    data[at + 3] ^= 1
    return bytes(data)


def _line(line: str) -> Make:
    """A good TorchScript file with one line more in its method."""

    def make() -> bytes:
        members = _traced()
        name = next(n for n in members if n.startswith("code/") and b"def forward" in members[n])
        head, start, body = members[name].partition(b"def forward")
        signature, colon, rest = body.partition(b"-> Tensor:\n")
        changed = head + start + signature + colon + f"    {line}\n".encode() + rest
        return _zipped({**members, name: changed})

    return make


def elsewhere(folder: str, suffix: str) -> bytes:
    """TorchScript whose code PyTorch finds, since it takes names in any case, and that saves."""
    members = _traced()
    evil = members_of(_line('_0 = torch.save([1], "ran")')())
    return _zipped(
        {
            name.replace("code/", folder).replace(".py", suffix): data
            for name, data in evil.items()
            if name.startswith("code/")
        }
        | {"code/seen.py": b""}
        | {name: data for name, data in members.items() if not name.startswith("code/")}
    )


def members_of(data: bytes) -> dict[str, bytes]:
    """The members of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def _changed(name: str, data: bytes) -> Make:
    return lambda: _zipped({**_traced(), name: data})


SCRIPTS: dict[str, tuple[Make, str]] = {
    "saves": (_line('_0 = torch.save(x, "ran")'), "touches files"),
    "saves as a method": (_line('_0 = x.save("ran")'), "touches files"),
    "reads": (_line('_0 = torch.from_file("/etc/passwd", False, 10)'), "touches files"),
    "saves by a text": (_line('_0 = getattr(x, "save")(x, "ran")'), "touches files"),
    "saves under another name": (
        _line('f = x.save\n    _0 = f(x, "ran")'),
        "touches files",
    ),
    "saves by a text of another name": (
        _line('g = getattr; _0 = g(torch, "save")(x, "ran")'),
        "through a text",
    ),
    "calls out by name": (_line('_0 = rpc_sync("other", x)'), "other machines"),
    "native class": (_line("_0 = __torch__.torch . classes.evil.Run()"), "C++ class"),
    "native class by another name": (_line("t = __torch__.torch"), "as a value"),
    "native object in two lines": (
        _changed("data.pkl", b"c__torch__.torch\nclasses.X\n"),
        "C++ class",
    ),
    "a coding of its own": (
        _changed("code/evil.py", b"# coding: utf-7\nx = 1 +ACM- torch.save(y)\n"),
        "touches files",
    ),
    "calls out": (_line("_0 = ops.rpc.rpc_sync(x)"), "other machines"),
    "calls a library": (_line("_0 = ops.evil.run(x)"), "none of those that are known"),
    "by a text": (_line('_0 = getattr(torch, "save")(x, "ran")'), "touches files"),
    "by another name": (_line("t = torch"), "as a value"),
    "imports": (_line("import os"), "imports"),
    "as it is read": (_changed("code/evil.py", b"def __setstate__(self):\n  pass\n"), "as soon as"),
    "native object": (_changed("data.pkl", b"c__torch__.torch.classes\nX\n"), "C++ class"),
    "deep": (_line("_0 = x" + ".b" * 900), "looked through"),
    "no grammar": (_changed("code/evil.py", b"((("), "looked through"),
    "no code": (
        lambda: _zipped(
            {name: data for name, data in _traced().items() if not name.startswith("code/")}
        ),
        "no code in it",
    ),
    "no signature": (_changed(archives.FACTS, b"{}"), "with data alone"),
    "odd signature": (_changed(archives.FACTS, b'{"signature": {"inputs": [3]}}'), "damaged"),
    "empty": (lambda: b"", "is empty"),
    "random": (lambda: os.urandom(4096), "no archive"),
}
"""Name -> how a TorchScript file is made, and words of the sentence that refuses it."""


def pickled(path: Path, what: Any) -> Path:
    """A file of torch.save."""
    torch.save(what, path)
    return path
