"""PyTorch models at rest as modules that run: programs call by call, TorchScript by PyTorch itself.

As a module a program can be traced and exported again. Which operators it may call stands in
`torch_operators`: a file can neither name other code nor have any evaluated.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sartor.contracts import WrongRequest
from sartor.libraries import first_line, quiet
from sartor.torch_archive import Archive, facts, opened, write
from sartor.torch_operators import only_checks, own, resolved
from sartor.torch_program import WIDTHS, Block, Call, Program, Ref, Stored, program
from sartor.torch_script import check_script, read_members


def load(path: Path, fused: bool = False) -> nn.Module:
    """The model in a `.pt2` or TorchScript file, whose weights need no gradient, ready to be called
    with tensors in the order of its inputs; it gives a tuple of tensors. `fused`: frozen
    TorchScript, whose weights are constants, is rewritten for speed. Raises WrongRequest for a
    file that is no model or is not safe to run."""
    archive = opened(path)
    if archive.sort == "script":
        told = facts(archive).get("parameters")
        module = scripted(archive)
        names = told if isinstance(told, list) and told else ["*"]
        return Script(for_inference(module) if fused else module, names)
    if fused:
        raise WrongRequest(f"{path} is no TorchScript: write no 'fused' for it")
    return Graph(archive, program(archive))


def for_inference(frozen: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Frozen TorchScript with its weights laid out for this processor's kernels, and neighbours
    fused. What comes of it cannot be written to a file: it is made where it runs."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.optimize_for_inference(frozen)


def check(given: Program, path: Path) -> None:
    """Raises WrongRequest where the program calls what is not known to be safe, or learns."""
    _Steps(given.block, path)
    if any(_learns(call) for call in _all_calls(given.block)):
        raise WrongRequest(
            f"{path} was exported in training mode, in which a row is answered otherwise from call "
            "to call: write module.eval() before torch.export.export"
        )


def scripted(archive: Archive) -> torch.jit.ScriptModule:
    """The TorchScript module, in eval mode, after its code was looked through."""
    check_script(archive)
    try:
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is no longer the way to go
            seen = Path(place) / "seen.ts"  # PyTorch is given what was looked through alone
            write(seen, read_members(archive))
            module: Any = torch.jit.load(str(seen), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # RuntimeError and whatever its reader raises
        raise WrongRequest(
            f"{archive.path} cannot be read by PyTorch {torch.__version__}: {first_line(error)}"
        ) from None
    if hasattr(module, "training"):  # else it is frozen
        module.eval()
    for weight in module.parameters():
        weight.requires_grad_(False)
    return module  # type: ignore[no-any-return]


@contextmanager
def silent() -> Iterator[None]:
    """As `quiet`; and PyTorch's random state stays as it is."""
    before = torch.random.get_rng_state()
    try:
        with quiet():
            yield
    finally:
        torch.random.set_rng_state(before)


