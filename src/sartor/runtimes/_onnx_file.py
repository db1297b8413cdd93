"""ONNX files as strangers give them: checked before anything trusts them.

Nothing here starts a session on the file: a hostile one is read as protobuf, and where it does not
state the sizes of its outputs, ONNX infers them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as native

from sartor.contracts import Port, Signature, WrongRequest
from sartor.runtimes._onnx_bytes import inside
from sartor.runtimes.onnx import said

Graph = onnx.GraphProto
LARGEST = 2**31 - 1  # bytes that protobuf can address
DIGITS = 20  # of an offset, fewer than these


def read(path: Path) -> onnx.ModelProto:
    """The model without its external data. Raises WrongRequest where the file holds none."""
    if not path.exists():
        raise WrongRequest(f"{path}: no such file")
    if not path.is_file():
        raise WrongRequest(f"{path} is a folder or a device; pass the .onnx file itself")
    if path.stat().st_size > LARGEST:
        raise WrongRequest(
            f"{path} is larger than an ONNX file can be (2 GB); save it with external data"
        )
    data = path.read_bytes()
    if not data:
        raise WrongRequest(f"{path} is empty; export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise WrongRequest(
            f"{path} is not an ONNX file or was cut short; export or copy it again"
        ) from None
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise WrongRequest(f"{path} holds no ONNX model; export it again with torch, keras or ...")
    return proto


def write(proto: onnx.ModelProto, folder: Path) -> Path:
    """The file `model.onnx` in `folder` with this model. Raises WrongRequest above 2 GB."""
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(proto.SerializeToString())
    except (AttributeError, ValueError, EncodeError) as error:
        raise WrongRequest(
            f"this {type(proto).__name__} cannot be written ({error}); save it with external "
            "data and pass the file's path"
        ) from None
    return path


def signature(path: Path) -> Signature:
    """Inputs (initializers excluded) and outputs of the checked file."""
    proto = read(path)
    check_operators(proto, path)
    check_externals(proto, path)
    graph = proto.graph
    given = {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    fed = [value for value in graph.input if value.name not in given]
    if not fed:
        raise WrongRequest(f"{path}: the model has no inputs; there is nothing to feed it with")
    inputs = tuple(_port(value, path, "input") for value in fed)
    return Signature(inputs, tuple(_port(value, path, "output") for value in _outputs(proto)))


def _outputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's outputs, with the shapes that inference finds where the file states none."""
    graph = proto.graph
    stated = all(_tensor(value).HasField("shape") for value in graph.output if _is_tensor(value))
    if stated:
        return list(graph.output)
    try:
        return list(onnx.shape_inference.infer_shapes(proto).graph.output)
    except (onnx.shape_inference.InferenceError, ValueError):
        return list(graph.output)


