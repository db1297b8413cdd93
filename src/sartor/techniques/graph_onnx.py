"""Rewrites of an ONNX graph that keep what it computes: folding, fusing, fixing shapes.

The work is done by onnxslim and by ONNX Runtime's own optimizers; what is ours is to keep them
honest: lawful for dynamic batches and every padding, the same bytes each time, and reported part
by part.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import onnxruntime

from sartor.contracts import Bench, Failed, Model, Port, Signature, Technique, Unneeded
from sartor.space import choice
from sartor.techniques._graph_onnx import (
    Graph,
    Parts,
    attribute,
    finish,
    foreign,
    peek,
    read,
    start,
    watch,
)


@dataclass(frozen=True)
class Simplify(Technique):
    """Constant folding, removal of dead and repeated nodes, ties of equal weights, by onnxslim.

    `fuse` also merges batch normalizations, paddings and biases into the layer before. Parts are
    the nodes that went: what stays had nothing to be simplified. Run `FuseTransformer` first:
    it does not know the attention of a simplified graph again."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})

    fuse: bool = choice(True, False)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return foreign(self, model)

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        before = {node.name: node.SerializeToString(deterministic=True) for node in graph.nodes}
        slim = _slim(graph, None if self.fuse else ["graph_fusion"])
        after = {node.name for node in slim.nodes}
        parts = Parts()
        for name in before:
            if name not in after:
                parts.touch(name)
        if not parts.touched:
            raise Unneeded("there is nothing to simplify: no node can be folded or removed")
        _same_ports(slim, model)
        return finish(model, self, slim, bench, parts)


@dataclass(frozen=True)
class OptimizeOffline(Technique):
    """ONNX Runtime's own graph optimizations, done once and stored instead of at every start.

    The levels stop at "extended": beyond it come memory layouts for the machine's own vector
    width, which would tie the file to it. The operators of `extended` are ONNX Runtime's own.
    The fusion of a residual sum with its layer normalization is left out: its kernel is slower
    on CPUs than the two apart (see `SeparateNorm`)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})

    level: str = choice("basic", "extended")

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return foreign(self, model)

    def apply(self, model: Model, bench: Bench) -> Model:
        before = read(model)
        with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
            path = _optimized(model.payload, self.level, Path(folder), "SkipLayerNormFusion")
            after = Graph(onnx.load(os.fspath(path)))
        parts = _gone(before, after)
        if not parts.touched:
            raise Unneeded("ONNX Runtime finds nothing to optimize at this level")
        _same_ports(after, model)
        return finish(model, self, after, bench, parts)


@dataclass(frozen=True)
class FuseTransformer(Technique):
    """Attention, GELU and layer normalization as single operators of ONNX Runtime.

    Heads and width are read off a run of the graph. Two defaults of ONNX Runtime's optimizer are
    not taken over. Its mask counts tokens and is wrong where padding stands on the left: we keep
    the raw mask. And biases stay outside GELU, where a quantized product can take them in.
    Parts are the attentions (by their Softmax), GELUs (by their Erf or Tanh) and the layer
    normalizations that are written out in single steps."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})

    attention: bool = choice(True, False)
    gelu: bool = choice(True, False)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        operators = {node.op_type for node in peek(model).nodes}
        if not operators & {"Softmax", "LayerNormalization", "Erf"}:
            return "no attention, GELU or layer normalization is in the graph"
        if not (self.attention or self.gelu):
            return "attention and gelu are both off: nothing is left to fuse"
        if self.attention and not self.gelu and "Softmax" not in operators:
            return "no attention is in the graph"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        heads, width = _heads(graph, bench) if self.attention else (0, 0)
        parts = Parts()
        # A fifth of a second that no other technique needs.
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        options = FusionOptions("bert")
        options.enable_attention = self.attention and heads > 0
        options.enable_gelu = self.gelu
        options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False
        options.enable_embed_layer_norm = options.enable_bias_gelu = False
        options.use_raw_attention_mask(True)
        with _quiet("onnxruntime"), tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
            # What `opt_level=1` does, which would import torch just to look for a GPU.
            path = _optimized(model.payload, "basic", Path(folder), "ConstantSharing")
            made = optimize_model(os.fspath(path), "bert", heads, width, options, opt_level=0)
            fused = Graph(made.model)
        left = {node.name for node in fused.nodes}
        for node in graph.nodes:
            what = _fusable(node, graph)
            if what and node.name not in left:
                parts.touch(node.name)
            elif what:
                off = not getattr(self, what, True)
                reason = f"{what} is off" if off else f"not a form of {what} that is known"
                parts.skip(node.name, reason)
        if not parts.touched:
            raise Unneeded(f"nothing was fused: {parts.most_frequent_reason()}")
        _same_ports(fused, model)
        return finish(model, self, fused, bench, parts)


