"""PyTorch to ONNX: the step behind which all other techniques live."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from sartor.contracts import Arrays, Bench, Failed, Model, Port, Signature, Step, Technique
from sartor.fitting import to_compare
from sartor.libraries import first_line
from sartor.space import choice
from sartor.techniques._fold_torch import fold
from sartor.techniques._rows_torch import (
    ROWS,
    changed_for_torch,
    compare,
    dynamic_shapes,
    parts_of,
    tensors,
)
from sartor.torch_graph import Script, load, silent

OPSET = 17  # what ONNX Runtime's transformer optimizer and its quantizers know best
NEWER = 18  # the least that the exporter by graph writes
_MADE = "sartor_output_"  # what outputs are called until no other value bears their names
_INLINE = 1_500_000_000  # bytes of weights beyond which they go into a file beside the model


@dataclass(frozen=True)
class ToOnnx(Technique):
    """Writes the model as ONNX, with the names, types and free sizes of its inputs and outputs.

    `exporter`: "trace" follows one call of the model (torch.onnx.export, dynamo=False): a second,
    and graphs that the other techniques know well. "dynamo" translates the exported graph and
    takes ten times as long. "auto" takes the second where the first does not answer as PyTorch
    does. Whichever it is, ONNX Runtime's answers are held against PyTorch's on rows of the training
    data (else of the search part), and on one row alone; where they differ by more than 1e-3 of
    their spread, or more than one answer of a thousand is another, it fails. A model in
    float64 computes in float32 where that answers alike. Sums and products by channel go into the
    convolution before them. Parts are the calls of the graph;
    TorchScript is one."""

    kinds: ClassVar[frozenset[str]] = frozenset({"torch"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "onnx"

    exporter: str = choice("auto", values=("auto", "trace", "dynamo"))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes PyTorch models, not {model.kind}"
        return changed_for_torch(model)

    def apply(self, model: Model, bench: Bench) -> Model:
        module = load(Path(model.payload))
        rows = to_compare(bench, model.signature, ROWS)
        wide = any(each.dtype == torch.float64 for each in module.state_dict().values())
        exporters = ("trace", "dynamo") if self.exporter == "auto" else (self.exporter,)
        reasons: dict[str, None] = {}
        for exporter, narrow in itertools.product(exporters, (True, False) if wide else (False,)):
            try:
                proto = _EXPORTERS[exporter](module, model, rows[0])
                fold(proto)
                if narrow:
                    _narrow(proto)
                _settle(proto, model.signature)
                path = _written(proto, bench.scratch)
                _compare(module, model, path, rows, bench.task.output)
                step = Step(self, tuple(parts_of(module)))
                return dataclasses.replace(
                    model, kind="onnx", payload=path, settings={}, lineage=(*model.lineage, step)
                )
            except Exception as error:  # an exporter raises anything
                reasons[f"{exporter}: {first_line(error, 200)}"] = None
        raise Failed(
            f"PyTorch's exporters give no ONNX model that answers alike: {'; '.join(reasons)}"
        )


# -- exporters ----------------------------------------------------------------------------------


def _traced(module: nn.Module, model: Model, batch: Arrays) -> onnx.ModelProto:
    buffer = io.BytesIO()
    ports = (*model.signature.inputs, *model.signature.outputs)
    given = tensors(model, batch)
    with silent(), torch.no_grad():
        called: Any = module
        if isinstance(called, Script):  # the exporter takes TorchScript alone or none at all
            called = torch.jit.trace(called, given, check_trace=False)  # type: ignore[no-untyped-call]
        torch.onnx.export(
            called,
            given,
            cast(Any, buffer),  # a file's path, by its annotation alone
            input_names=[port.name for port in model.signature.inputs],
            output_names=[port.name for port in model.signature.outputs],
            dynamic_axes={
                port.name: {at: _axis(port, at) for at, n in enumerate(port.shape) if n is None}
                for port in ports
            },
            opset_version=OPSET,
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def _axis(port: Port, at: int) -> str:
    return "batch" if at == 0 else f"{port.name}_{at}"


def _translated(module: nn.Module, model: Model, batch: Arrays) -> onnx.ModelProto:
    with silent(), torch.no_grad():
        made = torch.onnx.export(
            module,
            tensors(model, batch),
            input_names=[port.name for port in model.signature.inputs],
            output_names=[f"{_MADE}{at}" for at in range(len(model.signature.outputs))],
            dynamic_shapes={"arrays": dynamic_shapes(model.signature)},
            opset_version=NEWER,
            dynamo=True,
            verbose=False,
        )
    if made is None:
        raise Failed("the exporter gave nothing")
    proto: onnx.ModelProto = made.model_proto
    given = {f"{_MADE}{at}": port.name for at, port in enumerate(model.signature.outputs)}
    inner = {
        name: f"{name}_inner" for name in given.values()
    }  # a value on the way may be called so
    _rename(proto.graph, {**inner, **given})
    return proto


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Values and nodes of the graph and of the bodies in it."""
    for node in graph.node:
        for listed in (node.input, node.output):
            listed[:] = [names.get(each, each) for each in listed]
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                _rename(body, names)
    for each in (*graph.initializer, *graph.output):
        each.name = names.get(each.name, each.name)


