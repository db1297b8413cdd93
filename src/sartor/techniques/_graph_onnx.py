"""An ONNX graph in the hand of a technique: read, ask, edit, write; shared by the ONNX plug-ins.

graph = read(model)                          a copy: the file is never touched
graph.constant("w"), graph.users("x")        ask
graph.set_constant("w", array)               edit
return finish(model, technique, graph, bench, parts)
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from sartor.contracts import Arrays, Bench, Failed, Model, Step, Technique
from sartor.libraries import first_line

# A protobuf ends at 2 GiB; beyond this many bytes of weights they go into a file beside the model.
_INLINE = 1_500_000_000

# The attributes in which a Constant node may hold small numbers without a tensor.
_SHORT = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Parts:
    """Which parts a technique considered: every one is touched or skipped with a reason."""

    def __init__(self) -> None:
        self._reasons: dict[str, str | None] = {}

    def touch(self, name: str) -> None:
        self._reasons[name] = None

    def skip(self, name: str, reason: str) -> None:
        """A part that was touched before stays touched."""
        if self._reasons.get(name, "") is not None:
            self._reasons[name] = reason

    @property
    def touched(self) -> tuple[str, ...]:
        return tuple(name for name, reason in self._reasons.items() if reason is None)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, reason) for name, reason in self._reasons.items() if reason is not None)

    def most_frequent_reason(self) -> str:
        reasons = [reason for _, reason in self.skipped]
        return max(dict.fromkeys(reasons), key=reasons.count) if reasons else "there are none"


class Graph:
    """A ModelProto with the questions that techniques ask. Answers are of the main graph; uses
    inside the bodies of If, Loop and Scan count as uses."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        _plain_inputs(proto)
        _name_nodes(proto.graph.node)
        self.refresh()

    def refresh(self) -> None:
        """Reads the index anew: needed after nodes were added, removed or rewired by hand."""
        graph = self.proto.graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            self.producers.update({name: node for name in node.output if name})
            for name in dict.fromkeys(_reads(node)):
                self._users.setdefault(name, []).append(node)
        self.outputs = tuple(port.name for port in graph.output)

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        return self.proto.graph.node  # type: ignore[no-any-return]

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return max((each.version for each in self.proto.opset_import if not each.domain), default=1)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes this tensor; None for inputs and initializers."""
        return self.producers.get(name)

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read this tensor, bodies included (an output of the graph is no node)."""
        return list(self._users.get(name, ()))

    def constant(self, name: str) -> np.ndarray | None:
        """The value where it stands in the file: an initializer or a Constant node."""
        tensor = self.constant_tensor(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def constant_tensor(self, name: str) -> onnx.TensorProto | None:
        """As `constant`, without decoding it: name, data_type and dims are free to ask."""
        known: onnx.TensorProto | None = self.tensors.get(name)
        if known is not None:
            return known
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant" or node.domain:
            return None
        for each in node.attribute:
            if each.name == "value":
                tensor: onnx.TensorProto = each.t
                return tensor
            if each.name in _SHORT:
                value = np.array(onnx.helper.get_attribute_value(each), _SHORT[each.name])
                return numpy_helper.from_array(value, name)
        return None

    def constants(self) -> Iterator[tuple[str, onnx.TensorProto]]:
        """Name and tensor of every initializer and Constant node of the main graph, in order."""
        yield from [(tensor.name, tensor) for tensor in self.proto.graph.initializer]
        for node in self.nodes:
            if node.op_type == "Constant" and not node.domain:
                tensor = self.constant_tensor(node.output[0])
                if tensor is not None:
                    yield node.output[0], tensor

    def set_constant(self, name: str, value: np.ndarray) -> None:
        """Writes an initializer, new or in the place of the one (or the Constant) of that name."""
        made = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if name in self.tensors:
            self.tensors[name].CopyFrom(made)
            return
        self.drop_constant(name)
        self.proto.graph.initializer.append(made)
        self.tensors[name] = self.proto.graph.initializer[-1]

    def drop_constant(self, name: str) -> None:
        """Removes the initializer or Constant node of that name, where there is one."""
        if self.tensors.pop(name, None) is not None:
            names = [tensor.name for tensor in self.proto.graph.initializer]
            del self.proto.graph.initializer[names.index(name)]
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant":
            self.proto.graph.node.remove(node)
            del self.producers[name]

    def drop_unused(self) -> None:
        """Removes constants that nothing reads, and what describes tensors that are gone."""
        self.refresh()
        kept = set(self._users) | set(self.outputs)
        for name in [name for name, _ in self.constants() if name not in kept]:
            self.drop_constant(name)
        self.refresh()
        known = kept | set(self.producers)
        info = [each for each in self.proto.graph.value_info if each.name in known]
        del self.proto.graph.value_info[:]
        self.proto.graph.value_info.extend(info)

    def fresh(self, stem: str) -> str:
        """A name that no tensor and no node bears yet."""
        taken = self.tensors.keys() | self.producers.keys() | {node.name for node in self.nodes}
        taken |= {port.name for port in self.proto.graph.input} | self._users.keys()
        name, count = stem, 0
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        return name

    def insert(self, new: Iterable[onnx.NodeProto], before: onnx.NodeProto | None = None) -> None:
        """Puts nodes in front of another one (or of all), and reads the index anew."""
        at = 0 if before is None else list(self.nodes).index(before)
        for offset, node in enumerate(new):
            self.proto.graph.node.insert(at + offset, node)
        self.refresh()

    def replace(self, old: onnx.NodeProto, new: Iterable[onnx.NodeProto]) -> None:
        """Puts nodes in the place of one, and reads the index anew."""
        self.insert(new, before=old)
        self.proto.graph.node.remove(old)
        self.refresh()

    def digest(self) -> str:
        """Of nodes, weights and ports: for keys of what is remembered about the graph. Tensor by
        tensor, since a whole model may be beyond what protobuf writes at once."""
        graph, mark = self.proto.graph, hashlib.sha256()
        for each in (*graph.input, *graph.output, *graph.node, *graph.initializer):
            mark.update(each.SerializeToString(deterministic=True))
        return mark.hexdigest()

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Tensor -> shape (None = free) as far as ONNX's own inference finds it."""
        bare = onnx.ModelProto()
        bare.CopyFrom(self.proto)
        try:
            bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError):
            bare = self.proto  # what the file itself says is then all there is
        graph = bare.graph
        found: dict[str, tuple[int | None, ...]] = {}
        for port in (*graph.input, *graph.value_info, *graph.output):
            if port.type.HasField("tensor_type") and port.type.tensor_type.HasField("shape"):
                found[port.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None
                    for dim in port.type.tensor_type.shape.dim
                )
        found.update({name: tuple(tensor.dims) for name, tensor in self.constants()})
        return found


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or the default where it is not written."""
    for each in node.attribute:
        if each.name == name:
            return onnx.helper.get_attribute_value(each)
    return default


def foreign(technique: Technique, model: Model) -> str | None:
    """Why the technique cannot take a model of this kind; None where it can."""
    if model.kind in technique.kinds:
        return None
    return f"it takes models of kind {', '.join(sorted(technique.kinds))}, not {model.kind}"


def read(model: Model) -> Graph:
    """The model's file as a graph, with its external data in memory."""
    return Graph(onnx.load(os.fspath(model.payload)))


