"""The data in three parts: train (also calibration), search, and the holdout under seal.

    data = read("eval.npz", folder, model.signature)
    for batch in data.search.batches(8): ...
    data.holdout.open()                     # `certify` alone does this

The split is the source's own (`split`) or made by the rows' content: 20, 30 and 50 %. Rows of a
part stand in the order of their content's hash, so that the first k are a random sample whatever
the order of the source.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from sartor import rows as by_rows
from sartor.checks import find_mask, fit
from sartor.contracts import Signature, WrongRequest
from sartor.readers import name_of, read_table
from sartor.records import allocate
from sartor.rows import PARTS, Digests
from sartor.table import Columns, Table

_CHUNK = 1024  # rows copied at a time


@dataclass(frozen=True)
class Part:
    """Rows of the data in a folder of .npy files. Cheap to pickle: arrays stay on disk and are
    mapped into memory where they are used.

    `names` are the model's inputs; `mask` names the input with ones before the padding and zeros
    in it, where batches are to be trimmed to their longest row."""

    folder: Path
    rows: int
    digest: str
    names: tuple[str, ...]
    mask: str | None = None

    def __len__(self) -> int:
        return self.rows

    def first(self, rows: int) -> Part:
        """The first rows alone: a random sample, since rows stand in the order of their hashes."""
        return dataclasses.replace(self, rows=min(rows, self.rows))

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what is mapped into memory, which pickle would write out in full.
        return Part, tuple(getattr(self, each.name) for each in dataclasses.fields(self))

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: self._load(f"input_{i}") for i, name in enumerate(self.names)}

    def _load(self, stem: str) -> np.ndarray:
        return np.asarray(np.load(self.folder / f"{stem}.npy", mmap_mode="r", allow_pickle=False))

    def _load_optional(self, stem: str) -> np.ndarray | None:
        return self._load(stem) if (self.folder / f"{stem}.npy").exists() else None

    @cached_property
    def label(self) -> np.ndarray | None:
        """[N] or [N, ...]: int64 or float64, or text; None without labels."""
        return self._load_optional("label")

    @cached_property
    def group(self) -> np.ndarray | None:
        """[N]: which rows belong together; None where nothing says so."""
        return self._load_optional("group")

    @cached_property
    def unit(self) -> np.ndarray | None:
        """[N]: rows with the same number are not independent, since they repeat one another (or
        their groups share a row); None where the rows, or the groups, are the units."""
        return self._load_optional("unit")

    @cached_property
    def segments(self) -> dict[str, np.ndarray]:
        """Column name -> [N]."""
        names = json.loads((self.folder / "segments.json").read_text())
        return {name: self._load(f"segment_{i}") for i, name in enumerate(names)}

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """[N]: the true length of each row; None where there is no mask."""
        return None if self.mask is None else self._arrays[self.mask].sum(1, dtype=np.int64)

    def inputs(self, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of these rows, copied into memory, with their padding."""
        return {name: np.array(array[rows]) for name, array in self._arrays.items()}

    def batches(
        self, size: int = 1, most: int | None = None, labels: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches of the first `most` rows, trimmed to their longest row; the last one may be
        smaller. With `labels` the labels stand under "label", where there are any."""
        end = self.rows if most is None else min(most, self.rows)
        for start in range(0, end, size):
            yield self.picked(slice(start, min(start + size, end)), labels)

    def picked(self, rows: slice | np.ndarray, labels: bool = False) -> dict[str, np.ndarray]:
        """One batch of these rows, as `batches` gives them."""
        batch = self.trimmed(rows)
        if labels and self.label is not None:
            batch["label"] = np.array(self.label[rows])
        return batch

    def trimmed(self, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of these rows, cut to the longest of them where there is a mask."""
        if self.mask is None or self.lengths is None:
            return self.inputs(rows)
        width = self._arrays[self.mask].shape[1]
        longest = int(self.lengths[rows].max(initial=1))
        return {
            name: np.array(array[rows][:, :longest])
            if array.ndim > 1 and array.shape[1] == width
            else np.array(array[rows])
            for name, array in self._arrays.items()
        }

    def example(self, row: int) -> dict[str, np.ndarray]:
        """A batch of one row, trimmed."""
        return self.trimmed(slice(row, row + 1))


@dataclass(frozen=True)
class Sealed:
    """The holdout, unopened: how many rows and their digest, no more.

    What keeps it closed is that in a run only `certify` is handed it; its files lie in a folder
    `sealed` that no Part of the other data points to."""

    digest: str
    rows: int
    _part: Part = field(repr=False)
    dropped: int = 0
    fingerprints: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32), repr=False)

    def open(self) -> Part:
        """The rows. Whoever calls this writes it in the ledger first."""
        return self._part