def _narrow(proto: onnx.ModelProto) -> None:
    """float32 for all float64 in the graph, which takes and gives what it did: ONNX Runtime has
    no convolution in float64."""
    graph = proto.graph
    kinds = [(each, each.type.tensor_type.elem_type) for each in (*graph.input, *graph.output)]
    wide = {each.name for each, kind in kinds if kind == onnx.TensorProto.DOUBLE}
    into, out = ([v.name for v in each if v.name in wide] for each in (graph.input, graph.output))
    _rename(graph, {name: f"{name}_float" for name in wide})
    _narrow_graph(graph)
    for value in graph.output:
        value.name = value.name.removesuffix("_float") if value.name[:-6] in wide else value.name
    cast = onnx.helper.make_node
    for name in into:
        graph.node.insert(0, cast("Cast", [name], [f"{name}_float"], to=onnx.TensorProto.FLOAT))
    for name in out:
        graph.node.append(cast("Cast", [f"{name}_float"], [name], to=onnx.TensorProto.DOUBLE))


def _narrow_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _narrow_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _narrow_tensor(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.DOUBLE:
                attribute.i = onnx.TensorProto.FLOAT
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                _narrow_graph(body)


def _narrow_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.DOUBLE:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


_EXPORTERS: Mapping[str, Any] = {"trace": _traced, "dynamo": _translated}


# -- what came out ------------------------------------------------------------------------------


def _settle(proto: onnx.ModelProto, signature: Signature) -> None:
    """Names, types and sizes as the signature has them; what tells of this machine goes."""
    graph = proto.graph
    names = [port.name for port in signature.inputs]
    if {each.name for each in graph.input} < set(names):  # without what it does not read
        del graph.input[:]
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in names)
    told = (graph.input, signature.inputs), (graph.output, signature.outputs)
    for values, ports in told:
        if [each.name for each in values] != [port.name for port in ports]:
            raise Failed(
                f"the exporter names {', '.join(each.name for each in values)}, not "
                f"{', '.join(port.name for port in ports)}"
            )
        for value, port in zip(values, ports, strict=True):
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))
            sizes = [_axis(port, at) if n is None else n for at, n in enumerate(port.shape)]
            value.CopyFrom(onnx.helper.make_tensor_value_info(port.name, kind, sizes))
    del graph.value_info[:]
    proto.producer_name, proto.producer_version, graph.doc_string = "sartor", "", ""
    del proto.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _written(proto: onnx.ModelProto, scratch: Path) -> Path:
    """The file in `scratch`, named by its content."""
    scratch.mkdir(parents=True, exist_ok=True)
    if sum(len(each.raw_data) for each in proto.graph.initializer) > _INLINE:
        name = f"toonnx-{hashlib.sha256(proto.SerializeToString()[: 1 << 20]).hexdigest()[:20]}"
        path = scratch / f"{name}.onnx"
        onnx.save(proto, path, save_as_external_data=True, location=f"{name}.data")
        return path.absolute()
    content = proto.SerializeToString(deterministic=True)
    path = scratch / f"toonnx-{hashlib.sha256(content).hexdigest()[:20]}.onnx"
    path.write_bytes(content)
    return path.absolute()


def _compare(
    module: nn.Module, model: Model, path: Path, rows: Sequence[Arrays], output: str
) -> None:
    """Raises Failed where ONNX Runtime answers otherwise than PyTorch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [port.name for port in model.signature.outputs]

    def answer(batch: Arrays) -> Sequence[np.ndarray]:
        return cast(Sequence[np.ndarray], session.run(names, dict(batch)))

    compare(module, model, answer, rows, output, "ONNX Runtime")
