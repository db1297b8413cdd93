"""Whether a TorchScript archive may be read: its code is compiled by PyTorch, and can do more than
compute.

TorchScript is no Python: it knows PyTorch's operators and nothing else. Of those a few write or
read files (`save`, `from_file`) or talk to other machines (operators outside `aten` and `prim`),
classes written in C++ have loaders of their own, and `__setstate__` runs as soon as a file is read.
The code is Python by its grammar: it is parsed here, never run, and refused where it names any of
these. What is left can compute wrongly, or for ever, as any model can.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sartor.contracts import WrongRequest
from sartor.torch_archive import Archive

_TOUCHES_FILES = frozenset({"save", "from_file", "load"})
_SPACES = frozenset({"aten", "prim"})
_ROOTS = frozenset({"torch", "ops"})
_HOOKS = frozenset({"__setstate__", "__getstate__"})
_BY_NAME = frozenset({"getattr", "setattr", "hasattr"})
_NATIVE = b"torch.classes"  # of objects whose own C++ reads them


def check_script(archive: Archive) -> None:
    """Raises WrongRequest, one sentence, for what could do more than compute."""
    if archive.sort != "script":
        raise WrongRequest(f"{archive.path} is no TorchScript file: save it with torch.jit.save")
    codes = [name for name in archive.entries if name.startswith("code/") and name.endswith(".py")]
    if not codes:
        raise WrongRequest(f"{archive.path} is damaged: there is no code in it; save it again")
    for name in archive.entries:
        if name.endswith((".pkl", ".py")) and _NATIVE in archive.read(name):
            raise _refused(archive, "it holds an object of a C++ class, which reads itself")
    for name in codes:
        try:
            tree = ast.parse(archive.read(name))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _refused(archive, f"its code cannot be looked through ({error})") from None
        for reason in _against(tree):
            raise _refused(archive, reason)


def unsaid(path: Path) -> WrongRequest:
    """TorchScript, as PyTorch writes it, knows neither sizes nor types of what it takes."""
    return WrongRequest(
        f"{path} is TorchScript, which does not say what it takes: it can be taken in with data "
        "alone (sartor optimize MODEL --data DATA)"
    )


def _refused(archive: Archive, reason: str) -> WrongRequest:
    return WrongRequest(
        f"{archive.path} is not read: {reason}; add --trust if you made it yourself"
    )


def _against(tree: ast.AST) -> Iterator[str]:
    """What the code names that does more than compute."""
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name):
                roots.add(node.value)
            yield from _against_attribute(node)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in _HOOKS:
            yield f"{node.name} runs as soon as it is read"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield "its code imports"
        elif isinstance(node, ast.Call) and _asks_by_name(node):
            yield "it reaches an operator through a text"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _ROOTS and node not in roots:
            yield f"it hands {node.id!r} on as a value"


def _against_attribute(node: ast.Attribute) -> Iterator[str]:
    if node.attr in _TOUCHES_FILES:
        yield f"it calls {node.attr}, which touches files"
    of_operators = isinstance(node.value, ast.Name) and node.value.id == "ops"
    if of_operators and node.attr not in _SPACES:
        yield f"it calls operators of {node.attr!r}, which are none of PyTorch's own"
    if node.attr.startswith("rpc_"):
        yield "it calls other machines"


def _asks_by_name(node: ast.Call) -> bool:
    by_name = isinstance(node.func, ast.Name) and node.func.id in _BY_NAME
    return by_name and any(isinstance(each, ast.Name) and each.id in _ROOTS for each in node.args)
