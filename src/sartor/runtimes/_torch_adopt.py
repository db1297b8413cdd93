"""What is taken in as a PyTorch model: modules in memory, other people's files, folders.

A module that was given is left as it is: a copy of it is exported, on the CPU, in eval mode.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor import torch_archive as archives
from sartor.contracts import Glimpse, WrongRequest
from sartor.keras_compiled import purpose
from sartor.libraries import NotInstalled, first_line, quiet
from sartor.runtimes._torch_export import exported
from sartor.runtimes._torch_live import Fed
from sartor.torch_graph import check, scripted
from sartor.torch_program import program
from sartor.torch_saving import PROGRAM, write_program
from sartor.torch_script import unsaid

ROWS = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)  # of which one is no other size of the inputs
_TEXT = "USO"

Look = Callable[[], Glimpse]


# -- what it is given ---------------------------------------------------------------------------


def fed(module: nn.Module, glimpse: Glimpse) -> list[Fed]:
    """The example inputs, from the data. Raises WrongRequest where they cannot be told apart."""
    if isinstance(module, torch.jit.ScriptModule):
        forward: Any = module.forward
        told = forward.schema.arguments[1:]
        names = [each.name for each in told]
        needed = [each.name for each in told if not each.has_default_value()]
        return _fed(module, matched(names, needed, glimpse))
    known = list(inspect.signature(module.forward).parameters.values())
    named = [p for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    needed = [p.name for p in named if p.default is p.empty]
    if not names and any(p.kind == p.VAR_POSITIONAL for p in known):
        names = needed = ["*"]
    return _fed(module, matched(names, needed, glimpse))


def _fed(module: nn.Module, found: Mapping[str, tuple[str, np.ndarray]]) -> list[Fed]:
    floats = [p.dtype for p in module.parameters() if p.is_floating_point()]
    wanted = floats[0] if floats else torch.float32
    return fed_rows(
        {key: (name, tensor(name, array, wanted)) for key, (name, array) in found.items()}
    )


def fed_rows(found: Mapping[str, tuple[str, Tensor]]) -> list[Fed]:
    """Of each parameter's array, its name and known rows, as many as an export is made with."""
    rows = _count([each for _, each in found.values()])
    return [
        Fed(parameter, name, more[torch.arange(rows) % len(more)], more)
        for parameter, (name, more) in found.items()
    ]


def matched(
    names: Sequence[str], needed: Sequence[str], glimpse: Glimpse
) -> dict[str, tuple[str, np.ndarray]]:
    """Parameter -> the name of its array in the data and rows of it: by name, else by place where
    the arrays have no names or there is but one."""
    found = {name: (name, glimpse.named[name]) for name in names if name in glimpse.named}
    missing = [name for name in needed if name not in found]
    if found and not missing:
        return found
    wanted = list(needed or names[:1])
    for rows in _in_order(glimpse):
        taken = names[: len(rows)]
        if rows and len(taken) == len(rows) and set(needed) <= set(taken):
            return {name: (name, each) for name, each in zip(taken, rows, strict=True)}
    wide = {name: each for name, each in glimpse.named.items() if each.ndim > 1}
    left = wide or dict(glimpse.named)
    if not found and len(wanted) == 1 == len(left):
        return {wanted[0]: next(iter(left.items()))}
    has = [f"{name} {each.dtype}{list(each.shape[1:])}" for name, each in glimpse.named.items()]
    has += [f"{each.dtype}{list(each.shape[1:])} without a name" for each in glimpse.unnamed]
    raise WrongRequest(
        f"the model takes {', '.join(wanted) or 'nothing'} and the data have "
        f"{', '.join(has) or 'no array'} (a row's shape): give the arrays the names of the model's "
        "inputs"
    )


