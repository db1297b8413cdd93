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
import re
from collections.abc import Iterator
from pathlib import Path

from sartor.contracts import WrongRequest
from sartor.torch_archive import Archive

_TOUCHES_FILES = frozenset({"save", "from_file"})
_SPACES = frozenset({"aten", "prim"})
_ROOTS = frozenset({"torch", "ops", "__torch__"})
_HOOKS = frozenset({"__setstate__", "__getstate__"})
# An object whose own C++ reads it; a pickle may part its name by a line's end.
_NATIVE = re.compile(rb"torch[.\n]classes")
_READ = re.compile(
    r"version|byteorder|\.data/version|\.format_version|\.storage_alignment"
    r"|(constants|data)(\.pkl|/\d+)|code/.+\.py"
)


def read_members(archive: Archive) -> dict[str, bytes]:
    """All that PyTorch needs of the archive, and nothing that `check_script` has not seen: not the
    rows with which it was traced, nor the places in its author's files."""
    return {name: archive.read(name) for name in archive.entries if _READ.fullmatch(name)}


def check_script(archive: Archive) -> None:
    """Raises WrongRequest, one sentence, for what could do more than compute. That holds for
    `read_members` alone: PyTorch finds members by other rules than ours (CODE/X.PY, too)."""
    if archive.sort != "script":
        raise WrongRequest(f"{archive.path} is no TorchScript file: save it with torch.jit.save")
    codes = [name for name in archive.entries if name.startswith("code/") and name.endswith(".py")]
    if not codes:
        raise WrongRequest(f"{archive.path} is damaged: there is no code in it; save it again")
    for name in archive.entries:
        if name.endswith(".pkl") and _NATIVE.search(archive.read(name)):
            raise _refused(archive, _NATIVELY)
    for name in codes:
        data = archive.read(name)
        try:  # a text: of bytes, Python would take the coding that their first line names
            reason = next(_against(_Spelled().visit(ast.parse(data.decode()))), None)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = f"its code cannot be looked through ({error})"
        if reason is not None:
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


_NATIVELY = "it holds an object of a C++ class, which reads itself"


class _Spelled(ast.NodeTransformer):
    """getattr(x, "name") is x.name."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 2:
            value, name = node.args
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                return ast.Attribute(value, name.value, ast.Load())
        return node


def _against(tree: ast.AST) -> Iterator[str]:
    """What the code names that does more than compute."""
    nodes = list(ast.walk(tree))
    within = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    entered = _entered(nodes, within)
    for node in nodes:
        if isinstance(node, ast.Attribute):
            yield from _against_attribute(node, id(node) in within, id(node) in entered)
        elif isinstance(node, ast.Name):
            if node.id in _ROOTS and id(node) not in within:
                yield f"it hands {node.id!r} on as a value"
            if node.id == "getattr":
                yield "it reaches an operator through a text"
            if node.id.startswith("rpc_"):
                yield "it calls other machines"
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in _HOOKS:
            yield f"{node.name} runs as soon as it is read"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield "its code imports"


def _entered(nodes: list[ast.AST], within: set[int]) -> set[int]:
    """Attributes of which nothing is done but to name what is in them: submodules, be they called
    as they like."""
    handed = {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in within and _read(n)}
    found = set(within)
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id not in handed:
                found.add(id(node.value))
    return found


def _read(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def _against_attribute(node: ast.Attribute, within: bool, entered: bool) -> Iterator[str]:
    """`within`: an attribute of it is named."""
    if node.attr in _TOUCHES_FILES and not entered:
        yield f"it calls {node.attr}, which touches files"
    if _is(node.value, "ops") and node.attr not in _SPACES:
        yield f"it calls operators of {node.attr!r}, which are none of those that are known"
    if _is_torch(node) and not within:
        yield "it hands '__torch__.torch' on as a value"
    if node.attr == "classes" and _is_torch(node.value):
        yield _NATIVELY
    if node.attr.startswith("rpc_"):
        yield "it calls other machines"


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_torch(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "torch" and _is(node.value, "__torch__")