@dataclass(frozen=True)
class Data:
    """The three parts. `facts` (JSON) say what was read: rows by part, how it was split, casts,
    duplicates, leaks, mask, warnings. `fingerprints` [N] of uint32 know every row again."""

    train: Part | None
    search: Part
    holdout: Sealed
    labelled: bool
    facts: Mapping[str, Any]
    fingerprints: np.ndarray


def read(
    source: Any,
    folder: Path,
    signature: Signature,
    *,
    label: str | None = None,
    segments: Sequence[str] = (),
    group: str | None = None,
    mask: str | None = None,
    trust: bool = False,
    seed: int = 0,
) -> Data:
    """Reads a source (see `readers.read_table`), checks it against the model's signature, splits
    it and writes the parts below `folder`.

    Raises WrongRequest with one sentence: no such file, missing arrays (the right ones are
    listed), types or shapes that do not fit, NaN, different numbers of rows, an empty part."""
    columns = Columns(label, tuple(segments), group)
    with _scratch(folder) as scratch:
        table, facts = _checked(source, signature, columns, scratch, mask, trust)
        keys = by_rows.digests(table.inputs)
        unit = _units(keys, table, facts)
        place = by_rows.places(unit, seed)
        if table.split is None:
            part = by_rows.by_content(place)
            facts["split"] = f"by content, seed {seed}" + (
                "" if table.group is None else ", groups kept together"
            )
        else:
            part = by_rows.as_given(table.split)
            facts["split"] = "given"
        part = _without_leaks(unit, keys, part, facts)
        _describe(keys, part, table, facts)
        order = np.lexsort((by_rows.places(keys, seed), place))
        picked = {name: order[part[order] == index] for index, name in enumerate(PARTS)}
        _check_filled(picked, facts)
        parts = {
            name: _write(
                folder / ("sealed" if name == "holdout" else name),
                table,
                keys,
                rows,
                facts["mask"]["trims"],
            )
            for name, rows in picked.items()
            if len(rows)
        }
    return Data(
        parts.get("train"),
        parts["search"],
        _seal(parts["holdout"], keys[picked["holdout"]]),
        table.label is not None,
        facts,
        by_rows.fingerprints(keys),
    )


def fresh(
    source: Any,
    folder: Path,
    signature: Signature,
    *,
    label: str | None = None,
    segments: Sequence[str] = (),
    group: str | None = None,
    mask: str | None = None,
    trust: bool = False,
    used: np.ndarray | None = None,
) -> Sealed:
    """All rows of a source as a holdout, for `sartor verify --data`. A `split` column is not
    looked at. Rows among the fingerprints `used` are left out (`Sealed.dropped`): what chose an
    artifact cannot certify it. Raises WrongRequest as `read` does, and where no row is left."""
    with _scratch(folder) as scratch:
        columns = Columns(label, tuple(segments), group)
        table, facts = _checked(source, signature, columns, scratch, mask, trust)
        keys = by_rows.digests(table.inputs)
        order = np.argsort(by_rows.places(keys, 0), kind="stable")
        if used is not None:
            order = order[~by_rows.known(keys[order], used)]
        if not len(order):
            raise WrongRequest(
                f"all {len(keys):,} rows belong to the run that made this bundle or to an earlier "
                "verification: data that chose or judged it once cannot certify it again; write "
                "--data with fresh rows"
            )
        part = _write(folder / "sealed", table, keys, order, facts["mask"]["trims"])
    return _seal(part, keys[order], len(keys) - len(order))


def _scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=folder, prefix=".reading-")


def _checked(
    source: Any,
    signature: Signature,
    columns: Columns,
    scratch: str,
    mask: str | None,
    trust: bool,
) -> tuple[Table, dict[str, Any]]:
    table = read_table(source, signature, columns, Path(scratch), trust)
    table, casts = fit(table, signature)
    facts: dict[str, Any] = {
        "source": name_of(source),
        "casts": casts,
        "segments": sorted(table.segments),
        "notes": list(table.notes),
        "mask": find_mask(table.inputs, signature, mask),
        "warnings": [],
    }
    return table, facts


