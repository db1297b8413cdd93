"""Rows known by their content: digests, duplicates, the split and the leak check.

A row is known by the bytes of its inputs, so that the split stays the same when rows are added or
come in another order, and duplicates land in the same part.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from sartor.contracts import WrongRequest
from sartor.table import SPLITS

PARTS = ("train", "search", "holdout")
SHARES = {"train": 0.2, "search": 0.3, "holdout": 0.5}

_CHUNK = 2048  # rows hashed at a time: bounds the memory

Digests = np.ndarray[Any, np.dtype[np.uint64]]


def digests(arrays: Mapping[str, np.ndarray]) -> Digests:
    """A digest for each row, [N, 2] of 64 bits: BLAKE2b over the row's bytes, arrays in the order
    of their names."""
    ordered = [arrays[name] for name in sorted(arrays)]
    rows = len(ordered[0])
    found = np.empty((rows, 16), np.uint8)
    for start in range(0, rows, _CHUNK):
        chunk = [_bytes(array[start : start + _CHUNK]) for array in ordered]
        data = np.ascontiguousarray(np.concatenate(chunk, axis=1))
        joined = b"".join(blake2b(row.data, digest_size=16).digest() for row in data)
        found[start : start + len(data)] = np.frombuffer(joined, np.uint8).reshape(-1, 16)
    return found.view(np.uint64)


def _bytes(values: np.ndarray) -> np.ndarray:
    """The rows' bytes as [N, B]. Text is hashed first, since its bytes depend on the longest."""
    if values.dtype.kind == "U":
        flat = values.reshape(len(values), -1)
        texts = ("\0".join(row).encode() for row in flat.tolist())
        joined = b"".join(blake2b(text, digest_size=16).digest() for text in texts)
        return np.frombuffer(joined, np.uint8).reshape(len(values), 16)
    values = np.ascontiguousarray(values)
    return values.reshape(len(values), -1).view(np.uint8)


def places(keys: Digests, seed: int) -> np.ndarray:
    """A number within 0 and 1 for each row, decided by its digest and the seed alone (the
    finalizer of SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    offset = np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    mixed = keys[:, 0] + offset
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed / 2.0**64


def by_content(place: np.ndarray) -> np.ndarray:
    """The part (index into PARTS) of each row by its place."""
    return np.searchsorted(np.cumsum([SHARES[name] for name in PARTS])[:-1], place, "right")


def as_given(split: np.ndarray) -> np.ndarray:
    """The part (index into PARTS) of each row from names. Raises WrongRequest for unknown ones."""
    if split.dtype.kind == "S":
        split = split.astype(np.str_)
    names, inverse = np.unique(split, return_inverse=True)
    known = [SPLITS.get(str(name).strip().lower()) for name in names]
    if wrong := [str(name) for name, part in zip(names, known, strict=True) if part is None]:
        raise WrongRequest(
            f"the split names unknown parts ({', '.join(wrong[:3])}); write train, search or "
            "holdout (calibration, validation and test are taken for them)"
        )
    return np.array([PARTS.index(str(part)) for part in known])[inverse.ravel()]


def fingerprints(keys: Digests) -> np.ndarray:
    """32 bits of each row's digest, sorted: enough to know a row again, too few to be it."""
    return np.unique((keys[:, 0] >> np.uint64(32)).astype(np.uint32))


def known(keys: Digests, prints: np.ndarray) -> np.ndarray:
    """Which rows are among those fingerprints: [N] of bool."""
    return np.isin((keys[:, 0] >> np.uint64(32)).astype(np.uint32), prints)


def repeats(keys: Digests) -> int:
    """How many rows repeat an earlier one."""
    return len(keys) - len(np.unique(keys[:, 0]))


def joined(group: Digests, keys: Digests, most: float = 0.5) -> Digests | None:
    """The digest of each row's group, groups that share a row taken for one (that of its first
    row). None where this would make one of more than `most` of the rows out of several groups,
    as rows that say nothing (all zeros) do: nothing could be split then."""
    groups, first, at = np.unique(group[:, 0], return_index=True, return_inverse=True)
    rows, key = np.unique(keys[:, 0], return_inverse=True)
    heads = _heads(at.ravel(), key.ravel(), len(groups), len(rows))
    names, component = np.unique(heads, return_inverse=True)
    lead = first[names]  # a row of the first group in each
    mine = component[at.ravel()]
    sizes = np.bincount(mine)
    several = np.bincount(component) > 1
    if (sizes[several] > max(most * len(keys), 1)).any():
        return None
    found: Digests = group[lead[mine]]
    return found


def _heads(at: np.ndarray, key: np.ndarray, groups: int, rows: int) -> np.ndarray:
    """[groups]: of each group the first of those that it hangs together with, where groups `at`
    hold the rows `key`. Every group takes the least head in its rows, and then its head's, until
    nothing changes: a chain of 200,000 takes a quarter of a second."""
    heads = np.arange(groups)
    while True:
        least = np.full(rows, groups)
        np.minimum.at(least, key, heads[at])
        found = heads.copy()
        np.minimum.at(found, heads[at], least[key])
        found = found[found]
        if np.array_equal(found, heads):
            return heads
        heads = found


def repeated(unit: Digests, expected: int) -> np.ndarray | None:
    """[N] the number of each row's unit; None where there are as many units as expected."""
    names, index = np.unique(unit[:, 0], return_inverse=True)
    return None if len(names) == expected else index.ravel().astype(np.int64)


def leaks(keys: Digests, part: np.ndarray) -> np.ndarray:
    """Rows outside the holdout whose key is in it too, and rows of train whose key is in search."""
    train, search, holdout = (part == index for index in range(3))
    leaked = ~holdout & np.isin(keys[:, 0], keys[holdout, 0])
    return np.asarray(leaked | (train & np.isin(keys[:, 0], keys[search, 0])))


def conflicts(keys: Digests, label: np.ndarray) -> int:
    """How many distinct rows occur with more than one label."""
    if not len(label):
        return 0
    flat = label.reshape(len(label), -1)
    both = digests({"label": flat})[:, 0]
    inverse = np.unique(keys[:, 0], return_inverse=True)[1].ravel()
    pairs = np.unique(np.stack([inverse.astype(np.uint64), both]), axis=1)
    return int((np.bincount(pairs[0].astype(np.int64)) > 1).sum())


def digest_of_set(keys: Digests, label: np.ndarray | None) -> str:
    """The digest of a set of labelled rows, whatever their order."""
    data = [each.tobytes() for each in keys]
    if label is not None:
        data = [key + row.tobytes() for key, row in zip(data, label, strict=True)]
    return blake2b(b"".join(sorted(data)), digest_size=16).hexdigest()
