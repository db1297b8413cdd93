"""Modules in memory: what they are given, and what they answer, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sartor.contracts import WrongRequest
from sartor.libraries import first_line


@dataclass(frozen=True)
class Fed:
    """What one parameter of `forward` is given: the array's name in the data, and rows of it; in
    `more` all that are known. A parameter named "*" stands for the first of `*args`."""

    parameter: str
    name: str
    rows: Tensor
    more: Tensor


def called(module: Callable[..., Any], inputs: Sequence[Fed]) -> Any:
    """What it gives for a copy of the rows: some write into what they are given."""
    given = [each.rows.clone() for each in inputs if each.parameter == "*"]
    keywords = {each.parameter: each.rows.clone() for each in inputs if each.parameter != "*"}
    with torch.inference_mode():
        return module(*given, **keywords)


def outputs(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name -> tensor of all that a model returns, in PyTorch's own order: keys of mappings,
    "output_0" and so on for what has none, "output" for a single tensor."""
    if isinstance(value, Tensor):
        yield path if path and not path[0].isdigit() else f"output_{path}".rstrip("_"), value
        return
    if isinstance(value, Mapping):
        inner: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        inner = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        inner = list(enumerate(value))
    elif dataclasses.is_dataclass(value):
        inner = [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    else:
        leaves = torch.utils._pytree.tree_leaves(value)
        inner = list(enumerate(leaves)) if leaves != [value] else []
    for key, each in inner:
        yield from outputs(each, f"{path}_{key}" if path else str(key))


def answered(module: Callable[..., Any], inputs: Sequence[Fed]) -> list[tuple[str, Tensor]]:
    """What the live module gives, by name. Raises WrongRequest where it does not run."""
    try:
        found = list(outputs(called(module, inputs)))
    except Exception as error:  # whatever a module's own code raises
        told = ", ".join(f"{e.parameter} {list(e.rows.shape)} {e.rows.dtype}" for e in inputs)
        raise WrongRequest(
            f"the model does not run on rows of the data ({told}): {type(error).__name__}: "
            f"{first_line(error)}"
        ) from None
    if not found:
        raise WrongRequest("the model returns no tensor: its forward must give one, or several")
    return found