def peek(model: Model) -> Graph:
    """As `read`, but constants in external data have no value: cheap, for `refuse`."""
    return Graph(onnx.load(os.fspath(model.payload), load_external_data=False))


def write(proto: onnx.ModelProto, folder: Path, stem: str = "model") -> Path:
    """A new file in `folder`, named by its contents; the same model gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if proto.ByteSize() >= _INLINE:
        return _write_outside(proto, folder, stem)
    content = proto.SerializeToString(deterministic=True)
    path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:20]}.onnx"
    _put(path, content)
    return path


def finish(model: Model, technique: Technique, graph: Graph, bench: Bench, parts: Parts) -> Model:
    """The changed model: the graph in a new file, same signature and settings, one more Step."""
    path = write(graph.proto, bench.scratch, type(technique).__name__.lower())
    step = Step(technique, parts.touched, parts.skipped)
    return dataclasses.replace(model, payload=path, lineage=(*model.lineage, step))


def unchanged(model: Model, technique: Technique, parts: Parts) -> Model:
    """The same file with one more Step: for neutral settings."""
    step = Step(technique, parts.touched, parts.skipped)
    return dataclasses.replace(model, lineage=(*model.lineage, step))


def watch(
    graph: Graph, names: Sequence[str], batches: Iterable[Arrays], bench: Bench
) -> Iterator[dict[str, np.ndarray]]:
    """The values of these tensors for every batch, by running the graph: activations, streamed.

    Only one batch is in memory at a time; whoever watches many wide tensors of large batches asks
    for a few at a time. Raises Failed where ONNX Runtime does not run the model."""
    feeds = {port.name for port in graph.proto.graph.input}
    asked = [name for name in dict.fromkeys(names) if name not in feeds]
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        proto = _up_to(graph, asked)
        needed = [port.name for port in proto.graph.input]
        session = start(write(proto, Path(folder)), bench.target.threads) if asked else None
        for batch in batches:
            feed = {name: batch[name] for name in needed}
            values = session.run(asked, feed) if session else []
            found = dict(zip(asked, values, strict=True))
            yield found | {name: batch[name] for name in names if name in feeds}


def _up_to(graph: Graph, names: Sequence[str]) -> onnx.ModelProto:
    """The part of the model that makes these tensors: what lies behind them is neither loaded nor
    run."""
    needed, nodes = set(names), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    whole = graph.proto.graph
    proto = onnx.ModelProto(ir_version=graph.proto.ir_version)
    proto.opset_import.extend(graph.proto.opset_import)
    proto.functions.extend(graph.proto.functions)
    proto.graph.name = whole.name or "part"
    proto.graph.node.extend(reversed(nodes))
    proto.graph.input.extend(port for port in whole.input if port.name in needed)
    proto.graph.initializer.extend(each for each in whole.initializer if each.name in needed)
    proto.graph.value_info.extend(each for each in whole.value_info if each.name in needed)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return proto


def start(
    path: Path,
    threads: int = 1,
    options: onnxruntime.SessionOptions | None = None,
    disabled: Sequence[str] = (),
) -> onnxruntime.InferenceSession:
    """A quiet session on the CPU, with some of ONNX Runtime's optimizers disabled by name.

    Raises Failed where ONNX Runtime does not load the model."""
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(disabled),
        )
    except Exception as error:  # ONNX Runtime's exceptions share no other base class
        said = first_line(error)
        raise Failed(f"ONNX Runtime does not load the changed model: {said}") from error


def _plain_inputs(proto: onnx.ModelProto) -> None:
    """Initializers listed among the inputs (the habit before IR 4) could be overridden by a caller
    and are therefore no constants; a model that is being changed has them as constants."""
    own = {tensor.name for tensor in proto.graph.initializer}
    if own and any(port.name in own for port in proto.graph.input):
        inputs = [port for port in proto.graph.input if port.name not in own]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 4)


def _name_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    """Every node a name of its own, the same on each reading: exporters leave some out."""
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    for number, node in enumerate(nodes):
        if not node.name or node.name in seen:
            stem = node.name or f"{node.op_type}_{number}"
            name, count = stem, 0
            while name in taken or name in seen:
                count += 1
                name = f"{stem}_{count}"
            node.name = name
        seen.add(node.name)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names the node reads: its inputs, and what the bodies inside it take from outside."""
    yield from (name for name in node.input if name)
    for each in node.attribute:
        for body in (*([each.g] if each.HasField("g") else ()), *each.graphs):
            made = {port.name for port in body.input} | {t.name for t in body.initializer}
            for inner in body.node:
                yield from (name for name in _reads(inner) if name not in made)
                made.update(inner.output)
            yield from (port.name for port in body.output if port.name not in made)


def _write_outside(proto: onnx.ModelProto, folder: Path, stem: str) -> Path:
    """Weights in a file beside the model, in a folder of their own named by all the contents."""
    mark = hashlib.sha256()
    for tensor in proto.graph.initializer:
        mark.update(tensor.name.encode() + tensor.raw_data)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        onnx.save(
            copy,
            os.path.join(made, "model.onnx"),
            save_as_external_data=True,
            location="model.onnx.data",
            convert_attribute=False,
        )
        mark.update(Path(made, "model.onnx").read_bytes())
        home = folder / f"{stem}-{mark.hexdigest()[:20]}"
        with suppress(OSError):  # there already: the same contents
            os.rename(made, home)
            os.mkdir(made)  # for the context manager to remove
    return home / "model.onnx"


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all, also when two processes write the same file at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
