"""The graph of an exported program as values: calls of operators by name, and what they are given.

Read from the JSON of a `.pt2` archive (torch._export.serde.schema, major version 8) by a decoder
that knows each form of an argument and refuses all others. No text in it is evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sartor.contracts import Port, Signature, WrongRequest
from sartor.torch_archive import GRAPH, Archive, check_members, facts, stored_tensors

SCHEMA = 8  # the major version of the format that is known here
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 12: "bool", 13: "bfloat16", 28: "uint16", 34: "uint32", 35: "uint64",
}  # fmt: skip
"""PyTorch's numbers of types and their names; complex and eight-bit floats are not known."""
COMPLEX = {9: "complex32", 10: "complex64", 11: "complex128"}
WIDTHS = {
    name: 1 if name == "bool" else int(re.sub(r"\D", "", name)) // 8 for name in DTYPES.values()
}
"""Bytes of a number."""

_PLAIN = {"as_int": int, "as_float": float, "as_bool": bool, "as_string": str}
_LISTS = {"as_ints": int, "as_floats": float, "as_bools": bool, "as_strings": str}
_SYMBOLS = ("as_sym_int", "as_sym_float", "as_sym_bool")


@dataclass(frozen=True)
class Ref:
    """A value that an input, a weight or an earlier call has given."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A value of PyTorch's own: `sort` is "dtype" (value: its name), "layout", "memory" (value:
    PyTorch's number) or "device" (always the CPU)."""

    sort: str
    value: Any = None


@dataclass(frozen=True)
class Call:
    """One call of an operator: `target` is its full name, `arguments` are (keyword or "", value),
    where a value may be a list, a Ref or a Block. `results` names what comes out: one name, a
    tuple of names for a list of tensors, or None for what nobody reads."""

    name: str
    target: str
    arguments: tuple[tuple[str, Any], ...]
    results: tuple[str | tuple[str, ...] | None, ...]


@dataclass(frozen=True)
class Block:
    """Calls in order. `outputs` are Refs or plain values."""

    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor at rest: the member of the archive with its bytes and how it lies in them, sizes
    and offset in numbers. `name` is the module's own, such as "encoder.0.weight"."""

    name: str
    record: str
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    parameter: bool


@dataclass(frozen=True)
class Program:
    """A model's graph. `inputs` are the names in the block of what the signature's inputs are,
    in its order; `outputs` the places among the block's outputs of what its outputs are."""

    block: Block
    signature: Signature
    inputs: tuple[str, ...]
    outputs: tuple[int, ...]
    weights: Mapping[str, Stored]
    constants: Mapping[str, Any]


def program(archive: Archive) -> Program:
    """The program in an archive. Raises WrongRequest with a sentence for anything but a whole one
    that is safe to run."""
    check_members(archive)
    model = archive.json(GRAPH)
    try:
        version = model["schema_version"]["major"]
        if version != SCHEMA:
            raise WrongRequest(
                f"{archive.path} has the format version {version}; {SCHEMA} is known: save it "
                "again with torch.export.save of another PyTorch"
            )
        return _program(archive, model["graph_module"])
    except WrongRequest:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise WrongRequest(
            f"{archive.path} is damaged: its graph cannot be read ({type(error).__name__}: "
            f"{str(error)[:100]})"
        ) from None


