"""A PyTorch module written as a file without code: an exported program, else TorchScript.

Nothing is taken on trust: what was written answers as the module does, at other sizes of the axes
that stay free too, or another form is tried.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sartor import torch_archive as archives
from sartor.contracts import Port, Signature, WrongRequest
from sartor.torch_graph import Graph, load, short
from sartor.torch_program import DTYPES
from sartor.torch_script import read_members

PROGRAM, SCRIPT = "model.pt2", "model.ts"
NEAR = 1e-4  # of the answers' spread: how far an export may be from its module


@dataclass(frozen=True)
class Fed:
    """What one parameter of `forward` is given: the array's name in the data, and rows of it.
    A parameter named "*" stands for the first of `*args`."""

    parameter: str
    name: str
    rows: Tensor


@dataclass(frozen=True)
class Axes:
    """Which axes of the inputs stay free: that of the examples, that of the tokens. `tokens`:
    whether the module itself leaves the latter free."""

    batch: bool
    length: bool
    tokens: bool = False

    @property
    def remark(self) -> str:
        if not self.batch:
            return "the model takes one row at a time, or exports so only"
        given_up = self.tokens and not self.length
        return "the model exports for rows of one length only: the data's" if given_up else ""


def called(module: Callable[..., Any], inputs: Sequence[Fed]) -> Any:
    """What it gives for a copy of the rows: some write into what they are given."""
    given = [each.rows.clone() for each in inputs if each.parameter == "*"]
    keywords = {each.parameter: each.rows.clone() for each in inputs if each.parameter != "*"}
    with torch.inference_mode():
        return module(*given, **keywords)


def outputs(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name -> tensor of all that a model returns, in PyTorch's own order: keys of mappings,
    "output_0" and so on for what has none, "output" for a single tensor."""
    if isinstance(value, Tensor):
        yield path if path and not path[0].isdigit() else f"output_{path}".rstrip("_"), value
        return
    if isinstance(value, Mapping):
        inner: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        inner = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        inner = list(enumerate(value))
    else:
        leaves = torch.utils._pytree.tree_leaves(value)
        inner = list(enumerate(leaves)) if leaves != [value] else []
    for key, each in inner:
        yield from outputs(each, f"{path}_{key}" if path else str(key))


def answered(module: Callable[..., Any], inputs: Sequence[Fed]) -> dict[str, Tensor]:
    """What the live module gives. Raises WrongRequest where it does not run."""
    try:
        found = dict(outputs(called(module, inputs)))
    except Exception as error:  # whatever a module's own code raises
        told = ", ".join(f"{e.parameter} {list(e.rows.shape)} {e.rows.dtype}" for e in inputs)
        raise WrongRequest(
            f"the model does not run on rows of the data ({told}): {type(error).__name__}: "
            f"{short(error)}"
        ) from None
    if not found:
        raise WrongRequest("the model returns no tensor: its forward must give one, or several")
    return found


# -- export -------------------------------------------------------------------------------------


