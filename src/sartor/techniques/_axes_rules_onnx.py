"""Rules for the operators that compute, and `trace`, which goes through a graph by all rules.

An operator that computes jointly over an axis (a normalization, a softmax, a sum) freezes it; one
that is not known here freezes all that it reads and makes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx

from sartor.techniques._axes_items_onnx import items
from sartor.techniques._axes_onnx import (
    ONE,
    Axes,
    axis,
    broadcast,
    freeze,
    merge,
    resolve,
    size_of,
    square,
    unify,
)
from sartor.techniques._axes_products_onnx import PRODUCTS
from sartor.techniques._axes_rewrite_onnx import rewrite_number
from sartor.techniques._axes_shapes_onnx import SHAPES, Rule
from sartor.techniques._axes_trace_onnx import Trace, Unknown, outer, positions, sized, start
from sartor.techniques._graph_onnx import Graph, attribute


def trace(graph: Graph) -> Trace:
    """The layout of every axis of every tensor of the main graph."""
    found = start(graph)
    for node in graph.nodes:
        if node.op_type != "Constant":
            _follow(found, node)
    for name in graph.outputs:
        for layout in found.axes.get(name, ()):
            freeze(layout, "it is the model's output")
    for layouts in found.axes.values():
        for layout in layouts:
            if square(layout):
                freeze(layout, "it is multiplied by itself")
    return found


def _follow(trace: Trace, node: onnx.NodeProto) -> None:
    known = [name for name in node.input if name]
    made: Sequence[Axes] = ()
    try:
        rule = RULES.get(node.op_type) if node.domain in _DOMAINS else None
        if rule is None:
            raise Unknown(f"{node.op_type} is not known here")
        made = rule(trace, node)
    except Unknown as reason:
        _freeze_all(trace, node, str(reason))
    for at, name in enumerate(node.output):
        shape = trace.shapes.get(name)
        if at < len(made):
            trace.axes[name] = made[at]
            if not _agrees(made[at], shape):
                _freeze_all(trace, node, f"what {node.op_type} makes of it is not followed here")
        elif shape is not None:
            why = f"{node.op_type} makes it, which is not known here"
            trace.axes[name] = tuple(axis(size, why) for size in shape)
    if known and trace.fixed.issuperset(known):
        trace.fixed.update(node.output)
    _follow_items(trace, node)


def _freeze_all(trace: Trace, node: onnx.NodeProto, reason: str) -> None:
    for name in (*_captured(trace, node), *node.input, *node.output):
        trace.settle(name)
        for layout in trace.axes.get(name, ()):
            freeze(layout, reason)


def _captured(trace: Trace, node: onnx.NodeProto) -> list[str]:
    """What the bodies inside a node read from outside."""
    if not any(each.HasField("g") or each.graphs for each in node.attribute):
        return []
    return [
        name
        for name in trace.axes
        if any(user.name == node.name for user in trace.graph.users(name))
    ]


def _agrees(found: Axes, shape: tuple[int | None, ...] | None) -> bool:
    """Whether the rule and ONNX's own inference see the same sizes, where both see any."""
    if shape is None:
        return True
    if len(shape) != len(found):
        return False
    sizes = [size_of(each) for each in found]
    return all(None in pair or pair[0] == pair[1] for pair in zip(sizes, shape, strict=True))


def _follow_items(trace: Trace, node: onnx.NodeProto) -> None:
    try:
        made = items(trace, node)
    except Unknown:
        made = None
    if made is not None and len(trace.axes.get(node.output[0], ())) <= 1:
        trace.items[node.output[0]] = made
        return
    for at, name in enumerate(node.input):
        if _CONSUMES.get(node.op_type) != at:
            trace.settle(name)


# Operators whose own rule looks after the sizes that they are given, and at which input.
_CONSUMES = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}


# --- what keeps axes apart ------------------------------------------------------------------------


