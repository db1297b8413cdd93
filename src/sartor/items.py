"""Batches or single examples, one after another: data loaders, data sets, generators, lists.

    items = items_of(loader)                    None where it is something else
    items.few(32)                               to look at before they are read
    collect(items, signature, columns, folder)  name -> [N, ...], each in a file

Nothing of PyTorch is imported for that: a loader is what can be iterated, a data set what has a
length and gives an example for a number. Each is read once, since a second reading may give other
rows (shuffled, augmented, a stream); what a loader makes goes to the disk at once, since its
workers hand it over in shared memory, of which there is little.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sartor.contracts import Port, Signature, WrongRequest
from sartor.records import allocate
from sartor.table import SPLITS, Columns, to_array

LABELS = ("label", "labels")  # names of the labels unless another one is given
_MOST = 0.5  # of the free disk: what is larger does not end, or leaves no room for a run


class Item(NamedTuple):
    """A batch or an example as the user's code gives it; `split` is the part that it was given
    for, `place` says which one it is, for sentences."""

    value: Any
    split: str | None
    place: str


class Items:
    """All items of a source, or of the sources of the parts, read once. `countable`: single items
    are asked for by number; `listed`: or lie in a list."""

    def __init__(self, sources: Mapping[str | None, Any]) -> None:
        self.countable = all(_countable(each) for each in sources.values())
        self.listed = self.countable or all(isinstance(e, (list, tuple)) for e in sources.values())
        self._coming = chain.from_iterable(_read(each, name) for name, each in sources.items())
        self._seen: list[Item] = []

    def few(self, most: int) -> list[Item]:
        """The first items, which are still to be read."""
        self._seen += islice(self._coming, max(most - len(self._seen), 0))
        return self._seen[:most]

    def __iter__(self) -> Iterator[Item]:
        while self._seen:
            yield self._seen.pop(0)
        yield from self._coming


def items_of(source: Any) -> Items | None:
    """The items of a live object; None for arrays by name, data frames and what is no data.

    Raises WrongRequest for a data set that says neither its length nor where it ends."""
    if isinstance(source, Mapping):
        parts = {str(name).lower(): each for name, each in source.items()}
        given = parts and all(name in SPLITS for name in parts)
        if not given or any(_whole(each) for each in parts.values()):
            return None
        for name, each in parts.items():
            if not (isinstance(each, Mapping) or _readable(each)):
                raise WrongRequest(_unreadable(each, f"the part {name}: "))
        return Items({SPLITS[name]: _listed(each) for name, each in parts.items()})
    if isinstance(source, Items):
        return source
    if _whole(source):
        return None
    if not _readable(source):
        raise WrongRequest(_unreadable(source))
    return Items({None: _listed(source)})


def _listed(source: Any) -> Any:
    """What is one batch already, as a list of one."""
    one = isinstance(source, Mapping) or (
        isinstance(source, tuple)
        and len(source) > 1
        and not isinstance(source[0], tuple)
        and not isinstance(source[1], Mapping)
        and (len(source) == 2 or all(hasattr(each, "shape") for each in source))
    )
    return [source] if one else source


def _whole(source: Any) -> bool:
    """Whether it is all rows at once: an array, a data frame."""
    return hasattr(source, "dtype") or (hasattr(source, "columns") and hasattr(source, "to_numpy"))


def _countable(source: Any) -> bool:
    """Whether it gives an item for a number. What can be iterated is: PyTorch's iterable data sets
    inherit a `__getitem__` that only raises."""
    return not hasattr(source, "__iter__") and hasattr(source, "__getitem__")


def _readable(source: Any) -> bool:
    if isinstance(source, (str, bytes)):
        return False
    return hasattr(source, "__iter__") or (_countable(source) and hasattr(source, "__len__"))


def _unreadable(source: Any, where: str = "") -> str:
    name = type(source).__name__
    if _countable(source) and not isinstance(source, (str, bytes)):
        return f"{where}a {name} has no length: write its __len__, or an __iter__ that ends"
    return (
        f"{where}data of type {name} cannot be read; give a mapping of arrays, a data frame, a "
        "data set, or batches of (inputs, label)"
    )


def _read(source: Any, split: str | None) -> Iterator[Item]:
    """The items; whatever the user's code raises is one sentence."""
    unit = "example" if _countable(source) else "batch" if _batches(source) else "item"
    what = type(source).__name__ + (f" of {split}" if split else "")
    done = 0
    try:
        counted = (source[at] for at in range(len(source))) if _countable(source) else source
        for value in counted:
            yield Item(value, split, f"{unit} {done + 1} of the {what}")
            done += 1
    except WrongRequest:
        raise
    except Exception as error:
        units = unit if done == 1 else {"batch": "batches"}.get(unit, f"{unit}s")
        raise WrongRequest(f"the {what} raised {_told(error)} after {done:,} {units}") from error


