"""PyTorch to ONNX: the step behind which all other techniques live."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from sartor.contracts import Arrays, Bench, Failed, Model, Port, Signature, Step, Technique
from sartor.space import choice
from sartor.torch_archive import facts, opened
from sartor.torch_graph import Graph, load, short

OPSET = 17  # what ONNX Runtime's transformer optimizer and its quantizers know best
NEWER = 18  # the least that the exporter by graph writes
ROWS, BATCH = 512, 32  # on which the answers are compared
NEAR = 1e-3  # of the answers' spread
FLIPS = 1e-3  # of the rows
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
    their spread, or more than one answer of a thousand is another, it fails. Parts are the calls of
    the graph; TorchScript is one."""

    kinds: ClassVar[frozenset[str]] = frozenset({"torch"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "onnx"

    exporter: str = choice("auto", values=("auto", "trace", "dynamo"))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes PyTorch models, not {model.kind}"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        module = load(Path(model.payload))
        rows = _rows(bench, model.signature)
        reasons = []
        for exporter in ("trace", "dynamo") if self.exporter == "auto" else (self.exporter,):
            try:
                proto = _EXPORTERS[exporter](module, model, rows[0])
                _settle(proto, model.signature)
                path = _written(proto, bench.scratch)
                _compare(module, model, path, rows, bench.task.output)
                step = Step(self, tuple(_parts(module)))
                return dataclasses.replace(
                    model, kind="onnx", payload=path, settings={}, lineage=(*model.lineage, step)
                )
            except Exception as error:  # an exporter raises anything
                reasons.append(f"{exporter}: {short(error, 200)}")
        raise Failed(
            f"PyTorch's exporters give no ONNX model that answers alike: {'; '.join(reasons)}"
        )


def _rows(bench: Bench, signature: Signature) -> list[Arrays]:
    """Batches of inputs, the last one a single row."""
    batches = bench.batches("train", BATCH, ROWS) or bench.batches("search", BATCH, ROWS)
    fixed = next((p.shape[0] for p in signature.inputs if p.shape[0] is not None), None)
    found = [{port.name: batch[port.name] for port in signature.inputs} for batch in batches or ()]
    if not found:
        raise Failed("there are no rows to compare the converted model on")
    found = [_fitting(each, signature.inputs) for each in found]
    one = {name: array[:1] for name, array in found[0].items()}
    if fixed is None:
        return [*found, one]
    return [
        {name: array[at : at + fixed] for name, array in each.items()}
        for each in found
        for at in range(0, len(next(iter(each.values()))) - fixed + 1, fixed)
    ]


def _fitting(batch: Arrays, ports: Sequence[Port]) -> dict[str, np.ndarray]:
    """Batches are cut to their longest row; a model of fixed length is given zeros behind it."""
    made = {}
    for port in ports:
        array = batch[port.name]
        wanted = zip(port.shape[1:], array.shape[1:], strict=True)
        behind = [(0, (size or have) - have) for size, have in wanted]
        made[port.name] = np.pad(array, [(0, 0), *behind])
    return made


# -- exporters ----------------------------------------------------------------------------------


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters say of themselves; PyTorch's random state stays as it is."""
    before = torch.random.get_rng_state()
    said = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.random.set_rng_state(before)


def _tensors(model: Model, batch: Arrays) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.array(batch[p.name])) for p in model.signature.inputs)


def _named(module: nn.Module, model: Model) -> nn.Module:
    """The module with its inputs in the signature's order and a flat tuple for an answer."""
    return module if isinstance(module, Graph) else _Positional(module, _parameters(model))


def _parameters(model: Model) -> list[str]:
    known = facts(opened(Path(model.payload))).get("parameters", ())
    return [str(each) for each in known] or [port.name for port in model.signature.inputs]


class _Positional(nn.Module):
    """TorchScript by position, its answers flat."""

    def __init__(self, module: nn.Module, parameters: Sequence[str]) -> None:
        super().__init__()
        self.module, self.parameter_names = module, list(parameters)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        if self.parameter_names == ["*"]:
            found = self.module(*arrays)
        else:
            found = self.module(**dict(zip(self.parameter_names, arrays, strict=True)))
        leaves = torch.utils._pytree.tree_leaves(found)
        return tuple(each for each in leaves if isinstance(each, Tensor))


def _traced(module: nn.Module, model: Model, batch: Arrays) -> onnx.ModelProto:
    buffer = io.BytesIO()
    ports = (*model.signature.inputs, *model.signature.outputs)
    given = _tensors(model, batch)
    with _quietly(), torch.no_grad():
        called: Any = _named(module, model)
        if isinstance(called, _Positional):  # the exporter takes TorchScript alone or none at all
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
    axes = [
        {at: torch.export.Dim.DYNAMIC for at, size in enumerate(port.shape) if size is None}
        for port in model.signature.inputs
    ]
    with _quietly(), torch.no_grad():
        made = torch.onnx.export(
            _named(module, model),
            _tensors(model, batch),
            input_names=[port.name for port in model.signature.inputs],
            output_names=[f"{_MADE}{at}" for at in range(len(model.signature.outputs))],
            dynamic_shapes={"arrays": tuple(axes)},
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


_EXPORTERS: Mapping[str, Any] = {"trace": _traced, "dynamo": _translated}


# -- what came out ------------------------------------------------------------------------------


def _settle(proto: onnx.ModelProto, signature: Signature) -> None:
    """Names, types and sizes as the signature has them; what tells of this machine goes."""
    graph = proto.graph
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
    called = _named(module, model)
    names = [port.name for port in model.signature.outputs]
    with torch.inference_mode():
        answers = [[each.numpy() for each in called(*_tensors(model, batch))] for batch in rows]
    spreads = [_spread([each[at] for each in answers]) for at in range(len(names))]
    flipped = seen = 0
    for batch, right in zip(rows, answers, strict=True):
        found = session.run(names, dict(batch))
        for name, one, two, spread in zip(names, found, right, spreads, strict=True):
            gap = _gap(one, two) / spread
            if not gap <= NEAR:
                raise Failed(
                    f"ONNX Runtime's {name} differs from PyTorch's by {gap:.1e} of its spread for "
                    f"{len(two)} rows"
                )
            if name == output and two.ndim > 1 and two.shape[-1] > 1 and two.dtype.kind == "f":
                changed = one.argmax(-1) != two.argmax(-1)
                flipped, seen = flipped + int(changed.sum()), seen + changed.size
    if flipped > FLIPS * seen:
        raise Failed(f"{flipped} of {seen} answers are others than PyTorch's")


def _spread(arrays: Sequence[np.ndarray]) -> float:
    """Between the least and the largest number; 1 where there is none."""
    known = np.concatenate([each[np.isfinite(each)].astype(np.float64) for each in arrays])
    return (float(np.ptp(known)) if known.size else 0.0) or 1.0


def _gap(found: np.ndarray, right: np.ndarray) -> float:
    """The largest difference; infinite where shape, type or what is no number differs."""
    if found.shape != right.shape or found.dtype != right.dtype:
        return float("inf")
    if right.dtype.kind != "f":
        return 0.0 if np.array_equal(found, right) else float("inf")
    known = np.isfinite(right)
    if not np.array_equal(found[~known], right[~known], equal_nan=True):
        return float("inf")
    one, two = found[known].astype(np.float64), right[known].astype(np.float64)
    return float(np.abs(one - two).max(initial=0.0))


def _parts(module: nn.Module) -> list[str]:
    if not isinstance(module, Graph):
        return ["model"]
    return list(dict.fromkeys(call.name for call in module.program.block.calls)) or ["model"]