class Script(nn.Module):
    """TorchScript, called by position. `parameters` are those of its own `forward`, in the order of
    the inputs; "*" alone where it names none."""

    def __init__(self, module: nn.Module, parameters: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, list(parameters)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        if self.names == ["*"]:
            found = self.module(*arrays)
        else:
            found = self.module(**dict(zip(self.names, arrays, strict=True)))
        leaves = torch.utils._pytree.tree_leaves(found)
        return tuple(each for each in leaves if isinstance(each, Tensor))


class Graph(nn.Module):
    """A program as a module. Weights stand under the names that they had in the model."""

    def __init__(self, archive: Archive, given: Program) -> None:
        super().__init__()
        self._program = given
        self._steps = _Steps(given.block, archive.path)
        self._held: list[tuple[str, nn.Module, str, str]] = []
        storages: dict[tuple[str, str], Tensor] = {}
        for name, stored in given.weights.items():
            tensor = _tensor(archive, stored, storages)
            self._plant(archive, name, stored, tensor)
        self.eval()

    def _plant(self, archive: Archive, name: str, stored: Stored, tensor: Tensor) -> None:
        """Registers a weight under its dotted name; `_held` finds it there at each call."""
        *folders, last = stored.name.split(".")
        home: nn.Module = self
        try:
            for each in folders:
                if each not in home._modules:
                    home.add_module(each, nn.Module())
                home = home.get_submodule(each)
            if not hasattr(home, last):
                if stored.parameter and tensor.is_floating_point():
                    home.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
                else:
                    home.register_buffer(last, tensor)
            place = "_parameters" if last in home._parameters else "_buffers"
            if last not in getattr(home, place):
                raise KeyError(f"{last} is no name of a weight")
        except (KeyError, AttributeError, RuntimeError) as error:
            raise WrongRequest(
                f"{archive.path}: the weight {stored.name!r}: {first_line(error)}"
            ) from None
        self._held.append((name, home, place, last))

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the signature's order, given the inputs in the signature's order."""
        return self.watched(arrays)

    def watched(
        self,
        arrays: Sequence[Tensor],
        watch: Callable[[str], Any] | None = None,
        shapes: dict[str, tuple[int, ...]] | None = None,
    ) -> tuple[Tensor, ...]:
        """The same, each call within the context that `watch` gives for its name; `shapes`
        receives those of the values."""
        values: dict[str, Any] = dict(self._program.constants)
        for name, home, place, key in self._held:
            values[name] = home.__dict__[place][key]  # a tracer may put other tensors there
        values.update(zip(self._program.inputs, arrays, strict=True))
        self._steps.run(values, watch, shapes)
        outputs = self._program.block.outputs
        return tuple(values[outputs[at].name] for at in self._program.outputs)

    @property
    def program(self) -> Program:
        return self._program

    @property
    def writes_inputs(self) -> bool:
        """Whether some call changes its argument in place, which may be an input."""
        return any(_is_written(call) for call in _all_calls(self._program.block))


def _all_calls(block: Block) -> Iterator[Call]:
    """Those of the blocks within it too."""
    for call in block.calls:
        yield call
        for _, value in call.arguments:
            if isinstance(value, Block):
                yield from _all_calls(value)


def refs(call: Call) -> Iterator[str]:
    """The values that a call reads, in the blocks within it too."""
    waiting: list[Any] = [value for _, value in call.arguments]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Ref):
            yield value.name
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, Block):
            waiting.extend(value.outputs)
            for each in value.calls:
                yield from refs(each)


def _name(call: Call) -> str:
    """The operator's, without its space and its overload."""
    return call.target.split(".")[-2] if call.target.count(".") > 1 else ""


def _is_written(call: Call) -> bool:
    return _name(call).endswith("_") and not _name(call).endswith("__")


def _learns(call: Call) -> bool:
    """Dropout that drops; batch norm that keeps statistics and does not use them."""
    given = [value for _, value in call.arguments]
    name = _name(call)
    if name.rstrip("_") in ("dropout", "alpha_dropout", "feature_dropout", "native_dropout"):
        return len(given) > 2 and given[2] is True and given[1] != 0
    return name == "batch_norm" and given[3] is not None and given[5] is True


# -- weights ------------------------------------------------------------------------------------


def _tensor(archive: Archive, stored: Stored, storages: dict[tuple[str, str], Tensor]) -> Tensor:
    """The tensor, which shares its bytes with others of the same member."""
    dtype = getattr(torch, stored.dtype)
    key = (stored.record, stored.dtype)
    if key not in storages:
        data = archive.read(stored.record)
        whole = bytearray(data[: len(data) - len(data) % WIDTHS[stored.dtype]])
        empty = torch.empty(0, dtype=dtype)
        storages[key] = torch.frombuffer(whole, dtype=dtype) if whole else empty
    return torch.as_strided(storages[key], stored.sizes, stored.strides, stored.offset)


# -- calls --------------------------------------------------------------------------------------


class _Steps:
    """A block made ready to run: operators resolved, values dropped after their last use."""

    def __init__(self, block: Block, path: Path) -> None:
        self.block = block
        self.steps = [_Step(call, path) for call in block.calls if not only_checks(call.target)]
        kept = {each.name for each in block.outputs if isinstance(each, Ref)}
        for step in reversed(self.steps):
            used = step.reads | step.writes
            step.drop = tuple(sorted(used - kept))
            kept |= used

    def run(
        self,
        values: dict[str, Any],
        watch: Callable[[str], Any] | None = None,
        shapes: dict[str, tuple[int, ...]] | None = None,
    ) -> None:
        if watch is None:
            for step in self.steps:
                step(values)
            return
        for step in self.steps:
            with watch(step.call.name):
                step(values)
            if shapes is not None:
                found = ((name, values.get(name)) for name in step.writes)
                shapes |= {n: tuple(v.shape) for n, v in found if isinstance(v, Tensor)}

    def within(self, *arguments: Any) -> list[Any]:
        """The outputs of the block for its own inputs."""
        values = dict(zip(self.block.inputs, arguments, strict=True))
        self.run(values)
        return [values[each.name] if isinstance(each, Ref) else each for each in self.block.outputs]


class _Step:
    """A call: a function, its arguments with places for values, names for what comes out."""

    def __init__(self, call: Call, path: Path) -> None:
        self.call = call
        self.drop: tuple[str, ...] = ()
        named = dict(_inner(call, path))
        self.given = [value for key, value in named.items() if isinstance(key, int)]
        self.keywords = {key: value for key, value in named.items() if isinstance(key, str)}
        self.places = [at for at, each in enumerate(self.given) if _refers(each)]
        self.named_places = [key for key, each in self.keywords.items() if _refers(each)]
        self.reads = set(_names([*self.given, *self.keywords.values()]))
        self.writes = set(_flat(call.results))
        self.function = resolved(call, path)
        only = call.results[0] if len(call.results) == 1 else None
        self.single = only if isinstance(only, str) else None

    def __call__(self, values: dict[str, Any]) -> None:
        given = self.given
        if self.places:
            given = list(given)
            for at in self.places:
                given[at] = _filled(given[at], values)
        keywords = self.keywords
        if self.named_places:
            keywords = dict(keywords)
            for key in self.named_places:
                keywords[key] = _filled(keywords[key], values)
        found = self.function(*given, **keywords)
        if self.single is not None:
            is_list = isinstance(found, (list, tuple))
            values[self.single] = found[0] if is_list and len(found) == 1 else found
        else:
            self._share(found, values)
        for name in self.drop:
            values.pop(name, None)

    def _share(self, found: Any, values: dict[str, Any]) -> None:
        results = self.call.results
        if len(results) == 1 and isinstance(results[0], tuple):
            values.update(zip(results[0], found, strict=True))
            return
        for result, each in zip(results, found if len(results) > 1 else (found,), strict=True):
            if isinstance(result, str):
                values[result] = each
            elif result is not None:
                values.update(zip(result, each, strict=True))


def _inner(call: Call, path: Path) -> Iterator[tuple[int | str, Any]]:
    """Position or keyword -> value, with PyTorch's own values and blocks made ready."""
    at = 0
    for keyword, value in call.arguments:
        ready = _Steps(value, path).within if isinstance(value, Block) else own(value, path)
        if keyword:
            yield keyword, ready
        else:
            yield at, ready
            at += 1


def _refers(value: Any) -> bool:
    return isinstance(value, Ref) or (isinstance(value, list) and any(map(_refers, value)))


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    return [_filled(each, values) if isinstance(each, Ref) else each for each in value]


def _names(values: Sequence[Any]) -> Iterator[str]:
    for each in values:
        if isinstance(each, Ref):
            yield each.name
        elif isinstance(each, list):
            yield from _names(each)


def _flat(results: Sequence[str | tuple[str, ...] | None]) -> Iterator[str]:
    for each in results:
        if isinstance(each, str):
            yield each
        elif each is not None:
            yield from each
