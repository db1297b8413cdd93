"""Tables and lines in plain text, where rich is not installed: what a device has.

The names and arguments are rich's, as far as they are used here; what only makes it prettier
(styles, the live line) is left out."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, TextIO

LEAST = 24  # characters to which a column that folds may shrink
box = SimpleNamespace(SIMPLE_HEAD=None)


class Text(str):
    def __new__(cls, text: str = "", style: str = "") -> Text:
        return super().__new__(cls, text)


class Group:
    def __init__(self, *shown: RenderableType) -> None:
        self.shown = shown


class Table:
    def __init__(self, *, title: str = "", show_header: bool = True, **_: Any) -> None:
        self.title, self.show_header = title, show_header
        self.names: list[str] = []
        self.right: list[bool] = []
        self.folds: list[bool] = []
        self.rows: list[tuple[str, ...]] = []

    def add_column(
        self, name: str = "", *, justify: str = "left", overflow: str = "", **_: Any
    ) -> None:
        self.names.append(name)
        self.right.append(justify == "right")
        self.folds.append(overflow == "fold")

    def add_row(self, *cells: str) -> None:
        self.rows.append((*cells, *[""] * (len(self.names) - len(cells))))

    def lines(self, width: int) -> Iterator[str]:
        rows = [tuple(self.names), *self.rows] if self.show_header else self.rows
        wide = [
            max(len(line) for row in rows for line in (row[at].splitlines() or [""]))
            for at in range(len(self.names))
        ]
        while sum(wide) + 2 * len(wide) > width:
            folding = [at for at, folds in enumerate(self.folds) if folds and wide[at] > LEAST]
            if not folding:
                break
            wide[max(folding, key=lambda at: wide[at])] -= 1
        if self.title:
            yield from ("", f"  {self.title}", "")
        for number, row in enumerate(rows):
            yield from self._row(row, wide)
            if self.show_header and number == 0:
                yield "  " + "-" * (sum(wide) + 2 * len(wide) - 2)

    def _row(self, row: tuple[str, ...], wide: list[int]) -> Iterator[str]:
        cells = [
            [part for line in cell.splitlines() for part in _folded(line, size)]
            for cell, size in zip(row, wide, strict=True)
        ]
        for at in range(max(map(len, cells), default=0)):
            parts = [cell[at] if at < len(cell) else "" for cell in cells]
            shown = zip(parts, wide, self.right, strict=True)
            told = (part.rjust(size) if right else part.ljust(size) for part, size, right in shown)
            yield ("  " + "  ".join(told)).rstrip()


def _folded(line: str, size: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, size, subsequent_indent=indent) or [""]


class Console:
    is_terminal = False  # nothing is live here

    def __init__(
        self,
        *,
        file: TextIO | None = None,
        stderr: bool = False,
        quiet: bool = False,
        width: int = 120,
        **_: Any,
    ) -> None:
        self.file, self.stderr, self.quiet, self.width = file, stderr, quiet, width

    def print(self, shown: RenderableType = "", **_: Any) -> None:
        if self.quiet:
            return
        if isinstance(shown, Group):
            for each in shown.shown:
                self.print(each)
            return
        text = "\n".join(shown.lines(self.width)) if isinstance(shown, Table) else shown
        print(text, file=self.file or (sys.stderr if self.stderr else sys.stdout))


RenderableType = str | Text | Group | Table
