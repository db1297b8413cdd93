"""Small tensors that hold sizes (Shape, Gather, Concat ... into the target of a Reshape): which of
their numbers is the length of which axis."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto

from sartor.techniques._axes_onnx import size_of
from sartor.techniques._axes_trace_onnx import Item, Trace
from sartor.techniques._graph_onnx import attribute


def items(trace: Trace, node: onnx.NodeProto) -> list[Item] | None:
    """The numbers that the node makes, where it is one of those that move sizes about."""
    if node.op_type == "Shape":
        x = trace.axes.get(node.input[0])
        if x is None:
            return None
        made = [Item(size_of(each), each) for each in x]
        return made[attribute(node, "start", 0) : attribute(node, "end", len(made))]
    given = [trace.items.get(name) for name in node.input]
    make = _ITEMS.get(node.op_type)
    if make is None or not given or given[0] is None:
        return None
    return make(trace, node, [each or [] for each in given])


def _concat_items(trace: Trace, node: onnx.NodeProto, given: list[list[Item]]) -> list[Item] | None:
    if not all(name in trace.items for name in node.input):
        return None
    return [item for each in given for item in each]


def _same_items(trace: Trace, node: onnx.NodeProto, given: list[list[Item]]) -> list[Item] | None:
    if node.op_type == "Cast":
        whole = attribute(node, "to") in (TensorProto.INT64, TensorProto.INT32)
        return given[0] if whole else None
    return given[0]


def _gather_items(trace: Trace, node: onnx.NodeProto, given: list[list[Item]]) -> list[Item] | None:
    which = trace.integers(node.input[1])
    if which is None or any(not -len(given[0]) <= at < len(given[0]) for at in which):
        return None
    return [given[0][at] for at in which]


def _slice_items(trace: Trace, node: onnx.NodeProto, given: list[list[Item]]) -> list[Item] | None:
    starts, ends = trace.option(node, "starts", 1), trace.option(node, "ends", 2)
    steps = trace.option(node, "steps", 4) or [1]
    if not starts or not ends:
        return None
    return given[0][starts[0] : ends[0] : steps[0]]


def _constants(trace: Trace, node: onnx.NodeProto, given: list[list[Item]]) -> list[Item] | None:
    length = given[0][0].value if len(given[0]) == 1 else None
    tensor = attribute(node, "value")
    if length is None or given[0][0].axis or length > 64 or tensor is None:
        return None
    if tensor.data_type != TensorProto.INT64:
        return None
    return [Item(int(onnx.numpy_helper.to_array(tensor).ravel()[0]))] * length


def _computed(trace: Trace, node: onnx.NodeProto, given: list[list[Item]]) -> list[Item] | None:
    """Element by element; what is multiplied or divided by 1 stays what it is."""
    if not all(name in trace.items for name in node.input):
        return None
    length = max(map(len, given))
    if any(len(each) not in (1, length) for each in given):
        return None
    spread = [each * (length // max(len(each), 1)) for each in given]
    return [_compute(node.op_type, *each) for each in zip(*spread, strict=True)]


def _compute(operator: str, *given: Item) -> Item:
    values = [each.value for each in given]
    uses = tuple(use for each in given for use in (*each.uses, *([each.axis] if each.axis else ())))
    if operator == "Where":
        return Item(None, uses=uses) if values[0] is None else given[1 if values[0] else 2]
    if operator == "Equal" and any(value is not None and value < 0 for value in values):
        # The length of an axis is never negative: this is how exporters write "leave it".
        return Item(int(values[0] == values[1]))
    if operator in ("Mul", "Div") and values[1] == 1 and not given[1].uses:
        return given[0]
    if None in values:
        return Item(None, uses=uses)
    one, two = (value or 0 for value in values[:2])
    if operator == "Div" and two == 0:
        return Item(None, uses=uses)
    made = {
        "Add": one + two,
        "Sub": one - two,
        "Mul": one * two,
        "Div": int(one / two) if two else 0,
        "Equal": int(one == two),
    }
    return Item(made[operator], uses=uses)


_ITEMS: dict[str, Callable[[Trace, onnx.NodeProto, list[list[Item]]], list[Item] | None]] = {
    "Identity": _same_items,
    "Cast": _same_items,
    "Unsqueeze": _same_items,
    "Squeeze": _same_items,
    "Reshape": _same_items,
    "Concat": _concat_items,
    "Gather": _gather_items,
    "Slice": _slice_items,
    "ConstantOfShape": _constants,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Equal", "Where"), _computed),
}
