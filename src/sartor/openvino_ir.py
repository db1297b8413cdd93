"""OpenVINO's files read as data, without OpenVINO: a graph in `.xml`, its weights in the `.bin`
beside it.

Files come from strangers: nothing of one reaches OpenVINO before it was looked through here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from xml.parsers import expat

from sartor.contracts import Port, Signature, WrongRequest

DEEPEST = 64  # elements within elements: a Loop in a Loop takes five
LONGEST = 2**31 - 1  # bytes of a graph without its weights
CHUNK = 1 << 20
DIGITS = 40  # of a size, at most

_TYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "boolean": "bool",
    "string": "str",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "fp64": "float64",  # these at ports
    "fp32": "float32",
    "fp16": "float16",
    "bool": "bool",
}


@dataclass
class Layer:
    """A layer of the graph itself: what stands in its tag, in its <data>, and at its ports."""

    facts: dict[str, str]
    data: dict[str, str] = field(default_factory=dict)
    takes: list[Gate] = field(default_factory=list)
    gives: list[Gate] = field(default_factory=list)


@dataclass
class Gate:
    """A port of a layer. `sizes` has None where an axis is free."""

    facts: dict[str, str]
    sizes: list[int | None] = field(default_factory=list)


@dataclass
class Ir:
    """A graph. `weights` are (offset, bytes) of all constants, those in bodies included."""

    layers: list[Layer] = field(default_factory=list)
    edges: list[dict[str, str]] = field(default_factory=list)
    weights: list[tuple[str, str]] = field(default_factory=list)


def weights_of(path: Path) -> Path:
    """The file that holds the weights of this graph; OpenVINO knows it by its name."""
    return path.with_suffix(".bin")


def names_of(path: Path) -> tuple[str, ...]:
    """The files of the model: the graph, and the weights where there are some."""
    weights = weights_of(path)
    return (path.name, weights.name) if weights.exists() or weights.is_symlink() else (path.name,)


def signature(path: Path) -> Signature:
    """Inputs and outputs of the file, which was looked through. Raises WrongRequest with a sentence
    for anything unusable."""
    if not path.exists():
        raise WrongRequest(f"{path}: no such file")
    if not path.is_file():
        raise WrongRequest(f"{path} is a folder or a device; pass the .xml file itself")
    return _looked_through(path, *_marks(path))


def layers(path: Path) -> tuple[Layer, ...]:
    """The layers of the graph itself, in their order in the file."""
    return tuple(_read(path).layers)


def digest(path: Path, settings: Mapping[str, object]) -> str:
    """sha256 over the graph, the weights and the settings."""
    whole = hashlib.sha256()
    for name in names_of(path):
        whole.update(_hash(path.parent / name, *_mark(path.parent / name)))
    whole.update(json.dumps(dict(settings), sort_keys=True).encode())
    return whole.hexdigest()


def _mark(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _marks(path: Path) -> tuple[int, ...]:
    weights = weights_of(path)
    return (*_mark(path), *(_mark(weights) if weights.exists() else ()))


@lru_cache(maxsize=512)
def _hash(path: Path, *_: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@lru_cache(maxsize=256)
def _looked_through(path: Path, *_: int) -> Signature:
    ir = _read(path)
    _check_weights(ir, path)
    inputs = tuple(_input(each, path) for each in ir.layers if _sort(each) == "Parameter")
    outputs = tuple(_output(each, ir, path) for each in ir.layers if _sort(each) == "Result")
    if not inputs:
        raise WrongRequest(f"{path}: the model has no inputs; there is nothing to feed it with")
    if not outputs:
        raise WrongRequest(f"{path}: the model has no outputs; convert it again")
    names = [port.name for port in (*inputs, *outputs)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise WrongRequest(
            f"{path}: several inputs or outputs are called {twice[0]!r}; give each a name of its "
            "own before you save the model"
        )
    return Signature(inputs, outputs)


# -- the graph ----------------------------------------------------------------------------------


class _Reader:
    """What expat tells, put together; a DOCTYPE, which is how XML grows without bound and reads
    other files, is refused where it begins."""

    def __init__(self, path: Path) -> None:
        self.path, self.ir = path, Ir()
        self.above: list[str] = []  # the elements that are open
        self.gate: Gate | None = None
        self.text = ""
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._said

    def _doctype(self, *_: object) -> None:
        raise WrongRequest(
            f"{self.path} declares a document type, which no OpenVINO file does: it may have been "
            "made to exhaust the memory or to read other files; convert the model again"
        )

    def _start(self, tag: str, facts: dict[str, str]) -> None:
        if not self.above and tag != "net":
            raise WrongRequest(f"{self.path} is XML, but no OpenVINO model: it begins with <{tag}>")
        self.above.append(tag)
        if len(self.above) > DEEPEST:
            raise WrongRequest(
                f"{self.path} has elements in elements {DEEPEST} deep; convert the model again"
            )
        self.text = ""
        if tag == "data" and "offset" in facts:
            self.ir.weights.append((facts["offset"], facts.get("size", "")))
        at = "/".join(self.above)
        if at == "net/layers/layer":
            self.ir.layers.append(Layer(facts))
        elif at == "net/layers/layer/data":
            self.ir.layers[-1].data = facts
        elif at in ("net/layers/layer/input/port", "net/layers/layer/output/port"):
            self.gate, layer = Gate(facts), self.ir.layers[-1]
            (layer.takes if "input" in self.above else layer.gives).append(self.gate)
        elif at == "net/edges/edge":
            self.ir.edges.append(facts)

    def _end(self, tag: str) -> None:
        inside = "/".join(self.above[:4]) == "net/layers/layer/input" or (
            "/".join(self.above[:4]) == "net/layers/layer/output"
        )
        if tag == "dim" and self.gate is not None and inside and len(self.above) == 6:
            size = self.text[:DIGITS].strip()
            self.gate.sizes.append(int(size) if size.isdecimal() else None)
        self.above.pop()

    def _said(self, text: str) -> None:
        if self.above[-1] == "dim" and len(self.text) < DIGITS:
            self.text += text[:DIGITS]


def _read(path: Path) -> Ir:
    size = path.stat().st_size
    if not size:
        raise WrongRequest(f"{path} is empty; convert the model again")
    if size > LONGEST:
        raise WrongRequest(
            f"{path} is larger than a graph can be (2 GB); the weights belong in .bin"
        )
    reader = _Reader(path)
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                reader.parser.Parse(block, False)
            reader.parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise WrongRequest(
            f"{path} is not an OpenVINO model or was cut short ({error}); convert or copy it again"
        ) from None
    return reader.ir


def _check_weights(ir: Ir, path: Path) -> None:
    """Raises WrongRequest where weights are missing, cut short or outside the folder."""
    weights = weights_of(path)
    ends = [_end(offset, size, path) for offset, size in ir.weights]
    if weights.is_symlink() and path.parent.resolve() not in weights.resolve().parents:
        raise WrongRequest(
            f"{path}: its weights {weights.name!r} are a link that leads outside the model's "
            "folder; put the file itself there"
        )
    if not weights.is_file():
        if any(ends) or weights.exists():
            raise WrongRequest(
                f"{path}: its weights {weights.name!r} are missing; put the file beside it"
            )
        return
    have = weights.stat().st_size
    if max(ends, default=0) > have:
        raise WrongRequest(
            f"{path}: its weights {weights.name!r} were cut short: {max(ends)} bytes are named, "
            f"and it has {have}; copy both files again"
        )


def _end(offset: str, size: str, path: Path) -> int:
    if not (offset.isdecimal() and size.isdecimal() and len(offset) < 20 and len(size) < 20):
        raise WrongRequest(
            f"{path}: a constant lies at {offset[:30]!r} with {size[:30]!r} bytes, which is no "
            "place in its weights; convert the model again"
        )
    return int(offset) + int(size)


# -- inputs and outputs -------------------------------------------------------------------------


def _sort(layer: Layer) -> str:
    return layer.facts.get("type", "")


def _input(layer: Layer, path: Path) -> Port:
    if "..." in layer.data.get("shape", "...") or len(layer.gives) != 1:
        raise WrongRequest(
            f"{path}: the input {layer.facts.get('name')!r} states no number of axes; convert the "
            "model with input=[...] shapes (free axes may be -1)"
        )
    gate = layer.gives[0]
    name = _name(gate.facts.get("names", "")) or layer.facts.get("name", "")
    return Port(name, _dtype(layer.data.get("element_type", ""), name, path), tuple(gate.sizes))


def _output(layer: Layer, ir: Ir, path: Path) -> Port:
    """Its names stand at the Result, in older files at what feeds it."""
    if len(layer.takes) != 1:
        raise WrongRequest(f"{path}: an output reads nothing; the file was changed: convert again")
    gate = layer.takes[0]
    fed = _feeding(layer, ir)
    names = layer.facts.get("output_names") or (fed.facts.get("names", "") if fed else "")
    name = _name(names) or layer.facts.get("name", "")
    known = gate if gate.sizes or fed is None else fed
    return Port(name, _dtype(gate.facts.get("precision", ""), name, path), tuple(known.sizes))


def _feeding(result: Layer, ir: Ir) -> Gate | None:
    edge = next((e for e in ir.edges if e.get("to-layer") == result.facts.get("id")), None)
    for layer in ir.layers if edge else ():
        if edge and layer.facts.get("id") == edge.get("from-layer"):
            port = edge.get("from-port")
            return next((gate for gate in layer.gives if gate.facts.get("id") == port), None)
    return None


def _name(names: str) -> str:
    """The first of a tensor's names, in their order as texts, as OpenVINO takes it; commas within
    a name stand behind a backslash."""
    return min(_split(names), default="")


def _split(names: str) -> Iterator[str]:
    for each in re.split(r"(?<!\\),", names):
        if each:
            yield each.replace("\\,", ",")


def _dtype(code: str, name: str, path: Path) -> str:
    found = _TYPES.get(code.lower())
    if found is None:
        raise WrongRequest(
            f"{path}: {name!r} is of the type {code[:20]!r}, which numpy cannot carry; convert the "
            "model with plain types at its inputs and outputs"
        )
    return found
