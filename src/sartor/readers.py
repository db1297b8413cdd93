"""From a file, a folder, a function or a live object to a table of arrays, one row per example.

What is read here is not yet checked against the model: `data` does that for all sources alike.
"""

from __future__ import annotations

import difflib
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Signature, WrongRequest
from sartor.images import read_images
from sartor.items import Items, collect, items_of, named, not_there
from sartor.libraries import needing
from sartor.references import is_reference, made_by
from sartor.table import Columns, Table, to_array

# What zipfile and numpy raise on damaged bytes (found by flipping them: see the tests).
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class Held:
    """What a source holds, kept so that it is made and read once; `name` is for the journal."""

    name: str
    value: Any


def name_of(source: Any) -> str:
    """What the journal calls a source."""
    if isinstance(source, Held):
        return source.name
    return str(source) if isinstance(source, (str, Path)) else type(source).__name__


def read_table(
    source: Any, signature: Signature, columns: Columns, scratch: Path, trust: bool = False
) -> Table:
    """The rows of a source: .npz, .parquet, .csv, a folder of images by class,
    `file.py:factory`, a mapping of arrays, a data frame, a data set or batches.

    `scratch` is an existing folder for what is too big for memory. Raises WrongRequest."""
    found = opened(source, trust)
    if isinstance(found, Path):
        return read_images(found, signature, scratch)
    return _from_object(found, signature, columns, scratch)


