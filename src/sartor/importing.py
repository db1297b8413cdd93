"""Which packages a file needs, told without importing it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_IMPORT = re.compile(r"^(?:from ([\w.]+) import (\([^)]*\)|.*)|import ([\w.]+))", re.MULTILINE)
_WORD = re.compile(r"\w+")


def packages_of(path: Path) -> set[str]:
    """Those that a file imports at its top, and those of the modules of ours that it needs for
    that: a plug-in whose helper cannot be imported cannot be had."""
    found: set[str] = set()
    seen, waiting = {path}, [path]
    while waiting:
        packages, ours = _direct(waiting.pop())
        found |= packages
        waiting += ours - seen
        seen |= ours
    return found


@cache
def _direct(path: Path) -> tuple[frozenset[str], frozenset[Path]]:
    """The packages and the files of ours that a file imports at its top. Looked for in the text:
    some hundred files are asked, and parsing one takes milliseconds."""
    packages, names = set(), set()
    for source, inside, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
        name = source or plain
        packages.add(name.split(".")[0])
        names |= {name, *(f"{name}.{each}" for each in _WORD.findall(inside))}
    packages.discard("sartor")
    known = _modules()
    return frozenset(packages), frozenset(known[name] for name in names & known.keys())


@cache
def _modules() -> dict[str, Path]:
    """The files of this package by the names of their modules."""
    root = Path(__file__).parent
    files = {path.relative_to(root.parent).with_suffix(""): path for path in root.rglob("*.py")}
    return {".".join(name.parts): path for name, path in files.items()}
