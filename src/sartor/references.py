"""Code of the user's by name: `file.py:function` or `package.module:function`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sartor.contracts import WrongRequest

PATTERN = re.compile(r"(?P<place>.+):(?P<name>[A-Za-z_]\w*)")


def is_reference(text: str) -> bool:
    return PATTERN.fullmatch(text) is not None


def load_function(reference: str) -> Callable[..., Any]:
    """The function (or class) that the reference names.

    Raises WrongRequest where the file, the module or the function is missing or fails to load."""
    found = PATTERN.fullmatch(reference)
    if not found:
        raise WrongRequest(f"{reference}: write file.py:function or package.module:function")
    place, name = found["place"], found["name"]
    try:
        module = _module(place, reference)
    except WrongRequest:
        raise
    except Exception as error:  # whatever the user's code raises, the sentence names it
        raise WrongRequest(f"{place} cannot be loaded: {_said(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        mine = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        has = f"it has: {', '.join(mine)}" if mine else "it has none"
        raise WrongRequest(f"{place} has no function {name!r}; {has}")
    return function  # type: ignore[no-any-return]


def functions_in(path: Path) -> list[str]:
    """The names of the functions and classes at the top of a file of Python, which is not run."""
    try:
        found = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [each.name for each in found if isinstance(each, kinds) and each.name[0] != "_"]


def made_by(reference: str) -> Any:
    """What the function returns that the reference names. Raises WrongRequest where it cannot be
    loaded, needs arguments or fails."""
    function = load_function(reference)
    needed = _needed(function)
    if needed:
        raise WrongRequest(
            f"{reference} needs {', '.join(needed)} and is called without arguments: write a "
            "function without any that calls it"
        )
    try:
        return function()
    except WrongRequest:
        raise
    except Exception as error:  # whatever the user's code raises, the sentence names it
        raise WrongRequest(f"{reference} failed: {_said(error)}") from error


def _needed(function: Callable[..., Any]) -> list[str]:
    """The parameters without which it cannot be called."""
    try:
        known = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is written in C
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in known if p.default is p.empty and p.kind not in several]


def _said(error: Exception) -> str:
    """What kind of error it is and what it says, on one line and not a page of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def reference_to(function: Callable[..., Any]) -> str:
    """The reference by which another process finds a function. Raises TypeError where there is
    none: for what a script, a notebook or another function holds."""
    name, module = getattr(function, "__qualname__", "<"), getattr(function, "__module__", None)
    file = inspect.getsourcefile(function) if inspect.isfunction(function) else None
    if file is None or module == "__main__" or not name.isidentifier():
        raise TypeError("file.py:function, or a function at the top level of a file of its own")
    return f"{Path(file).resolve()}:{name}"


def digest(reference: str) -> str:
    """A hex digest of the file that holds the function, and of its name. The reference must be one
    that `load_function` takes."""
    found = PATTERN.fullmatch(reference)
    place, name = (found["place"], found["name"]) if found else (reference, "")
    if place.endswith(".py"):
        file: str | None = place
    else:
        spec = importlib.util.find_spec(place)
        file = spec.origin if spec is not None else None
    text = Path(file).read_bytes() if file and Path(file).is_file() else place.encode()
    return hashlib.blake2b(name.encode() + b"\0" + text, digest_size=16).hexdigest()


def _module(place: str, reference: str) -> ModuleType:
    """Loaded as Python would load it: what lies beside the file, or in the working folder, can be
    imported, now and when the function is called."""
    if not place.endswith(".py"):
        _reach(Path.cwd())
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise WrongRequest(
                f"{reference}: {error}; write file.py:function or package.module:function"
            ) from None
    path = Path(place)
    if not path.is_file():
        raise WrongRequest(f"{place}: no such file")
    name = f"sartor_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise WrongRequest(f"{place} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    _reach(path.absolute().parent)
    sys.modules[name] = module  # where data classes look for the types that they name
    spec.loader.exec_module(module)
    return module


def _reach(folder: Path) -> None:
    """Behind all other folders: nothing that is installed is hidden by a file of the user's."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
