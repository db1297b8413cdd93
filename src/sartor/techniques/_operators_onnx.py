"""ONNX's operators written in torch, so that autograd can follow a graph.

OPERATORS["Relu"](call) -> a tensor, or a tuple of tensors where the operator has several outputs.
Semantics are those of opset 13 and later unless an older form differs in its attributes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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


def _operator(*names: str) -> Callable[[Operator], Operator]:
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
    Selu=F.selu, Sign=torch.sign, Sin=torch.sin, Softplus=F.softplus, Softsign=F.softsign,
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


@_operator("Div")
def _div(c: Call) -> Tensor:
    if c[0].is_floating_point():
        return torch.div(c[0], c[1])
    return torch.div(c[0], c[1], rounding_mode="trunc")


@_operator("Mod")
def _mod(c: Call) -> Tensor:
    return torch.fmod(c[0], c[1]) if c.get("fmod", 0) else torch.remainder(c[0], c[1])


@_operator("BitShift")
def _bit_shift(c: Call) -> Tensor:
    right = c.get("direction") in (b"RIGHT", "RIGHT")
    return torch.bitwise_right_shift(c[0], c[1]) if right else torch.bitwise_left_shift(c[0], c[1])


@_operator("Pow")
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


@_operator("Where")
def _where(c: Call) -> Tensor:
    return torch.where(c[0].bool(), c[1], c[2])


@_operator("Cast")
def _cast(c: Call) -> Tensor:
    dtype = _DTYPES.get(c.get("to"))
    if dtype is None:
        raise Failed(f"a Cast to ONNX's type {c.get('to')} cannot be trained through")
    return c[0].to(dtype)


@_operator("Clip")
def _clip(c: Call) -> Tensor:
    low, high = c.optional(1), c.optional(2)
    return torch.clamp(
        c[0],
        c.get("min") if low is None else float(low),
        c.get("max") if high is None else float(high),
    )


@_operator("LeakyRelu")
def _leaky(c: Call) -> Tensor:
    return F.leaky_relu(c[0], c.get("alpha", 0.01))


@_operator("Elu")
def _elu(c: Call) -> Tensor:
    return F.elu(c[0], c.get("alpha", 1.0))


@_operator("HardSigmoid")
def _hard_sigmoid(c: Call) -> Tensor:
    return torch.clamp(c.get("alpha", 0.2) * c[0] + c.get("beta", 0.5), 0, 1)


@_operator("Gelu")
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


@_operator("Dropout")
def _dropout(c: Call) -> Any:
    return c[0], torch.ones_like(c[0], dtype=torch.bool)


# -- products --------------------------------------------------------------------------------------


@_operator("Gemm")
def _gemm(c: Call) -> Tensor:
    left = c[0].T if c.get("transA", 0) else c[0]
    right = c[1].T if c.get("transB", 0) else c[1]
    made: Tensor = left @ right * c.get("alpha", 1.0)
    bias = c.optional(2)
    return made if bias is None else made + c.get("beta", 1.0) * bias


@_operator("Einsum")
def _einsum(c: Call) -> Tensor:
    equation = c.get("equation")
    text = equation.decode() if isinstance(equation, bytes) else equation
    return torch.einsum(text, *[c[at] for at in range(len(c.inputs))])


def padded(c: Call, x: Tensor, window: Sequence[int], value: float = 0.0) -> Tensor:
    """The input with what `pads` or `auto_pad` put around its spatial axes."""
    spatial = x.ndim - 2
    how = c.get("auto_pad", b"NOTSET")
    how = how.decode() if isinstance(how, bytes) else how
    pads = list(c.get("pads") or [0] * (2 * spatial))
    if how in ("SAME_UPPER", "SAME_LOWER"):
        strides = c.get("strides") or [1] * spatial
        dilations = c.get("dilations") or [1] * spatial
        for at in range(spatial):
            size, step = x.shape[2 + at], strides[at]
            reach = (window[at] - 1) * dilations[at] + 1
            need = max((-(-size // step) - 1) * step + reach - size, 0)
            less, more = need // 2, need - need // 2
            pads[at], pads[spatial + at] = (less, more) if how == "SAME_UPPER" else (more, less)
    elif how == "VALID":
        pads = [0] * (2 * spatial)
    if not any(pads):
        return x
    order = [pads[side * spatial + at] for at in reversed(range(spatial)) for side in (0, 1)]
    return F.pad(x, order, value=value)


@_operator("Conv")
def _conv(c: Call) -> Tensor:
    weight = c[1]
    spatial = weight.ndim - 2
    run = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    settings = {
        "stride": tuple(c.get("strides") or [1] * spatial),
        "dilation": tuple(c.get("dilations") or [1] * spatial),
        "groups": c.get("group", 1),
    }
    pads = c.get("pads") or [0] * (2 * spatial)
    if c.get("auto_pad", b"NOTSET") in (b"NOTSET", "NOTSET") and pads[:spatial] == pads[spatial:]:
        return run(c[0], weight, c.optional(2), padding=tuple(pads[:spatial]), **settings)
    return run(padded(c, c[0], weight.shape[2:]), weight, c.optional(2), **settings)


@_operator("ConvTranspose")
def _conv_transpose(c: Call) -> Tensor:
    weight = c[1]
    spatial = weight.ndim - 2
    pads = c.get("pads") or [0] * (2 * spatial)
    if pads[:spatial] != pads[spatial:] or c.get("output_shape"):
        raise Failed("a ConvTranspose with uneven padding cannot be trained through")
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    return run(
        c[0], weight, c.optional(2), tuple(c.get("strides") or [1] * spatial),
        tuple(pads[:spatial]), tuple(c.get("output_padding") or [0] * spatial),
        c.get("group", 1), tuple(c.get("dilations") or [1] * spatial),
    )  # fmt: skip


# -- pooling and norms -----------------------------------------------------------------------------


@_operator("MaxPool")
def _max_pool(c: Call) -> Tensor:
    window = list(c.get("kernel_shape"))
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(window) - 1]
    x = padded(c, c[0], window, -torch.inf)
    made: Tensor = run(
        x, window, c.get("strides") or [1] * len(window), 0,
        c.get("dilations") or [1] * len(window), bool(c.get("ceil_mode", 0)),
    )  # fmt: skip
    return made


@_operator("AveragePool")
def _average_pool(c: Call) -> Tensor:
    window = list(c.get("kernel_shape"))
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(window) - 1]
    strides = list(c.get("strides") or [1] * len(window))
    ceil = bool(c.get("ceil_mode", 0))
    x = padded(c, c[0], window)
    found: Tensor = run(x, window, strides, 0, ceil)
    if x is c[0] or c.get("count_include_pad", 0):
        return found
    ones = padded(c, torch.ones_like(c[0][:1, :1]), window)
    return found / run(ones, window, strides, 0, ceil).clamp_min(1e-12)


@_operator("BatchNormalization")
def _batch_norm(c: Call) -> Tensor:
    return F.batch_norm(
        c[0], c[3], c[4], c[1], c[2], c.training, 1 - c.get("momentum", 0.9), c.get("epsilon", 1e-5)
    )


@_operator("InstanceNormalization")
def _instance_norm(c: Call) -> Tensor:
    return F.instance_norm(c[0], weight=c[1], bias=c[2], eps=c.get("epsilon", 1e-5))


@_operator("GroupNormalization")
def _group_norm(c: Call) -> Tensor:
    return F.group_norm(c[0], c.get("num_groups"), c[1], c[2], c.get("epsilon", 1e-5))


@_operator("LayerNormalization", "SimplifiedLayerNormalization")
def _layer_norm(c: Call) -> Tensor:
    axis = c.get("axis", -1) % c[0].ndim
    bias = c.optional(2)
    made: Tensor = F.layer_norm(
        c[0], c[0].shape[axis:], c[1].expand(c[0].shape[axis:]),
        None if bias is None else bias.expand(c[0].shape[axis:]), c.get("epsilon", 1e-5),
    )  # fmt: skip
    return made


@_operator("LpNormalization")
def _lp(c: Call) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(c[0], c.get("p", 2), c.get("axis", -1), True)
    return c[0] / norm.clamp_min(1e-12)


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def run(c: Call) -> Tensor:
        axes, x = c.numbers(1, "axes"), c[0]
        if not axes:
            if c.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, tuple(axes), bool(c.get("keepdims", 1)))

    return run


OPERATORS |= {
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
}


def _place(function: Callable[..., Tensor]) -> Operator:
    return lambda c: function(c[0], c.get("axis", 0), bool(c.get("keepdims", 1)))


OPERATORS |= {"ArgMax": _place(torch.argmax), "ArgMin": _place(torch.argmin)}


# -- shapes ----------------------------------------------------------------------------------------


@_operator("Shape")
def _shape(c: Call) -> Tensor:
    return torch.tensor(list(c[0].shape)[c.get("start", 0) : c.get("end")], dtype=torch.int64)


@_operator("Reshape")
def _reshape(c: Call) -> Tensor:
    wanted = [int(each) for each in c[1].tolist()]
    if not c.get("allowzero", 0):
        wanted = [c[0].shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    return c[0].reshape(wanted)


@_operator("Flatten")
def _flatten(c: Call) -> Tensor:
    axis = c.get("axis", 1)
    axis += c[0].ndim if axis < 0 else 0
    return c[0].reshape(int(np.prod(c[0].shape[:axis])), -1)


@_operator("Transpose")
def _transpose(c: Call) -> Tensor:
    return c[0].permute(*c.get("perm", range(c[0].ndim - 1, -1, -1)))


@_operator("Squeeze")
def _squeeze(c: Call) -> Tensor:
    axes = c.numbers(1, "axes")
    return c[0].squeeze() if axes is None else c[0].squeeze(tuple(axes))


@_operator("Unsqueeze")
def _unsqueeze(c: Call) -> Tensor:
    axes = c.numbers(1, "axes") or []
    x, rank = c[0], c[0].ndim + len(axes)
    for axis in sorted(each % rank for each in axes):
        x = x.unsqueeze(axis)
    return x


@_operator("Concat")
def _concat(c: Call) -> Tensor:
    return torch.cat([c[at] for at in range(len(c.inputs))], c.get("axis"))


@_operator("Split")
def _split(c: Call) -> tuple[Tensor, ...]:
    axis, sizes = c.get("axis", 0), c.numbers(1, "split")
    if sizes is None:
        count = c.get("num_outputs") or c.get("_outputs")
        sizes = -(-c[0].shape[axis] // count)
    made: tuple[Tensor, ...] = torch.split(c[0], sizes, axis)  # type: ignore[no-untyped-call]
    return made


@_operator("Slice")
def _slice(c: Call) -> Tensor:
    starts, ends = c.numbers(1, "starts") or [], c.numbers(2, "ends") or []
    axes = c.numbers(3, "axes") or list(range(len(starts)))
    steps = c.numbers(4, "steps") or [1] * len(starts)
    x = c[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(picked.start, picked.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
    return x


@_operator("Gather")
def _gather(c: Call) -> Tensor:
    x, indices, axis = c[0], c[1], c.get("axis", 0) % max(c[0].ndim, 1)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if x.ndim == 2 and axis == 0 and x.requires_grad:
        return F.embedding(indices, x)
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@_operator("GatherElements")
def _gather_elements(c: Call) -> Tensor:
    return torch.gather(c[0], c.get("axis", 0), c[1] % c[0].shape[c.get("axis", 0)])


@_operator("GatherND")
def _gather_nd(c: Call) -> Tensor:
    if c.get("batch_dims", 0):
        raise Failed("a GatherND with batch axes cannot be trained through")
    return c[0][tuple(c[1].unbind(-1))]


@_operator("Expand")
def _expand(c: Call) -> Tensor:
    return c[0].expand(np.broadcast_shapes(tuple(c[0].shape), tuple(c[1].tolist())))


@_operator("Pad")
def _pad(c: Call) -> Tensor:
    pads = c.numbers(1, "pads") or []
    axes = c.numbers(3, "axes") or list(range(c[0].ndim))
    value, how = c.optional(2), c.get("mode", b"constant")
    how = how.decode() if isinstance(how, bytes) else how
    around = {axis % c[0].ndim: (pads[i], pads[len(axes) + i]) for i, axis in enumerate(axes)}
    order = [each for axis in reversed(range(c[0].ndim)) for each in around.get(axis, (0, 0))]
    if how == "constant":
        return F.pad(c[0], order, value=c.get("value", 0.0) if value is None else float(value))
    modes = {"reflect": "reflect", "edge": "replicate"}
    return F.pad(c[0], order[: 2 * (c[0].ndim - 2)], mode=modes[how])


@_operator("ConstantOfShape")
def _constant_of_shape(c: Call) -> Tensor:
    value = c.get("value")
    filled = torch.zeros(1) if value is None else torch.from_numpy(np.array(value))
    return filled.expand([int(each) for each in c[0].tolist()]).clone()


@_operator("Range")
def _range(c: Call) -> Tensor:
    return torch.arange(c[0].item(), c[1].item(), c[2].item(), dtype=c[0].dtype)


@_operator("CumSum")
def _cumsum(c: Call) -> Tensor:
    if c.get("exclusive", 0) or c.get("reverse", 0):
        raise Failed("an exclusive or reversed CumSum cannot be trained through")
    return c[0].cumsum(int(c[1]))


@_operator("Trilu")
def _trilu(c: Call) -> Tensor:
    k = c.optional(1)
    at = 0 if k is None else int(k)
    return c[0].triu(at) if c.get("upper", 1) else c[0].tril(at)


@_operator("DepthToSpace")
def _depth_to_space(c: Call) -> Tensor:
    if c.get("mode", b"DCR") not in (b"DCR", "DCR"):
        return F.pixel_shuffle(c[0], c.get("blocksize"))
    b, (n, depth, h, w) = c.get("blocksize"), c[0].shape
    x = c[0].reshape(n, b, b, depth // (b * b), h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, depth // (b * b), h * b, w * b)


@_operator("Resize")
def _resize(c: Call) -> Tensor:
    scales, sizes = c.optional(2), c.optional(3)
    mode = c.get("mode", b"nearest")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    how = c.get("coordinate_transformation_mode", b"half_pixel")
    how = how.decode() if isinstance(how, bytes) else how
    modes = {("linear", "half_pixel"): False, ("linear", "pytorch_half_pixel"): False,
             ("linear", "align_corners"): True, ("nearest", "asymmetric"): None}  # fmt: skip
    if (mode, how) not in modes or c[0].ndim != 4:
        raise Failed(f"a Resize by {mode} and {how} cannot be trained through")
    if sizes is not None and sizes.numel():
        size = [int(each) for each in sizes.tolist()[2:]]
    elif scales is not None:
        size = [int(s * f) for s, f in zip(c[0].shape[2:], scales.tolist()[2:], strict=True)]
    else:
        raise Failed("a Resize without sizes cannot be trained through")
    named = "bilinear" if mode == "linear" else "nearest"
    return F.interpolate(c[0], size, mode=named, align_corners=modes[mode, how])


@_operator("LSTM")
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