def _fusable(node: onnx.NodeProto, graph: Graph) -> str | None:
    """What the node is the heart of: attention, gelu, layer normalization, or nothing."""
    if node.op_type == "Softmax" and _product_before(node, graph) is not None:
        return "attention"
    if node.op_type == "ReduceMean" and _is_norm(node, graph):
        return "layer normalization"
    return {"Erf": "gelu", "Tanh": "gelu"}.get(node.op_type)


@dataclass(frozen=True)
class SeparateNorm(Technique):
    """Keeps a residual sum apart from the layer normalization after it.

    ONNX Runtime fuses the two when it loads a model; on a CPU the fused kernel takes 57 us where
    the two take 14 (MiniLM, 25 tokens, one thread). Written as `Sum`, the addition is not fused,
    and the file stays fast in a session with any settings. Parts are the layer normalizations."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    claims: ClassVar[frozenset[str]] = frozenset({"latency"})

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        operators = {node.op_type for node in peek(model).nodes}
        if not operators & {"LayerNormalization", "SkipLayerNormalization", "ReduceMean"}:
            return "no layer normalization is in the graph"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        parts = Parts()
        for node in list(graph.nodes):
            if node.op_type == "SkipLayerNormalization":
                if any(node.output[1:3]):
                    parts.skip(node.name, "its mean or deviation is read elsewhere")
                else:
                    graph.replace(node, _apart(node))
                    parts.touch(node.name)
            elif _is_norm(node, graph):
                total = graph.producer(node.input[0])
                if total is None or total.op_type != "Add":
                    parts.skip(node.name, "no sum stands before it")
                elif any(graph.constant_tensor(name) for name in total.input):
                    parts.skip(node.name, "the sum before it is a bias: ONNX Runtime leaves it")
                else:
                    total.op_type = "Sum"
                    parts.touch(node.name)
        if not parts.touched:
            raise Unneeded(f"no residual sum to keep apart: {parts.most_frequent_reason()}")
        return finish(model, self, graph, bench, parts)


@dataclass(frozen=True)
class FixShapes(Technique):
    """Fixed input shapes for a target that asks for them (`Target.fixed`), then folding of all
    that is constant with them. The signature becomes narrower, so it is refused otherwise.
    Parts are the inputs."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        fixed = dict(bench.target.fixed)
        if not fixed:
            return "the target asks for no fixed shapes, and the signature would become narrower"
        ports = {port.name: port for port in model.signature.inputs}
        for name, shape in fixed.items():
            if name not in ports:
                return f"the target fixes {name!r}, which is no input; inputs: {', '.join(ports)}"
            free = ports[name].shape
            if len(free) != len(shape) or any(
                size not in (None, wanted) for size, wanted in zip(free, shape, strict=True)
            ):
                return f"the target fixes {name!r} to {shape}, which does not fit its shape {free}"
        if all(None not in port.shape for port in ports.values()):
            return "all input shapes are fixed already"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        fixed = dict(bench.target.fixed)
        parts = Parts()
        for port in graph.proto.graph.input:
            if port.name not in fixed:
                parts.skip(port.name, "the target does not fix it")
                continue
            for dim, size in zip(port.type.tensor_type.shape.dim, fixed[port.name], strict=True):
                dim.dim_value = size
            parts.touch(port.name)
        del graph.proto.graph.value_info[:]  # written for free sizes
        for port in graph.proto.graph.output:
            port.type.tensor_type.ClearField("shape")
        slim = _slim(graph)
        shapes = slim.shapes()
        signature = Signature(
            tuple(
                Port(port.name, port.dtype, fixed.get(port.name, port.shape))
                for port in model.signature.inputs
            ),
            tuple(
                Port(port.name, port.dtype, shapes.get(port.name, port.shape))
                for port in model.signature.outputs
            ),
        )
        made = finish(model, self, slim, bench, parts)
        return dataclasses.replace(made, signature=signature)


