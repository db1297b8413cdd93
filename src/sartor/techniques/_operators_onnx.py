"""ONNX's operators written in torch, so that autograd can follow a graph.

OPERATORS["Relu"](call) -> a tensor, or a tuple of tensors where the operator has several outputs.
Here is what computes; what moves windows over pictures is in `_operators_windows_onnx`, what
gathers, moves and cuts in `_operators_shapes_onnx`. ONLY says which attributes are followed.
Semantics are those of opset 13 and later unless an older form differs in its attributes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from sartor.contracts import Failed

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
_AXIS_13 = 13  # from this opset on Softmax runs over one axis and not over all behind it


@dataclass
class Call:
    """One node about to run: its inputs (None where left out), attributes and opset; `training`
    says whether batch norms follow the batch."""

    inputs: Sequence[Tensor | None]
    attributes: Mapping[str, Any]
    opset: int
    training: bool = False

    def __getitem__(self, at: int) -> Tensor:
        found = self.optional(at)
        if found is None:
            raise Failed(f"input {at} of an operator is missing")
        return found

    def optional(self, at: int) -> Tensor | None:
        return self.inputs[at] if at < len(self.inputs) else None

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def numbers(self, at: int, name: str) -> list[int] | None:
        """Whole numbers that newer opsets give as an input and older ones as an attribute."""
        given = self.optional(at)
        if given is not None:
            return [int(each) for each in given.reshape(-1).tolist()]
        stated = self.get(name)
        return None if stated is None else [int(each) for each in np.atleast_1d(stated)]


Operator = Callable[[Call], Any]
OPERATORS: dict[str, Operator] = {}
ONLY: dict[str, dict[str, tuple[Any, ...]]] = {"LSTM": {"input_forget": (0,), "layout": (0,)}}
"""Operator -> attribute -> the values that are followed; whatever else it says is refused."""


def beyond(node: onnx.NodeProto) -> str | None:
    """The attribute with which this operator is not followed, as "name=value"; None without."""
    known = ONLY.get(node.op_type)
    for each in node.attribute if known else ():
        value = onnx.helper.get_attribute_value(each)
        value = value.decode() if isinstance(value, bytes) else value
        said = value[0] if isinstance(value, list) and len(set(value)) == 1 else value
        if known and each.name in known and said not in known[each.name]:
            return f"{each.name}={value}"
    return None


def called(node: onnx.NodeProto) -> str:
    """The operator in a sentence: "Resize (up) with antialias=1"."""
    further = beyond(node)
    return f"{node.op_type} ({node.name})" + (f" with {further}" if further else "")


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Makes the function that of the operators of these names."""

    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def _unary(**functions: Callable[[Tensor], Tensor]) -> None:
    for name, function in functions.items():
        OPERATORS[name] = _of_first(function)