def exported(
    module: nn.Module, inputs: Sequence[Fed], folder: Path, remarks: Sequence[str] = ()
) -> Path:
    """Writes the module into `folder`, as a program where it exports, else as TorchScript.

    Axes stay free where what was written answers as the module does at other sizes too. Raises
    WrongRequest where nothing does."""
    several = _takes_several(module, inputs)
    asked = inputs if several else [_row(each, 0) for each in inputs]
    expected, again = answered(module, asked), answered(module, asked)
    if any(not _gap(again[n], each, _spread(each)) <= NEAR for n, each in expected.items()):
        raise WrongRequest(
            "the model answers the same rows differently from call to call: leave out what is "
            "random in its forward"
        )
    scripted = isinstance(module, torch.jit.ScriptModule)
    reasons: dict[str, str] = {}  # form -> why the last attempt, which asked the least, failed
    for make in (_as_it_is, _script) if scripted else (_program, _script):
        for axes in _plans(module, inputs, several):
            chosen = inputs if axes.batch else [_row(each, 0) for each in inputs]
            try:
                with quietly(), torch.no_grad():
                    file = make(module, chosen, axes, folder, remarks)
                    _compare(module, file, [*_variants(chosen, axes), _others(inputs, axes)])
                return file
            except Exception as error:  # an exporter raises anything
                reasons[make.__name__] = f"{type(error).__name__}: {short(error)}"
    raise WrongRequest(
        f"PyTorch cannot export this {type(module).__name__}: {next(iter(reasons.values()))}; "
        "export it yourself with torch.export.save or torch.onnx.export"
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Without what PyTorch prints, warns of and logs on the way: what comes of it is looked at."""
    before = logging.root.manager.disable
    said = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _takes_several(module: nn.Module, inputs: Sequence[Fed]) -> bool:
    """Whether the module takes several rows at a time. Raises WrongRequest where it takes not even
    one."""
    if _runs(module, inputs):
        return True
    if not _runs(module, [_row(each, 0) for each in inputs]):
        answered(module, inputs)
    return False


def _runs(module: nn.Module, inputs: Sequence[Fed]) -> bool:
    try:
        answered(module, inputs)
    except WrongRequest:
        return False
    return True


def _plans(module: nn.Module, inputs: Sequence[Fed], several: bool) -> list[Axes]:
    """What may be left free, the most first: never what the module itself does not leave free."""
    fewer = _variants(inputs if several else [_row(each, 0) for each in inputs], Axes(False, True))
    tokens = len(fewer) > 1 and _runs(module, fewer[-1])
    free = [Axes(True, True, True)] if tokens else []
    return [*([*free, Axes(True, False, tokens)] if several else ()), Axes(False, False, tokens)]


def _has_length(each: Fed, inputs: Sequence[Fed]) -> bool:
    """Whether its second axis counts tokens: whole numbers, or as many as those have."""
    whole = [fed.rows for fed in inputs if fed.rows.ndim == 2 and fed.rows.dtype == torch.int64]
    lengths = {rows.shape[1] for rows in whole if rows.shape[1] > 1}
    return each.rows.ndim > 1 and each.rows.shape[1] in lengths


def _program(
    module: nn.Module, inputs: Sequence[Fed], axes: Axes, folder: Path, remarks: Sequence[str]
) -> Path:
    free = torch.export.Dim.DYNAMIC
    shapes: dict[str, Any] = {}
    for each in inputs:
        shapes[each.parameter] = {0: free} if axes.batch else {}
        if axes.length and _has_length(each, inputs):
            shapes[each.parameter][1] = free
    given = tuple(each.rows for each in inputs if each.parameter == "*")
    keywords = {each.parameter: each.rows for each in inputs if each.parameter != "*"}
    dynamic = {"args": tuple(shapes.values())} if given else shapes
    made = torch.export.export(module, given, keywords, dynamic_shapes=dynamic, strict=False)
    names = {each.parameter: each.name for each in inputs}
    out = [name for name, _ in outputs(called(module, inputs))]
    return write_program(made, folder, names, out, [*remarks, axes.remark])


def write_program(
    made: torch.export.ExportedProgram,
    folder: Path,
    names: Mapping[str, str],
    out: Sequence[str],
    remarks: Sequence[str] = (),
) -> Path:
    """Writes the program, cleaned; `names` are the data's for its inputs, `out` those of its
    outputs (none: its own)."""
    with tempfile.TemporaryDirectory() as place:
        saved = Path(place) / "saved.pt2"
        with quietly():
            torch.export.save(made, saved)
        told = {
            "inputs": {_placeholder(key): name for key, name in names.items()},
            "outputs": list(out),
            "remarks": [each for each in remarks if each],
        }
        archives.write(folder / PROGRAM, archives.cleaned(archives.opened(saved), told))
    return folder / PROGRAM


def _placeholder(parameter: str) -> str:
    return "args_0" if parameter == "*" else parameter


def _script(
    module: nn.Module, inputs: Sequence[Fed], axes: Axes, folder: Path, remarks: Sequence[str]
) -> Path:
    """TorchScript by tracing: what the module did for these rows."""
    given = tuple(each.rows.clone() for each in inputs if each.parameter == "*") or None
    keywords = {each.parameter: each.rows.clone() for each in inputs if each.parameter != "*"}
    made = torch.jit.trace(  # type: ignore[no-untyped-call]
        module, given, example_kwarg_inputs=keywords or None, check_trace=False, strict=False
    )
    return _as_it_is(made, inputs, axes, folder, remarks)


def _as_it_is(
    made: Any, inputs: Sequence[Fed], axes: Axes, folder: Path, remarks: Sequence[str]
) -> Path:
    """Writes TorchScript with what it does not say of itself: names, types and sizes."""
    with tempfile.TemporaryDirectory() as place:
        saved = Path(place) / "saved.ts"
        torch.jit.save(made, str(saved))
        members = read_members(archives.opened(saved))
    told = {
        "parameters": [each.parameter for each in inputs],
        "signature": dataclasses.asdict(_signature(made, inputs, axes)),
        "remarks": [each for each in (*remarks, axes.remark) if each],
    }
    members[archives.FACTS] = archives.text(told)
    archives.write(folder / SCRIPT, members)
    return folder / SCRIPT


def _signature(made: Callable[..., Any], inputs: Sequence[Fed], axes: Axes) -> Signature:
    """Sizes of outputs are free where they change with those of the inputs."""
    wide = dict(outputs(called(made, inputs)))
    small = dict(outputs(called(made, _variants(inputs, axes)[-1])))
    into = []
    for each in inputs:
        free = {0} if axes.batch else set()
        free |= {1} if axes.length and _has_length(each, inputs) else set()
        into.append(_port(each.name, each.rows, free))
    out = []
    for name, tensor in wide.items():
        pairs = enumerate(zip(tensor.shape, small[name].shape, strict=True))
        out.append(_port(name, tensor, {at for at, (one, two) in pairs if one != two}))
    return Signature(tuple(into), tuple(out))


def _port(name: str, tensor: Tensor, free: set[int]) -> Port:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES.values() or dtype == "bfloat16":
        raise WrongRequest(f"{name!r} is {dtype}, which numpy cannot carry: give float32 there")
    shape = (None if at in free else size for at, size in enumerate(tensor.shape))
    return Port(name, dtype, tuple(shape))


# -- parity -------------------------------------------------------------------------------------


def _variants(inputs: Sequence[Fed], axes: Axes) -> list[Sequence[Fed]]:
    """The inputs at other sizes of their free axes: one row; fewer tokens."""
    found: list[Sequence[Fed]] = [inputs]
    if axes.batch:
        found.append([_cut(each, 1) for each in inputs])
    if axes.length and any(_has_length(each, inputs) for each in inputs):
        rows = 1 if axes.batch else None
        found.append(
            [_cut(each, rows, 2 if _has_length(each, inputs) else None) for each in inputs]
        )
    return found


def _others(inputs: Sequence[Fed], axes: Axes) -> Sequence[Fed]:
    """Other values of the same sizes: an export that kept the first answers is seen by them."""
    if not axes.batch:
        return [_row(each, 1) for each in inputs]
    return [dataclasses.replace(each, rows=each.rows.roll(1, 0)) for each in inputs]


def _row(each: Fed, at: int) -> Fed:
    return dataclasses.replace(each, rows=each.rows[at : at + 1].clone())


def _cut(each: Fed, rows: int | None, share: int | None = None) -> Fed:
    """With so many rows, and the `share`-th part of its tokens."""
    kept = each.rows[:rows]
    if share is not None:
        kept = kept[:, : max(kept.shape[1] // share, 1)]
    return dataclasses.replace(each, rows=kept.contiguous())


def _compare(module: nn.Module, file: Path, variants: Sequence[Sequence[Fed]]) -> None:
    """Raises ValueError where the file answers otherwise than the module."""
    made = load(file)
    spreads = [_spread(each) for each in answered(module, variants[0]).values()]
    for inputs in variants:
        expected = list(answered(module, inputs).values())
        if isinstance(made, Graph):
            with torch.inference_mode():
                found = list(made(*_in_order(made, inputs)))
        else:
            found = [each for _, each in outputs(called(made, inputs))]
        alike = [each.shape for each in expected] == [each.shape for each in found]
        gaps = [_gap(*each) for each in zip(found, expected, spreads, strict=True)] if alike else []
        if not gaps or not all(gap <= NEAR for gap in gaps):
            sizes = ", ".join(str(list(each.rows.shape)) for each in inputs)
            raise ValueError(f"the export answers otherwise than the model at the sizes {sizes}")


def _in_order(made: Graph, inputs: Sequence[Fed]) -> list[Tensor]:
    known = {_placeholder(each.parameter): each.rows for each in inputs}
    return [known[name] for name in made.program.inputs]


def _spread(tensor: Tensor) -> float:
    """Between the least and the largest number; 1 where there is none."""
    known = tensor[torch.isfinite(tensor)].double()
    return (float(known.max() - known.min()) if len(known) else 0.0) or 1.0


def _gap(found: Tensor, expected: Tensor, spread: float) -> float:
    """The largest difference as a share of the spread."""
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else math.inf
    one, two = found.double(), expected.double()
    known = torch.isfinite(two)
    if not torch.equal(torch.isfinite(one), known):
        return math.inf
    if not known.any():
        return 0.0
    return float((one[known] - two[known]).abs().max()) / spread
