"""Depthwise convolutions whose gradients are slow in bfloat16, by gradients that are not.

oneDNN has fast kernels for the gradients of depthwise convolutions in bfloat16 where the stride is
1, for the input, and where the window is 3 wide at most, for the weights; for all else it falls
back to loops that take up to a hundred times as long (`docs/log.md`). But a stride is a stride of 1
of which most places are left out, and a window of 5 is four of 3 that overlap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_WIDEST = 3  # of a window whose gradient is fast
_LAST = torch.channels_last

Pair = tuple[int, int]


def fallen_back(x: Tensor, weight: Tensor, stride: Pair, dilation: Pair, groups: int) -> bool:
    """Whether this convolution is trained in bfloat16 with gradients of the slow sort."""
    return (
        torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and weight.shape[0] == groups == x.shape[1]
        and weight.shape[1] == 1
        and max(dilation) == 1
        and (max(stride) > 1 or max(weight.shape[2:]) > _WIDEST)
    )


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> Tensor:
    """The convolution of x [N, C, H, W] with weight [C, 1, h, w], in bfloat16."""
    brief = [None if each is None else each.bfloat16() for each in (x, weight, bias)]
    made: Tensor = _Depthwise.apply(*brief, stride, padding)  # type: ignore[no-untyped-call]
    return made


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        gradient = gradient.contiguous(memory_format=_LAST)
        of_x = _of_input(gradient, x, weight, ctx.stride, ctx.padding) if wanted[0] else None
        of_weight = _of_weight(gradient, x, weight, ctx.stride, ctx.padding) if wanted[1] else None
        of_bias = gradient.float().sum((0, 2, 3)).to(x.dtype) if wanted[2] else None
        return of_x, of_weight, of_bias, None, None


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if max(stride) > 1:
        window, around = weight.shape[2:], padding
        size = [x.shape[2 + at] + 2 * around[at] - window[at] + 1 for at in (0, 1)]
        spread = gradient.new_zeros((*gradient.shape[:2], *size)).contiguous(memory_format=_LAST)
        spread[:, :, :: stride[0], :: stride[1]] = gradient
        gradient = spread
    return _native(gradient, x, weight, (1, 1), padding, 0)


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if max(weight.shape[2:]) <= _WIDEST:
        return _native(gradient, x, weight, stride, padding, 1)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    window = [min(size, _WIDEST) for size in weight.shape[2:]]
    reach = [(gradient.shape[2 + at] - 1) * stride[at] + window[at] for at in (0, 1)]
    part = weight[:, :, : window[0], : window[1]].contiguous()
    made = torch.empty_like(weight)
    for top in _starts(weight.shape[2]):
        for left in _starts(weight.shape[3]):
            seen = x[:, :, top : top + reach[0], left : left + reach[1]]
            seen = seen.contiguous(memory_format=_LAST)
            made[:, :, top : top + window[0], left : left + window[1]] = _native(
                gradient, seen, part, stride, (0, 0), 1
            )
    return made


def _starts(size: int) -> list[int]:
    """Where windows of `_WIDEST` begin that together cover one of this size."""
    return [*range(0, max(size - _WIDEST, 0), _WIDEST), max(size - _WIDEST, 0)]


def _native(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, which: int
) -> Tensor:
    """PyTorch's gradient of the input (0) or of the weights (1)."""
    mask = [which == at for at in (0, 1, 2)]
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), mask
    )
    return found[which]
