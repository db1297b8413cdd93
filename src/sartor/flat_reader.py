"""FlatBuffers as strangers give them, decoded into plain mappings by a schema: every table, list
and text must lie in the buffer, as FlatBuffers' own verifier asks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Table = Mapping[str, Any]
"""Field -> value: a number, a text, an array, a table, a list of tables; None where left out."""
Schema = Mapping[str, tuple[tuple[str, str], ...]]
"""Table -> (field, form) by slot; ("", "") where a slot is no longer used."""
Unions = Mapping[tuple[str, str], Sequence[str]]
"""(table, field) -> the tables that it may be, by number."""

_LISTS = {"1": "<u1", "2": "<i2", "4": "<i4", "8": "<i8", "f": "<f4"}
_UNSIGNED = {1: "B", 2: "<H", 4: "<I", 8: "<Q"}


def schema_of(text: str) -> Schema:
    """The schema that a line a table states: its name, then `field:form` by slot. A form is a width
    in bytes, "s" (text), a table, "[...]" (a list of one of these) or "union"."""
    found = {}
    for line in text.strip().replace("\n    ", " ").splitlines():
        name, *fields = line.split()
        pairs = (each.partition(":")[::2] for each in fields)
        found[name] = tuple((field.strip("-"), form) for field, form in pairs)
    return found


class Damaged(Exception):
    """What is wrong with the file, in a few words."""


class Reader:
    """Decodes tables; each is decoded once, however often it is pointed at."""

    def __init__(self, data: memoryview, schema: Schema, unions: Unions) -> None:
        self.data, self.size = data, len(data)
        self.schema, self.unions = schema, unions
        self.known: dict[tuple[int, str], Table] = {}
        self.texts: dict[int, str] = {}
        self.lists: dict[tuple[int, str], Any] = {}
        self.left = 8 * self.size  # bytes of texts and entries of lists that may still be read

    def number(self, at: int, width: int) -> int:
        self.inside(at, width)
        found: int = struct.unpack_from(_UNSIGNED[width], self.data, at)[0]
        return found

    def inside(self, at: int, length: int) -> None:
        if at < 0 or length < 0 or at + length > self.size:
            raise Damaged("an offset leads out of the file")

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Damaged("its texts and lists lie over one another")

    def table(self, at: int, name: str) -> Table:
        if (at, name) not in self.known:
            self.known[at, name] = self._table(at, name)
        return self.known[at, name]

    def _table(self, at: int, name: str) -> Table:
        self.inside(at, 4)
        vtable = at - struct.unpack_from("<i", self.data, at)[0]
        length, extent = self.number(vtable, 2), self.number(vtable + 2, 2)
        self.inside(vtable, length)
        self.inside(at, extent)
        if length < 4 or length % 2 or extent < 4:
            raise Damaged("a table is cut short")
        found: dict[str, Any] = {}
        for slot, (field, form) in enumerate(self.schema.get(name, ())):
            place = 4 + 2 * slot
            offset = self.number(vtable + place, 2) if place + 2 <= length else 0
            if field and offset:
                width = int(form) if form.isdigit() else 4
                if offset + width > extent:
                    raise Damaged(f"a table {name} is cut short")
                found[field] = self._value(at + offset, name, field, form, found)
        return found

    def _value(self, at: int, name: str, field: str, form: str, found: Table) -> Any:
        if form.isdigit():
            return self.number(at, int(form))
        there = at + self.number(at, 4)
        if form == "s":
            return self._text(there)
        if form == "union":
            names = self.unions[name, field]
            which = found.get(f"{field}_type", 0)
            if which >= len(names):
                raise Damaged(f"{name} has options of the unknown sort {which}")
            return self.table(there, names[which]) if which else None
        if form.startswith("["):
            return self._list(there, form[1:-1])
        return self.table(there, form)

    def _text(self, at: int) -> str:
        if at not in self.texts:  # many tables may share one
            self.texts[at] = self._decoded(at)
        return self.texts[at]

    def _decoded(self, at: int) -> str:
        length = self.number(at, 4)
        self.inside(at + 4, length + 1)
        self._spend(length)
        return bytes(self.data[at + 4 : at + 4 + length]).decode(errors="replace")

    def _list(self, at: int, form: str) -> Any:
        if (at, form) not in self.lists:
            self.lists[at, form] = self._listed(at, form)
        return self.lists[at, form]

    def _listed(self, at: int, form: str) -> Any:
        count = self.number(at, 4)
        width = int(form) if form.isdigit() else 4
        self.inside(at + 4, count * width)
        if form in _LISTS:
            return np.frombuffer(self.data, _LISTS[form], count, at + 4)
        self._spend(4 * count)
        places = [at + 4 + 4 * each for each in range(count)]
        if form == "s":
            return [self._text(each + self.number(each, 4)) for each in places]
        return [self.table(each + self.number(each, 4), form) for each in places]