def _program(archive: Archive, module: Mapping[str, Any]) -> Program:
    block = _block(module["graph"])
    tensors = stored_tensors(archive)
    weights, constants, inputs = {}, {}, []
    for spec in module["signature"]["input_specs"]:
        sort, entry = _one(spec)
        if sort == "user_input":
            what, value = _one(entry["arg"])
            if what == "as_tensor":
                inputs.append(_text(value["name"]))
            elif what != "as_none":
                raise WrongRequest(
                    f"{archive.path} takes a number, not an array, as an input: export it with "
                    "that number fixed"
                )
        elif sort == "constant_input":
            what, value = _one(entry["value"])
            constants[_text(entry["name"])] = None if what == "as_none" else _PLAIN[what](value)
        elif sort in ("parameter", "buffer", "tensor_constant"):
            name = _text(entry[f"{sort}_name"])
            weights[_text(entry["arg"]["name"])] = _stored(archive, name, *tensors[name])
        else:
            raise WrongRequest(f"{archive.path}: an input that is a {sort} cannot be read")
    places = [
        at
        for at, spec in enumerate(module["signature"]["output_specs"])
        if "user_output" in spec and isinstance(block.outputs[at], Ref)
    ]
    shapes = module["graph"]["tensor_values"]
    places = [at for at in places if block.outputs[at].name in shapes]
    told = facts(archive)
    into = _input_names(inputs, told)
    out = distinct(_output_names(module, len(places), told), into.values())
    signature = Signature(
        tuple(_port(archive, into[name], shapes[name]) for name in inputs),
        tuple(
            _port(archive, name, shapes[block.outputs[at].name])
            for name, at in zip(out, places, strict=True)
        ),
    )
    if not signature.inputs or not signature.outputs:
        raise WrongRequest(f"{archive.path} takes no array, or gives none")
    return Program(block, signature, tuple(inputs), tuple(places), weights, constants)


def signature_of(told: Any, where: Any) -> Signature:
    """The signature that Sartor wrote beside TorchScript. Raises WrongRequest for any other."""
    try:
        inputs, outputs = (
            tuple(
                Port(_text(port["name"]), _dtype(port["dtype"]), tuple(map(_size, port["shape"])))
                for port in told[side]
            )
            for side in ("inputs", "outputs")
        )
    except (KeyError, TypeError, ValueError):
        raise WrongRequest(f"{where} is damaged: what it takes cannot be read") from None
    return Signature(inputs, outputs)


def _size(size: Any) -> int | None:
    return None if size is None else int(size)


def _dtype(name: Any) -> str:
    if name not in DTYPES.values():
        raise ValueError(f"{name!r} is no type")
    return str(name)


# -- names --------------------------------------------------------------------------------------


def _input_names(inputs: list[str], told: Mapping[str, Any]) -> dict[str, str]:
    """What each input is called by the data; what the program calls it where nothing is told."""
    known = told.get("inputs", {})
    return {name: _text(known.get(name, name)) for name in inputs}


