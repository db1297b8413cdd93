"""Finds techniques and runtimes by their files, without importing a framework to look.

A runtime is the file `runtimes/<kind>.py`; a technique is a class in the file
`techniques/<family>_<kind>.py`.
Third parties register a module under the entry points `sartor.runtimes` and `sartor.techniques`,
named likewise. A file is imported only when its kind is at hand; what it needs is read from its
imports, so that `missing` can say why one cannot be had.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from sartor.contracts import (
    Bench,
    Failed,
    Glimpse,
    Model,
    Recipe,
    Runtime,
    Signature,
    Technique,
    WrongRequest,
    check_settings,
    technique_name,
)
from sartor.importing import packages_of
from sartor.references import functions_in, is_reference, made_by

# What an extra brings that a plug-in of another kind may need, besides what "onnx" brings.
WITH_ONNX = frozenset({"onnx", "onnxruntime", "scipy"})
EXTRAS = {
    "torch": ("torch", "lightning_fabric", "safetensors"),
    "openvino": ("openvino", "nncf"),
    "tflite-convert": ("litert_torch", "ai_edge_litert", "flatbuffers", "torch"),
    "torchao": ("torchao",),
    "tensorflow": ("tensorflow", "google", "ai_edge_litert", "flatbuffers"),
    "executorch": ("executorch", "torchao", "torch"),
}
# Kinds for which an extra "run-KIND" brings the runtime alone: all that a bundle asks for.
RUN_ALONE = ("onnx", "openvino", "tflite", "torch")
_STATED = ("suffixes", "folders", "takes", "internal")


Look = Callable[[], Glimpse]


@dataclass(frozen=True)
class Plugin:
    """A plug-in file as it can be known without importing it."""

    group: str
    name: str
    module: str
    imports: tuple[str, ...]
    suffixes: tuple[str, ...]
    takes: tuple[str, ...] = ()
    internal: bool = False
    folders: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.name.rsplit("_", 1)[-1]

    @property
    def missing(self) -> tuple[str, ...]:
        """Top-level packages it imports that are not installed."""
        return tuple(each for each in self.imports if importlib.util.find_spec(each) is None)

    @property
    def extra(self) -> str:
        """The extra of this package that brings what is missing."""
        wanted = set(self.missing) - WITH_ONNX
        for name in (self.kind, *EXTRAS):
            if wanted and wanted <= set(EXTRAS.get(name, ())):
                return name
        return self.kind

    @property
    def remedy(self) -> str:
        """What to write to have what is missing."""
        alone = self.group == "runtimes" and self.kind in RUN_ALONE
        only = f" ('sartor[run-{self.kind}]' is enough to run and to verify a bundle)"
        return f"pip install 'sartor[{self.extra}]'{only if alone else ''}"

    def load(self) -> ModuleType:
        if self.missing:
            who = f"a model of kind {self.kind}" if self.group == "runtimes" else self.name
            raise WrongRequest(f"{who} needs {', '.join(self.missing)}: write {self.remedy}")
        return importlib.import_module(self.module)


def _read(group: str, name: str, module: str, path: Path) -> Plugin:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            constants.update(_constants(node))
    return Plugin(
        group, name, module, tuple(sorted({*packages_of(path), *_required(tree)})),
        constants.get("suffixes", ()), constants.get("takes", ()), constants.get("internal", False),
        constants.get("folders", ()),
    )  # fmt: skip


def _required(tree: ast.Module) -> Iterator[str]:
    """The packages in the file's constant `REQUIRES`, which it imports only where they are used,
    since that takes seconds."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "REQUIRES":
            yield from ast.literal_eval(node.value)


def _constants(node: ast.ClassDef) -> dict[str, Any]:
    """`suffixes`, `folders` (files by which a folder is known as a model), `takes` (packages whose
    live objects it takes) and `internal` (for tests only) as a class states them."""
    found = {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign):
            target: ast.expr = line.target
        elif isinstance(line, ast.Assign):
            target = line.targets[0]
        else:
            continue
        if isinstance(target, ast.Name) and target.id in _STATED and line.value:
            found[target.id] = ast.literal_eval(line.value)
    return found


@cache
def plugins(group: str) -> tuple[Plugin, ...]:
    """Every plug-in file of "runtimes" or "techniques", ours first, then the entry points'."""
    folder = Path(__file__).parent / group
    found = [
        _read(group, path.stem, f"sartor.{group}.{path.stem}", path)
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_")
    ]
    for point in entry_points(group=f"sartor.{group}"):
        spec = importlib.util.find_spec(point.module)
        if spec and spec.origin:
            found.append(_read(group, point.name, point.module, Path(spec.origin)))
    return tuple(found)