def elementwise(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    made = broadcast([trace.of(name) for name in node.input if name])
    return [made] * len(node.output)


def passes(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    return [trace.of(node.input[0])] * len(node.output)


def channelwise(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    """BatchNormalization, InstanceNormalization: a number for each channel."""
    x = trace.of(node.input[0])
    for name in node.input[1:]:
        unify(x[1], trace.of(name)[0])
    if node.op_type == "InstanceNormalization":
        for layout in x[2:]:
            freeze(layout, f"{node.op_type} runs over it")
    return [x]


def group_norm(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, number = trace.of(node.input[0]), attribute(node, "num_groups")
    groups, inside = axis(number), axis(sized(x[1]) // number)
    unify(x[1], merge((groups, inside)))
    for layout in (inside, *x[2:]):
        freeze(layout, f"{node.op_type} runs over it")
    for name in node.input[1:3]:
        own = trace.of(name)[0]
        unify(own, groups if size_of(own) == number else x[1])
    trace.rewrites.append(partial(rewrite_number, node.name, "num_groups", groups))
    return [x]


def joint(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    """Softmax and its like over one axis, in old opsets over all from there on."""
    x, old = trace.of(node.input[0]), trace.graph.opset < 13 and node.op_type != "LpNormalization"
    at = outer(x, attribute(node, "axis", 1 if old else -1))
    for layout in x[at:] if old else x[at : at + 1]:
        freeze(layout, f"{node.op_type} runs over it")
    return [x]


def layer_norm(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    at = outer(x, attribute(node, "axis", -1))
    for layout in x[at:]:
        freeze(layout, f"{node.op_type} runs over it")
    broadcast([x, *(trace.of(name) for name in node.input[1:] if name)])
    return [x]


def reduce(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, axes = trace.of(node.input[0]), trace.option(node, "axes", 1)
    if not axes:
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(len(x)))
    return [_reduced(x, {outer(x, at) for at in axes}, node)]


def arg(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    return [_reduced(x, {outer(x, attribute(node, "axis", 0))}, node)]


def _reduced(x: Axes, gone: set[int], node: onnx.NodeProto) -> Axes:
    for at in gone:
        freeze(x[at], f"{node.op_type} runs over it")
    keeps = attribute(node, "keepdims", 1)
    kept = [ONE if at in gone else each for at, each in enumerate(x) if keeps or at not in gone]
    return tuple(kept)


def pool(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    if len(node.output) > 1:
        freeze(x[1], f"{node.op_type} gives the places of its maxima")
    return [(*x[:2], *positions(trace, node, x))]


def global_pool(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    positions(trace, node, x)
    return [(*x[:2], *(ONE for _ in x[2:]))]


def local_norm(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    freeze(x[1], f"{node.op_type} runs over it")
    return [x]


def pad(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, pads = trace.of(node.input[0]), trace.option(node, "pads", 1)
    axes = trace.option(node, "axes", 3) or list(range(len(x)))
    if pads is None or len(pads) != 2 * len(axes):
        raise Unknown("Pad has no pads")
    grown = {
        outer(x, at) for at, *ends in zip(axes, pads, pads[len(axes) :], strict=False) if any(ends)
    }
    return [_others(trace, node, x, grown, "Pad makes it longer")]


def resize(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    if attribute(node, "axes") is not None:
        raise Unknown("a Resize of some axes is not followed here")
    sizes = trace.items.get(trace.given(node, 3))
    name = trace.given(node, 2) or (node.input[1] if node.op_type == "Upsample" else "")
    scales = trace.graph.constant(name) if name else None
    if sizes is not None and len(sizes) == len(x):
        kept = [
            item.axis is not None and resolve(item.axis) == resolve(each)
            for item, each in zip(sizes, x, strict=True)
        ]
        if not all(kept[:2]):
            trace.settle(node.input[3])
    elif scales is not None and len(scales) == len(x):
        kept = [float(scale) == 1.0 for scale in scales]
    else:
        raise Unknown(f"the sizes of {node.op_type} are computed")
    grown = {at for at, same in enumerate(kept) if not same}
    return [_others(trace, node, x, grown, f"{node.op_type} changes it")]


def _others(trace: Trace, node: onnx.NodeProto, x: Axes, changed: set[int], reason: str) -> Axes:
    """The same axes but for those that change, which are frozen before and after."""
    after = trace.rest(node.output[0], 0, reason, len(x))
    for at in changed:
        freeze(x[at], reason)
    return tuple(after[at] if at in changed else each for at, each in enumerate(x))


_DOMAINS = ("", "ai.onnx", "com.microsoft")
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Mod", "Where", "Clip"),
    *("PRelu", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    *("BiasGelu", "FastGelu"),
)
_PASSES = (
    *("Identity", "Cast", "CastLike", "Dropout", "Relu", "LeakyRelu", "Elu", "Selu", "Celu"),
    *("ThresholdedRelu", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg"),
    *("Reciprocal", "Abs", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan", "Asin", "Acos"),
    *("Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Softplus", "Softsign", "HardSwish"),
    *("Mish", "Gelu", "QuickGelu", "Swish", "Shrink", "IsNaN", "IsInf", "Not"),
)
_REDUCE = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


def _sizes(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    return [tuple(axis(size) for size in trace.shapes.get(node.output[0], (None,)))]


RULES: dict[str, Rule] = {
    **SHAPES,
    **PRODUCTS,
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_PASSES, passes),
    **dict.fromkeys((f"Reduce{each}" for each in _REDUCE), reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), joint),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_norm),
    **dict.fromkeys(("SimplifiedLayerNormalization",), layer_norm),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), channelwise),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), global_pool),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("Shape", "Size"), _sizes),
    "GroupNormalization": group_norm,
    "LRN": local_norm,
    "Pad": pad,
}