def _optimized(path: Path, level: str, folder: Path, *disabled: str) -> Path:
    """The file with ONNX Runtime's optimizations of this level, but for those disabled by name."""
    made = folder / "optimized.onnx"
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        levels.ORT_ENABLE_BASIC if level == "basic" else levels.ORT_ENABLE_EXTENDED
    )
    options.optimized_model_filepath = os.fspath(made)
    # Beside the file whatever the size: a protobuf ends at 2 GB.
    outside = "session.optimized_model_external_initializers_file_name"
    options.add_session_config_entry(outside, "weights.bin")
    start(path, 1, options, disabled=disabled)
    return made


def _gone(before: Graph, after: Graph) -> Parts:
    """The nodes that an optimizer removed or put another operator in the place of."""
    left = {(node.op_type, node.domain, node.name) for node in after.nodes}
    parts = Parts()
    for node in before.nodes:
        if (node.op_type, node.domain, node.name) not in left:
            parts.touch(node.name)
    return parts


def _slim(graph: Graph, skipped: list[str] | None = None) -> Graph:
    import onnxslim  # brings sympy: half a second that only these techniques need

    with _quiet("onnxslim"):
        return Graph(onnxslim.slim(graph.proto, skip_optimizations=skipped))


def _same_ports(graph: Graph, model: Model) -> None:
    """Raises Failed where an optimizer lost an input or an output."""
    inputs = {port.name for port in graph.proto.graph.input}
    lost = [port.name for port in model.signature.inputs if port.name not in inputs]
    lost += [port.name for port in model.signature.outputs if port.name not in graph.outputs]
    if lost:
        raise Failed(f"the optimizer removed {', '.join(lost)} from the signature")


def _heads(graph: Graph, bench: Bench) -> tuple[int, int]:
    """Number of heads and width of the attention, from one example run through the first product
    before a Softmax: its query has the shape (batch, heads, tokens, width / heads). (0, 0) where
    there is none."""
    for node in graph.nodes:
        product = _product_before(node, graph) if node.op_type == "Softmax" else None
        batches = bench.batches("search", 1, 1)
        if product is None or batches is None:
            continue
        for values in watch(graph, [product.input[0]], batches, bench):
            shape = values[product.input[0]].shape
            if len(shape) == 4:
                return shape[1], shape[1] * shape[3]
    return 0, 0


def _product_before(softmax: onnx.NodeProto, graph: Graph) -> onnx.NodeProto | None:
    """The product of query and key that a Softmax normalizes, behind scale and mask."""
    todo = [softmax.input[0]]
    for _ in range(8):
        node = graph.producer(todo.pop(0)) if todo else None
        if node is None:
            continue
        if node.op_type == "MatMul" and not any(graph.constant_tensor(n) for n in node.input):
            return node
        if node.op_type in ("Add", "Div", "Mul", "Where", "Sub", "Cast", "Softmax"):
            todo.extend(node.input)
    return None


def _is_norm(node: onnx.NodeProto, graph: Graph) -> bool:
    """A layer normalization, also one written out in steps: mean of x, x minus it, and so on."""
    if node.op_type == "LayerNormalization":
        return True
    if node.op_type != "ReduceMean":
        return False
    users = graph.users(node.output[0])
    return any(user.op_type == "Sub" and user.input[0] == node.input[0] for user in users)


def _apart(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The sum and the normalization that a SkipLayerNormalization stands for."""
    bias = [name for name in node.input[4:5] if name]
    total = node.output[3] if len(node.output) > 3 and node.output[3] else f"{node.output[0]}_sum"
    make = onnx.helper.make_node
    new = []
    first = node.input[0]
    if bias:
        # A bias of its own, so that a quantized product before it can take it in.
        first = f"{total}_biased"
        new.append(make("Add", [node.input[0], *bias], [first], name=f"{node.name}_bias"))
    new.append(make("Sum", [first, node.input[1]], [total], name=f"{node.name}_sum"))
    beta = [node.input[3]] if len(node.input) > 3 and node.input[3] else []
    new.append(
        make(
            "LayerNormalization",
            [total, node.input[2], *beta],
            [node.output[0]],
            name=node.name,
            axis=-1,
            epsilon=attribute(node, "epsilon", 1e-5),
        )
    )
    return new


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Optimizers write to the log what they skip; it stands in the Step."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
