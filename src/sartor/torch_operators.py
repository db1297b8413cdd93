"""Which operators a program may call, and how: PyTorch's own that touch tensors alone, and a few of
Python's.

A file names operators by texts. They are looked up here, among these and nothing else, so that no
file can name other code. While a tracer looks on, what takes sizes is called as Python code calls
it: sizes stay free then.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sartor.contracts import WrongRequest
from sartor.torch_program import Call, Constant

# PyTorch's private operators, by the underscore in front, of which these occur in programs.
_PRIVATE = frozenset(
    (
        *("_to_copy", "_unsafe_view", "_unsafe_index", "_softmax", "_log_softmax", "_trilinear"),
        *("_weight_norm", "_weight_norm_interface", "_native_batch_norm_legit_no_training"),
        *("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_embedding_bag"),
        *("_fft_r2c", "_fft_c2r", "_cdist_forward", "_pad_enum", "_pad_circular", "_convolution"),
        *("_scaled_dot_product_flash_attention_for_cpu", "_int_mm", "_weight_int8pack_mm"),
    )
)
_CHECKS = ("torch.ops.aten._assert", "torch.ops.aten.sym_constrain_range")
_PYTHON: dict[str, dict[str, Callable[..., Any]]] = {
    "_operator": {
        name: getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "and_", "or_"),
            *("eq", "ne", "lt", "le", "gt", "ge", "getitem", "not_"),
        )
    },
    "math": {name: getattr(math, name) for name in ("floor", "ceil", "trunc", "sqrt")},
    "torch": {
        name: getattr(torch, name)
        for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")
    },
}
_LAYOUT = {7: torch.strided}
_MEMORY = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d,
    4: torch.preserve_format,
}  # fmt: skip
# What takes sizes, by how Python code calls it: see `_traceable`.
_METHODS = frozenset(
    (
        *("view", "reshape", "expand", "repeat", "tile", "narrow", "select", "split", "unflatten"),
        *("roll", "new_zeros", "new_ones", "new_full", "new_empty"),
    )
)
_FUNCTIONS = frozenset(("arange", "zeros", "ones", "full", "empty", "linspace"))


def only_checks(target: str) -> bool:
    """Whether an operator only checks what an export assumed: it computes nothing."""
    return target.startswith(_CHECKS)


def own(value: Any, path: Path) -> Any:
    """A value of PyTorch's own for a Constant, any other as it is."""
    if not isinstance(value, Constant):
        return value
    known: Mapping[Any, Any] = _LAYOUT if value.sort == "layout" else _MEMORY
    if value.sort == "dtype":
        return getattr(torch, value.value)
    if value.sort == "device":
        return torch.device("cpu")
    if value.value not in known:
        raise WrongRequest(f"{path} uses the {value.sort} {value.value}, which is not known")
    return known[value.value]


def resolved(call: Call, path: Path) -> Callable[..., Any]:
    """The function that the call names. Raises WrongRequest for any that is not on the list."""
    parts = call.target.split(".")
    if len(parts) == 2 and parts[1] in _PYTHON.get(parts[0], {}):
        return _PYTHON[parts[0]][parts[1]]
    if parts[:3] == ["torch", "ops", "higher_order"] and len(parts) == 4 and parts[3] in _WRAPS:
        return _WRAPS[parts[3]]
    if parts[:3] == ["torch", "ops", "aten"] and len(parts) == 5:
        found = _aten(*parts[3:])
        if found is not None:
            return found
    raise WrongRequest(
        f"{path} calls {call.target} ({call.name}), which is none of the operators that are known "
        "to be safe here; export the model without it"
    )


def _aten(name: str, overload: str) -> Callable[..., Any] | None:
    """An operator of PyTorch's that touches tensors alone; None where there is no such one."""
    private = name.startswith("_") and not name.endswith("__")
    if private and name not in _PRIVATE:
        return None
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return None
    found = getattr(packet, overload, None) if overload in _overloads(packet) else None
    if not isinstance(found, torch._ops.OpOverload):
        return None
    if any(each.name == "filename" for each in found._schema.arguments):
        return None  # the two that read and write files
    if name == "sym_size":
        return _size
    if name == "sym_numel":
        return Tensor.numel
    if name == "linear":  # so called, it knows weights that are more than plain tensors
        return torch.nn.functional.linear
    return _traceable(name, found)


def _overloads(packet: Any) -> list[str]:
    return list(packet.overloads())


def _size(tensor: Tensor, dim: int) -> Any:
    """As Python code asks for it: a tracer then sees where the number comes from."""
    return tensor.shape[dim]


def _traceable(name: str, found: Any) -> Callable[..., Any]:
    """The operator; while a tracer looks, as Python code calls it, where it takes sizes: PyTorch's
    own form takes whole numbers alone, and the tracer's are tensors."""
    asked = _asked_in_python(name)
    if asked is None:
        return found  # type: ignore[no-any-return]

    def call(*given: Any, **keywords: Any) -> Any:
        if torch._C._is_tracing():
            return asked(*given, **keywords)
        return found(*given, **keywords)

    return call


def _asked_in_python(name: str) -> Callable[..., Any] | None:
    if name in _METHODS:
        return getattr(Tensor, name)  # type: ignore[no-any-return]
    if name == "_unsafe_view":
        return Tensor.reshape
    if name in _FUNCTIONS:
        return getattr(torch, name)  # type: ignore[no-any-return]
    return _sliced if name == "slice" else None


def _sliced(tensor: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    end = None if isinstance(end, int) and end == 2**63 - 1 else end
    return tensor[(slice(None),) * (dim % tensor.ndim) + (slice(start, end, step),)]


def _with_grad(enabled: bool, block: Callable[..., Any], *arguments: Any) -> Any:
    with torch.set_grad_enabled(False):  # nothing is trained here
        return block(*arguments)


def _with_autocast(
    device: str, dtype: Any, enabled: bool, cache: Any, block: Callable[..., Any], *arguments: Any
) -> Any:
    if device != "cpu":  # it was said about another device than the one it runs on here
        return block(*arguments)
    with torch.autocast("cpu", dtype, enabled):
        return block(*arguments)


_WRAPS: Mapping[str, Callable[..., Any]] = {
    "wrap_with_set_grad_enabled": _with_grad,
    "wrap_with_autocast": _with_autocast,
}