def _in_order(glimpse: Glimpse) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays without names, the last of them a label or one more input."""
    yield glimpse.unnamed
    if glimpse.last is not None:
        yield (*glimpse.unnamed, glimpse.last)


def _count(arrays: Sequence[Tensor]) -> int:
    """How many rows to export with: a number that no other axis has, so that none is taken for
    the batch."""
    sizes = {size for each in arrays for size in each.shape[1:]}
    return next((rows for rows in ROWS if rows not in sizes), ROWS[0])


def tensor(name: str, array: np.ndarray, floats: torch.dtype) -> Tensor:
    """Its rows, whole numbers as int64, other numbers as `floats`. Raises WrongRequest for text."""
    if array.dtype.kind in _TEXT:
        raise WrongRequest(f"array {name} holds text, which a PyTorch model does not take")
    if not len(array):
        raise WrongRequest("the data are empty: there is not one row")
    rows = torch.from_numpy(np.array(array, order="C"))
    if array.dtype.kind == "f":
        return rows.to(floats)
    return rows if array.dtype in (np.bool_, np.uint8) else rows.long()


# -- the module ---------------------------------------------------------------------------------


def settled(module: nn.Module, weights: Path | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in eval mode on the CPU, with the weights of a file where one is named; remarks."""
    module = getattr(module, "_orig_mod", module)  # torch.compile wraps it
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        module = module.module
    _check_weights(module)
    try:
        with torch.no_grad():  # copies of TorchScript's weights would have a history
            made = copy.deepcopy(module, _histories(module)).cpu().eval()
    except Exception as error:  # whatever a module's own code raises
        raise WrongRequest(
            f"the {type(module).__name__} cannot be copied ({first_line(error)}): leave out what "
            "it keeps of earlier calls, or save it with torch.export.save"
        ) from None
    if weights is not None:
        _fill(made, weights)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    if any(each.dtype == torch.bfloat16 for each in made.parameters()):
        return made.float(), ("the model is in bfloat16, which the CPU is slow at: float32 is run",)
    return made, ()


def _check_weights(module: nn.Module) -> None:
    for name, each in module.named_parameters():
        if nn.parameter.is_lazy(each) or each.is_meta:
            raise WrongRequest(
                f"the {type(module).__name__} has no numbers in {name} yet: read its weights, or "
                "call it once, before it is passed on"
            )


def _histories(module: nn.Module) -> dict[int, Any]:
    """id -> a copy of what modules keep of earlier calls, which PyTorch does not copy: answers, and
    weights that are computed before each call (torch.nn.utils.weight_norm)."""
    kept = (each for part in module.modules() for each in vars(part).values())
    return {
        id(each): each.detach().clone()
        for each in kept
        if isinstance(each, Tensor) and not each.is_leaf
    }


def _fill(module: nn.Module, path: Path) -> None:
    """Reads weights without running anything: safetensors, or a pickle of tensors alone."""
    if not path.is_file():
        raise WrongRequest(f"{path}: no such file with weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise WrongRequest(f"{path} needs {error.name}: pip install 'sartor[torch]'") from None
    except Exception as error:  # unpickling and safetensors raise anything
        raise WrongRequest(
            f"{path} holds no weights that are safe to read: {first_line(error)}"
        ) from None
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[:3]]
        raise WrongRequest(f"{path} does not fit the model: {' '.join(lines)[:300]}") from None


# -- what comes in ------------------------------------------------------------------------------


def adopt(given: Any, folder: Path, look: Look | None) -> Path:
    """The file of what lives in memory: a module, a module with a file of weights, an exported
    program, TorchScript. Raises WrongRequest with a sentence."""
    if isinstance(given, torch.export.ExportedProgram):
        return write_program(given, folder, {}, ())
    if _of_keras(given):
        return _from_keras(given, folder, look, _keras().compiled(given))
    module, weights = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(module, nn.Module) or not isinstance(weights, (str, Path, type(None))):
        raise WrongRequest(
            f"{_named(given)} is no model: pass an nn.Module, the pair of one and a file of "
            "weights, or a program of torch.export.export"
        )
    if look is None:
        raise WrongRequest("a PyTorch module says nothing of its inputs: it is exported with data")
    module, remarks = settled(module, None if weights is None else Path(weights))
    return exported(module, fed(module, look()), folder, remarks)


def _named(given: Any) -> str:
    if not isinstance(given, tuple):
        return f"a {type(given).__name__}"
    return f"the tuple ({', '.join(type(each).__name__ for each in given)})"


