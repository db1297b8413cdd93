"""A few rows of the data before the model is known: some models do not say what they take.

What is seen decides names, types and sizes of a model's inputs and nothing else; `data` reads all
of it afterwards and holds it against them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Glimpse, WrongRequest
from sartor.images import few_images
from sartor.readers import cells, is_number, opened
from sartor.table import to_array

ROWS = 32


def looker(
    source: Any,
    *,
    label: str | None = None,
    segments: Sequence[str] = (),
    group: str | None = None,
    trust: bool = False,
) -> Callable[[], Glimpse]:
    """A function that looks once, when it is first asked. Raises WrongRequest for a source that
    cannot be read."""

    @cache
    def look() -> Glimpse:
        apart = {label or "label", group or "group", "split", *segments}
        return _seen(opened(source, trust), apart)

    return look


def repeatable(source: Any) -> Any:
    """The source, kept in memory where it could be read only once."""
    return list(source) if isinstance(source, Iterator) else source


def _seen(found: Any, apart: set[str]) -> Glimpse:
    if isinstance(found, Path):
        return Glimpse(unnamed=(few_images(found, ROWS),))
    if isinstance(found, Mapping):
        return Glimpse(_inputs({str(name): to_array(each) for name, each in found.items()}, apart))
    if hasattr(found, "columns") and hasattr(found, "to_numpy"):
        return _of_frame(found, apart)
    if isinstance(found, np.ndarray):
        return Glimpse(unnamed=(found[:ROWS],))
    return _of_items(found, apart)


def _inputs(arrays: Mapping[str, np.ndarray], apart: set[str]) -> dict[str, np.ndarray]:
    return {name: each[:ROWS] for name, each in arrays.items() if name not in apart and each.ndim}


def _of_frame(frame: Any, apart: set[str]) -> Glimpse:
    """Columns by name, and all numbers as one matrix, as `readers` takes them."""
    few = frame.head(ROWS).rename(columns=str)
    named = {name: cells(few[name]) for name in few.columns if name not in apart}
    numbers = [name for name in named if is_number(few[name])]
    if any(each.ndim > 1 for each in named.values()) or not numbers:
        return Glimpse(named)
    return Glimpse(named, (np.column_stack([named[name] for name in numbers]),))


def _of_items(items: Any, apart: set[str]) -> Glimpse:
    """Batches, or single examples: an item is a batch where its label is one value for each row,
    or where it has no label and the items cannot be counted."""
    listed = items if isinstance(items, (list, tuple)) else None
    if isinstance(items, tuple) and len(items) == 2 and not isinstance(items[0], tuple):
        listed = [items]
    if listed is None and hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        listed = [items[at] for at in range(min(len(items), ROWS))]
    try:
        few = list(itertools.islice(listed if listed is not None else items, ROWS))
    except TypeError:
        raise WrongRequest(f"data of type {type(items).__name__} cannot be read") from None
    if not few:
        raise WrongRequest("the data are empty: there is not one row")
    pairs = [_pair(each, apart) for each in few]
    first, label = pairs[0]
    batched = label.ndim > 0 if label is not None else listed is None
    rows = [{name: each[None] for name, each in item.items()} for item, _ in pairs]
    joined = first if batched else {name: _stacked([r[name] for r in rows]) for name in first}
    named = {name: each for name, each in joined.items() if isinstance(name, str)}
    unnamed = tuple(each[:ROWS] for name, each in joined.items() if not isinstance(name, str))
    return Glimpse(_inputs(named, apart), unnamed)


def _pair(item: Any, apart: set[str]) -> tuple[dict[Any, np.ndarray], np.ndarray | None]:
    """Inputs by name or place, and the label."""
    label: Any = None
    if isinstance(item, (list, tuple)) and len(item) == 2:
        item, label = item
    found: dict[Any, np.ndarray]
    if isinstance(item, Mapping):
        found = {str(name): to_array(each) for name, each in item.items()}
        inside = next((name for name in found if name in apart), None)
        label = found[inside] if inside and label is None else label
    elif isinstance(item, (list, tuple)):
        found = dict(enumerate(map(to_array, item)))
    else:
        found = {0: to_array(item)}
    return found, None if label is None else to_array(label)


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The rows that have the shape of the first."""
    return np.concatenate([each for each in rows if each.shape == rows[0].shape])
