"""What the runtimes do alike: arrays held against a signature, settings against their domains,
files copied. Loaded wherever a bundle runs: numpy alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Arrays, Port, WrongRequest
from sartor.space import Choice

AT_LEAST_ONE = "a whole number from 1"


class Entry:
    """What a session takes. A check costs about a microsecond: it is part of every timed call."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self.ports = tuple(ports)
        self._wanted = [
            (
                port.name,
                None if port.dtype == "str" else np.dtype(port.dtype),
                len(port.shape),
                [(axis, size) for axis, size in enumerate(port.shape) if size is not None],
            )
            for port in ports
        ]

    def arrays(self, batch: Arrays) -> list[np.ndarray]:
        """The batch in the order of the ports. Raises WrongRequest where names, types or shapes
        are not those of the signature."""
        if len(batch) != len(self._wanted):
            raise self._refusal(batch)
        found = []
        for name, dtype, rank, fixed in self._wanted:
            array = batch.get(name)
            if array is None or array.ndim != rank:
                raise self._refusal(batch)
            if array.dtype != dtype if dtype is not None else array.dtype.kind not in "UO":
                raise self._refusal(batch)
            for axis, size in fixed:
                if array.shape[axis] != size:
                    raise self._refusal(batch)
            found.append(array)
        return found

    def _refusal(self, batch: Arrays) -> WrongRequest:
        wanted = ", ".join(f"{p.name} {p.dtype}{_shape(p.shape)}" for p in self.ports)
        got = ", ".join(
            f"{name} {np.asarray(a).dtype}{_shape(np.shape(a))}" for name, a in batch.items()
        )
        return WrongRequest(f"the model takes {wanted}; it was given {got or 'nothing'}")


def _shape(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def check_session(
    settings: Mapping[str, Any], known: Mapping[str, tuple[Any, ...] | str], models: str
) -> None:
    """Raises WrongRequest for a setting that is unknown or out of its domain, which is AT_LEAST_ONE
    or the values that it may have. `models`: whose settings they are, in words."""
    for name, value in settings.items():
        if name not in known:
            raise WrongRequest(
                f"no setting {name!r} for {models} models; there are: {', '.join(known)}"
            )
        domain = known[name]
        if isinstance(domain, str):
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        else:
            fits = value in Choice(domain)
        if not fits:
            choices = _in_words(domain)
            raise WrongRequest(f"the setting {name} cannot be {value!r}; write {choices}")


def _in_words(domain: tuple[Any, ...] | str) -> str:
    if isinstance(domain, str):
        return domain
    return "true or false" if set(domain) == {True, False} else ", ".join(map(repr, domain))


def copy_files(path: Path, names: Sequence[str], folder: Path) -> Path:
    """Copies the files of these names, which lie beside `path`, into `folder`; those that lie there
    already stay. Returns where the file at `path` is then."""
    for name in names:
        made = folder / name
        made.parent.mkdir(parents=True, exist_ok=True)
        if not (made.exists() and made.samefile(path.parent / name)):
            shutil.copyfile(path.parent / name, made)
    return folder / path.name
