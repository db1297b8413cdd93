"""TensorFlow's SavedModels read as data, without TensorFlow, and what in them could touch anything
but numbers.

A SavedModel is a folder: `saved_model.pb`, a graph with functions, and `variables/`. Its graph can
read and write any file, so that TensorFlow is given it only after every operator was looked at
(`savedmodel_operators`), and nothing that lies elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from sartor.contracts import Port, Signature, WrongRequest
from sartor.savedmodel_operators import COMPUTES, RESTORES, SAVES
from sartor.savedmodel_schema import saved_model

FILE, SERVED, TAG = "saved_model.pb", "serving_default", "serve"
MOST_BYTES = 2**31 - 1  # what protobuf takes
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64",
    10: "bool", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
_ITEM = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "float32": 4}
_VARIABLES = re.compile(r"variables\.(index|data-\d{5}-of-\d{5})")
_HANDLES = frozenset({"VarHandleOp", "HashTableV2", "MutableHashTableV2", "NoOp"})
_TWINS = ("saved_model.pbtxt", "saved_model.cpb")  # which TensorFlow would read too


@dataclass(frozen=True)
class Saved:
    """A file that was looked through. `inputs` and `outputs`: name -> tensor of the graph."""

    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    files: tuple[str, ...]
    parameters: int
    bytes: int


def place(path: Path) -> Path:
    """The model's `saved_model.pb`, be it named or its folder."""
    path = Path(path).absolute()
    return path / FILE if path.is_dir() else path