def _of_first(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda c: function(c[0])


def _binary(**functions: Callable[[Tensor, Tensor], Tensor]) -> None:
    for name, function in functions.items():
        OPERATORS[name] = _of_two(function)


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda c: function(c[0], c[1])


_unary(
    Abs=torch.abs, Ceil=torch.ceil, Cos=torch.cos, Erf=torch.erf, Exp=torch.exp, Floor=torch.floor,
    Identity=lambda x: x, Log=torch.log, Neg=torch.neg, Not=torch.logical_not,
    Reciprocal=torch.reciprocal, Relu=torch.relu, Round=torch.round, Sigmoid=torch.sigmoid,
    Sign=torch.sign, Sin=torch.sin, Softplus=F.softplus, Softsign=F.softsign,
    Sqrt=torch.sqrt,
    Tanh=torch.tanh, HardSwish=F.hardswish, Mish=F.mish, IsNaN=torch.isnan,
    NonZero=lambda x: torch.nonzero(x).T, Size=lambda x: torch.tensor(x.numel()),
    GlobalAveragePool=lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    GlobalMaxPool=lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
)  # fmt: skip
_binary(
    Add=torch.add, Sub=torch.sub, Mul=torch.mul, And=torch.logical_and, Or=torch.logical_or,
    Equal=torch.eq, Greater=torch.gt, GreaterOrEqual=torch.ge, Less=torch.lt, LessOrEqual=torch.le,
    MatMul=torch.matmul, Xor=torch.logical_xor, Tile=lambda x, n: x.repeat(*n.tolist()),
    PRelu=lambda x, slope: torch.where(x < 0, x * slope, x),
)  # fmt: skip


@operator("Div")
def _div(c: Call) -> Tensor:
    if c[0].is_floating_point():
        return torch.div(c[0], c[1])
    return torch.div(c[0], c[1], rounding_mode="trunc")


@operator("Mod")
def _mod(c: Call) -> Tensor:
    return torch.fmod(c[0], c[1]) if c.get("fmod", 0) else torch.remainder(c[0], c[1])


@operator("BitShift")
def _bit_shift(c: Call) -> Tensor:
    right = c.get("direction") in (b"RIGHT", "RIGHT")
    return torch.bitwise_right_shift(c[0], c[1]) if right else torch.bitwise_left_shift(c[0], c[1])


@operator("Pow")
def _pow(c: Call) -> Tensor:
    exponent = c[1]
    if exponent.numel() == 1 and float(exponent) == 2.0:  # its gradient at zero is then exact
        return c[0] * c[0]
    return torch.pow(c[0], exponent).to(c[0].dtype)


def _folded(combine: Callable[[Tensor, Tensor], Tensor], share: bool = False) -> Operator:
    def run(c: Call) -> Tensor:
        made = c[0]
        for at in range(1, len(c.inputs)):
            made = combine(made, c[at])
        return made / len(c.inputs) if share else made

    return run


OPERATORS |= {
    "Min": _folded(torch.minimum), "Max": _folded(torch.maximum), "Sum": _folded(torch.add),
    "Mean": _folded(torch.add, share=True),
}  # fmt: skip


@operator("Where")
def _where(c: Call) -> Tensor:
    return torch.where(c[0].bool(), c[1], c[2])


@operator("Cast")
def _cast(c: Call) -> Tensor:
    dtype = _DTYPES.get(c.get("to"))
    if dtype is None:
        raise Failed(f"a Cast to ONNX's type {c.get('to')} cannot be trained through")
    return c[0].to(dtype)


@operator("Clip")
def _clip(c: Call) -> Tensor:
    low, high = (
        c.get(name) if given is None else given.item()  # a whole number stays one
        for name, given in (("min", c.optional(1)), ("max", c.optional(2)))
    )
    if low is None and high is None:
        return c[0]
    if c[0].is_floating_point() and low is not None and high is not None and low < high:
        # The gradient of clamp takes fifteen times as long; on the bounds themselves this one's is
        # 0, where that of clamp is 1.
        return F.hardtanh(c[0], low, high)
    return torch.clamp(c[0], low, high)


@operator("Selu")
def _selu(c: Call) -> Tensor:
    gain, slope = c.get("gamma", 1.0507009873554805), c.get("alpha", 1.6732632423543772)
    made: Tensor = gain * F.elu(c[0], slope)
    return made


@operator("LeakyRelu")
def _leaky(c: Call) -> Tensor:
    return F.leaky_relu(c[0], c.get("alpha", 0.01))


@operator("Elu")
def _elu(c: Call) -> Tensor:
    return F.elu(c[0], c.get("alpha", 1.0))


@operator("HardSigmoid")
def _hard_sigmoid(c: Call) -> Tensor:
    return torch.clamp(c.get("alpha", 0.2) * c[0] + c.get("beta", 0.5), 0, 1)


@operator("Gelu")
def _gelu(c: Call) -> Tensor:
    how = c.get("approximate", b"none")
    return F.gelu(c[0], approximate=how.decode() if isinstance(how, bytes) else how)


def _soft(function: Callable[..., Tensor]) -> Operator:
    def run(c: Call) -> Tensor:
        if c.opset >= _AXIS_13:
            return function(c[0], c.get("axis", -1))
        axis = c.get("axis", 1) % max(c[0].ndim, 1)
        return function(c[0].flatten(axis), -1).reshape(c[0].shape)

    return run


OPERATORS |= {"Softmax": _soft(torch.softmax), "LogSoftmax": _soft(torch.log_softmax)}


@operator("Dropout")
def _dropout(c: Call) -> Any:
    return c[0], torch.ones_like(c[0], dtype=torch.bool)


# -- products --------------------------------------------------------------------------------------


@operator("Gemm")
def _gemm(c: Call) -> Tensor:
    left = c[0].T if c.get("transA", 0) else c[0]
    right = c[1].T if c.get("transB", 0) else c[1]
    made: Tensor = left @ right * c.get("alpha", 1.0)
    bias = c.optional(2)
    return made if bias is None else made + c.get("beta", 1.0) * bias


@operator("Einsum")
def _einsum(c: Call) -> Tensor:
    equation = c.get("equation")
    text = equation.decode() if isinstance(equation, bytes) else equation
    return torch.einsum(text, *[c[at] for at in range(len(c.inputs))])


# -- norms -----------------------------------------------------------------------------------------


@operator("BatchNormalization")
def _batch_norm(c: Call) -> Tensor:
    return F.batch_norm(
        c[0], c[3], c[4], c[1], c[2], c.training, 1 - c.get("momentum", 0.9), c.get("epsilon", 1e-5)
    )


@operator("InstanceNormalization")
def _instance_norm(c: Call) -> Tensor:
    return F.instance_norm(c[0], weight=c[1], bias=c[2], eps=c.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(c: Call) -> Tensor:
    return F.group_norm(c[0], c.get("num_groups"), c[1], c[2], c.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(c: Call) -> tuple[Tensor, ...]:
    """The normed values; where they are asked for, their means and inverse deviations too."""
    axis, epsilon = c.get("axis", -1) % c[0].ndim, c.get("epsilon", 1e-5)
    bias, shape = c.optional(2), c[0].shape[axis:]
    made = F.layer_norm(
        c[0], shape, c[1].expand(shape), None if bias is None else bias.expand(shape), epsilon
    )
    if c.get("_outputs", 1) == 1:
        return (made,)
    axes = tuple(range(axis, c[0].ndim))
    variance, mean = torch.var_mean(c[0], axes, correction=0, keepdim=True)
    return made, mean, (variance + epsilon).rsqrt()


@operator("SimplifiedLayerNormalization")
def _rms_norm(c: Call) -> Tensor:
    """Without a mean (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019)."""
    axes = tuple(range(c.get("axis", -1) % c[0].ndim, c[0].ndim))
    square = (c[0] * c[0]).mean(axes, keepdim=True)
    made: Tensor = c[0] * (square + c.get("epsilon", 1e-5)).rsqrt() * c[1]
    return made


@operator("LpNormalization")
def _lp(c: Call) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(c[0], c.get("p", 2), c.get("axis", -1), True)
    return c[0] / norm.clamp_min(1e-12)


# -- recurrent -----------------------------------------------------------------------------------


@operator("LSTM")
def _lstm(c: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Y [steps, directions, batch, hidden], and the last hidden and cell states."""
    if any(c.optional(at) is not None for at in (4, 7)) or c.get("activations") or c.get("clip"):
        raise Failed(
            "an LSTM with lengths, peepholes, a clip or other activations cannot be trained through"
        )
    if c.get("layout", 0) or c.get("direction", b"forward") in (b"reverse", "reverse"):
        raise Failed("an LSTM that runs backwards alone, or batch first, cannot be trained through")
    x, hidden = c[0], c[1].shape[1] // 4
    found = []
    for way in range(c[1].shape[0]):
        found.append(_one_way(c, x if way == 0 else x.flip(0), way, hidden))
    if len(found) == 2:
        found[1] = (found[1][0].flip(0), *found[1][1:])
    every, last, cell = (
        torch.stack(each, at) for each, at in zip(zip(*found, strict=True), (1, 0, 0), strict=True)
    )
    return every, last, cell


def _one_way(c: Call, x: Tensor, way: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    bias, initial, cells = c.optional(3), c.optional(5), c.optional(6)
    zero = x.new_zeros(x.shape[1], hidden)
    h = zero if initial is None else initial[way]
    cell = zero if cells is None else cells[way]
    steady = x @ c[1][way].T
    if bias is not None:
        steady = steady + bias[way, : 4 * hidden] + bias[way, 4 * hidden :]
    every = []
    for each in steady.unbind(0):
        into, out, forget, new = (each + h @ c[2][way].T).chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
        h = torch.sigmoid(out) * torch.tanh(cell)
        every.append(h)
    return torch.stack(every), h, cell
