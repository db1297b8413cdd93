"""ExecuTorch's programs as strangers give them: read as data and checked, without ExecuTorch.

A program says which kernels are called on which values, and where in the file their data lie. Here
every table must lie in the file, every index must name something, every constant must be as long
as its shape says, and what is called must be a kernel that computes or XNNPACK. What XNNPACK is
given is looked through by ExecuTorch itself, with FlatBuffers' verifier.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Port, Signature, WrongRequest
from sartor.flat_reader import Damaged, Reader, Schema, Table, schema_of

MAGIC, HEADER = b"ET12", b"eh00"
BACKEND = "XnnpackBackend"
KERNELS = ("aten", "dim_order_ops", "executorch_prim", "quantized_decomposed")
METHOD = "forward"
LARGEST = 2**35  # bytes of one tensor, and of what a program may ask for besides
DTYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32",
    7: "float64", 11: "bool",
}  # fmt: skip
# The tables of ExecuTorch 1.5's schema/program.fbs: a list of 4 bytes holds indices as a rule.
FIELDS = """
Program version:4 execution_plan:[ExecutionPlan] constant_buffer:[Buffer]
    backend_delegate_data:[Inline] segments:[DataSegment] constant_segment:SubsegmentOffsets
    mutable_data_segments:[SubsegmentOffsets] named_data:[NamedData]
ExecutionPlan name:s container_meta_type:ContainerMetadata values:[EValue] inputs:[4] outputs:[4]
    chains:[Chain] operators:[Operator] delegates:[BackendDelegate] non_const_buffer_sizes:[8]
    non_const_buffer_device:[NonConstBufferDevice]
ContainerMetadata encoded_inp_str:s encoded_out_str:s
EValue val_type:1 val:union
Tensor scalar_type:1 storage_offset:4 sizes:[4] dim_order:[1] requires_grad:1 data_buffer_idx:4
    allocation_info:AllocationDetails layout:1 shape_dynamism:1 extra_tensor_info:ExtraTensorInfo
ExtraTensorInfo mutable_data_segments_idx:8 fully_qualified_name:s location:1 device_type:1
AllocationDetails memory_id:4 memory_offset_low:4 memory_offset_high:4
Int int_val:8
Bool bool_val:1
Double double_val:8
String string_val:s
IntList items:[8]
DoubleList items:[8]
BoolList items:[1]
TensorList items:[4]
OptionalTensorList items:[4]
Operator name:s overload:s
KernelCall op_index:4 args:[4]
DelegateCall delegate_index:4 args:[4]
MoveCall move_from:4 move_to:4
JumpFalseCall cond_value_index:4 destination_instruction:4
FreeCall value_index:4
Instruction instr_args_type:1 instr_args:union
Frame filename:s lineno:4 name:s context:s
FrameList items:[Frame]
Chain inputs:[4] outputs:[4] instructions:[Instruction] stacktrace:[FrameList]
BackendDelegate id:s processed:DataReference compile_specs:[CompileSpec]
DataReference location:1 index:4
CompileSpec key:s value:[1]
NonConstBufferDevice buffer_idx:4 device_type:1 device_index:1
DataSegment offset:8 size:8
SubsegmentOffsets segment_index:4 offsets:[8]
NamedData key:s segment_index:4
Buffer storage:[1]
Inline data:[1]
"""
VALUES = (
    "NONE", "Null", "Int", "Bool", "Double", "Tensor", "String", "IntList", "DoubleList",
    "BoolList", "TensorList", "OptionalTensorList",
)  # fmt: skip
CALLS = ("NONE", "KernelCall", "DelegateCall", "MoveCall", "JumpFalseCall", "FreeCall")
_UNIONS = {("EValue", "val"): VALUES, ("Instruction", "instr_args"): CALLS}
_TENSOR, _LISTS = VALUES.index("Tensor"), (VALUES.index("TensorList"), len(VALUES) - 1)


@cache
def _schema() -> Schema:
    return schema_of(FIELDS)


@dataclass(frozen=True)
class Flat:
    """A checked file: its tables, the method that is run, and what that takes and gives."""

    program: Table
    plan: Table
    signature: Signature

    @property
    def method(self) -> str:
        return str(self.plan.get("name", ""))

    @property
    def calls(self) -> list[str]:
        """What it calls, in order: "aten::mean.out", or XNNPACK."""
        return [name for name, _ in _calls(self.plan) if name]


def read(path: Path) -> Flat:
    """The file, checked. Raises WrongRequest with a sentence for anything unusable."""
    path = Path(path)
    if not path.exists():
        raise WrongRequest(f"{path}: no such file")
    if not path.is_file():
        raise WrongRequest(f"{path} is a folder or a device; pass the .pte file itself")
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=16)
def _read(path: Path, *_: int) -> Flat:
    if path.stat().st_size < 64:
        raise WrongRequest(f"{path} is empty or was cut short; copy or write it again")
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if bytes(data[4:8]) != MAGIC:
        raise WrongRequest(f"{path} is no ExecuTorch program: it does not begin like one")
    try:
        return decoded(data)
    except Damaged as damage:
        raise WrongRequest(
            f"{path} is damaged or made to look like a program: {damage}; copy or write it again"
        ) from None


def decoded(data: memoryview) -> Flat:
    """The tables of a file's content. Raises Damaged."""
    length, behind = _extent(data)
    reader = Reader(data[:length], _schema(), _UNIONS)
    program = reader.table(reader.number(0, 4), "Program")
    if program.get("version", 0):
        raise Damaged(f"it is of version {program['version']}, not 0")
    plans = program.get("execution_plan") or []
    named = [each for each in plans if each.get("name") == METHOD] or plans
    if len(named) != 1:
        raise Damaged(f"it has {len(plans)} methods and none of them alone is {METHOD!r}")
    _check_segments(program, behind)
    for plan in plans:
        _check(plan, program)
    return Flat(program, named[0], _described(named[0]))


