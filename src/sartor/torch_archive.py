"""The archives that PyTorch writes, read as data: what is in them, and what could run code.

A `.pt2` file of `torch.export.save` is a zip archive: a graph of operators as JSON, weights as raw
bytes. `torch.export.load` evaluates texts of that JSON and unpickles members of the archive, so it
is never called here: `program` reads the JSON itself and takes nothing that it does not know.
This module needs no torch; `torch_graph` runs what it returns.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sartor.contracts import WrongRequest

GRAPH = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
CONFIGS = (f"{WEIGHTS}model_weights_config.json", f"{CONSTANTS}model_constants_config.json")
SAMPLES = "data/sample_inputs/model.pt"
FACTS = "extra/sartor.json"  # names of inputs and outputs, remarks: written by Sartor
ROOT = "model"
WHEN = (1980, 1, 1, 0, 0, 0)  # of every member: equal models are equal files
LARGEST_TEXT = 200_000_000  # bytes of JSON

Sort = Literal["program", "script", "pickle", "old"]

# What may stand in an archive that is read; the raw bytes of the weights besides.
_KNOWN = {
    GRAPH, *CONFIGS, SAMPLES, FACTS, "archive_format", "archive_version", "byteorder",
    ".data/version", ".data/serialization_id", "version", ".format_version",
    ".storage_alignment",
}  # fmt: skip
_RAW = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """Member -> its entry, by the names below the archive's one root folder."""

    path: Path
    entries: Mapping[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """Raises WrongRequest where the member is missing or damaged."""
        if name not in self.entries:
            raise WrongRequest(f"{self.path} is not whole: there is no {name} in it; save it again")
        try:
            return _content(self.path, self.entries[name])
        except (OSError, ValueError, zlib.error, struct.error) as error:
            raise WrongRequest(f"{self.path} is damaged ({name}: {error}); copy it again") from None

    def json(self, name: str) -> Any:
        if name in self.entries and self.entries[name].file_size > LARGEST_TEXT:
            raise WrongRequest(f"{self.path}: {name} is larger than any model's")
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise WrongRequest(f"{self.path} is damaged ({name}: {error})") from None

    @property
    def sort(self) -> Sort:
        if GRAPH in self.entries:
            return "program"
        if "serialized_exported_program.json" in self.entries:
            return "old"
        return "script" if "constants.pkl" in self.entries else "pickle"


def opened(
    path: Path, by: str = "PyTorch", saved: str = "torch.export.save", rooted: bool = True
) -> Archive:
    """The archive in a file, which `by` writes with `saved`, its members below one folder where it
    is `rooted`. Raises WrongRequest for anything that is none."""
    if not path.exists():
        raise WrongRequest(f"{path}: no such file")
    if not path.is_file():
        raise WrongRequest(f"{path} is a folder or a device; pass the model's file itself")
    if not path.stat().st_size:
        raise WrongRequest(f"{path} is empty; save the model again")
    try:
        with zipfile.ZipFile(path) as file:
            listed = file.infolist()
    except _DAMAGE as error:
        raise WrongRequest(
            f"{path} is no archive of {by}'s or was cut short ({error}); save it again with {saved}"
        ) from None
    entries = _by_name(path, listed, by, rooted)
    plain = [each for each in entries.values() if each.compress_type == zipfile.ZIP_STORED]
    packed = [each for each in entries.values() if each.compress_type == zipfile.ZIP_DEFLATED]
    honest = len(plain) + len(packed) == len(entries)
    size = path.stat().st_size
    honest &= sum(each.file_size for each in plain) <= size
    honest &= all(each.compress_size <= size for each in entries.values())
    if not honest or sum(each.file_size for each in packed) > LARGEST_TEXT:
        raise WrongRequest(f"{path} was not written by {by}: its members are packed otherwise")
    return Archive(path, entries)


def _content(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, without reading the list of all members again. Raises ValueError, or
    what reading raises, where they are damaged."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        start, name, more = struct.unpack("<4s22xHH", file.read(30))
        if start != b"PK\3\4" or entry.flag_bits & 1:
            raise ValueError("it has no header, or is encrypted")
        file.seek(name + more, 1)
        data = file.read(entry.compress_size)
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, entry.file_size + 1)
    if len(data) != entry.file_size or zlib.crc32(data) != entry.CRC:
        raise ValueError("its bytes are not those that were written")
    return data


def _by_name(
    path: Path, listed: list[zipfile.ZipInfo], by: str, rooted: bool
) -> dict[str, zipfile.ZipInfo]:
    roots = {each.filename.partition("/")[0] for each in listed}
    rooted = rooted and len(roots) == 1 and all("/" in each.filename for each in listed)
    names = [each.filename.partition("/")[2] if rooted else each.filename for each in listed]
    if not names or len(set(names)) < len(names):
        raise WrongRequest(f"{path} was not written by {by}: it holds nothing, or a name twice")
    return dict(zip(names, listed, strict=True))


def write(path: Path, members: Mapping[str, bytes]) -> None:
    """An archive as PyTorch writes them; the same members give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(members):
            file.writestr(zipfile.ZipInfo(f"{ROOT}/{name}", WHEN), members[name])


# -- programs -----------------------------------------------------------------------------------


def check_members(archive: Archive) -> None:
    """Raises WrongRequest for an archive that is no exported program, or where a member of it is
    read by running it: pickles, compiled libraries."""
    if archive.sort != "program":
        raise WrongRequest(_other_sort(archive))
    for name in archive.entries:
        if name not in _KNOWN and not _RAW.fullmatch(name) and not name.startswith("extra/"):
            raise WrongRequest(
                f"{archive.path} holds {name!r}, which can run code when it is read: save the "
                "program with plain tensors alone, or add --trust if you made it yourself"
            )
    for name in CONFIGS:
        for meta in _config(archive, name).values():
            if meta.get("use_pickle") or not _RAW.fullmatch(_folder(name) + str(meta["path_name"])):
                raise WrongRequest(
                    f"{archive.path}: {meta['path_name']} is a pickle, which can run any code when "
                    "it is read: save plain tensors, or add --trust if you made it yourself"
                )


def _other_sort(archive: Archive) -> str:
    if archive.sort == "old":
        return (
            f"{archive.path} was saved by PyTorch 2.7 or older: load it there and save it again "
            "with torch.export.save of a newer one"
        )
    what = "TorchScript" if archive.sort == "script" else "no exported program"
    return f"{archive.path} is {what}, not a program of torch.export.save"


def _folder(config: str) -> str:
    return config.rpartition("/")[0] + "/"


def _config(archive: Archive, name: str) -> Mapping[str, Any]:
    """Tensor's name -> where it lies and its shape."""
    if name not in archive.entries:
        return {}
    found = archive.json(name)
    config = found.get("config") if isinstance(found, dict) else None
    if not isinstance(config, dict) or not all(
        isinstance(each, dict) and isinstance(each.get("path_name"), str)
        for each in config.values()
    ):
        raise WrongRequest(f"{archive.path} is damaged: {name} lists no tensors")
    return config


def stored_tensors(archive: Archive) -> dict[str, tuple[str, Mapping[str, Any], bool]]:
    """Tensor's name -> the member with its bytes, its shape as PyTorch writes it, and whether it is
    a parameter; constants under their own names."""
    found = {}
    for name in CONFIGS:
        for key, meta in _config(archive, name).items():
            if not isinstance(meta.get("tensor_meta"), dict):
                raise WrongRequest(f"{archive.path} is damaged: {key} has no shape")
            record = _folder(name) + meta["path_name"]
            found[key] = (record, meta["tensor_meta"], bool(meta.get("is_param")))
    return found


def cleaned(archive: Archive, facts: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The members of a program without what is not its own: places in the author's source, guards
    (texts that PyTorch evaluates), example inputs (a pickle), the tree of modules.

    `facts` goes into the archive as Sartor's own."""
    check_members(archive)
    model = archive.json(GRAPH)
    try:
        _strip(model["graph_module"]["graph"])
        model["guards_code"] = []
        model["graph_module"]["module_call_graph"] = model["graph_module"]["module_call_graph"][:1]
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise WrongRequest(f"{archive.path} is damaged: its graph is not one") from None
    members = {name: archive.read(name) for name in archive.entries if _RAW.fullmatch(name)}
    members |= {name: archive.read(name) for name in CONFIGS}
    members |= {
        GRAPH: json.dumps(model, sort_keys=True).encode(),
        SAMPLES: b"",
        "archive_format": b"pt2",
        "archive_version": archive.read("archive_version"),
        "byteorder": b"little",
        ".data/version": b"6\n",
    }
    if facts is not None:
        members[FACTS] = text(facts)
    elif FACTS in archive.entries:
        members[FACTS] = archive.read(FACTS)
    return members


def _strip(graph: dict[str, Any]) -> None:
    for node in graph["nodes"]:
        node["metadata"] = {}
        for each in node["inputs"]:
            inner = each["arg"].get("as_graph")
            if inner is not None:
                _strip(inner["graph"])


def text(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()


def facts(archive: Archive) -> Mapping[str, Any]:
    """What Sartor wrote beside the program; empty where somebody else wrote the file."""
    found = archive.json(FACTS) if FACTS in archive.entries else {}
    return found if isinstance(found, dict) else {}


def tell(path: Path, **more: Any) -> None:
    """Adds to what Sartor wrote beside the program in this file."""
    archive = opened(path)
    members = {name: archive.read(name) for name in archive.entries}
    members[FACTS] = text({**facts(archive), **more})
    write(path, members)


# -- digest -------------------------------------------------------------------------------------

_MANGLED = re.compile(rb"___torch_mangle_\d+")


def digest(path: Path) -> str:
    """sha256 of what decides the answers: names, graph and weights, not the archive's own bytes.

    Left out is what depends on who saved it when and for what: its purpose, example sizes (`hint`),
    places in source files, and the numbers that TorchScript gives to classes in the order in which
    a process meets them."""
    archive = opened(path)
    whole, numbers = hashlib.sha256(), dict[bytes, bytes]()
    if archive.sort == "program":
        members = cleaned(archive)
        members[GRAPH] = text(_without_hints(json.loads(members[GRAPH])))
        if FACTS in members:
            told = json.loads(members[FACTS])
            members[FACTS] = text({name: each for name, each in told.items() if name != "purpose"})
    else:
        members = {
            name: archive.read(name)
            for name in sorted(archive.entries, key=_in_order)
            if not name.startswith(".data/") and not name.endswith(".debug_pkl")
        }
    for name, data in members.items():
        label = name.encode()
        if archive.sort == "script":
            label, data = (
                _MANGLED.sub(lambda found: _numbered(found[0], numbers), each)
                for each in (label, data)
            )
        whole.update(b"%d %s %d " % (len(label), label, len(data)))
        whole.update(data)
    return whole.hexdigest()


def _in_order(name: str) -> tuple[str | int, ...]:
    """Numbers in names by their value."""
    parts = re.split(r"(\d+)", name)
    return tuple(f"{int(each):012d}" if each.isdigit() else each for each in parts)


def _numbered(name: bytes, numbers: dict[bytes, bytes]) -> bytes:
    return numbers.setdefault(name, b"___torch_mangle_%d" % len(numbers))


def _without_hints(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_hints(each) for key, each in value.items() if key != "hint"}
    return [_without_hints(each) for each in value] if isinstance(value, list) else value
