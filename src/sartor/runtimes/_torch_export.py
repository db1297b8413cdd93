"""A PyTorch module written as a file without code: an exported program, else TorchScript.

Nothing is taken on trust: what was written answers as the module does, at other sizes of the axes
that stay free too, or another form is tried.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.contracts import Port, Signature, WrongRequest
from sartor.libraries import first_line, quiet
from sartor.nearness import gap, spread
from sartor.runtimes._torch_live import Fed, answered, called, outputs
from sartor.runtimes._torch_tidy import tidy
from sartor.torch_graph import Graph, load
from sartor.torch_program import DTYPES, distinct, unfit
from sartor.torch_saving import write_program, write_script

_WHOLE = (torch.int64, torch.int32)
NEAR = 1e-4  # of the answers' spread: how far an export may be from its module
MIXED = (
    "a row's answer depends on the rows beside it, as with a batch norm in training: every other "
    "batch gives other answers"
)
TRACED = (
    "the model is exported by following one call: what its code decides by values is fixed, and "
    "was so for the first rows of the data"
)


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


@dataclass(frozen=True)
class Form:
    """What a file is to say of itself: free axes, names of outputs, what was given up."""

    axes: Axes
    names: Sequence[str]
    given_up: tuple[str, ...]

    def remarks(self, *more: str) -> list[str]:
        return [each for each in (*self.given_up, *more, self.axes.remark) if each]


# -- export -------------------------------------------------------------------------------------


def exported(
    module: nn.Module, inputs: Sequence[Fed], folder: Path, remarks: Sequence[str] = ()
) -> Path:
    """Writes the module, whose `forward` is replaced, into `folder`: as a program where it exports,
    else as TorchScript.

    Axes stay free where what was written answers as the module does at other sizes too. Raises
    WrongRequest where nothing does."""
    several = _takes_several(module, inputs)
    asked = inputs if several else [_row(each, 0) for each in inputs]
    expected, again = answered(module, asked), answered(module, asked)
    if _farthest([each for _, each in again], [each for _, each in expected]) > NEAR:
        raise WrongRequest(
            "the model answers the same rows differently from call to call: leave out what is "
            "random in its forward"
        )
    if several and _mixes(module, inputs, expected):
        remarks = (*remarks, MIXED)
    names = [name for name, _ in expected]
    scripted = isinstance(module, torch.jit.ScriptModule)
    if not scripted:
        _flatten(module)
    reasons: dict[str, str] = {}  # form -> why the last attempt, which asked the least, failed
    for make in (_as_it_is, _script) if scripted else (_program, _script):
        for axes in _plans(module, inputs, several):
            chosen = inputs if axes.batch else [_row(each, 0) for each in inputs]
            form = Form(axes, names, tuple(remarks))
            try:
                with quiet(), torch.no_grad():
                    file = make(module, chosen, form, folder)
                    others = [] if make is _program else _alone(inputs)
                    variants = [*_variants(chosen, axes), _others(inputs, axes)]
                    _compare(module, file, variants, others)
                return file
            except Exception as error:  # an exporter raises anything
                reasons[make.__name__] = _why(error)
    raise WrongRequest(
        f"PyTorch cannot export this {type(module).__name__}: {next(iter(reasons.values()))}; "
        "export it yourself with torch.export.save or torch.onnx.export"
    )


def _mixes(
    module: nn.Module, inputs: Sequence[Fed], expected: Sequence[tuple[str, Tensor]]
) -> bool:
    """Whether the first row is answered otherwise by itself than among the others."""
    alone = answered(module, [_row(each, 0) for each in inputs])
    rows = len(inputs[0].rows)
    pairs = [
        (one, many[:1], many)
        for (_, one), (_, many) in zip(alone, expected, strict=True)
        if many.ndim and len(many) == rows and one.shape == many[:1].shape
    ]
    return bool(pairs) and _farthest(*zip(*pairs, strict=True)) > 100 * NEAR


def _flatten(module: nn.Module) -> None:
    """Its answers become a tuple: programs know neither data classes nor named tuples."""
    forward = module.forward

    @functools.wraps(forward)
    def flat(*given: Any, **named: Any) -> tuple[Tensor, ...]:
        return tuple(each for _, each in outputs(forward(*given, **named)))

    module.forward = flat


def _why(error: Exception) -> str:
    if "DataDependent" in type(error).__name__:
        return (
            "its forward decides something by the values of the rows (write torch.where for it): "
            f"{first_line(error, 160)}"
        )
    if isinstance(error, WrongRequest):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"


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
    whole = [fed.rows for fed in inputs if fed.rows.ndim == 2 and fed.rows.dtype in _WHOLE]
    lengths = {rows.shape[1] for rows in whole if rows.shape[1] > 1}
    return each.rows.ndim > 1 and each.rows.shape[1] in lengths


def _program(module: nn.Module, inputs: Sequence[Fed], form: Form, folder: Path) -> Path:
    free = torch.export.Dim.DYNAMIC
    shapes: dict[str, Any] = {}
    for each in inputs:
        shapes[each.parameter] = {0: free} if form.axes.batch else {}
        if form.axes.length and _has_length(each, inputs):
            shapes[each.parameter][1] = free
    given = tuple(each.rows for each in inputs if each.parameter == "*")
    keywords = {each.parameter: each.rows for each in inputs if each.parameter != "*"}
    dynamic = {"args": tuple(shapes.values())} if given else shapes
    made = torch.export.export(module, given, keywords, dynamic_shapes=dynamic, strict=False)
    tidy(made)
    names = {_placeholder(each.parameter): each.name for each in inputs}
    return write_program(made, folder, names, form.names, form.remarks())


def _placeholder(parameter: str) -> str:
    return "args_0" if parameter == "*" else parameter


def _script(module: nn.Module, inputs: Sequence[Fed], form: Form, folder: Path) -> Path:
    """TorchScript by tracing: what the module did for these rows."""
    given = tuple(each.rows.clone() for each in inputs if each.parameter == "*") or None
    keywords = {each.parameter: each.rows.clone() for each in inputs if each.parameter != "*"}
    made = torch.jit.trace(  # type: ignore[no-untyped-call]
        module, given, example_kwarg_inputs=keywords or None, check_trace=False, strict=False
    )
    return _as_it_is(made, inputs, form, folder, TRACED)


def _as_it_is(made: Any, inputs: Sequence[Fed], form: Form, folder: Path, remark: str = "") -> Path:
    """Writes TorchScript with what it does not say of itself: names, types and sizes."""
    parameters = [each.parameter for each in inputs]
    signature = _signature(made, inputs, form)
    return write_script(made, folder, parameters, signature, form.remarks(remark))


def _signature(made: Callable[..., Any], inputs: Sequence[Fed], form: Form) -> Signature:
    """Sizes of outputs are free where they change with those of the inputs."""
    axes = form.axes
    wide = [each for _, each in outputs(called(made, inputs))]
    small = [each for _, each in outputs(called(made, _variants(inputs, axes)[-1]))]
    into = []
    for each in inputs:
        free = {0} if axes.batch else set()
        free |= {1} if axes.length and _has_length(each, inputs) else set()
        into.append(_port(each.name, each.rows, free))
    out = []
    names = distinct(form.names, [each.name for each in inputs])
    for name, tensor, less in zip(names, wide, small, strict=True):
        pairs = enumerate(zip(tensor.shape, less.shape, strict=True))
        out.append(_port(name, tensor, {at for at, (one, two) in pairs if one != two}))
    return Signature(tuple(into), tuple(out))


def _port(name: str, tensor: Tensor, free: set[int]) -> Port:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES.values() or dtype == "bfloat16":
        raise WrongRequest(f"{name!r} is {dtype}, {unfit(dtype)}: give float32 there")
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


def _alone(inputs: Sequence[Fed]) -> list[Sequence[Fed]]:
    """Each known row by itself."""
    count = min(len(each.more) for each in inputs)
    return [
        [dataclasses.replace(each, rows=each.more[at : at + 1]) for each in inputs]
        for at in range(count)
    ]


def _compare(
    module: nn.Module,
    file: Path,
    variants: Sequence[Sequence[Fed]],
    others: Sequence[Sequence[Fed]] = (),
) -> None:
    """Raises ValueError where the file answers otherwise than the module."""
    made = load(file)
    usual = [each for _, each in answered(module, variants[0])]
    for inputs in (*variants, *others):
        expected = [each for _, each in answered(module, inputs)]
        with torch.inference_mode():
            found = list(made(*_in_order(made, inputs)))
        if len(found) != len(expected) or _farthest(found, expected, usual) > NEAR:
            sizes = ", ".join(str(list(each.rows.shape)) for each in inputs)
            raise ValueError(f"the export answers otherwise than the model at the sizes {sizes}")


def _farthest(
    found: Sequence[Tensor], expected: Sequence[Tensor], usual: Sequence[Tensor] = ()
) -> float:
    """The largest gap as a share of the spread of the `usual` answers (else the expected ones)."""
    triples = zip(found, expected, usual or expected, strict=True)
    gaps = (gap(_array(one), _array(two)) / spread([_array(three)]) for one, two, three in triples)
    return max(gaps)


def _in_order(made: nn.Module, inputs: Sequence[Fed]) -> list[Tensor]:
    known = {_placeholder(each.parameter): each.rows.clone() for each in inputs}
    names = made.program.inputs if isinstance(made, Graph) else list(known)
    return [known[name] for name in names]


def _array(tensor: Tensor) -> np.ndarray:
    """With what numpy does not know as what it knows."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