def _extent(data: memoryview) -> tuple[int, int]:
    """Bytes of the program itself, and of the segments behind it."""
    if bytes(data[8:12]) != HEADER:  # one of those without segments
        return len(data), 0
    size, base = (int.from_bytes(data[at : at + 8], "little") for at in (16, 24))
    stated = int.from_bytes(data[32:40], "little")
    known = int.from_bytes(data[12:16], "little") >= 32
    behind = stated if known else max(len(data) - base, 0)
    if not 40 <= size <= len(data) or (base and base < size) or base + behind > len(data):
        raise Damaged("it is shorter than it says, or was cut short")
    return size, behind if base else 0


# -- the check -------------------------------------------------------------------------------------


def _index(at: int, among: Sequence[Any], what: str) -> None:
    if not 0 <= at < len(among):
        raise Damaged(f"{what} names the number {at} of {len(among)}")


def _check_segments(program: Table, behind: int) -> None:
    segments = program.get("segments") or []
    for each in segments:
        if each.get("offset", 0) + each.get("size", 0) > behind:
            raise Damaged("an offset leads out of the file")
    parts = program.get("mutable_data_segments") or []
    for each in (*parts, *filter(None, [program.get("constant_segment")])):
        offsets = each.get("offsets", ())
        if len(offsets):
            _index(each.get("segment_index", 0), segments, "its data")
            size = segments[each.get("segment_index", 0)].get("size", 0)
            if min(offsets) < 0 or max(offsets) > size:
                raise Damaged("an offset leads out of its segment")
    for each in program.get("named_data") or []:
        _index(each.get("segment_index", 0), segments, f"the data {each.get('key', '')!r}")


def _check(plan: Table, program: Table) -> None:
    sizes = [int(each) for each in plan.get("non_const_buffer_sizes", ())]
    if min(sizes, default=0) < 0 or sum(sizes) > LARGEST:
        raise Damaged(f"it asks for {sum(map(abs, sizes)):.1e} bytes of memory")
    if any(each.get("device_type") for each in plan.get("non_const_buffer_device") or []):
        raise Damaged("it asks for memory of another device than the processor")
    values = plan.get("values") or []
    for value in values:
        if value.get("val_type") == _TENSOR and value.get("val"):
            _check_tensor(value["val"], program, sizes)
        elif value.get("val_type") in _LISTS and value.get("val"):
            for at in value["val"].get("items", ()):
                if at != -1 or value["val_type"] == _LISTS[0]:
                    _index(int(at), values, "a list of tensors")
    for role in ("inputs", "outputs"):
        for at in plan.get(role, ()):
            _index(int(at), values, f"its {role}")
    for each in plan.get("delegates") or []:
        _check_delegate(each, program)
    for _, arguments in _calls(plan):
        for at in arguments:
            _index(int(at), values, "a call")


def _check_delegate(delegate: Table, program: Table) -> None:
    if delegate.get("id") != BACKEND:
        raise Damaged(f"a part of it is for {delegate.get('id', '')!r}, which does not run here")
    where = delegate.get("processed") or {}
    field = "segments" if where.get("location") else "backend_delegate_data"
    _index(where.get("index", 0), program.get(field) or [], "a part for XNNPACK")


