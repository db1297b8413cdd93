"""A few rows of the data before the model is known: some models do not say what they take.

What is seen decides names, types and sizes of a model's inputs and nothing else; `data` reads all
of it afterwards and holds it against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Glimpse, WrongRequest
from sartor.images import few_images
from sartor.items import LABELS, Items, are_numbers, names_of, parted
from sartor.readers import Held, cells, is_number, opened
from sartor.references import is_reference
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
        apart = {*([label] if label else LABELS), group or "group", "split", *segments}
        return _seen(opened(source, trust), apart)

    return look


def repeatable(source: Any) -> Any:
    """The source, held where a second reading would run the user's code again or give other rows:
    functions, data loaders, data sets, streams. Raises WrongRequest as `opened` does."""
    if isinstance(source, Held):
        return source
    if not isinstance(source, (str, Path)):
        return Held(type(source).__name__, opened(source))
    if is_reference(str(source)) and not Path(source).exists():
        return Held(str(source), opened(source))
    return source


def _seen(found: Any, apart: set[str]) -> Glimpse:
    if isinstance(found, Path):
        return Glimpse(unnamed=(few_images(found, ROWS),))
    if isinstance(found, Mapping):
        return Glimpse(_inputs({str(name): to_array(each) for name, each in found.items()}, apart))
    if hasattr(found, "columns") and hasattr(found, "to_numpy"):
        return _of_frame(found, apart)
    if isinstance(found, Items):
        return _of_items(found, apart)
    return Glimpse(unnamed=(to_array(found)[:ROWS],))


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


def _of_items(items: Items, apart: set[str]) -> Glimpse:
    """Batches, or single examples: an item is a batch where its label is one value for each row,
    or where it has no label and the items cannot be counted."""
    few = items.few(1)
    if not few:
        raise WrongRequest("the data are empty: there is not one row")
    batched = _is_batch(*_pair(few[0].value, apart)[:2], items)
    pairs = [_pair(each.value, apart) for each in (few if batched else items.few(ROWS))]
    first, _, last = pairs[0]
    if not batched:
        first = {name: _stacked([pair[0][name] for pair in pairs]) for name in first}
        last = None if last is None else _stacked([each for *_, each in pairs if each is not None])
    named = {name: each for name, each in first.items() if isinstance(name, str)}
    unnamed = tuple(each[:ROWS] for name, each in first.items() if not isinstance(name, str))
    return Glimpse(_inputs(named, apart), unnamed, None if last is None else last[:ROWS])


def _is_batch(inputs: Mapping[Any, np.ndarray], label: np.ndarray | None, items: Items) -> bool:
    if label is None or not label.ndim:
        return label is None and not items.listed
    if any(not each.ndim or len(each) != len(label) for each in inputs.values()):
        return False  # an example with several labels
    return not items.countable or all(each.ndim > 1 for each in inputs.values())


def _pair(
    item: Any, apart: set[str]
) -> tuple[dict[Any, np.ndarray], np.ndarray | None, np.ndarray | None]:
    """Inputs by name or place, the label, and the label again where it may be an input too."""
    inputs, label = parted(item)
    names = names_of(inputs)
    nested = isinstance(inputs, (list, tuple)) and isinstance(item[0], (list, tuple))
    last = label if names is None and not nested else None
    found: dict[Any, np.ndarray]
    if names is not None:
        found = {name: to_array(each) for name, each in names.items()}
        inside = next((name for name in found if name in apart), None)
        label = found[inside] if inside and label is None else label
    elif isinstance(inputs, (list, tuple)) and not are_numbers(inputs):
        found = dict(enumerate(map(to_array, inputs)))
    else:
        found = {0: to_array(inputs)}
    truth = None if label is None else to_array(label)
    return found, truth, None if last is None else truth


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The rows that have the shape of the first."""
    return np.stack([each for each in rows if each.shape == rows[0].shape])