def opened(source: Any, trust: bool = False) -> Any:
    """What a source holds: a mapping of arrays, a data frame, an array, or Items; the Path of a
    folder of images as it is. Raises WrongRequest."""
    if isinstance(source, Held):
        return source.value
    if not isinstance(source, (str, Path)):
        return _live(source)
    path = Path(source)
    if is_reference(str(source)) and not path.exists():
        return _live(made_by(str(source)))
    if path.is_dir():
        return path
    if not path.is_file():
        raise WrongRequest(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _open_npz(path)
    if suffix in (".csv", ".parquet"):
        return _open_frame(path, suffix)
    if suffix in (".pkl", ".pickle"):
        return _live(_unpickle(path, trust))
    raise WrongRequest(
        f"{path}: data come as .npz, .parquet, .csv, a folder of images by class or file.py:factory"
    )


def _live(found: Any) -> Any:
    items = items_of(found)
    return found if items is None else items


def _unpickle(path: Path, trust: bool) -> Any:
    if not trust:
        raise WrongRequest(
            f"{path}: a pickle can run any code when it is read; save .npz or .parquet instead, or "
            "add --trust if you made it yourself"
        )
    try:
        return pickle.loads(path.read_bytes())
    except Exception as error:  # unpickling raises anything
        raise WrongRequest(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    # numpy takes what is no zip file for a pickle, and its words would mislead.
    if not zipfile.is_zipfile(path):
        raise WrongRequest(f"{path} is not an .npz file or is cut short")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise WrongRequest(
                f"{path} holds Python objects; save text as arrays of dtype '<U', numbers as "
                "numbers"
            ) from None
        raise WrongRequest(f"{path} is not an .npz file: {error}") from None
    except _DAMAGE as error:
        raise WrongRequest(f"{path} is not an .npz file or is damaged: {error}") from None


def _open_frame(path: Path, suffix: str) -> Any:
    with needing(f"reading {path}", "pip install 'sartor[data]'"):
        import pandas

        if suffix == ".parquet":
            import pyarrow  # noqa: F401  (pandas reads it with this)
    try:
        return pandas.read_csv(path) if suffix == ".csv" else pandas.read_parquet(path)
    except (ValueError, OSError, pandas.errors.ParserError) as error:
        raise WrongRequest(f"{path} is not a {suffix} file or is damaged: {error}") from None


# --- live objects


def _from_object(source: Any, signature: Signature, columns: Columns, scratch: Path) -> Table:
    if isinstance(source, Items):
        return _from_arrays(collect(source, signature, columns, scratch), signature, columns)
    if isinstance(source, Mapping):
        arrays = {str(name): to_array(value) for name, value in source.items()}
        return _from_arrays(arrays, signature, columns)
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):
        return _from_frame(source, signature, columns)
    return _from_arrays(named(to_array(source), signature), signature, columns)


# --- named arrays


def _from_arrays(arrays: Mapping[str, np.ndarray], signature: Signature, columns: Columns) -> Table:
    names = [port.name for port in signature.inputs]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise WrongRequest(not_there(missing, names, list(arrays)))
    rest = {name: array for name, array in arrays.items() if name not in names}
    label = _take_label(rest, columns.label)
    group = _take(rest, columns.group, "group")
    split = _take(rest, None, columns.split) if columns.split else None
    rows = len(arrays[names[0]]) if arrays[names[0]].ndim else 0
    for name in columns.segments:
        if name not in rest:
            raise WrongRequest(_no_column(name, "segment", list(rest)))
    segments, notes = {}, []
    for name in columns.segments or rest:
        if rest[name].ndim == 1 and len(rest[name]) == rows:
            segments[name] = _as_segment(rest[name])
        elif name in columns.segments:
            raise WrongRequest(
                f"segment {name} has shape {rest[name].shape}; it needs one value for each of "
                f"the {rows} rows"
            )
        else:
            notes.append(f"array {name} of shape {rest[name].shape} is neither input nor segment")
    inputs = {name: arrays[name] for name in names}
    return Table(inputs, label, group, split, segments, tuple(notes))


def _take(rest: dict[str, Any], asked: str | None, default: str) -> Any:
    """Takes the array of that name out of `rest`; it must exist where it was asked for."""
    if asked is not None and asked not in rest:
        raise WrongRequest(_no_column(asked, default, list(rest)))
    return rest.pop(asked or default, None)


def _take_label(rest: dict[str, Any], asked: str | None) -> Any:
    """The labels: what was named, else `label`, else `labels`, as Hugging Face calls them."""
    return _take(rest, asked, "labels" if "labels" in rest and "label" not in rest else "label")


def _no_column(name: str, what: str, has: list[str]) -> str:
    near = difflib.get_close_matches(name, has, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(has) or 'none'}"
    return f"the data have no {what} {name!r}; {hint}"


def _as_segment(values: np.ndarray) -> np.ndarray:
    """A segment column that can be compared: missing numbers become the text "missing"."""
    if values.dtype.kind == "f" and np.isnan(values).any():
        text = values.astype(np.str_)
        return np.where(np.isnan(values), "missing", text)
    return values


# --- data frames


def _from_frame(frame: Any, signature: Signature, columns: Columns) -> Table:
    frame = frame.rename(columns=str)
    if frame.columns.duplicated().any():
        twice = ", ".join(frame.columns[frame.columns.duplicated()])
        raise WrongRequest(f"the data have several columns of the same name: {twice}")
    rest = {name: frame[name] for name in frame.columns}
    label = _take_label(rest, columns.label)
    group = _take(rest, columns.group, "group")
    split = _take(rest, None, columns.split) if columns.split else None
    for name in columns.segments:
        if name not in rest:
            raise WrongRequest(_no_column(name, "segment", list(rest)))
    inputs, used = _frame_inputs(rest, signature, columns.segments)
    others = columns.segments or [name for name in rest if name not in used]
    segments = {name: _as_segment(_plain(rest[name], missing=True)) for name in others}
    label, group, split = (None if each is None else _plain(each) for each in (label, group, split))
    return Table(inputs, label, group, split, segments)


def _frame_inputs(
    rest: Mapping[str, Any], signature: Signature, segments: Sequence[str]
) -> tuple[dict[str, np.ndarray], set[str]]:
    """The inputs and the columns they took: by name, or all numbers as one matrix."""
    names = [port.name for port in signature.inputs]
    if all(name in rest for name in names):
        return {port.name: cells(rest[port.name]) for port in signature.inputs}, set(names)
    port = signature.inputs[0]
    if len(names) > 1 or len(port.shape) != 2 or not port.dtype.startswith("float"):
        missing = [name for name in names if name not in rest]
        raise WrongRequest(not_there(missing, names, list(rest)).replace("array", "column"))
    numbers = [name for name, each in rest.items() if is_number(each)]
    free = [name for name in numbers if name not in segments]
    width = port.shape[1]
    # A number that is named as a segment may be a feature too: the width decides.
    chosen = numbers if width is not None and len(free) != width == len(numbers) else free
    if not chosen or width not in (None, len(chosen)):
        raise WrongRequest(
            f"the model's input {port.name} takes {width} numbers a row and the data have "
            f"{len(free)} numeric columns besides label, split, group and segments: "
            f"{', '.join(free) or 'none'}"
        )
    matrix = np.column_stack([_plain(rest[name]) for name in chosen])
    return {port.name: matrix}, set(chosen)


def is_number(column: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return bool(is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype))


def cells(column: Any) -> np.ndarray:
    """A column as an input: numbers or text, or rows of numbers where its cells are lists."""
    if len(column) and isinstance(column.iloc[0], (list, tuple, np.ndarray)):
        found = [np.asarray(each) for each in column]
        if len({each.shape for each in found}) > 1:
            raise WrongRequest(f"rows of column {column.name} differ in length: pad them to one")
        return np.stack(found)
    return _plain(column)


def _plain(column: Any, missing: bool = False) -> np.ndarray:
    """A column as numbers or text. Missing text is an error, or in segments the value "missing";
    missing numbers are NaN."""
    if is_number(column):
        values = column.to_numpy()
        if values.dtype.kind == "O":  # a nullable dtype with gaps
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.asarray(values)
    gaps = column.isna().to_numpy()
    if gaps.any() and not missing:
        raise WrongRequest(
            f"column {column.name} misses {int(gaps.sum())} values, the first in row "
            f"{int(gaps.argmax())}"
        )
    text = column.astype(object).where(~gaps, "missing")
    return np.asarray(text.to_numpy().astype(np.str_))
