"""A Python function that answers: how an artifact of any other tool is compared.

`file.py:factory` names a function without arguments. It is called in the process that is to run the
model and returns another function, from a mapping of input names to arrays to an array or to a
mapping of output names to arrays. Paths in the factory's attribute `files` (beside the file, where
they are relative) are what the artifact is made of and count for its size; without them the file
itself does.

At rest it is a small JSON file that names the function, the files and the signature. Only `refer`
makes one, from what the user wrote: since it names code to be run, no such file is taken from the
command line or out of a bundle (`runs_code`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sartor.contracts import Arrays, Failed, Model, Part, Port, Signature, Target, WrongRequest
from sartor.references import load_function
from sartor.sessions import Entry

PART = "function"


class PythonFunction:
    """The runtime of functions. A model's payload is the path of the JSON file."""

    kind: ClassVar[str] = "callable"
    suffixes: ClassVar[tuple[str, ...]] = (".callable",)
    internal: ClassVar[bool] = True
    runs_code: ClassVar[bool] = True

    def refer(self, reference: str, signature: Signature, folder: Path) -> Model:
        """The model that `file.py:factory` makes, with the signature that it is to take the place
        of, written into `folder`. Raises WrongRequest where there is no such function, or a file
        that it names is missing."""
        place, _, name = reference.rpartition(":")
        if not place.endswith(".py"):
            raise WrongRequest(f"{reference}: write file.py:function")
        source = Path(place).absolute()
        named = getattr(load_function(reference), "files", (source.name,))
        files = [str((source.parent / each).absolute()) for each in named]
        for each in files:
            if not Path(each).is_file():
                raise WrongRequest(f"{reference} names {each} among its files: no such file")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{source.stem}.callable"
        facts = {
            "source": str(source), "function": name, "files": files,
            "signature": dataclasses.asdict(signature),
        }  # fmt: skip
        path.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return self.open(path)

    def open(self, path: Path, known: Signature | None = None) -> Model:
        return Model(self.kind, Path(path).absolute(), known or _signature(_facts(path)))

    def save(self, model: Model, folder: Path) -> Path:
        """The source, the files that it names and the JSON, side by side."""
        facts = _facts(model.payload)
        folder.mkdir(parents=True, exist_ok=True)
        for each in _content(facts):
            shutil.copyfile(each, folder / each.name)
        path = folder / Path(model.payload).name
        path.write_text(_portable(facts), encoding="utf-8")
        return path

    def digest(self, model: Model) -> str:
        facts = _facts(model.payload)
        found = hashlib.sha256(_portable(facts).encode())
        found.update(json.dumps(dict(model.settings), sort_keys=True).encode())
        for each in _content(facts):
            found.update(each.read_bytes())
        return found.hexdigest()

    def size(self, model: Model) -> int:
        facts = _facts(model.payload)
        return sum(each.stat().st_size for each in _content(facts)) + len(_portable(facts))

    def start(self, model: Model, target: Target) -> FunctionSession:
        return FunctionSession(model)

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """One: nothing is known of what is inside."""
        return (Part(PART, "Function", 0, 0, None),)

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        with self.start(model, target) as run:
            began = time.perf_counter()
            for batch in batches:
                run(batch)
            return {PART: (time.perf_counter() - began) / max(len(batches), 1)}

    def versions(self) -> Mapping[str, str]:
        return {"python": platform.python_version()}


class FunctionSession:
    """The function that the factory returned."""

    def __init__(self, model: Model) -> None:
        facts = _facts(model.payload)
        self.entry, self.outputs = Entry(model.signature.inputs), model.signature.outputs
        made = load_function(f"{facts['source']}:{facts['function']}")()
        if not callable(made):
            raise Failed(
                f"{facts['function']} returned a {type(made).__name__}; it must return a function "
                "from a mapping of arrays to an array or a mapping"
            )
        self.function: Callable[[dict[str, np.ndarray]], Any] = made

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Raises WrongRequest where names, dtypes or shapes do not fit, Failed where the function
        raises or its answers are not those of the signature."""
        self.entry.arrays(batch)
        try:
            found = self.function(dict(batch))
        except Exception as error:  # whatever the user's code raises, the sentence names it
            raise Failed(f"the function raised {type(error).__name__}: {error}") from error
        if not isinstance(found, Mapping):
            found = {self.outputs[0].name: found}
        names = [port.name for port in self.outputs if port.name in found]
        if not names:
            wanted = ", ".join(port.name for port in self.outputs)
            raise Failed(f"the function gave {', '.join(map(str, found))}; wanted: {wanted}")
        return {name: np.asarray(found[name]) for name in names}

    def __enter__(self) -> FunctionSession:
        return self

    def __exit__(self, *exc: object) -> None:
        del self.function


def _facts(path: Any) -> dict[str, Any]:
    """What the JSON names, its paths absolute."""
    path = Path(path).absolute()
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        source, files = facts["source"], facts["files"]
        _ = facts["function"], facts["signature"]["inputs"], facts["signature"]["outputs"]
        facts["source"] = str(path.parent / source)
        facts["files"] = [str(path.parent / each) for each in files]
    except (OSError, ValueError, KeyError, TypeError):
        raise WrongRequest(f"{path} is no function that Sartor referred to") from None
    return dict(facts)


def _content(facts: Mapping[str, Any]) -> list[Path]:
    return [Path(each) for each in dict.fromkeys([facts["source"], *facts["files"]])]


def _portable(facts: Mapping[str, Any]) -> str:
    """The JSON with file names alone: the same wherever the files lie."""
    names = [Path(each).name for each in facts["files"]]
    return json.dumps({**facts, "source": Path(facts["source"]).name, "files": names}, indent=1)


def _signature(facts: Mapping[str, Any]) -> Signature:
    return Signature(
        *(
            tuple(Port(p["name"], p["dtype"], tuple(p["shape"])) for p in facts["signature"][side])
            for side in ("inputs", "outputs")
        )
    )
