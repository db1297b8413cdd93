"""TensorFlow Lite's files as strangers give them: read as data and checked, without LiteRT.

LiteRT follows the offsets and indices in a file without looking where they lead, so that a damaged
one crashes the process or reads what lies beside it. Here every table, list and text of the
FlatBuffer must lie in the file (as FlatBuffers' own verifier asks), every index must name
something, and constants must be as long as their shapes say. What passes is decoded into plain
mappings.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sartor import tflite_schema
from sartor.contracts import Port, Signature, WrongRequest
from sartor.flat_reader import Damaged, Reader, Schema, Table, schema_of

MAGIC, VERSION = b"TFL3", 3
LARGEST = 2**35  # bytes of one tensor
NONE = 2**32 - 1  # an index that names nothing, as an unsigned number
_UNIONS = {
    ("Operator", "builtin_options"): tflite_schema.OPTIONS.split(),
    ("Operator", "builtin_options2"): tflite_schema.OPTIONS_2.split(),
    ("QuantizationParameters", "details"): [
        "NONE", "CustomQuantization", "BlockwiseQuantization", "MultiAxisQuantization"
    ],
    ("DimensionMetadata", "array_segments"): ["NONE", "Int32Vector", "Uint16Vector", "Uint8Vector"],
    ("DimensionMetadata", "array_indices"): ["NONE", "Int32Vector", "Uint16Vector", "Uint8Vector"],
}  # fmt: skip
DTYPES: Mapping[int, str] = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16",
    9: "int8", 10: "float64", 12: "uint64", 15: "uint32", 16: "uint16",
}  # fmt: skip
_BITS = {
    **{code: 8 * np.dtype(name).itemsize for code, name in DTYPES.items()},
    8: 64, 11: 128, 17: 4, 18: 16, 19: 2, 20: 4, 21: 8, 22: 8,
}  # fmt: skip
_TEXT = 5
_OPTIONAL = ("LSTM", "RNN", "SVDF", "CUSTOM")  # operators that may go without their second input
OPERATORS = tflite_schema.OPERATORS.split()


@cache
def _schema() -> Schema:
    return schema_of(tflite_schema.FIELDS)


# -- the model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flat:
    """A checked file: its tables, and the signature that is run."""

    model: Table
    data: memoryview
    signature: Signature
    inputs: tuple[int, ...]  # the signature's ports as tensors of the first graph
    outputs: tuple[int, ...]

    @property
    def tensors(self) -> Sequence[Table]:
        found: Sequence[Table] = self.model["subgraphs"][0].get("tensors", [])
        return found

    @property
    def operators(self) -> Sequence[Table]:
        found: Sequence[Table] = self.model["subgraphs"][0].get("operators", [])
        return found

    def operator(self, which: Table) -> str:
        """The name of its operator, such as CONV_2D; that of a custom one as the file has it."""
        return operator_name(self.model["operator_codes"][which.get("opcode_index", 0)])

    def constant(self, tensor: Table) -> int:
        """Bytes of its value in the file; 0 where it is computed."""
        buffer = self.model["buffers"][tensor.get("buffer", 0)]
        return held(buffer)

    @property
    def remembers(self) -> bool:
        """Whether it keeps anything from one call to the next."""
        return any(
            each.get("is_variable")
            for sub in self.model["subgraphs"]
            for each in sub.get("tensors", [])
        )


def read(path: Path) -> Flat:
    """The file, checked. Raises WrongRequest with a sentence for anything unusable."""
    path = Path(path)
    if not path.exists():
        raise WrongRequest(f"{path}: no such file")
    if not path.is_file():
        raise WrongRequest(f"{path} is a folder or a device; pass the .tflite file itself")
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=16)
def _read(path: Path, *_: int) -> Flat:
    with path.open("rb") as file:
        if path.stat().st_size < 16:
            raise WrongRequest(f"{path} is empty or was cut short; copy or convert it again")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if bytes(data[4:8]) != MAGIC:
        raise WrongRequest(f"{path} is no TensorFlow Lite file: it does not begin like one")
    try:
        return decoded(data)
    except Damaged as damage:
        raise WrongRequest(
            f"{path} is damaged or made to look like a model: {damage}; copy or convert it again"
        ) from None


def decoded(data: memoryview) -> Flat:
    reader = Reader(data, _schema(), _UNIONS)
    model = reader.table(reader.number(0, 4), "Model")
    if model.get("version") != VERSION:
        raise Damaged(f"it is of version {model.get('version')}, not {VERSION}")
    if model.get("external_buffers"):
        raise Damaged("its weights lie in other files")
    if not model.get("subgraphs") or not model.get("buffers"):
        raise Damaged("it holds no graph")
    _check(model, reader)
    return _described(model, data)


def held(buffer: Table) -> int:
    if buffer.get("offset", 0) > 1:
        return int(buffer.get("size", 0))
    return len(buffer.get("data", ()))


def operator_name(code: Table) -> str:
    old = code.get("deprecated_builtin_code", 0)
    number = max(old if old < 128 else 0, code.get("builtin_code", 0))
    if number >= len(OPERATORS):
        raise Damaged(f"it uses the operator {number}, which is not known")
    return str(code.get("custom_code", "")) if OPERATORS[number] == "CUSTOM" else OPERATORS[number]


def _check(model: Table, reader: Reader) -> None:
    for code in model.get("operator_codes", []):
        operator_name(code)
    for buffer in model["buffers"]:
        if buffer.get("offset", 0) > 1:
            reader.inside(buffer["offset"], buffer.get("size", 0))
    for subgraph in model["subgraphs"]:
        tensors = subgraph.get("tensors", [])
        for tensor in tensors:
            _check_tensor(tensor, model, tensors)
        _check_indices(subgraph, model)
    _check_calls(model)
    for each in model.get("metadata", []):
        _index(each.get("buffer", 0), model["buffers"], "a note")


def _index(at: int, among: Sequence[Any], what: str) -> None:
    if not 0 <= at < len(among):
        raise Damaged(f"{what} names the number {at} of {len(among)}")


def _check_tensor(tensor: Table, model: Table, tensors: Sequence[Any]) -> None:
    name = tensor.get("name", "")
    code = tensor.get("type", 0)
    if code == _TEXT:
        raise Damaged(f"the tensor {name!r} holds text, which cannot be run here")
    if tensor.get("sparsity"):
        raise Damaged(f"the tensor {name!r} is stored sparsely, which cannot be run here")
    shape = [int(each) for each in tensor.get("shape", ())]
    signed = [int(each) for each in tensor.get("shape_signature", ())]
    if any(each < 0 for each in shape) or any(each < -1 for each in signed):
        raise Damaged(f"the tensor {name!r} has a negative size")
    if signed and len(signed) != len(shape):
        raise Damaged(f"the tensor {name!r} has two shapes that do not agree")
    if code not in _BITS:
        if code in (13, 14):  # a handle: of what it stands for nothing lies in the file
            return
        raise Damaged(f"the tensor {name!r} is of the unknown type {code}")
    wanted = -(-math.prod(shape) * _BITS[code] // 8)
    if wanted > LARGEST:
        raise Damaged(f"the tensor {name!r} would take {wanted:.1e} bytes")
    _index(tensor.get("buffer", 0), model["buffers"], f"the tensor {name!r}")
    have = held(model["buffers"][tensor.get("buffer", 0)])
    if have and have != wanted:
        raise Damaged(f"the constant {name!r} has {have} bytes and its shape asks for {wanted}")
    _check_scales(tensor, name, shape, tensors)


def _check_scales(tensor: Table, name: str, shape: Sequence[int], tensors: Sequence[Any]) -> None:
    how = tensor.get("quantization") or {}
    given = np.asarray(how.get("scale", ()), np.float32)
    scales, zeros = len(given), len(how.get("zero_point", ()))
    axis = how.get("quantized_dimension", 0)
    if scales > 1 and not (axis < len(shape) and scales == shape[axis]):
        raise Damaged(f"the tensor {name!r} has {scales} scales, which do not fit its shape")
    whole = DTYPES.get(tensor.get("type", 0), "float32")
    if whole in ("int8", "uint8", "int16") and scales:
        kept, points = np.iinfo(whole), np.asarray(how.get("zero_point", (0,)))
        if not (np.isfinite(given).all() and (given >= 0).all() and (scales > 1 or given[0] > 0)):
            raise Damaged(f"the tensor {name!r} has a scale that is not above 0")
        if points.min(initial=0) < kept.min or points.max(initial=0) > kept.max:
            raise Damaged(f"the tensor {name!r} has a zero point that it cannot hold")
    if zeros not in (0, 1, scales):
        raise Damaged(f"the tensor {name!r} has {scales} scales and {zeros} zero points")
    details = how.get("details") or {}
    for each in ("scales", "zero_points"):
        if details.get(each, NONE) != NONE:
            _index(details[each], tensors, f"the blocks of {name!r}")


def _check_indices(subgraph: Table, model: Table) -> None:
    tensors = subgraph.get("tensors", [])
    for role in ("inputs", "outputs"):
        for at in subgraph.get(role, ()):
            _index(int(at), tensors, f"the graph's {role}")
    for operator in subgraph.get("operators", []):
        codes = model.get("operator_codes", [])
        _index(operator.get("opcode_index", 0), codes, "an operator")
        name = operator_name(codes[operator.get("opcode_index", 0)])
        needed = 1 if any(each in name for each in _OPTIONAL) else 2
        for role in ("inputs", "outputs", "intermediates"):
            for place, at in enumerate(operator.get(role, ())):
                if int(at) != -1 or role == "outputs" or (role == "inputs" and place < needed):
                    _index(int(at), tensors, f"the {role} of {name}")


def _check_calls(model: Table) -> None:
    """Subgraphs that run others exist and do not run each other for ever."""
    subgraphs = model["subgraphs"]
    calls = {at: set(_called(sub, subgraphs)) for at, sub in enumerate(subgraphs)}
    while calls:
        ends = {at for at, called in calls.items() if not called & calls.keys()}
        if not ends:
            raise Damaged("its graphs run each other without an end")
        calls = {at: called for at, called in calls.items() if at not in ends}


def _called(subgraph: Table, subgraphs: Sequence[Any]) -> Iterator[int]:
    for operator in subgraph.get("operators", []):
        for place in ("builtin_options", "builtin_options2"):
            options = operator.get(place)
            name = _UNIONS["Operator", place][operator.get(f"{place}_type", 0)]
            fields = [each for each, _ in _schema().get(name, ()) if "subgraph" in each]
            for value in (options.get(each, 0) for each in fields if options is not None):
                if value != NONE:  # one that is left out is 0
                    _index(value, subgraphs, "an operator's graph")
                    yield value


# -- what it takes and gives -----------------------------------------------------------------------


def _described(model: Table, data: memoryview) -> Flat:
    told = model.get("signature_defs") or []
    stated = [each for each in told if not each.get("subgraph_index", 0)]
    if told and not stated:
        raise Damaged("none of its signatures is about its first graph")
    usual = [each for each in stated if each.get("signature_key") == "serving_default"]
    chosen = (usual or stated or [None])[0]
    graph = model["subgraphs"][0]
    sides = []
    for role in ("inputs", "outputs"):
        if chosen:
            maps = chosen.get(role, [])
            pairs = [(each.get("name", ""), each.get("tensor_index", 0)) for each in maps]
        else:
            pairs = [(graph["tensors"][at].get("name", ""), int(at)) for at in graph.get(role, ())]
        for _, at in pairs:
            _index(at, graph["tensors"], f"the signature's {role}")
        sides.append([(name, at, _port(name, graph["tensors"][at], role)) for name, at in pairs])
    into, out = sides
    for side in sides:
        if not side or len({name for name, _, _ in side}) < len(side):
            raise Damaged("it has no inputs or outputs, or two of one name")
    signature = Signature(tuple(p for *_, p in into), tuple(p for *_, p in out))
    return Flat(
        model, data, signature, tuple(at for _, at, _ in into), tuple(at for _, at, _ in out)
    )


def _port(name: str, tensor: Table, role: str) -> Port:
    code = tensor.get("type", 0)
    if code not in DTYPES:
        raise Damaged(f"the {role[:-1]} {name!r} is of a type that numpy cannot carry")
    shape = tensor.get("shape_signature", ())
    shape = shape if len(shape) else tensor.get("shape", ())
    return Port(name, DTYPES[code], tuple(None if int(n) < 0 else int(n) for n in shape))


def part_names(flat: Flat) -> list[str]:
    """Operator -> part: the name of its first output, with a number where another has it."""
    found: dict[str, None] = {}
    for at, operator in enumerate(flat.operators):
        outputs = [int(each) for each in operator.get("outputs", ())]
        name = flat.tensors[outputs[0]].get("name", "") if outputs else ""
        name = name or flat.operator(operator)
        found[name if name not in found else f"{name}#{at}"] = None
    return list(found)