def _batches(source: Any) -> bool:
    return getattr(source, "batch_size", None) is not None or hasattr(source, "batch_sampler")


def _told(error: Exception) -> str:
    """An error in one line; of what a loader's worker raised the last of its many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    return lines[-1] if lines[-1].startswith(f"{name}:") else f"{name}: {lines[0]}"


# --- an item: inputs and label


def parted(value: Any, count: int | None = None) -> tuple[Any, Any]:
    """The inputs and the label (None: there is none) of an item for a model of `count` inputs.
    Where the count is not known the last of several arrays is the label."""
    if not isinstance(value, (tuple, list)) or names_of(value) is not None:
        return value, None
    if len(value) == 2 and (count in (None, 1) or _nested(value[0], count)):
        return value[0], value[1]
    if len(value) - 1 == count or (count is None and len(value) > 1 and not are_numbers(value)):
        return value[:-1], value[-1]
    return (value[0] if len(value) == 1 and not are_numbers(value) else value), None


def _nested(value: Any, count: int | None) -> bool:
    if names_of(value) is not None:
        return True
    return isinstance(value, (tuple, list)) and len(value) == count and not are_numbers(value)


def are_numbers(value: Sequence[Any]) -> bool:
    """Whether it is a row of numbers rather than several arrays."""
    return all(isinstance(each, (bool, int, float)) or _shape(each) == () for each in value)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if hasattr(value, "shape") else None


def names_of(value: Any) -> dict[str, Any] | None:
    """The arrays of what gives them names: a mapping, a named tuple."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    if not isinstance(value, Mapping):
        return None
    return {str(name): each for name, each in value.items() if each is not None}


def named(value: Any, signature: Signature) -> dict[str, np.ndarray]:
    """The inputs of an item: a mapping, arrays in the model's order, or a single array."""
    mapping = names_of(value)
    if mapping is not None:
        return {name: to_array(each) for name, each in mapping.items()}
    ports = signature.inputs
    several = isinstance(value, (tuple, list)) and (
        len(ports) > 1 or not (are_numbers(value) or None in map(_shape, value))
    )
    values = value if several else [value]
    if len(values) != len(ports):
        names = ", ".join(port.name for port in ports)
        raise WrongRequest(
            f"the data give {len(values)} arrays without names and the model takes {len(ports)}: "
            f"{names}; give ({names}) or ({names}, label), or a mapping of name to array"
        )
    return {port.name: to_array(each) for port, each in zip(ports, values, strict=True)}


def not_there(missing: Sequence[str], names: Sequence[str], has: Sequence[str]) -> str:
    """The sentence about inputs that the data lack."""
    return (
        f"the data have no array {', '.join(missing)}; the model's inputs are "
        f"{', '.join(names)} and the data have {', '.join(has) or 'nothing'}"
    )


def _batched(arrays: Mapping[str, np.ndarray], ports: Sequence[Port], label: str) -> bool:
    """Whether an item has the batch axis that the model's inputs have."""
    truth = next((arrays[name] for name in (label, *LABELS) if name in arrays), None)
    for port in ports:
        array = arrays.get(port.name)
        if array is None or array.ndim not in (0, len(port.shape) - 1):
            continue
        column = len(port.shape) == 2 and port.shape[1] == 1 and array.shape not in ((), (1,))
        if not (column and truth is not None and truth.shape == array.shape):  # [N] for [N, 1]
            return False
    return True


# --- all items together


