"""ONNX's operators in torch, continued: convolutions, pooling and resizing, which move a window
over pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sartor.contracts import Failed
from sartor.techniques._depthwise_onnx import depthwise, fallen_back
from sartor.techniques._operators_onnx import ONLY, Call, operator

ONLY |= {
    "AveragePool": {"dilations": (1,)},
    "ConvTranspose": {"output_shape": ()},
    "Resize": {
        "antialias": (0,), "exclude_outside": (0,), "keep_aspect_ratio_policy": ("stretch",),
        "mode": ("linear", "nearest"),
        "coordinate_transformation_mode": (
            "align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel",
        ),
    },
}  # fmt: skip


def _word(c: Call, name: str, default: str) -> str:
    given = c.get(name, default)
    return given.decode() if isinstance(given, bytes) else str(given)


def _pads(c: Call, x: Tensor, window: Sequence[int]) -> tuple[list[int], list[int]]:
    """What `pads` or `auto_pad` put in front of the spatial axes, and behind."""
    spatial, how = x.ndim - 2, _word(c, "auto_pad", "NOTSET")
    pads = list(c.get("pads") or [0] * (2 * spatial))
    if how == "VALID":
        pads = [0] * (2 * spatial)
    elif how != "NOTSET":
        strides = c.get("strides") or [1] * spatial
        dilations = c.get("dilations") or [1] * spatial
        for at in range(spatial):
            size, step = x.shape[2 + at], strides[at]
            reach = (window[at] - 1) * dilations[at] + 1
            need = max((-(-size // step) - 1) * step + reach - size, 0)
            pads[at], pads[spatial + at] = _dealt(need, how)
    return pads[:spatial], pads[spatial:]


def _dealt(whole: int, how: str) -> tuple[int, int]:
    less, more = whole // 2, whole - whole // 2
    return (less, more) if how == "SAME_UPPER" else (more, less)


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """The input with so much around its spatial axes; less than nothing cuts."""
    if not any((*before, *after)):
        return x
    order = [each for pair in zip(before[::-1], after[::-1], strict=True) for each in pair]
    return F.pad(x, order, value=value)


@operator("Conv")
def _conv(c: Call) -> Tensor:
    weight = c[1]
    spatial = weight.ndim - 2
    run = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    settings: dict[str, Any] = {
        "stride": tuple(c.get("strides") or [1] * spatial),
        "dilation": tuple(c.get("dilations") or [1] * spatial),
        "groups": c.get("group", 1),
    }
    before, after = _pads(c, c[0], weight.shape[2:])
    x = c[0] if before == after else _padded(c[0], before, after)
    padding = tuple(before) if before == after else (0,) * spatial
    if spatial == 2 and fallen_back(x, weight, *settings.values()):
        return depthwise(x, weight, c.optional(2), settings["stride"], (padding[0], padding[1]))
    return run(x, weight, c.optional(2), padding=padding, **settings)


@operator("ConvTranspose")
def _conv_transpose(c: Call) -> Tensor:
    weight = c[1]
    spatial, how = weight.ndim - 2, _word(c, "auto_pad", "NOTSET")
    ones, pads = [1] * spatial, c.get("pads") or [0] * (2 * spatial)
    strides, dilations = c.get("strides") or ones, c.get("dilations") or ones
    extra = c.get("output_padding") or [0] * spatial
    before, after = list(pads[:spatial]), list(pads[spatial:])
    if how == "VALID":
        before = after = [0] * spatial
    elif how != "NOTSET":  # as many times the input as the stride says
        for at, (step, wide) in enumerate(zip(strides, dilations, strict=True)):
            reach = (weight.shape[2 + at] - 1) * wide + 1
            before[at], after[at] = _dealt(max(reach + extra[at] - step, 0), how)
    even = before == after
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    made: Tensor = run(
        c[0], weight, c.optional(2), tuple(strides), tuple(before) if even else 0, tuple(extra),
        c.get("group", 1), tuple(dilations),
    )  # fmt: skip
    return made if even else _padded(made, [-n for n in before], [-n for n in after])


# -- pooling ---------------------------------------------------------------------------------------


def _windows(c: Call) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Of a pooling: window, strides, what is padded before, after, and behind that so that its
    last window is whole. (Negative where one goes: none starts behind the input and its padding
    in front.)"""
    window = list(c.get("kernel_shape"))
    strides = list(c.get("strides") or [1] * len(window))
    dilations = list(c.get("dilations") or [1] * len(window))
    before, after = _pads(c, c[0], window)
    past = []
    for at, step in enumerate(strides):
        size = c[0].shape[2 + at] + before[at] + after[at]
        reach = (window[at] - 1) * dilations[at] + 1
        count = (size - reach) / step
        most = math.ceil(count) + 1
        if (most - 1) * step >= c[0].shape[2 + at] + before[at]:
            most -= 1
        whole = not c.get("ceil_mode", 0) or most == math.floor(count) + 1
        past.append(0 if whole else (most - 1) * step + reach - size)
    return window, strides, before, after, past


