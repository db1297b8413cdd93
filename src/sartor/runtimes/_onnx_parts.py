"""What an ONNX model consists of: one part a node, with its weights, its work and its time."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, inliner

from sartor.contracts import Arrays, Failed, Part
from sartor.runtimes import _onnx_macs
from sartor.runtimes._onnx_bytes import externals
from sartor.runtimes._onnx_file import bodies, read
from sartor.runtimes.onnx import said

Shapes = dict[str, tuple[int, ...]]
# Shapes, axes and words take bytes, but nothing in them was learned.
_NOT_COUNTED = frozenset({TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING})


def names(proto: onnx.ModelProto) -> list[str]:
    """One name a node: its own where it has one that is unique, else with its number."""
    found: dict[str, None] = {}
    for at, node in enumerate(proto.graph.node):
        name = node.name or f"{node.op_type}#{at}"
        found[name if name not in found else f"{name}#{at}"] = None
    return list(found)


def count(path: Path, sample: Arrays) -> tuple[Part, ...]:
    """One part a node that computes; constants belong to the first node that uses them."""
    proto = _inlined(path)
    shapes = _Shapes(proto, path, sample)
    weights = _weights(proto)
    parts = []
    for name, node, owned in zip(names(proto), proto.graph.node, weights, strict=True):
        if node.op_type == "Constant" and not node.domain:
            continue
        parameters, size = _attributes(node)
        for tensor in owned:
            parameters += _onnx_macs.packed(node, tensor) or _parameters(tensor)
            size += _bytes(tensor)
        parts.append(Part(name, node.op_type, parameters, size, _onnx_macs.macs(node, shapes)))
    return tuple(parts)


def _inlined(path: Path) -> onnx.ModelProto:
    proto = read(path)
    return inliner.inline_local_functions(proto) if proto.functions else proto


# -- weights ------------------------------------------------------------------------------------


def _weights(proto: onnx.ModelProto) -> list[list[TensorProto]]:
    """For each node the stored tensors that are its own.

    A node all of whose inputs are constant (DequantizeLinear of a weight, a Transpose) is folded
    when the model is loaded: its tensors belong to the node that uses its result."""
    tensors: dict[str, TensorProto] = {each.name: each for each in proto.graph.initializer}
    roots: dict[str, tuple[str, ...]] = {name: (name,) for name in tensors}
    owned: dict[str, int] = {}
    for at, node in enumerate(proto.graph.node):
        read_here = reads(node)
        if node.op_type == "Constant" and not node.domain:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    tensors[node.output[0]] = attribute.t
            roots[node.output[0]] = (node.output[0],)
            continue
        below = [root for name in read_here for root in roots.get(name, ())]
        if read_here and all(name in roots for name in read_here):
            roots.update(dict.fromkeys(node.output, tuple(dict.fromkeys(below))))
            continue
        for root in below:
            owned.setdefault(root, at)
    found: list[list[TensorProto]] = [[] for _ in proto.graph.node]
    for root, at in owned.items():
        if root in tensors:
            found[at].append(tensors[root])
    return found


def reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, those read inside its bodies included."""
    found = [name for name in node.input if name]
    for body in bodies(node):
        inside = {name for each in body.node for name in each.output}
        inside |= {each.name for each in (*body.input, *body.initializer)}
        found += [name for each in body.node for name in reads(each) if name not in inside]
    return found


def _attributes(node: onnx.NodeProto) -> tuple[int, int]:
    """Parameters and bytes that a node carries itself: a body's weights, a tree's thresholds."""
    parameters = size = 0
    for body in bodies(node):
        for tensor in body.initializer:
            parameters, size = parameters + _parameters(tensor), size + _bytes(tensor)
        for each in body.node:
            more = _attributes(each)
            parameters, size = parameters + more[0], size + more[1]
    for attribute in node.attribute:
        if attribute.HasField("t"):
            parameters += _parameters(attribute.t)
            size += _bytes(attribute.t)
        if node.domain == "ai.onnx.ml":
            parameters += len(attribute.floats)
            size += attribute.ByteSize()
    return parameters, size


def _parameters(tensor: TensorProto) -> int:
    return 0 if tensor.data_type in _NOT_COUNTED else int(np.prod(tensor.dims))


def _bytes(tensor: TensorProto) -> int:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("raw_data"):
        return _stored(tensor)
    return int(tensor.ByteSize())


def _stored(tensor: TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    entry = {each.key: each.value for each in tensor.external_data}
    if "length" in entry:
        return int(entry["length"])
    bits = 4 if "4" in TensorProto.DataType.Name(tensor.data_type)[-4:] else None
    bits = bits or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims) * bits) // 8


# -- shapes -------------------------------------------------------------------------------------