@cache
def runtime(kind: str) -> Runtime:
    """The runtime of a kind. Raises WrongRequest where there is none or a package is missing."""
    for plugin in plugins("runtimes"):
        if plugin.kind == kind:
            for _, cls in inspect.getmembers(plugin.load(), inspect.isclass):
                if getattr(cls, "kind", None) == kind and hasattr(cls, "start"):
                    return cast(Runtime, cls())
    known = ", ".join(plugin.kind for plugin in plugins("runtimes"))
    raise WrongRequest(f"no runtime for models of kind {kind!r}; there are: {known}")


def kind_of(path: Path) -> str:
    """The kind that opens files with this suffix, or a folder with such a file in it."""
    for plugin in plugins("runtimes"):
        if path.suffix.lower() in plugin.suffixes and not path.is_dir():
            return plugin.kind
        if any((path / name).is_file() for name in plugin.folders):
            return plugin.kind
    if path.is_dir():
        names = ", ".join(name for plugin in plugins("runtimes") for name in plugin.folders)
        raise WrongRequest(f"{path} is no folder of a model that is known here: it has no {names}")
    if not path.exists():
        raise WrongRequest(f"{path}: no such file or folder")
    if path.suffix == ".py":
        has = functions_in(path)
        told = f"{path}:{has[0]}" if len(has) == 1 else f"{path}:FUNCTION, one of {', '.join(has)}"
        raise WrongRequest(
            f"{path} is code: name the function in it that returns the model, as in "
            f"{told if has else f'{path}:make (there is none in it yet)'}"
        )
    known = ", ".join(
        suffix
        for plugin in plugins("runtimes")
        for suffix in plugin.suffixes
        if not plugin.internal
    )
    raise WrongRequest(
        f"{path}: the suffix {path.suffix!r} is no model format that is known here; known: {known}"
    )


def open_model(
    path: Path,
    folder: Path | None = None,
    look: Look | None = None,
    trust: bool = False,
    known: Signature | None = None,
) -> Model:
    """The model in a file, by its suffix, or in a folder, by what is in it. What others wrote in a
    form in which models do not lie here is brought into it in `folder`, where there is one. Where
    the signature is `known` the file need not be looked into."""
    engine = runtime(kind_of(path))
    if getattr(engine, "runs_code", False):
        raise WrongRequest(f"{path} names code to be run: write file.py:function")
    bring = getattr(engine, "bring", None)
    if bring is None or folder is None:
        return engine.open(path) if known is None else engine.open(path, known)
    return cast(Model, bring(path, folder, look, trust))


def adopt(
    given: Any,
    folder: Path,
    signature: Signature | None = None,
    *,
    look: Look | None = None,
    trust: bool = False,
    known: Signature | None = None,
) -> Model:
    """The model that a path or a live object stands for; what lives only in memory is stored in
    `folder` first. With a `signature`, `file.py:factory` may also return a function, which takes
    the place of a model with that signature. `look` gives a few rows of the data, for models that
    do not say what they take; with `trust` pickles are read; `known` is the signature of the model
    in a file that is known already. Raises WrongRequest where no runtime
    knows such an object."""
    if isinstance(given, Model):
        return given
    reference = given if isinstance(given, str) and is_reference(given) else ""
    if reference:
        given = _made(reference)
    if isinstance(given, (str, Path)):
        return open_model(Path(given), folder, look, trust, known)
    packages = _packages(given[0] if isinstance(given, tuple) and given else given)
    for plugin in plugins("runtimes"):
        if packages & set(plugin.takes):
            adopted = runtime(plugin.kind).adopt(given, folder, look, trust)  # type: ignore[attr-defined]
            return cast(Model, adopted)
    if reference and callable(given):
        if signature is None:
            raise WrongRequest(
                f"{reference} returns a function: it can only be compared, after a model whose "
                "inputs and outputs it has"
            )
        return runtime("callable").refer(reference, signature, folder)  # type: ignore[attr-defined, no-any-return]
    raise WrongRequest(
        f"no runtime takes a {type(given).__module__}.{type(given).__name__}: pass a file's path"
    )


def _packages(given: Any) -> set[str]:
    """The packages of an object's class and of all that it derives from: a model's class is the
    user's own as a rule, and its base the framework's."""
    return {cls.__module__.split(".")[0] for cls in type(given).__mro__}


def _made(reference: str) -> Any:
    """What the user's function makes; the path beside a model is looked for beside the function's
    file."""
    made = made_by(reference)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], (str, Path)):
        return made[0], Path(reference.rpartition(":")[0]).parent / made[1]
    return made


@cache
def techniques(kind: str) -> Mapping[str, type[Technique]]:
    """Name -> class of every technique that takes models of `kind` and is installed here."""
    found: dict[str, type[Technique]] = {}
    for plugin in plugins("techniques"):
        if plugin.kind != kind or plugin.missing:
            continue
        for _, cls in inspect.getmembers(plugin.load(), inspect.isclass):
            if (
                issubclass(cls, Technique)
                and not inspect.isabstract(cls)
                and cls.__module__ == plugin.module
                and kind in cls.kinds
            ):
                found[technique_name(cls)] = cls
    return found