def _check_tensor(tensor: Table, program: Table, sizes: Sequence[int]) -> None:
    shape, more = _shape(tensor), tensor.get("extra_tensor_info") or {}
    if tensor.get("scalar_type", 0) not in DTYPES or min(shape, default=0) < 0:
        raise Damaged("a tensor is of an unknown type, or has a negative size")
    order = [int(each) for each in tensor.get("dim_order", ())]
    if sorted(order) != list(range(len(shape))) or tensor.get("storage_offset"):
        raise Damaged("a tensor lies otherwise in memory than ExecuTorch can follow")
    if more.get("location") or more.get("device_type"):
        raise Damaged("its weights lie in another file or on another device")
    wanted = math.prod(shape) * np.dtype(DTYPES[tensor.get("scalar_type", 0)]).itemsize
    if wanted > LARGEST:
        raise Damaged(f"a tensor would take {wanted:.1e} bytes")
    placed, held = tensor.get("allocation_info"), tensor.get("data_buffer_idx", 0)
    if placed is not None:
        memory = placed.get("memory_id", 0)
        _index(memory, sizes, "a tensor's memory")
        high = placed.get("memory_offset_high", 0) << 32
        if high + placed.get("memory_offset_low", 0) + wanted > sizes[memory]:
            raise Damaged("a tensor reaches out of its memory")
    elif held:
        _check_constant(held, wanted, program)


def _check_constant(held: int, wanted: int, program: Table) -> None:
    inline, told = program.get("constant_buffer") or [], program.get("constant_segment") or {}
    if inline:
        _index(held, inline, "a constant")
        have = len(inline[held].get("storage", ()))
    else:
        offsets = told.get("offsets", ())
        _index(held, offsets, "a constant")
        segment = program["segments"][told.get("segment_index", 0)]
        have = segment.get("size", 0) - int(offsets[held])
    if have < wanted:
        raise Damaged(f"a constant has {have} bytes and its shape asks for {wanted}")


def _calls(plan: Table) -> Iterator[tuple[str, list[int]]]:
    """(what is called, "" for a step of the program itself; the values) of each instruction."""
    operators, delegates = plan.get("operators") or [], plan.get("delegates") or []
    for chain in plan.get("chains") or []:
        steps = chain.get("instructions") or []
        for step in steps:
            told = step.get("instr_args")
            kind = CALLS[step.get("instr_args_type", 0)]
            if told is None:
                raise Damaged("an instruction is empty")
            if kind == "KernelCall":
                _index(told.get("op_index", 0), operators, "a call's kernel")
                yield _kernel(operators[told.get("op_index", 0)]), list(told.get("args", ()))
            elif kind == "DelegateCall":
                _index(told.get("delegate_index", 0), delegates, "a call of XNNPACK")
                yield BACKEND, list(told.get("args", ()))
            elif kind == "JumpFalseCall":
                _index(told.get("destination_instruction", 0), (*steps, None), "a jump")
                yield "", [told.get("cond_value_index", 0)]
            else:
                fields = ("value_index",) if kind == "FreeCall" else ("move_from", "move_to")
                yield "", [told.get(field, 0) for field in fields]


def _kernel(operator: Table) -> str:
    name, overload = operator.get("name", ""), operator.get("overload", "")
    if name.partition("::")[0] not in KERNELS:
        raise Damaged(f"it calls {name!r}, which is no kernel of ExecuTorch's own")
    return f"{name}.{overload}" if overload else name


# -- what it takes and gives -----------------------------------------------------------------------


def _shape(tensor: Table) -> tuple[int, ...]:
    return tuple(int(each) for each in tensor.get("sizes", ()))


def _described(plan: Table) -> Signature:
    """Names are those of the mappings that the method takes and gives; else they are numbered.
    A size that is free up to a bound is that bound."""
    told, sides = plan.get("container_meta_type") or {}, []
    for role, text in (("input", "encoded_inp_str"), ("output", "encoded_out_str")):
        places = [int(each) for each in plan.get(f"{role}s", ())]
        values = [plan["values"][at] for at in places]
        if not values or any(v.get("val_type") != _TENSOR or not v.get("val") for v in values):
            raise Damaged(f"its {role}s are not tensors alone")
        names = _names(told.get(text, ""), role)
        if len(names) != len(values) or len(set(names)) < len(names):
            names = [f"{role}_{at}" for at in range(len(values))]
        tensors = [value["val"] for value in values]
        sides.append(
            tuple(
                Port(name, DTYPES[each.get("scalar_type", 0)], _shape(each))
                for name, each in zip(names, tensors, strict=True)
            )
        )
    return Signature(*sides)


def _names(text: str, role: str) -> list[str]:
    """The names of leaves by a tree that PyTorch wrote: [1, {type, context, children_spec}]."""
    try:
        leaves = list(_leaves(json.loads(text)[1], ()))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return []
    return [".".join(path) or f"{role}_{at}" for at, path in enumerate(leaves)]


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if tree["type"] is None:
        yield path
        return
    inner = tree["children_spec"]
    keys = json.loads(tree["context"]) if tree["type"] == "builtins.dict" else [None] * len(inner)
    for key, each in zip(keys, inner, strict=True):
        yield from _leaves(each, path if key is None else (*path, str(key)))