def read(path: Path) -> Saved:
    """What the file at `path` holds. Raises WrongRequest where it is none, or does more than
    compute."""
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        raise WrongRequest(f"{path}: no such file") from None
    return _known(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


def digest(path: Path, settings: Mapping[str, Any]) -> str:
    whole = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for name in names_of(path):
        stat = (path.parent / name).stat()
        whole.update(name.encode())
        whole.update(_hashed(path.parent / name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return whole.hexdigest()


@lru_cache(maxsize=256)
def _hashed(path: Path, *_: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def names_of(path: Path) -> tuple[str, ...]:
    """The model's files, by their names beside `path`, which comes first. Raises WrongRequest for
    what leads out of the folder and for what no model of numbers needs."""
    folder = path.parent
    if path.name != FILE or not path.is_file():
        raise WrongRequest(f"{path} is no SavedModel: name its folder, with {FILE} in it")
    for name in _TWINS:
        if (folder / name).exists():
            raise WrongRequest(f"{folder} holds {name} beside {FILE}: it must hold one of them")
    extra = [each for each in folder.glob("assets*/**/*") if not each.is_dir()]
    if extra:
        raise WrongRequest(
            f"{folder} holds {extra[0].relative_to(folder)}, which no model of numbers needs: "
            "leave what reads text or files out of the model and export it again"
        )
    return (FILE, *_variables(folder))


def _variables(folder: Path) -> list[str]:
    inside = folder / "variables"
    found = sorted(inside.iterdir()) if inside.is_dir() else []
    for each in (folder / FILE, inside, *found):
        if each.is_symlink() and folder.resolve() not in each.resolve().parents:
            raise WrongRequest(f"{each} leads out of the model's folder: copy the file into it")
    odd = [each.name for each in found if not (_VARIABLES.fullmatch(each.name) and each.is_file())]
    if odd:
        raise WrongRequest(f"{inside} holds {odd[0]}, which is none of TensorFlow's files")
    return [f"variables/{each.name}" for each in found]


# -- the graph ------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _known(path: Path, *_: int) -> Saved:
    files = names_of(path)
    meta = _graph(path)
    told = _served(meta, path)
    units = _units(meta.graph, path)
    _check(meta, units, path)
    tensors = [
        {each.key: each.value for each in sorted(side, key=lambda e: e.key)}
        for side in (told.inputs, told.outputs)
    ]
    ends = [each.name for side in tensors for each in side.values()]
    known = {node.name for node in meta.graph.node}
    if not all(_base(end) in known for end in ends):
        raise WrongRequest(f"{path} is damaged: its signature names what is not in its graph")
    ports = [tuple(_port(name, each, path) for name, each in side.items()) for side in tensors]
    names = [{name: each.name for name, each in side.items()} for side in tensors]
    reached = _reach([f"node {_base(end)}" for end in ends], units)
    parameters, size = _weights(meta.graph.node, reached)
    return Saved(Signature(ports[0], ports[1]), names[0], names[1], files, parameters, size)


def _graph(path: Path) -> Any:
    """The one graph of the file."""
    if path.stat().st_size > MOST_BYTES:
        raise WrongRequest(f"{path} has more than {MOST_BYTES} bytes, which is no SavedModel's")
    try:
        found = saved_model().FromString(path.read_bytes())
    except (DecodeError, OSError, UnicodeError):
        found = None
    if found is None or not len(found.meta_graphs):
        raise WrongRequest(f"{path} is no SavedModel, or it is damaged")
    if len(found.meta_graphs) > 1 or list(found.meta_graphs[0].info.tags) != [TAG]:
        tags = "; ".join(", ".join(each.info.tags) for each in found.meta_graphs)
        raise WrongRequest(f"{path} holds graphs for {tags}: export one that is to serve")
    return found.meta_graphs[0]


def _served(meta: Any, path: Path) -> Any:
    names = [each.key for each in meta.signatures]
    if len(set(names)) != len(names):
        raise WrongRequest(f"{path} is damaged: two of its signatures share a name")
    found = next((each.value for each in meta.signatures if each.key == SERVED), None)
    if found is None:
        has = ", ".join(name for name in names if not name.startswith("__")) or "none"
        raise WrongRequest(f"{path} has no signature {SERVED}; it has {has}: export it with one")
    for side, what in ((found.inputs, "inputs"), (found.outputs, "outputs")):
        keys = [each.key for each in side]
        if not keys or len(set(keys)) != len(keys):
            raise WrongRequest(f"{path}: {SERVED} has no {what}, or two of one name")
    return found


def _port(name: str, tensor: Any, path: Path) -> Port:
    if tensor.dtype not in _DTYPES or not tensor.name:
        raise WrongRequest(
            f"{path}: {name!r} is text, or a tensor of a kind that Sartor does not take: leave "
            "what prepares it out of the model, and give the numbers that it makes as data"
        )
    if tensor.shape.unknown_rank or not len(tensor.shape.dim):
        raise WrongRequest(
            f"{path}: {name!r} states no shape with an axis of rows: export the model with an "
            "input signature"
        )
    sizes = tuple(None if each.size < 0 else int(each.size) for each in tensor.shape.dim)
    return Port(name, _DTYPES[tensor.dtype], sizes)


def _weights(nodes: Iterable[Any], reached: set[str]) -> tuple[int, int]:
    """How many numbers the variables hold that the signature reads, and in how many bytes."""
    count = size = 0
    for node in nodes:
        if node.op in ("VarHandleOp", "VariableV2") and f"node {node.name}" in reached:
            told = {each.key: each.value for each in node.attr}
            numbers = 1
            for each in told["shape"].shape.dim if "shape" in told else ():
                numbers *= max(int(each.size), 0)
            dtype = _DTYPES.get(told["dtype"].type, "") if "dtype" in told else ""
            count, size = count + numbers, size + numbers * _ITEM.get(dtype, 8)
    return count, size


# -- what is run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
    """A node of the graph, or a function: its operators, what it leads to, and which of its values
    name files to be restored."""

    operators: frozenset[str]
    leads: frozenset[str]
    restored: frozenset[str]
    takes: frozenset[str] = frozenset()
    swapped: bool = False  # another function of the same interface may be run in its place


def _base(tensor: str) -> str:
    return tensor.lstrip("^").split(":")[0]


def _units(graph: Any, path: Path) -> dict[str, _Unit]:
    names = {function.signature.name for function in graph.library.function}
    made: dict[str, _Unit] = {}
    for node in graph.node:
        inputs = frozenset(f"node {_base(each)}" for each in node.input)
        made[f"node {node.name}"] = _unit([node], names, inputs)
    for function in graph.library.function:
        takes = frozenset(each.name for each in function.signature.input_arg)
        swapped = any(each.key == "api_implements" for each in function.attr)
        made[function.signature.name] = _unit(function.node_def, names, (), takes, swapped)
    if len(made) != len(graph.node) + len(names) or len(names) != len(graph.library.function):
        raise WrongRequest(f"{path} is damaged: two nodes or functions share a name")
    return made


def _unit(
    nodes: Iterable[Any],
    names: set[str],
    inputs: Iterable[str],
    takes: frozenset[str] = frozenset(),
    swapped: bool = False,
) -> _Unit:
    nodes = list(nodes)
    called = {name for node in nodes for name in _called(node.attr)}
    called |= {node.op for node in nodes}
    operators = frozenset(node.op for node in nodes if node.op not in names)
    restored = frozenset(_base(node.input[0]) for node in nodes if node.op in RESTORES)
    return _Unit(operators, frozenset({*inputs, *(called & names)}), restored, takes, swapped)


def _called(attributes: Iterable[Any]) -> Iterator[str]:
    """The functions that attributes name, however deep."""
    for each in attributes:
        for function in (each.value.func, *each.value.list.func):
            if function.name:
                yield function.name
                yield from _called(function.attr)


def _reach(ends: Iterable[str], units: Mapping[str, _Unit]) -> set[str]:
    found: set[str] = set()
    waiting = list(ends)
    while waiting:
        each = waiting.pop()
        if each in units and each not in found:
            found.add(each)
            waiting.extend(units[each].leads)
    return found


def _check(meta: Any, units: Mapping[str, _Unit], path: Path) -> None:
    """Raises WrongRequest where anything but the two functions with which TensorFlow saves and
    restores variables does more than compute, and where one of these could be run as another."""
    saving = _reach([f"node {_base(meta.saver.save)}"], units) if meta.saver.save else set()
    restoring = _reach([f"node {_base(meta.saver.restore)}"], units)
    ends = {_base(t.value.name) for s in meta.signatures for t in _tensors(s.value)}
    others = [name for name in units if name not in saving and name not in restoring]
    live = _reach([*others, *(f"node {each}" for each in ends)], units)
    file = _base(meta.saver.filename)
    for name, unit in units.items():
        allowed = COMPUTES
        if name not in live and not unit.swapped:
            allowed = COMPUTES | (RESTORES if name in restoring else SAVES)
        odd = sorted(unit.operators - allowed)
        if odd:
            raise WrongRequest(
                f"{path} holds the operator {odd[0]}, which does more than compute (it may read or "
                "write files, run Python or ask the network), or is not known here: leave it out "
                "of the model and export it again"
            )
        if not unit.restored <= unit.takes | {file}:
            raise WrongRequest(f"{path} reads variables from a file of its own choice: refused")
    if not _restores(units, f"node {_base(meta.saver.restore)}", f"node {file}"):
        raise WrongRequest(f"{path} reads variables from a file of its own choice: refused")


def _tensors(told: Any) -> Iterator[Any]:
    yield from told.inputs
    yield from told.outputs


def _restores(units: Mapping[str, _Unit], restoring: str, file: str) -> bool:
    """Whether functions that restore variables are called by the one node that is there for it, and
    are given no text but the name of the variables' files, which TensorFlow puts in."""
    for name, unit in units.items():
        if not unit.restored or name.startswith("node "):
            continue
        for caller in (each for each, other in units.items() if name in other.leads):
            given = {each for each in units[caller].leads if each.startswith("node ")} - {file}
            if caller != restoring or any(units[e].operators - _HANDLES for e in given):
                return False
    return True
