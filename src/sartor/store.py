"""Models at rest in folders: written whole or not at all, found again by key.

The same form serves the cache of applied techniques and the bundle: what the runtime saves, and
`model.json` beside it with settings and lineage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sartor.contracts import Failed, Model, Step, to_json
from sartor.records import plain
from sartor.registry import from_json, runtime

Files = dict[str, bytes]  # path below a folder -> content

ASIDE = ".old-"  # prefix of folders on their way out


MOST_BYTES = 8_000_000_000  # what applied models may take on disk
KEPT = 8  # entries that stay whatever they take: longer than any recipe


def key_of(**facts: Any) -> str:
    """A hex key over everything that decides a result."""
    text = json.dumps(plain(facts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def step_to_json(step: Step) -> dict[str, Any]:
    return {
        "kind": min(step.technique.kinds),
        "technique": to_json(step.technique),
        "touched": list(step.touched),
        "skipped": [list(pair) for pair in step.skipped],
    }


def step_from_json(entry: Mapping[str, Any]) -> Step:
    return Step(
        from_json(entry["kind"], entry["technique"]),
        tuple(entry["touched"]),
        tuple((part, reason) for part, reason in entry["skipped"]),
    )


def write_model(model: Model, folder: Path) -> Path:
    """Writes the model into `folder`; returns the file that its runtime opens."""
    folder.mkdir(parents=True, exist_ok=True)
    file = runtime(model.kind).save(model, folder)
    facts = {
        "kind": model.kind,
        "file": file.relative_to(folder).as_posix(),
        "settings": plain(model.settings),
        "lineage": [step_to_json(step) for step in model.lineage],
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return file


def read_model(folder: Path) -> Model:
    """The model that `write_model` wrote, lineage and settings included."""
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    model = runtime(facts["kind"]).open(folder / facts["file"])
    return dataclasses.replace(
        model,
        settings=facts["settings"],
        lineage=tuple(step_from_json(entry) for entry in facts["lineage"]),
    )


def files_of(folder: Path) -> Files:
    """Every file below the folder, to be written elsewhere by `write_files`."""
    return {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }


def write_files(files: Files, folder: Path) -> None:
    """Raises Failed, and writes nothing, where a name would lead out of the folder."""
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise Failed(f"{name!r} is no name of a file in a folder")
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def publish(made: Path, final: Path) -> None:
    """Moves a finished folder to its place in one step; what stood there goes."""
    final.parent.mkdir(parents=True, exist_ok=True)
    old = _aside(final)
    os.replace(made, final)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def discard(place: Path) -> None:
    """Removes a folder, if there is one, in one step: a kill never leaves half of it there."""
    old = _aside(place)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def _aside(place: Path) -> Path | None:
    if not place.exists():
        return None
    old = Path(tempfile.mkdtemp(prefix=ASIDE, dir=place.parent))
    os.replace(place, old / "it")
    return old


class Store:
    """A cache of models below `folder`. Half-written entries are never seen: an entry is made
    aside and renamed."""

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self.folder, self.most = folder, most
        folder.mkdir(parents=True, exist_ok=True)

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))

    def get(self, key: str) -> Model | None:
        place = self.folder / key
        if not (place / "model.json").exists():
            return None
        os.utime(place)  # used again: among the last to go
        return read_model(place)

    def put(self, key: str, model: Model) -> Model:
        made = self.scratch()
        write_model(model, made)
        publish(made, self.folder / key)
        self._trim()
        return read_model(self.folder / key)

    def adopt(self, key: str, files: Files) -> Model:
        """The entry as another store held it."""
        made = self.scratch()
        write_files(files, made)
        publish(made, self.folder / key)
        self._trim()
        return read_model(self.folder / key)

    def _trim(self) -> None:
        """Removes the entries longest unused until what is left takes no more than `most`. The
        last few stay whatever their size: a recipe is being built on them."""
        entries = sorted(
            (each for each in self.folder.iterdir() if not each.name.startswith(".")),
            key=lambda each: each.stat().st_mtime,
            reverse=True,
        )
        taken = 0
        for place, entry in enumerate(entries):
            taken += sum(each.stat().st_size for each in entry.rglob("*") if each.is_file())
            if taken > self.most and place >= KEPT:
                shutil.rmtree(entry, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what killed processes left half-made."""
        for left in self.folder.glob(".making-*"):
            shutil.rmtree(left, ignore_errors=True)