def _is_tensor(value: onnx.ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") in (None, "tensor_type")


def _tensor(value: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor:
    return value.type.tensor_type


def _port(value: onnx.ValueInfoProto, path: Path, role: str) -> Port:
    what = value.type.WhichOneof("value")
    if what in ("sequence_type", "map_type"):
        raise WrongRequest(
            f"{path}: the {role} {value.name!r} is a sequence or a map, not an array; export with "
            "options={'zipmap': False} (skl2onnx) or drop that output"
        )
    if what != "tensor_type":
        raise WrongRequest(
            f"{path}: the {role} {value.name!r} is {what or 'of no type'}, not an array; export "
            "the model with plain tensors"
        )
    tensor = _tensor(value)
    if role == "input" and not tensor.HasField("shape"):
        raise WrongRequest(
            f"{path}: the input {value.name!r} states no shape; export it with one "
            "(free axes may be names)"
        )
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    # Old exporters write 0 or -1 where an axis is free.
    shape = tuple(size if size > 0 else None for size in sizes)
    if not tensor.HasField("shape"):
        shape = (None,)
    return Port(value.name, _dtype(tensor.elem_type, value.name, path, role), shape)


def _dtype(code: int, name: str, path: Path, role: str) -> str:
    if code == TensorProto.STRING:
        return "str"
    known = "float32 float64 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
    try:
        found = helper.tensor_dtype_to_np_dtype(code).name
    except KeyError:
        found = f"of type {code}"
    if found not in known.split():
        raise WrongRequest(
            f"{path}: the {role} {name!r} is {found}, which numpy cannot carry; export it with one "
            f"of {known.replace(' ', ', ')}"
        )
    return found


# -- operators ----------------------------------------------------------------------------------


@cache
def _operators() -> Mapping[tuple[str, str], int]:
    """(domain, operator) of everything that the installed ONNX Runtime knows, and since when."""
    known: dict[tuple[str, str], int] = {}
    for each in native.get_all_operator_schema():
        key = (each.domain, each.name)
        known[key] = min(each.since_version, known.get(key, each.since_version))
    return known


def check_operators(proto: onnx.ModelProto, path: Path) -> None:
    """Raises WrongRequest naming the operator, operator set or IR version that is not known."""
    _check_versions(proto, path)
    own = {(_domain(each.domain), each.name) for each in proto.functions}
    opsets = {_domain(each.domain): each.version for each in proto.opset_import}
    for node in every_node(proto):
        key = (_domain(node.domain), node.op_type)
        if key in own:
            continue
        where = f"(node {node.name or ''.join(node.output[:1])!r})"
        since = _operators().get(key)
        if since is None:
            raise WrongRequest(
                f"{path}: the operator {node.op_type!r} of the domain {key[0] or 'ai.onnx'!r} "
                f"{where} is not known to ONNX Runtime {ort.__version__}; export the model "
                "without it"
            )
        if since > opsets.get(key[0], since):
            raise WrongRequest(
                f"{path}: the operator {node.op_type!r} {where} exists since operator set {since}, "
                f"and the file names {opsets[key[0]]}; export it with opset_version={since}"
            )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_versions(proto: onnx.ModelProto, path: Path) -> None:
    """ONNX Runtime itself is asked: it starts on an empty model of the same versions."""
    if not proto.opset_import:
        raise WrongRequest(f"{path} names no operator set; it was cut short: export it again")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [out])
    own = {each.domain for each in proto.functions}
    opsets = {_domain(each.domain): each.version for each in proto.opset_import}
    opsets = {name: each for name, each in opsets.items() if name not in own} | {
        "": opsets.get("", 17)
    }
    imports = [helper.make_opsetid(name, each) for name, each in opsets.items()]
    probe = helper.make_model(graph, opset_imports=imports, ir_version=proto.ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes share no base but Exception
        stated = ", ".join(f"{name or 'ai.onnx'} {each}" for name, each in opsets.items())
        raise WrongRequest(
            f"{path} is of IR version {proto.ir_version} with the operator sets {stated}, which "
            f"ONNX Runtime {ort.__version__} does not read "
            f"({said(error)}); export it with an older opset_version"
        ) from None


def every_node(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of graph, bodies and functions."""
    waiting = [*proto.graph.node, *(node for each in proto.functions for node in each.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for body in bodies(node):
            waiting.extend(body.node)


def bodies(node: onnx.NodeProto) -> Iterator[Graph]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


# -- external data ------------------------------------------------------------------------------


def every_tensor(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers, sparse ones and those in attributes, bodies included."""
    nodes = list(every_node(proto))
    for graph in (proto.graph, *(body for node in nodes for body in bodies(node))):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in (each for node in nodes for each in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def check_externals(proto: onnx.ModelProto, path: Path) -> None:
    """Raises WrongRequest where external data are missing, cut short or outside the folder."""
    size = cache(lambda name: inside(path, name).stat().st_size)
    for tensor in every_tensor(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {each.key: each.value for each in tensor.external_data}
            location = entry.get("location", "")
            numbers = [entry.get(key, "0") for key in ("offset", "length")]
            if not all(each.isdecimal() and len(each) < DIGITS for each in numbers) or (
                sum(map(int, numbers)) > size(location)
            ):
                raise WrongRequest(
                    f"{path}: its external data {location!r} were cut short; copy the file again"
                )