@operator("MaxPool")
def _max_pool(c: Call) -> Tensor:
    window, strides, before, after, past = _windows(c)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(window) - 1]
    behind = [one + two for one, two in zip(after, past, strict=True)]
    x = _padded(c[0], before, behind, -torch.inf)
    made: Tensor = run(x, window, strides, 0, c.get("dilations") or [1] * len(window))
    return made


@operator("AveragePool")
def _average_pool(c: Call) -> Tensor:
    window, strides, before, after, past = _windows(c)
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(window) - 1]
    none, every = [0] * len(window), bool(c.get("count_include_pad", 0))
    found: Tensor = run(_padded(_padded(c[0], before, after), none, past), window, strides)
    if max(past) <= 0 and (every or not any((*before, *after))):
        return found
    counted = _padded(torch.ones_like(c[0][:1, :1]), before, after, float(every))
    # What lies behind the padding never counts.
    return found / run(_padded(counted, none, past), window, strides).clamp_min(1e-12)


# -- resizing --------------------------------------------------------------------------------------


@operator("Resize")
def _resize(c: Call) -> Tensor:
    x, mode, resized = c[0], _word(c, "mode", "nearest"), _resized(c)
    if (quick := _quickly(c, mode, resized)) is not None:
        return quick
    for axis, size, scale in resized:
        if size == x.shape[axis] and scale == 1:
            continue
        places = _places(c, x.shape[axis], size, scale)
        if mode == "nearest":
            chosen = _nearest(places, _word(c, "nearest_mode", "round_prefer_floor"))
            x = x.index_select(axis, torch.from_numpy(chosen.clip(0, x.shape[axis] - 1)))
            continue
        places = places.clip(0, x.shape[axis] - 1)
        low = np.floor(places).astype(np.int64)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        shape = [-1 if at == axis else 1 for at in range(x.ndim)]
        share = torch.from_numpy((places - low).astype(np.float32)).reshape(shape)
        one, two = (x.index_select(axis, torch.from_numpy(each)) for each in (low, high))
        x = torch.lerp(one, two, share)
    return x


def _quickly(c: Call, mode: str, resized: list[tuple[int, int, np.float32]]) -> Tensor | None:
    """By torch's own operator, which is faster, for what it computes alike; None for the rest."""
    x, sizes = c[0], {axis: size for axis, size, _ in resized}
    how = _word(c, "coordinate_transformation_mode", "half_pixel")
    whole = all(size == factor * x.shape[axis] for axis, size, factor in resized)
    if x.ndim != 4 or not whole or any(sizes.get(at, x.shape[at]) != x.shape[at] for at in (0, 1)):
        return None
    size = [sizes.get(at, x.shape[at]) for at in (2, 3)]
    if mode == "linear" and how in ("half_pixel", "align_corners"):
        return F.interpolate(x, size, mode="bilinear", align_corners=how == "align_corners")
    twice = all(factor in (1, 2, 4, 8) for _, _, factor in resized)
    if twice and how == "asymmetric" and _word(c, "nearest_mode", "") == "floor":
        return F.interpolate(x, size, mode="nearest")
    return None


def _resized(c: Call) -> list[tuple[int, int, np.float32]]:
    """Axis, new size and scale of what a Resize is told, in ONNX Runtime's arithmetic."""
    scales, sizes = c.optional(2), c.optional(3)
    axes = [each % c[0].ndim for each in c.get("axes") or range(c[0].ndim)]
    if sizes is not None and sizes.numel():
        wanted = [int(each) for each in sizes.tolist()]
        return [
            (axis, size, np.float32(size) / np.float32(c[0].shape[axis]))
            for axis, size in zip(axes, wanted, strict=True)
        ]
    if scales is None or not scales.numel():
        raise Failed("it has no sizes")
    factors = scales.numpy().astype(np.float32)
    return [
        (axis, int(factor * np.float32(c[0].shape[axis])), factor)
        for axis, factor in zip(axes, factors, strict=True)
    ]


def _places(c: Call, old: int, new: int, scale: np.float32) -> np.ndarray:
    """[new]: where each new index lies among the old ones."""
    at, half = np.arange(new, dtype=np.float32), np.float32(0.5)
    how = _word(c, "coordinate_transformation_mode", "half_pixel")
    if how == "asymmetric":
        return np.asarray(at / scale)
    if how == "align_corners":
        return np.asarray(at * np.float32(old - 1) / np.float32(max(new - 1, 1)))
    if how == "pytorch_half_pixel" and new == 1:
        return np.zeros(1, np.float32)
    return np.asarray((at + half) / scale - half)


def _nearest(places: np.ndarray, how: str) -> np.ndarray:
    """Indices [new] of int64."""
    halves = np.float32(0.5)
    rounds = {
        "floor": np.floor(places), "ceil": np.ceil(places),
        "round_prefer_floor": np.ceil(places - halves),
        "round_prefer_ceil": np.floor(places + halves),
    }  # fmt: skip
    return np.asarray(rounds[how]).astype(np.int64)