class _Shapes:
    """Tensor name -> shape with the sample's sizes: by ONNX's inference, and for what that does
    not know (contrib operators) by running the model once with its inner tensors exposed."""

    def __init__(self, proto: onnx.ModelProto, path: Path, sample: Arrays) -> None:
        self.proto, self.path, self.sample = proto, path, sample
        self.known = _infer(proto, sample)
        self.ran = False

    def __call__(self, name: str) -> tuple[int, ...] | None:
        if name not in self.known and not self.ran:
            self.ran = True
            self.known.update(self._run())
        return self.known.get(name)

    def _run(self) -> Shapes:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        outputs = {each.name for each in proto.graph.output}
        inner = [name for node in proto.graph.node for name in node.output if name]
        missing = [name for name in inner if name not in self.known and name not in outputs]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.path.parent)
        )
        try:
            session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            answers = session.run(None, dict(self.sample))
        except Exception as error:  # its classes share no base but Exception
            raise Failed(f"counting {self.path.name}: ONNX Runtime: {said(error)}") from None
        found = zip([port.name for port in session.get_outputs()], answers, strict=True)
        return {name: array.shape for name, array in found if isinstance(array, np.ndarray)}


def _infer(proto: onnx.ModelProto, sample: Arrays) -> Shapes:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in fixed.graph.input:
        if value.name in sample:
            sizes = sample[value.name].shape
            for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
                dim.dim_value = size
    # What the file states holds for any size; with the sample's sizes it is found anew.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    known: Shapes = {each.name: tuple(each.dims) for each in proto.graph.initializer}
    # Where inference gives up, running the model will tell.
    with contextlib.suppress(onnx.shape_inference.InferenceError, ValueError):
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            known[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return known


# -- time ---------------------------------------------------------------------------------------


def named(path: Path, folder: Path) -> Path:
    """The file itself where each node bears its part's name, else a copy in `folder` that does."""
    proto = _inlined(path)
    wanted = names(proto)
    if wanted == [node.name for node in proto.graph.node]:
        return path
    for node, name in zip(proto.graph.node, wanted, strict=True):
        node.name = name
    made = folder / path.name
    made.write_bytes(proto.SerializeToString())
    for name in externals(path):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, folder / name)
    return made


def seconds(path: Path, profile: Path, calls: int) -> Mapping[str, float]:
    """Part -> median seconds of a call, from ONNX Runtime's profile of `calls` calls; what it
    holds of calls before them was warm-up."""
    events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    starts = sorted(each["ts"] for each in events if each["name"] == "model_run")[-calls:]
    if len(starts) != calls:
        raise Failed(f"the profile holds {len(starts)} calls of {calls}")
    owners = _Owners(_inlined(path))
    took: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(calls))
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if kernel and event["ts"] >= starts[0]:
            name = owners(event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            took[name][bisect(starts, event["ts"]) - 1] += event["dur"] * 1e-6
    return {name: float(np.median(each)) for name, each in took.items()}


class _Owners:
    """Which part a profiled node stands for. ONNX Runtime names what it fuses after one of the
    nodes, often the last and lightest: a convolution that took in its activation is called Relu."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = dict(zip(names(proto), proto.graph.node, strict=True))
        self.makers = {out: name for name, node in self.nodes.items() for out in node.output}
        self.known: dict[tuple[str, str], str] = {}

    def __call__(self, name: str, operator: str) -> str:
        if (name, operator) not in self.known:
            bearer = self._bearer(name)
            found = bearer and self._upstream(bearer, operator)
            self.known[name, operator] = found or bearer or name
        return self.known[name, operator]

    def _bearer(self, name: str) -> str | None:
        """The part whose name a profiled node bears, alone or inside its own ("fused conv_1")."""
        if name in self.nodes:
            return name
        whole = [each for each in self.nodes if re.search(rf"(?<!\w){re.escape(each)}(?!\w)", name)]
        begun = [each for each in self.nodes if name.startswith(f"{each}_")]
        return max(whole or begun, key=len, default=None)

    def _upstream(self, bearer: str, operator: str, steps: int = 4) -> str | None:
        """The nearest part at or before the bearer whose operator the profiled one contains."""
        layer = [bearer]
        for _ in range(steps):
            for name in layer:
                if _kindred(self.nodes[name].op_type, operator):
                    return name
            read_here = [each for name in layer for each in self.nodes[name].input]
            layer = [self.makers[each] for each in read_here if each in self.makers]
        return None


def _kindred(part: str, profiled: str) -> bool:
    """Whether a profiled operator does the work of a part's: the same, or with more taken in."""
    heavy = ("MatMul", "Gemm", "Conv", "Attention", "LSTM", "GRU", "RNN")
    return part in profiled or any(stem in part and stem in profiled for stem in heavy)
