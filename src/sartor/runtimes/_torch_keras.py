"""Keras models, which are PyTorch's where Keras computes by PyTorch: a `.keras` file read, a model
in memory as a module that exports.

Keras is imported here alone. It is given nothing of a stranger's file but what `keras_archive` and
`_check_weights` looked through, and it makes no folder in the user's home.
"""

from __future__ import annotations

import inspect
import io
import json
import keyword
import math
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from sartor.contracts import Glimpse, WrongRequest
from sartor.keras_archive import CONFIG, SAVED, WEIGHTS, compile_config, members
from sartor.libraries import first_line, quiet
from sartor.nearness import gap, spread
from sartor.runtimes._torch_adopt import fed_rows, matched, tensor
from sartor.runtimes._torch_live import Fed, outputs
from sartor.torch_graph import load

NEAR = 1e-4  # of the answers' spread
SPARE = 1_000_000  # bytes that a model may take beyond its file: states that are not stored


@contextmanager
def _by_pytorch() -> Iterator[None]:
    """Around the import of Keras, which reads both once. Who imported it before has chosen."""
    asked = os.environ.get("KERAS_BACKEND", "torch")
    if "keras" not in sys.modules and asked != "torch":
        raise WrongRequest(
            f"KERAS_BACKEND is {asked!r}, and Keras models run by PyTorch here: write "
            "KERAS_BACKEND=torch"
        )
    told = {"KERAS_BACKEND": "torch", "KERAS_HOME": f"{os.devnull}/keras"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


with _by_pytorch():
    import keras


# -- a file -------------------------------------------------------------------------------------


def read(path: Path, trust: bool) -> Any:
    """The model in a `.keras` file. With `trust` code in it is run. Raises WrongRequest."""
    _check_backend()
    if trust:
        return _loaded(path, path, trust)
    known = members(path)
    held = _check_weights(path, known[WEIGHTS])
    _check_room(path, known[CONFIG], held)
    with tempfile.TemporaryDirectory() as place:
        seen = Path(place) / "seen.keras"  # Keras is given what was looked through alone
        with zipfile.ZipFile(seen, "w", zipfile.ZIP_STORED) as file:
            for name, data in known.items():
                file.writestr(name, data)
        return _loaded(path, seen, trust)


def on_cpu() -> Any:
    """A context in which Keras computes on the CPU, where it would take a GPU that is there."""
    return keras.device("cpu")


def _check_backend() -> None:
    found = keras.backend.backend()
    if found != "torch":
        raise WrongRequest(
            f"Keras was imported to compute by {found}, and Keras models run by PyTorch here: set "
            "the environment variable KERAS_BACKEND=torch before `import keras`, or save the model "
            "and pass the .keras file to the command `sartor`"
        )


def _loaded(path: Path, seen: Path, trust: bool) -> Any:
    try:
        with quiet(), warnings.catch_warnings(record=True) as told, on_cpu():
            warnings.simplefilter("always")
            found = keras.saving.load_model(seen, compile=False, safe_mode=not trust)
    except Exception as error:  # whatever its many classes raise
        raise WrongRequest(
            f"{path} cannot be read by Keras {keras.__version__}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from None
    _check_model(path, found)
    if any("freshly-initialized" in str(each.message) for each in told):
        raise WrongRequest(
            f"{path} has no weights for some of its layers, which would be random numbers: save it "
            f"again with {SAVED} of a newer Keras"
        )
    return found


def _check_model(path: Path, found: Any) -> None:
    if not isinstance(found, keras.Model):
        raise WrongRequest(f"{path} holds a {type(found).__name__}, which is no model")


def _check_weights(path: Path, data: bytes) -> int:
    """The bytes of all arrays. Raises WrongRequest where the file reaches beyond itself, or holds
    more than its size."""
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return _held(path, file, len(data))
    except WrongRequest:
        raise
    except Exception as error:  # OSError, RuntimeError, KeyError: whatever a damaged file causes
        raise WrongRequest(f"{path} is damaged ({WEIGHTS}: {first_line(error)})") from None


def _held(path: Path, file: Any, most: int) -> int:
    waiting, total = [file], 0
    seen: set[int] = set()
    while waiting:
        group = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            raise WrongRequest(f"{path} was not written by Keras: {WEIGHTS} goes round in circles")
        seen.add(address)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise WrongRequest(
                    f"{path}: {WEIGHTS} refers to another place ({first_line(ValueError(name))}), "
                    f"which Keras does not write: save the model again with {SAVED}"
                )
            each = group[name]
            if isinstance(each, h5py.Group):
                waiting.append(each)
                continue
            plain = isinstance(each, h5py.Dataset) and each.dtype.kind in "fiubV"
            if not plain or each.external or each.is_virtual:
                raise WrongRequest(f"{path}: {WEIGHTS} holds what is no plain array of numbers")
            total += each.nbytes
            if total > most:
                raise WrongRequest(
                    f"{path}: {WEIGHTS} says that it holds more than its own size: save the model "
                    f"again with {SAVED}"
                )
    return total


def _check_room(path: Path, config: bytes, held: int) -> None:
    """Raises WrongRequest where the layers want more memory than there are weights, before they
    take it."""
    try:
        with quiet(), keras.device("meta"):  # sizes without numbers
            made = keras.saving.deserialize_keras_object(json.loads(config), safe_mode=True)
        _check_model(path, made)
        wanted = sum(math.prod(each.shape) * each.value.element_size() for each in made.variables)
    except WrongRequest:
        raise
    except Exception as error:  # whatever its many classes raise
        raise WrongRequest(
            f"{path} cannot be read by Keras {keras.__version__}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from None
    if wanted > held + SPARE:
        raise WrongRequest(
            f"{path} describes a model of {wanted / 1e6:.0f} MB and holds weights of "
            f"{held / 1e6:.0f} MB: save it again with {SAVED}"
        )


# -- a model in memory --------------------------------------------------------------------------


class KerasModel(nn.Module):
    """Calls a Keras model with weights of its own, which stand under the paths that Keras gives
    them: what is exported finds them there, where Keras hides them in its variables."""

    def __init__(self, model: Any, parameters: Sequence[str]) -> None:
        super().__init__()
        self._model = (model,)  # which is a module too, and is to be none of this one
        self._held: list[tuple[Any, nn.Module, str]] = []
        for variable in model.variables:
            if variable.value.is_floating_point():
                self._plant(variable)

        def forward(*given: Tensor, **named: Tensor) -> Any:
            return self._answer([*given, *(named[each] for each in parameters[len(given) :])])

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(each, kind) for each in parameters])
        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward

    def _plant(self, variable: Any) -> None:
        *folders, last = variable.path.replace(".", "_").split("/")
        home: nn.Module = self
        for each in folders:
            if not isinstance(getattr(home, each, None), nn.Module):
                home.add_module(_free(home, each), nn.Module())
                each = list(home._modules)[-1]
            home = home.get_submodule(each)
        name = _free(home, last)
        home.register_parameter(name, nn.Parameter(variable.value.detach(), requires_grad=False))
        self._held.append((variable, home, name))

    def _answer(self, tensors: list[Tensor]) -> Any:
        state = [(variable, getattr(home, name)) for variable, home, name in self._held]
        with keras.StatelessScope(state_mapping=state, initialize_variables=False):
            return _named(self._model[0], _called(self._model[0], tensors))


def _free(home: nn.Module, name: str) -> str:
    """A name that nothing else in the module bears."""
    while hasattr(home, name):
        name += "_"
    return name


def compiled(given: Any) -> Any:
    """How a model in memory, or in a file, was compiled, as Keras writes it; None where it was
    not, or where that is no data."""
    try:
        if isinstance(given, Path):
            return compile_config(given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that code is no data
            return given.get_compile_config() if getattr(given, "compiled", False) else None
    except Exception:  # whatever losses of the user's own raise
        return None


def taken(model: Any, glimpse: Glimpse) -> tuple[nn.Module, list[Fed]]:
    """The model as a module that exports, and what the data give it. Raises WrongRequest."""
    _check_backend()
    if not isinstance(model, keras.Model):
        raise WrongRequest(
            f"a {type(model).__name__} is no Keras model: wrap it, keras.Sequential([layer])"
        )
    if not model.built or not model.variables:
        raise WrongRequest(
            f"the Keras model {model.name!r} has no weights yet: call it once on some rows, or "
            "read its weights, before it is passed on"
        )
    if any(each.value.device.type != "cpu" for each in model.variables):
        raise WrongRequest(
            f"the Keras model {model.name!r} lies on a GPU: save it and pass the .keras file"
        )
    inputs = _fed(model, glimpse)
    return KerasModel(model, [each.parameter for each in inputs]), inputs


def _fed(model: Any, glimpse: Glimpse) -> list[Fed]:
    """Arrays go to inputs by their names, as the types that the model names; for a model that
    names none, to the parameters of its `call`."""
    ports = getattr(model, "inputs", None)
    if not ports:
        known = inspect.signature(model.call).parameters.values()
        named = [p for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        named = [p for p in named if p.name not in ("training", "mask")]
        needed = [p.name for p in named if p.default is p.empty]
        found = matched([p.name for p in named], needed, glimpse)
        return fed_rows({key: (e[0], tensor(*e, torch.float32)) for key, e in found.items()})
    names = [each.name for each in ports]
    found = matched(names, names, glimpse)
    given = {}
    for at, port in enumerate(ports):
        name, array = found[port.name]
        rows = tensor(name, array, torch.float32).to(_type(port))
        flat = len(port.shape) == rows.ndim + 1 and port.shape[-1] == 1
        plain = port.name.isidentifier() and not keyword.iskeyword(port.name)
        given[port.name if plain else f"input_{at}"] = (name, rows[..., None] if flat else rows)
    return fed_rows(given)


def _type(port: Any) -> torch.dtype:
    found = getattr(torch, str(port.dtype), None)
    if not isinstance(found, torch.dtype):
        raise WrongRequest(
            f"the model's input {port.name!r} takes {port.dtype}: leave what reads it out of the "
            "model, and give the numbers that it makes as data"
        )
    return found


@contextmanager
def unrolled(model: Any) -> Iterator[None]:
    """Recurrent layers under a mask take their steps one by one for a while: Keras' loop for them
    goes through the rows of a batch, and exports for as many rows as there were alone."""
    parts = list(model._flatten_layers())
    masked = any(
        getattr(e, "mask_zero", False) or isinstance(e, keras.layers.Masking) for e in parts
    )
    looped = [e for e in parts if isinstance(e, keras.layers.RNN) and not e.unroll]
    changed = [each for each in looped if masked and not each.go_backwards]
    for each in changed:
        each.unroll = True
    try:
        yield
    finally:
        for each in changed:
            each.unroll = False


def _called(model: Any, given: Sequence[Any]) -> Any:
    """What the model gives, as at inference."""
    keywords = {"training": False} if _trains(model) else {}
    return model(*_arguments(model, given), **keywords)


def _trains(model: Any) -> bool:
    return "training" in inspect.signature(model.call).parameters


def _arguments(model: Any, given: Sequence[Any]) -> list[Any]:
    """The inputs in the structure that a functional model has been built with; else in order."""
    if isinstance(model, keras.Sequential) or not getattr(model, "inputs", None):
        return list(given)
    return [keras.tree.pack_sequence_as(model.input, list(given))]


def _named(model: Any, found: Any) -> Any:
    """Several outputs by the names of their layers, where those differ."""
    names = getattr(model, "output_names", None) or []
    if isinstance(found, (list, tuple)) and len(set(names)) == len(names) == len(found):
        return dict(zip(names, found, strict=True))
    return found


def compare(model: Any, file: Path, inputs: Sequence[Fed]) -> None:
    """Raises WrongRequest where the file answers otherwise than Keras' own `predict` on the rows
    that are known."""
    if len(inputs) > 1 and not getattr(model, "inputs", None):
        return  # `predict` takes but one argument; `exported` compared with the call
    rows = min(len(each.more) for each in inputs)
    arrays = [each.more[:rows].numpy() for each in inputs]
    predicted = model.predict_on_batch(_arguments(model, arrays)[0])
    predicted = keras.tree.map_structure(torch.from_numpy, predicted)
    with torch.inference_mode():
        called = _called(model, [torch.from_numpy(each[:1]) for each in arrays])
    right = {name: each.numpy() for name, each in outputs(_named(model, predicted))}
    names = [name for name, _ in outputs(_named(model, called))]
    got = [np.concatenate(each) for each in zip(*_answers(load(file), arrays), strict=True)]
    for name, found in zip(names, got, strict=True):
        off = gap(found, right[name]) / spread([right[name]])
        if not off <= NEAR:
            raise WrongRequest(
                f"the model answers otherwise as PyTorch's graph than Keras' predict does, by "
                f"{off:.1e} of its spread in {name}: export it to ONNX yourself with "
                "model.export('model.onnx', format='onnx')"
            )


def _answers(made: nn.Module, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Of all rows at once, else one by one: some exports take one row alone."""
    tensors = [torch.from_numpy(np.array(each)) for each in arrays]
    with torch.inference_mode():
        try:
            return [[each.numpy() for each in made(*tensors)]]
        except Exception:  # RuntimeError, ValueError: sizes that are not those of the export
            rows = range(len(arrays[0]))
            return [
                [e.numpy() for e in made(*(each[at : at + 1] for each in tensors))] for at in rows
            ]
