"""What an OpenVINO model consists of: one part a layer that computes, with its weights and work."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

from sartor.contracts import Arrays, Part, Signature
from sartor.openvino_core import opened, ov

_SILENT = ("Parameter", "Result", "Constant")
# Shapes, axes and words take bytes, but nothing in them was learned.
_NOT_COUNTED = ("int64_t", "i64", "boolean", "string")
_BY_KERNEL = {"Convolution": 1, "GroupConvolution": 2}  # axes of a kernel before its [in, sizes...]
_BACKWARDS = {"ConvolutionBackpropData": 0, "GroupConvolutionBackpropData": 1}
_RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell")


def count(path: Path, signature: Signature, sample: Arrays) -> tuple[Part, ...]:
    """One part a layer whose result depends on the inputs; constants belong to the first that
    reads them, what is only computed from them included."""
    model = opened(path)
    with contextlib.suppress(RuntimeError):  # a layer that cannot be of that size: MACs unknown
        shapes = {at: list(sample[port.name].shape) for at, port in enumerate(signature.inputs)}
        model.reshape(shapes)
    order = model.get_ordered_ops()
    owned = _owned(order)
    parts = []
    for op in order:
        name = op.get_friendly_name()
        if name in owned and op.get_type_name() not in _SILENT:
            parameters, size = owned[name]
            parts.append(Part(name, op.get_type_name(), parameters, size, _macs(op)))
    return tuple(parts)


def _owned(order: list[ov.Node]) -> Mapping[str, tuple[int, int]]:
    """Layer -> numbers and bytes of the constants that are its own, for layers that compute."""
    roots: dict[str, dict[str, ov.Node]] = {}  # of layers that depend on constants alone
    seen: set[str] = set()
    owned: dict[str, tuple[int, int]] = {}
    for op in order:
        name = op.get_friendly_name()
        if op.get_type_name() == "Constant":
            roots[name] = {name: op}
            continue
        above = [value.get_node() for value in op.input_values()]
        below = {k: v for each in above for k, v in roots.get(each.get_friendly_name(), {}).items()}
        if above and all(each.get_friendly_name() in roots for each in above):
            roots[name] = below
            continue
        mine = [v for k, v in below.items() if k not in seen]
        seen |= below.keys()
        owned[name] = (sum(map(_parameters, mine)), sum(map(_bytes, mine)))
    return owned


def _parameters(constant: ov.Node) -> int:
    kind = constant.get_output_element_type(0)
    return 0 if kind.get_type_name() in _NOT_COUNTED else prod(constant.get_output_shape(0))


def _bytes(constant: ov.Node) -> int:
    bits: int = constant.get_output_element_type(0).bitwidth
    return int(prod(constant.get_output_shape(0)) * bits + 7) // 8


# -- multiply-accumulates -----------------------------------------------------------------------


def _macs(op: ov.Node) -> int | None:
    """0 for what multiplies nothing up, None where a size is not known."""
    kind = op.get_type_name()
    try:
        if kind in _BY_KERNEL:
            return _out(op) * prod(_shape(op, 1)[_BY_KERNEL[kind] :])
        if kind in _BACKWARDS:
            return prod(_shape(op, 0)) * prod(_shape(op, 1)[1 + _BACKWARDS[kind] :])
        if kind == "MatMul":
            first = _shape(op, 0)
            turned = op.get_attributes().get("transpose_a", False) and len(first) > 1
            return _out(op) * first[-2 if turned else -1]
        if kind in _RECURRENT:
            return _recurrent(op)
        if kind == "ScaledDotProductAttention":
            query, key, value = (_shape(op, at) for at in range(3))
            return prod(query) * key[-2] + prod(query[:-1]) * key[-2] * value[-1]
        return None if kind in ("TensorIterator", "Loop", "If") else 0
    except (RuntimeError, IndexError):  # a free size
        return None


def _shape(op: ov.Node, at: int) -> list[int]:
    return list(op.input(at).get_shape())


def _out(op: ov.Node) -> int:
    return prod(op.output(0).get_shape())


def _recurrent(op: ov.Node) -> int:
    """Rows and steps times both matrices of weights; a sequence has one axis of directions more."""
    shape = _shape(op, 0)
    kernels = [
        prod(_shape(op, at))
        for at in range(1, op.get_input_size())
        if len(_shape(op, at)) == len(shape) and _weighty(op, at)
    ]
    return prod(shape[:-1]) * sum(kernels)


def _weighty(op: ov.Node, at: int) -> bool:
    """Whether it is a matrix of weights: gates times hidden rows."""
    gates = {"LST": 4, "GRU": 3, "RNN": 1}[op.get_type_name()[:3]]
    hidden = int(op.get_attributes()["hidden_size"])
    shape = _shape(op, at)
    return len(shape) >= 2 and shape[-2] == gates * hidden and at >= op.get_input_size() - 3