def _output_names(module: Mapping[str, Any], count: int, told: Mapping[str, Any]) -> list[str]:
    """The names that Sartor gave, else the keys where the model returned a mapping, else "output"
    or "output_0" and so on."""
    given = [_text(each) for each in told.get("outputs", ())]
    if not given:
        given = _keys(module["module_call_graph"][0]["signature"]["out_spec"])
    if len(given) != count:
        given = ["output"] if count == 1 else [f"output_{at}" for at in range(count)]
    return given


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names, "_out" behind those that another output or an input (`taken`) bears too."""
    found: list[str] = []
    known = set(taken)
    for name in names:
        while name in known:
            name += "_out"
        known.add(name)
        found.append(name)
    return found


def unfit(dtype: str) -> str:
    """Why arrays of this type are not taken."""
    return "which numpy cannot carry" if dtype == "bfloat16" else "a type that is not known here"


def _keys(spec: str) -> list[str]:
    """The keys of an output that is a flat mapping (its context lists them); else nothing."""
    try:
        tree = json.loads(spec)[1]
        keys = json.loads(tree["context"]) if tree["children_spec"] else []
    except (ValueError, TypeError, KeyError, IndexError):
        return []
    flat = isinstance(keys, list) and len(keys) == len(tree["children_spec"])
    return [str(key) for key in keys] if flat else []


def _port(archive: Archive, name: str, meta: Mapping[str, Any]) -> Port:
    dtype = DTYPES.get(meta["dtype"]) or COMPLEX.get(meta["dtype"], f"of type {meta['dtype']}")
    if dtype not in DTYPES.values() or dtype == "bfloat16":
        raise WrongRequest(
            f"{archive.path}: {name!r} is {dtype}, {unfit(dtype)}; export the model with float32 "
            "there"
        )
    shape = tuple(
        int(size["as_int"]) if size.get("as_int") is not None else None for size in meta["sizes"]
    )
    return Port(name, dtype, shape)


# -- decoding -----------------------------------------------------------------------------------


def _one(union: Mapping[str, Any]) -> tuple[str, Any]:
    """The one alternative of a union that is there."""
    ((tag, value),) = union.items()
    return tag, value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _stored(
    archive: Archive, name: str, record: str, meta: Mapping[str, Any], parameter: bool
) -> Stored:
    """Raises WrongRequest where the tensor does not lie within its bytes."""
    sizes, strides = (
        tuple(int(each["as_int"]) for each in meta[what]) for what in ("sizes", "strides")
    )
    offset, dtype = int(meta["storage_offset"]["as_int"]), DTYPES[meta["dtype"]]
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    entry = archive.entries.get(record)
    room = entry.file_size // WIDTHS[dtype] if entry is not None else 0
    if min((*sizes, *strides, offset, 0)) < 0 or (0 not in sizes and last >= room):
        raise WrongRequest(
            f"{archive.path} is damaged: the tensor {name!r} does not lie within its bytes"
        )
    return Stored(name, record, dtype, sizes, strides, offset, parameter)


def _block(graph: Mapping[str, Any]) -> Block:
    inputs = [_value(each) for each in graph["inputs"]]
    return Block(
        tuple(each.name if isinstance(each, Ref) else "" for each in inputs),
        tuple(_call(node) for node in graph["nodes"]),
        tuple(_value(each) for each in graph["outputs"]),
    )


def _call(node: Mapping[str, Any]) -> Call:
    arguments = tuple(
        ("" if each.get("kind") == 1 else _text(each["name"]), _value(each["arg"]))
        for each in node["inputs"]
    )
    results = tuple(_result(each) for each in node["outputs"])
    first = next((each for each in results if isinstance(each, str)), "")
    name = node.get("name") or first or _text(node["target"])
    return Call(_text(name), _text(node["target"]), arguments, results)


def _result(argument: Mapping[str, Any]) -> str | tuple[str, ...] | None:
    value = _value(argument)
    if value is None:
        return None
    if isinstance(value, list):
        return tuple(each.name for each in value)
    name = value.name
    return _text(name)


def _value(argument: Mapping[str, Any]) -> Any:
    """A plain value, a Ref, a Constant, a Block or a list of them. Raises KeyError for a form that
    is not known."""
    tag, value = _one(argument)
    if tag == "as_none":
        return None
    if tag in _PLAIN:
        return _PLAIN[tag](value)
    if tag in _LISTS:
        return [_LISTS[tag](each) for each in value]
    if tag == "as_tensor":
        return Ref(_text(value["name"]))
    if tag == "as_tensors":
        return [Ref(_text(each["name"])) for each in value]
    if tag == "as_optional_tensors":
        return [_value(each) for each in value]
    if tag == "as_optional_tensor":
        return _value(value)
    if tag in _SYMBOLS:
        return _symbol(value)
    if tag.removesuffix("s") in _SYMBOLS:
        return [_symbol(each) for each in value]
    if tag == "as_scalar_type":
        return Constant("dtype", DTYPES[value])
    if tag in ("as_layout", "as_memory_format"):
        return Constant(tag[3:].partition("_")[0], int(value))
    if tag == "as_device":
        return Constant("device")
    if tag == "as_graph":
        return _block(value["graph"])
    raise KeyError(f"arguments of the form {tag} are not known")


def _symbol(value: Mapping[str, Any]) -> Any:
    tag, inner = _one(value)
    return Ref(_text(inner)) if tag == "as_name" else _PLAIN[tag](inner)