def kinds(kind: str) -> tuple[str, ...]:
    """The kind, and those that its models can become by conversion."""
    found = [kind]
    for each in found:  # grows while it is gone through
        makes = (cls.makes for cls in techniques(each).values())
        found += dict.fromkeys(made for made in makes if made and made not in found)
    return tuple(found)


ALIASES = {"torchscript": "ts", "pytorch": "torch"}


def format_of(name: str) -> tuple[str, str]:
    """(kind, suffix) of what a target takes, by the name of a kind ("" for any of its files) or of
    its files ("pt2", "ts"). Raises WrongRequest with those that there are."""
    plain = ALIASES.get(name.lower(), name.lower()).lstrip(".")
    shown = [plugin for plugin in plugins("runtimes") if not plugin.internal]
    if plain in {plugin.kind for plugin in shown}:
        return plain, ""
    for plugin in shown:
        if f".{plain}" in plugin.suffixes:
            return plugin.kind, f".{plain}"
    known = sorted({plugin.kind for plugin in shown} | {"pt2", "pte", "torchscript"})
    near = difflib.get_close_matches(plain, known, 1, 0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise WrongRequest(f"--format {name}: {hint}write one of {', '.join(known)}")


def no_technique(name: str, kind: str, known: Iterable[str]) -> WrongRequest:
    """The error for a name that is none of the techniques `known` for models of `kind`."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1, 0.7)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    return WrongRequest(f"no technique {name!r} for {kind}; {hint}")


def reachable(kind: str) -> Mapping[str, type[Technique]]:
    """Name -> class of every technique that a recipe for models of `kind` may hold: its own, and
    behind a conversion those of the kind that it makes."""
    found: dict[str, type[Technique]] = {}
    for each in kinds(kind):
        found = {**techniques(each), **found}
    return found


def conversion(kind: str, name: str) -> Recipe:
    """What must come before the technique of this name on a model of `kind`: nothing as a rule,
    else the fewest conversions."""
    ways: dict[str, Recipe] = {kind: ()}
    waiting = [kind]
    for each in waiting:  # grows while it is gone through
        if name in techniques(each):
            return ways[each]
        for cls in techniques(each).values():
            if cls.makes and cls.makes not in ways:
                ways[cls.makes] = (*ways[each], cls())
                waiting.append(cls.makes)
    return ()


def portfolio(model: Model, bench: Bench) -> list[Recipe]:
    """Recipes known to be good for such a model on such a target, the best guess first: what the
    functions `portfolio(model, bench)` in the kind's technique files give, as lists of JSON."""
    known: list[Recipe] = []
    for plugin in plugins("techniques"):
        if plugin.kind == model.kind and not plugin.missing:
            give = getattr(plugin.load(), "portfolio", None)
            for entries in give(model, bench) if give else ():
                known.append(recipe(model.kind, entries))
    return known


def training_cost(model: Model, bench: Bench) -> tuple[float, int]:
    """Seconds of a training step of this model here, and its work an example, as
    the function of that name in its kind's technique files measures them. Raises Failed where
    nothing trains such a model."""
    for plugin in plugins("techniques"):
        if plugin.kind == model.kind and not plugin.missing:
            measure = getattr(plugin.load(), "training_cost", None)
            if measure is not None:
                return cast(tuple[float, int], measure(model, bench))
    raise Failed(f"nothing here trains models of kind {model.kind}")


def from_json(kind: str, entry: Mapping[str, Any]) -> Technique:
    """The technique that `contracts.to_json` wrote, or a hand-written one with some settings.

    Raises WrongRequest for an unknown name or setting or a value outside its domain."""
    settings = dict(entry)
    name = settings.pop("technique", None)
    known = techniques(kind)
    if name not in known:
        raise no_technique(name, kind, known)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        technique = known[name](**settings)
    except TypeError as error:
        raise WrongRequest(f"{name}: {error}") from None
    check_settings(technique)
    return technique


def recipe(kind: str, entries: Iterable[Mapping[str, Any]]) -> Recipe:
    """The recipe that a list of JSON techniques stands for, starting from a model of `kind`. Where
    one takes models of another kind, the conversion stands before it, be it written or not."""
    steps: list[Technique] = []
    for entry in entries:
        name = str(entry.get("technique"))
        if name not in techniques(kind) and name not in reachable(kind):
            raise no_technique(name, kind, reachable(kind))
        for each in conversion(kind, name):
            steps.append(each)
            kind = each.makes or kind
        steps.append(from_json(kind, entry))
        kind = steps[-1].makes or kind
    return tuple(steps)