def _units(keys: Digests, table: Table, facts: dict[str, Any]) -> Digests:
    """What stays in one part: rows that are equal; with a group the whole group, and groups that
    share a row with it. A given split is not to be joined: what leaks is taken out there."""
    if table.group is None:
        return keys
    group = _group_keys(table.group)
    if table.split is not None:
        return group
    joined = by_rows.joined(group, keys)
    if joined is None:
        facts["warnings"].append(
            "many groups share rows with one another: such groups are not kept in one part"
        )
    return group if joined is None else joined


def _group_keys(group: np.ndarray) -> Digests:
    return by_rows.digests({"group": group.astype(np.str_)})


def _repeated(keys: Digests, group: np.ndarray | None) -> np.ndarray | None:
    """[N] the number of each row's independent unit; None where units are single rows or just
    the groups."""
    if group is None:
        return by_rows.repeated(keys, len(keys))
    joined = by_rows.joined(_group_keys(group), keys)
    return None if joined is None else by_rows.repeated(joined, len(np.unique(group)))


def _without_leaks(
    unit: Digests, keys: Digests, part: np.ndarray, facts: dict[str, Any]
) -> np.ndarray:
    """The parts with what is in the holdout too taken out of the others (-1); never the other
    way round, since that would choose what certifies."""
    leaked = by_rows.leaks(unit, part) | by_rows.leaks(keys, part)
    facts["leaks"] = {
        name: int((leaked & (part == index)).sum()) for index, name in enumerate(PARTS[:2])
    }
    if leaked.any():
        train, search = facts["leaks"].values()
        facts["warnings"].append(
            f"{int(leaked.sum())} rows stand in more than one part (or their group does); they "
            f"were taken out of train ({train}) and search ({search})"
        )
    return np.where(leaked, -1, part)


def _describe(keys: Digests, part: np.ndarray, table: Table, facts: dict[str, Any]) -> None:
    rows = {name: int((part == index).sum()) for index, name in enumerate(PARTS)}
    facts["rows"] = rows
    facts["duplicates"] = {
        name: by_rows.repeats(keys[part == index]) for index, name in enumerate(PARTS)
    }
    seen = (part == 0) | (part == 1)  # what labels the holdout has is not told before it is opened
    facts["conflicting"] = (
        0 if table.label is None else by_rows.conflicts(keys[seen], table.label[seen])
    )
    if facts["conflicting"]:
        facts["warnings"].append(
            f"{facts['conflicting']} rows occur with different labels: no model can have them right"
        )


def _check_filled(picked: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    for name in ("search", "holdout"):
        if len(picked[name]):
            continue
        if facts["leaks"].get(name):
            why = "every row of it is in the holdout too"
        elif facts["split"] == "given":
            why = f"the split names no row {name}"
        else:
            why = "there are too few different rows to split: give 100 at least"
        raise WrongRequest(f"the part {name} is empty: {why}")


def _seal(part: Part, keys: Digests, dropped: int = 0) -> Sealed:
    prints = by_rows.fingerprints(keys)
    return Sealed(by_rows.digest_of_set(keys, part.label), part.rows, part, dropped, prints)


def _write(folder: Path, table: Table, keys: Digests, rows: np.ndarray, mask: str | None) -> Part:
    """Writes rows of the table as a Part, in this order."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = blake2b(keys[rows].tobytes(), digest_size=16)
    for index, array in enumerate(table.inputs.values()):
        _copy(folder / f"input_{index}.npy", array, rows)
    others = {"label": table.label, "group": table.group}
    others |= {f"segment_{i}": each for i, each in enumerate(table.segments.values())}
    for stem, column in others.items():
        if column is not None:
            _copy(folder / f"{stem}.npy", column, rows)
            content.update(f"{stem} {column.dtype.str} {column.shape[1:]}".encode())
            content.update(np.ascontiguousarray(column[rows]).tobytes())
    unit = _repeated(keys[rows], None if table.group is None else table.group[rows])
    if unit is not None:
        np.save(folder / "unit.npy", unit)
    (folder / "segments.json").write_text(json.dumps(list(table.segments)))
    described = [(n, a.dtype.str, a.shape[1:]) for n, a in table.inputs.items()]
    content.update(repr((described, list(table.segments), mask)).encode())
    return Part(folder, len(rows), content.hexdigest(), tuple(table.inputs), mask)


def _copy(path: Path, array: np.ndarray, rows: np.ndarray) -> None:
    """Writes `array[rows]` a chunk at a time: neither has to fit into memory."""
    shape = (len(rows), *array.shape[1:])
    target = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=shape)
    allocate(path)
    for start in range(0, len(rows), _CHUNK):
        target[start : start + _CHUNK] = array[rows[start : start + _CHUNK]]
    target.flush()
