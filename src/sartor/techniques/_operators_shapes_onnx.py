"""ONNX's operators in torch, continued: reductions, shapes, and what moves, cuts and makes
values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sartor.contracts import Failed
from sartor.techniques import _operators_windows_onnx  # noqa: F401  (it adds to OPERATORS too)
from sartor.techniques._operators_onnx import OPERATORS, Call, Operator, operator


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
    def run(c: Call) -> Tensor:
        axis, keep = c.get("axis", 0), bool(c.get("keepdims", 1))
        if not c.get("select_last_index", 0):
            return function(c[0], axis, keep)
        made: Tensor = c[0].shape[axis] - 1 - function(c[0].flip(axis), axis, keep)
        return made

    return run


OPERATORS |= {"ArgMax": _place(torch.argmax), "ArgMin": _place(torch.argmin)}


@operator("Shape")
def _shape(c: Call) -> Tensor:
    return torch.tensor(list(c[0].shape)[c.get("start", 0) : c.get("end")], dtype=torch.int64)


@operator("Reshape")
def _reshape(c: Call) -> Tensor:
    wanted = [int(each) for each in c[1].tolist()]
    if not c.get("allowzero", 0):
        wanted = [c[0].shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    return c[0].reshape(wanted)


@operator("Flatten")
def _flatten(c: Call) -> Tensor:
    axis = c.get("axis", 1)
    axis += c[0].ndim if axis < 0 else 0
    return c[0].reshape(int(np.prod(c[0].shape[:axis])), -1)


@operator("Transpose")
def _transpose(c: Call) -> Tensor:
    return c[0].permute(*c.get("perm", range(c[0].ndim - 1, -1, -1)))


@operator("Squeeze")
def _squeeze(c: Call) -> Tensor:
    axes = c.numbers(1, "axes")
    return c[0].squeeze() if axes is None else c[0].squeeze(tuple(axes))


@operator("Unsqueeze")
def _unsqueeze(c: Call) -> Tensor:
    axes = c.numbers(1, "axes") or []
    x, rank = c[0], c[0].ndim + len(axes)
    for axis in sorted(each % rank for each in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def _concat(c: Call) -> Tensor:
    return torch.cat([c[at] for at in range(len(c.inputs))], c.get("axis"))


@operator("Split")
def _split(c: Call) -> tuple[Tensor, ...]:
    axis, sizes = c.get("axis", 0), c.numbers(1, "split")
    if sizes is None:
        count = c.get("num_outputs") or c.get("_outputs")
        sizes = -(-c[0].shape[axis] // count)
    made: tuple[Tensor, ...] = torch.split(c[0], sizes, axis)  # type: ignore[no-untyped-call]
    return made


@operator("Slice")
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


@operator("Gather")
def _gather(c: Call) -> Tensor:
    x, indices, axis = c[0], c[1], c.get("axis", 0) % max(c[0].ndim, 1)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if x.ndim == 2 and axis == 0 and x.requires_grad:
        return F.embedding(indices, x)
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def _gather_elements(c: Call) -> Tensor:
    return torch.gather(c[0], c.get("axis", 0), c[1] % c[0].shape[c.get("axis", 0)])


@operator("GatherND")
def _gather_nd(c: Call) -> Tensor:
    if c.get("batch_dims", 0):
        raise Failed("a GatherND with batch axes cannot be trained through")
    return c[0][tuple(c[1].unbind(-1))]


@operator("Expand")
def _expand(c: Call) -> Tensor:
    return c[0].expand(np.broadcast_shapes(tuple(c[0].shape), tuple(c[1].tolist())))


@operator("Pad")
def _pad(c: Call) -> Tensor:
    pads, x = c.numbers(1, "pads") or [], c[0]
    axes = c.numbers(3, "axes") or list(range(x.ndim))
    value, how = c.optional(2), c.get("mode", b"constant")
    how = how.decode() if isinstance(how, bytes) else how
    around = {axis % x.ndim: (pads[i], pads[len(axes) + i]) for i, axis in enumerate(axes)}
    if how == "constant":
        order = [each for axis in reversed(range(x.ndim)) for each in around.get(axis, (0, 0))]
        return F.pad(x, order, value=c.get("value", 0.0) if value is None else float(value))
    for axis, (before, after) in around.items():
        if before or after:
            x = x.index_select(axis, _around(x.shape[axis], before, after, how))
    return x


def _around(size: int, before: int, after: int, how: str) -> Tensor:
    """[before + size + after]: which index stands there."""
    places = torch.arange(-before, size + after)
    if how == "reflect":  # the edge itself is not repeated
        places = places.remainder(max(2 * (size - 1), 1))
        return torch.minimum(places, 2 * (size - 1) - places)
    return places.clamp(0, size - 1) if how == "edge" else places.remainder(size)


@operator("ConstantOfShape")
def _constant_of_shape(c: Call) -> Tensor:
    value = c.get("value")
    filled = torch.zeros(1) if value is None else torch.from_numpy(np.array(value))
    return filled.reshape(()).expand([int(each) for each in c[0].tolist()]).clone()


@operator("Range")
def _range(c: Call) -> Tensor:
    return torch.arange(c[0].item(), c[1].item(), c[2].item(), dtype=c[0].dtype)


@operator("CumSum")
def _cumsum(c: Call) -> Tensor:
    if c.get("exclusive", 0) or c.get("reverse", 0):
        raise Failed("an exclusive or reversed CumSum cannot be trained through")
    return c[0].cumsum(int(c[1]))


@operator("Trilu")
def _trilu(c: Call) -> Tensor:
    k = c.optional(1)
    at = 0 if k is None else int(k)
    return c[0].triu(at) if c.get("upper", 1) else c[0].tril(at)


@operator("DepthToSpace")
def _depth_to_space(c: Call) -> Tensor:
    if c.get("mode", b"DCR") not in (b"DCR", "DCR"):
        return F.pixel_shuffle(c[0], c.get("blocksize"))
    b, (n, depth, h, w) = c.get("blocksize"), c[0].shape
    x = c[0].reshape(n, b, b, depth // (b * b), h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, depth // (b * b), h * b, w * b)