def collect(
    items: Items, signature: Signature, columns: Columns, folder: Path
) -> dict[str, np.ndarray]:
    """All rows: name -> [N, ...], mapped into memory from files in `folder`. Rows of different
    length are padded with zeros where there is an attention mask, which then says so.

    Raises WrongRequest: no row, items that differ, rows that differ in shape, rows without end."""
    spools: dict[str, _Spool] = {}
    truths = {columns.label, *LABELS}  # zeros are classes there
    room, written = shutil.disk_usage(folder).free * _MOST, 0
    for item in items:
        arrays = _rows(item, signature, columns.label or "label")
        if not spools:
            masked = any("mask" in name for name in arrays)
            spools = {
                name: _Spool(name, folder / f"items-{at}", masked and name not in truths)
                for at, name in enumerate(arrays)
            }
        if spools.keys() != arrays.keys():
            raise WrongRequest(
                f"the data's items differ: {item.place} has {', '.join(arrays) or 'nothing'}, "
                f"those before it {', '.join(spools)}"
            )
        for name, array in arrays.items():
            spools[name].add(array, item.place)
            written += array.nbytes
        if written > room:
            raise WrongRequest(
                f"the data have not ended at {item.place}, where they fill half of the free disk "
                f"({written / 1e9:.1f} GB): give fewer rows, or a data set that ends"
            )
    if not any(spool.rows for spool in spools.values()):
        raise WrongRequest("the data are empty: there is not one row")
    return {name: spool.joined() for name, spool in spools.items()}


def _rows(item: Item, signature: Signature, label: str) -> dict[str, np.ndarray]:
    """The arrays of an item, all of them with an axis of examples of the same size."""
    try:
        inputs, truth = parted(item.value, len(signature.inputs))
        arrays = named(inputs, signature)
        if truth is not None:
            arrays[label] = to_array(truth)
    except WrongRequest:
        raise
    except (ValueError, TypeError) as error:  # rows of different length, types without numbers
        raise WrongRequest(
            f"{item.place} holds rows that differ in shape, or what are no numbers: pad them to "
            f"one length ({_told(error)})"
        ) from None
    ports = [port.name for port in signature.inputs]
    missing = [name for name in ports if name not in arrays]
    if missing:
        raise WrongRequest(not_there(missing, ports, list(arrays)))
    if not _batched(arrays, signature.inputs, label):
        arrays = {name: each[None] for name, each in arrays.items()}
    count = max(arrays[ports[0]].shape[:1], default=1)
    arrays = {name: each if each.ndim else each[None] for name, each in arrays.items()}
    if item.split is not None:
        arrays["split"] = np.full(count, item.split)
    if any(len(each) != count for each in arrays.values()):
        told = ", ".join(f"{len(each)} of {name}" for name, each in arrays.items())
        raise WrongRequest(f"{item.place} has different numbers of rows: {told}")
    return arrays


class _Spool:
    """The pieces of one array in a file, as they come."""

    def __init__(self, name: str, path: Path, pad: bool) -> None:
        self.name, self.path, self.pad = name, path, pad
        self.pieces: list[tuple[np.dtype[Any], tuple[int, ...]]] = []
        self.rows = 0
        self._first: tuple[int, ...] = ()

    def add(self, piece: np.ndarray, place: str) -> None:
        self._first = self._first if self.pieces else piece.shape[1:]
        if piece.shape[1:] != self._first and not (self.pad and piece.ndim == len(self._first) + 1):
            raise WrongRequest(
                f"rows of {self.name} differ in shape ({self._first} at first, {piece.shape[1:]} "
                f"in {place}): pad them to one length and add an attention_mask"
            )
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(piece).tobytes())
        self.pieces.append((piece.dtype, piece.shape))
        self.rows += len(piece)

    def joined(self) -> np.ndarray:
        types, shapes = {kind for kind, _ in self.pieces}, {each[1:] for _, each in self.pieces}
        widest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        shape = (self.rows, *widest)
        if len(types) == len(shapes) == 1 and self.path.stat().st_size:
            return np.asarray(np.memmap(self.path, types.pop(), "r", shape=shape))
        return self._padded(np.result_type(*types), shape)

    def _padded(self, kind: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        """The pieces brought to one type and one shape, in a file of their own."""
        path = self.path.with_suffix(".npy")
        whole = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
        allocate(path)
        row = 0
        with self.path.open("rb") as file:
            for own, size in self.pieces:
                piece = np.frombuffer(file.read(own.itemsize * int(np.prod(size))), own)
                place = (slice(row, row + size[0]), *(slice(0, each) for each in size[1:]))
                whole[place] = piece.reshape(size)
                row += size[0]
        return np.asarray(whole)
