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
from sartor.records import disk_full, plain
from sartor.registry import from_json, runtime

Files = dict[str, bytes]  # path below a folder -> content

ASIDE = ".old-"  # prefix of folders on their way out


MOST_BYTES = 8_000_000_000  # what applied models may take on disk
LEAST_ROOM = 1 << 20  # bytes; with less than that free no trial gets anywhere
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
    engine = runtime(facts["kind"])
    model = dataclasses.replace(
        engine.open(folder / facts["file"]),
        settings=facts["settings"],
        lineage=tuple(step_from_json(entry) for entry in facts["lineage"]),
    )
    facing = getattr(engine, "facing", None)
    return model if facing is None else dataclasses.replace(model, signature=facing(model))


def settle(folder: Path) -> None:
    """Has every file below a folder on the disk, so that no crash of the machine empties one."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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

    def scratch(self, within: Path | None = None) -> Path:
        return Path(tempfile.mkdtemp(prefix=".making-", dir=within or self.folder))

    def get(self, key: str) -> Model | None:
        """The entry; None where there is none, or where it can no longer be read."""
        place = self.folder / key
        if not (place / "model.json").exists():
            return None
        os.utime(place)  # used again: among the last to go
        try:
            return read_model(place)
        except (OSError, ValueError, KeyError, Failed):  # the machine lost power, say
            shutil.rmtree(place, ignore_errors=True)
            return None

    def put(self, key: str, model: Model, aside: Path | None = None) -> Model:
        """Keeps the model; it is made in the folder `aside` (of the same disk) where one is given.
        Raises OSError where there is no room; nothing is then left of it."""
        made = self.scratch(aside)
        try:
            write_model(model, made)
            publish(made, self.folder / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._trim()
        return read_model(self.folder / key)

    def adopt(self, key: str, files: Files) -> Model:
        """The entry as another store held it."""
        made = self.scratch()
        write_files(files, made)
        publish(made, self.folder / key)
        self._trim()
        return read_model(self.folder / key)

    def keep(self, kept: Mapping[str, str]) -> None:
        """Has these entries (digest of the model -> key) stay whatever they take, and no others."""
        making = self.folder / ".kept.making"
        making.write_text(json.dumps(dict(kept)), encoding="utf-8")
        os.replace(making, self.folder / ".kept")

    def kept(self) -> dict[str, str]:
        try:
            found = json.loads((self.folder / ".kept").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(digest): str(key) for digest, key in found.items()}

    def shrink(self, used: Path) -> bool:
        """Removes every entry but those to keep and the one that the file `used` lies in; whether
        there were any."""
        kept, within = set(self.kept().values()), used.resolve().parents
        others = [
            each
            for each in self._entries()
            if each.resolve() not in within and each.name not in kept
        ]
        for each in others:
            shutil.rmtree(each, ignore_errors=True)
        return bool(others)

    def room(self) -> bool:
        """Whether anything can be written at all."""
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(LEAST_ROOM))
        except OSError as error:
            return not disk_full(error)
        return True

    def _entries(self) -> list[Path]:
        """The last used first."""
        found = [each for each in self.folder.iterdir() if not each.name.startswith(".")]
        return sorted(found, key=lambda each: each.stat().st_mtime, reverse=True)

    def _trim(self) -> None:
        """Removes the entries longest unused until what is left takes no more than `most`. The
        last few stay whatever their size: a recipe is being built on them."""
        entries, kept = self._entries(), set(self.kept().values())
        taken = 0
        for place, entry in enumerate(entries):
            taken += sum(each.stat().st_size for each in entry.rglob("*") if each.is_file())
            if taken > self.most and place >= KEPT and entry.name not in kept:
                shutil.rmtree(entry, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what killed processes left half-made."""
        for left in self.folder.glob(".making-*"):
            shutil.rmtree(left, ignore_errors=True)
