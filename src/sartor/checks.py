"""Data held against a model's signature: names are there, types and shapes fit, no NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sartor.contracts import Port, Signature, WrongRequest
from sartor.table import Table, is_text

_CHUNK = 1024  # rows looked at a time: bounds the memory


def fit(table: Table, signature: Signature) -> tuple[Table, list[str]]:
    """The table with inputs of the types that the model takes, and what was cast.

    Safe casts are made (float64 -> float32, int32 -> int64, small integers -> float); all else
    raises WrongRequest, as do shapes that do not fit, NaN, and different numbers of rows."""
    casts: list[str] = []
    inputs = {}
    for port in signature.inputs:
        array = _shaped(table.inputs[port.name], port, casts)
        inputs[port.name] = _typed(array, port, casts)
    _check_rows(table, inputs)
    for name, array in inputs.items():
        _check_finite(name, array)
    label = None if table.label is None else _label(table.label)
    return dataclasses.replace(table, inputs=inputs, label=label), casts


def _shaped(array: np.ndarray, port: Port, casts: list[str]) -> np.ndarray:
    if not port.shape:
        raise WrongRequest(
            f"the model's input {port.name} is a single number without an axis for examples: "
            "Sartor needs a model that takes one row per example; fix that input in the model"
        )
    if array.ndim == 1 and len(port.shape) == 2 and port.shape[1] in (1, None):
        casts.append(f"{port.name}: [N] -> [N, 1]")
        array = array[:, None]
    wanted = port.shape[1:]
    fits = array.ndim == len(port.shape) and all(
        size in (None, have) for size, have in zip(wanted, array.shape[1:], strict=True)
    )
    if not fits:
        sizes = ", ".join(["N", *("free" if each is None else str(each) for each in wanted)])
        raise WrongRequest(
            f"array {port.name} has shape {array.shape}; the model takes [{sizes}]"
            f"{_transposed(array, port)}"
        )
    return array


def _transposed(array: np.ndarray, port: Port) -> str:
    """The hint for images whose channels stand on the other side."""
    if array.ndim == 4 == len(port.shape):
        for axes in ((0, 3, 1, 2), (0, 2, 3, 1)):
            turned = [array.shape[axis] for axis in axes[1:]]
            if all(size in (None, have) for size, have in zip(port.shape[1:], turned, strict=True)):
                return f"; write the array transposed by {axes}"
    return ""


def _typed(array: np.ndarray, port: Port, casts: list[str]) -> np.ndarray:
    if is_text(port.dtype):
        if array.dtype.kind != "U":
            raise WrongRequest(_no_cast(array, port, "write it as text"))
        return array
    wanted = np.dtype(port.dtype)
    if array.dtype == wanted:
        return array
    if array.dtype.kind not in "fiub" or not _may_cast(array, wanted):
        raise WrongRequest(_no_cast(array, port, f"write it as {wanted.name}"))
    casts.append(f"{port.name}: {array.dtype.name} -> {wanted.name}")
    with np.errstate(over="ignore"):  # what becomes infinite is found and named later
        return array.astype(wanted)


def _may_cast(array: np.ndarray, wanted: np.dtype[Any]) -> bool:
    """Whether every value survives: floats may lose digits, never their fraction or their size."""
    have = array.dtype
    if wanted.kind == "f":
        if have.kind in "fb":
            return True
        exact = 2 ** (np.finfo(wanted).nmant + 1)
        return bool(array.size == 0 or (array.min() >= -exact and array.max() <= exact))
    if wanted.kind in "iu" and have.kind in "iub":
        if have.kind == "b" or array.size == 0:
            return True
        limits = np.iinfo(wanted)
        return bool(array.min() >= limits.min and array.max() <= limits.max)
    return wanted.kind == "b" and have.kind in "iu" and bool(np.isin(array, (0, 1)).all())


def _no_cast(array: np.ndarray, port: Port, hint: str) -> str:
    return (
        f"array {port.name} is {array.dtype.name} and the model takes {port.dtype}, which cannot "
        f"hold it without loss; {hint}"
    )


def _check_rows(table: Table, inputs: Mapping[str, np.ndarray]) -> None:
    columns: dict[str, np.ndarray | None] = {
        **inputs,
        "label": table.label,
        "group": table.group,
        "split": table.split,
    }
    counts = {
        name: len(each) if each.ndim else 0 for name, each in columns.items() if each is not None
    }
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise WrongRequest(f"the arrays have different numbers of rows: {told}")
    if not next(iter(counts.values())):
        raise WrongRequest("the data are empty: there is not one row")
    for name in ("group", "split"):
        column = columns[name]
        if column is not None and column.ndim != 1:
            raise WrongRequest(f"{name} has shape {column.shape}; it needs one value per row")


def _check_finite(name: str, array: np.ndarray) -> None:
    if array.dtype.kind != "f":
        return
    count, first = 0, -1
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        bad = ~np.isfinite(chunk).reshape(len(chunk), -1).all(1)
        if bad.any():
            first = start + int(bad.argmax()) if first < 0 else first
            count += int(bad.sum())
    if count:
        what = "NaN or infinite values"
        raise WrongRequest(
            f"array {name} has {what} in {count} of {len(array)} rows, the first in row {first}; "
            "fill them in or drop these rows"
        )


def _label(label: np.ndarray) -> np.ndarray:
    """Labels as int64, float64 or text, so that a digest does not depend on how they were kept."""
    if label.dtype.kind in "SU":
        return label.astype(np.str_)
    if label.dtype.kind not in "fiub":
        raise WrongRequest(f"labels are of type {label.dtype}; write numbers")
    if label.dtype.kind == "f":
        bad = ~np.isfinite(label).reshape(len(label), -1).all(1)
        if bad.any():
            raise WrongRequest(
                f"{int(bad.sum())} of {len(label)} labels are NaN or infinite, the first in row "
                f"{int(bad.argmax())}; drop these rows"
            )
        return label.astype(np.float64)
    return label.astype(np.int64)


def find_mask(
    inputs: Mapping[str, np.ndarray], signature: Signature, asked: str | None
) -> dict[str, Any]:
    """Whether batches may be trimmed to their longest row: {"input", "trims", "why"}.

    `trims` is the input's name where it holds ones, then zeros, in each row, and the model's
    length is free; else None, and `why` says what stands against it."""
    name = asked or "attention_mask"
    if name not in inputs:
        if asked:
            raise WrongRequest(f"there is no input {asked!r}; there are: {', '.join(inputs)}")
        return {"input": None, "trims": None, "why": "no input is an attention_mask"}
    mask = inputs[name]
    against = _against(mask, inputs, signature)
    if against is None:
        return {"input": name, "trims": name, "why": "rows are trimmed to the longest of a batch"}
    return {"input": name, "trims": None, "why": f"not trimmed: {against}"}


def _against(
    mask: np.ndarray, inputs: Mapping[str, np.ndarray], signature: Signature
) -> str | None:
    if mask.ndim != 2 or mask.dtype.kind not in "iubf":
        return "the mask is not [N, length]"
    if not np.isin(mask, (0, 1)).all():
        return "the mask holds more than 0 and 1"
    if (np.diff(mask.astype(np.int8), axis=1) > 0).any():
        return "the mask has ones after zeros (padding on the left, or holes)"
    if not mask[:, 0].all():
        return "some rows are all padding"
    for port in signature.inputs:
        array = inputs[port.name]
        if array.ndim > 1 and array.shape[1] == mask.shape[1] and port.shape[1] is not None:
            return f"the model's input {port.name} has the fixed length {port.shape[1]}"
    if all(len(port.shape) > 2 and port.shape[1] is None for port in signature.outputs):
        return "every output has the length as an axis"
    return None