def bring(path: Path, folder: Path, look: Look | None, trust: bool) -> Path:
    """A file that can be opened as it is, or one in `folder` made of it."""
    if path.is_dir():
        return _from_folder(path, folder, look)
    if path.suffix.lower() == ".keras":
        return _from_keras(_keras().read(path, trust), folder, look, _keras().compiled(path))
    if path.is_file() and path.stat().st_size and not _is_archive(path):
        return _unpickled(path, folder, look, trust)
    archive = archives.opened(path)
    if archive.sort == "script":
        return _from_script(archive, folder, look, trust)
    if archive.sort == "pickle":
        return _unpickled(path, folder, look, trust)
    try:
        return _from_program(archive, folder, look)
    except WrongRequest:
        if not trust:
            raise
    return adopt(_trusted(torch.export.load, path), folder, look)


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK" or path.suffix in (".pt2", ".ts")


def _trusted(read: Callable[..., Any], path: Path) -> Any:
    """What PyTorch makes of a file that its owner vouches for."""
    try:
        with quiet():
            return read(str(path))
    except Exception as error:  # unpickling raises anything
        raise WrongRequest(
            f"{path} cannot be read by PyTorch {torch.__version__}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from None


def _from_program(archive: archives.Archive, folder: Path, look: Look | None) -> Path:
    """The program as it is where Sartor wrote it, else a clean copy, its inputs named as the data
    name them."""
    found = program(archive)
    check(found, archive.path)
    if archives.facts(archive):
        return archive.path
    names = {}
    if look is not None:
        try:
            chosen = matched(found.inputs, found.inputs, look())
            names = {name: array for name, (array, _) in chosen.items()}
        except NotInstalled:
            raise
        except WrongRequest:
            pass  # `data` says which arrays are missing
    told = {"inputs": names, "outputs": [port.name for port in found.signature.outputs]}
    archives.write(folder / PROGRAM, archives.cleaned(archive, told))
    return folder / PROGRAM


def _from_script(archive: archives.Archive, folder: Path, look: Look | None, trust: bool) -> Path:
    """TorchScript with what the data tell of its inputs."""
    if archives.facts(archive).get("signature"):
        return archive.path
    if look is None:
        raise unsaid(archive.path)
    try:
        module = scripted(archive)
    except WrongRequest:
        if not trust:
            raise
        return adopt(_trusted(torch.jit.load, archive.path), folder, look)
    return exported(module, fed(module, look()), folder, ())


def _unpickled(path: Path, folder: Path, look: Look | None, trust: bool) -> Path:
    if _only_weights(path):
        raise WrongRequest(
            f"{path} holds weights and no model: write a function that returns the module and this "
            "file, and pass file.py:function"
        )
    if not trust:
        raise WrongRequest(
            f"{path}: a pickle can run any code when it is read; save the model with "
            "torch.export.save, or add --trust if you made it yourself"
        )
    found = _trusted(lambda place: torch.load(place, map_location="cpu", weights_only=False), path)
    return adopt(found, folder, look)


def _only_weights(path: Path) -> bool:
    """Read without running anything: whether there are but tensors, numbers and texts in it."""
    try:
        with quiet():
            torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # a module, or what its reader raises of damaged files
        return False
    return True


def _from_folder(path: Path, folder: Path, look: Look | None) -> Path:
    try:
        from sartor.runtimes import _torch_folder
    except ModuleNotFoundError as error:
        raise WrongRequest(
            f"{path}: a folder of Hugging Face's needs {error.name}; write: pip install "
            f"{error.name}"
        ) from None
    return adopt(_torch_folder.model(path), folder, look)


def _of_keras(given: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "keras" for cls in type(given).__mro__)


def _keras() -> ModuleType:
    try:
        from sartor.runtimes import _torch_keras
    except ModuleNotFoundError as error:
        raise WrongRequest(
            f"a Keras model needs {error.name}; write: pip install 'sartor[keras]'"
        ) from None
    return _torch_keras


def _from_keras(model: Any, folder: Path, look: Look | None, compiled: Any) -> Path:
    if look is None:
        raise WrongRequest("a Keras model is compared with its export on rows: it needs data")
    seen = look()
    with quiet(), _keras().on_cpu():  # Keras' own code warns of itself
        module, inputs = _keras().taken(model, seen)
        with _keras().unrolled(model):
            made = exported(module, inputs, folder)
        _keras().compare(model, made, inputs)
    if told := purpose(compiled):
        archives.tell(made, purpose=told)
    return made
