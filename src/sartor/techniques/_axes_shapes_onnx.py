"""Rules for the operators that move sizes about: Reshape, Concat, Split, Slice and their like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import onnx

from sartor.techniques._axes_onnx import (
    CONFLICT,
    ONE,
    Atom,
    Axes,
    Layout,
    as_factors,
    axis,
    cut,
    freeze,
    merge,
    resolve,
    size_of,
    unify,
)
from sartor.techniques._axes_rewrite_onnx import Bound, Target, rewrite_slice, rewrite_split
from sartor.techniques._axes_trace_onnx import Item, Trace, Unknown, outer, positions, sized
from sartor.techniques._graph_onnx import attribute

Rule = Callable[[Trace, onnx.NodeProto], Sequence[Axes]]
_FAR = 1 << 31  # beyond every axis: "to the end"


def reshape(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    items = trace.items.get(trace.given(node, 1))
    if items is None:
        raise Unknown("it is reshaped to sizes that only a run tells")
    zeros = not attribute(node, "allowzero", 0)
    hints = [
        x[at] if item.value == 0 and zeros and at < len(x) else item.axis
        for at, item in enumerate(items)
    ]
    found, rest = _regroup(x, items, hints)
    for at, item in enumerate(items):
        for each in item.uses if item.value is None and at != rest else ():
            freeze(each, "its size enters a computation")
    target = Target(node.name, tuple(items), found, x, "reshape", rest)
    trace.rewrites.append(target.rewrite)
    return [found]


def _regroup(
    x: Axes, items: Sequence[Item], hints: Sequence[Layout | None]
) -> tuple[Axes, int | None]:
    """The factors of the old axes dealt to the new ones: from the left and from the right as far
    as sizes are known; what is left in between belongs to the one axis that is left, which is
    given too (its size need not be known: Reshape fills in one)."""
    atoms = [atom for each in x for atom in as_factors(each)]
    found: list[Layout | None] = [None] * len(items)
    for end, order in ((0, range(len(items))), (-1, reversed(range(len(items))))):
        for at in order:
            if found[at] is None:
                found[at] = _deal(atoms, items[at], hints[at], end)
            if found[at] is None:
                break
    missing = [at for at, each in enumerate(found) if each is None]
    if len(missing) == 1:
        found[missing[0]] = resolve((tuple(atoms),))
    else:
        for layout in ((tuple(atoms),), *(hints[at] or ONE for at in missing)):
            freeze(layout, CONFLICT)
    made = tuple(
        each or hint or axis(item.value if (item.value or 0) > 0 else None, CONFLICT)
        for each, hint, item in zip(found, hints, items, strict=True)
    )
    return made, missing[0] if len(missing) == 1 else None


def _deal(atoms: list[Atom], item: Item, hint: Layout | None, end: int) -> Layout | None:
    """The next new axis, taken from the left (0) or right (-1) of `atoms`; None where it cannot
    be told what belongs to it."""
    if hint is not None:
        wanted = as_factors(hint)
        here = atoms[: len(wanted)] if end == 0 else atoms[len(atoms) - len(wanted) :]
        if len(here) == len(wanted) and all(map(_same, here, wanted)):
            del atoms[
                slice(None, len(wanted)) if end == 0 else slice(len(atoms) - len(wanted), None)
            ]
            return hint
    size = item.value or 0
    return _take(atoms, size, end) if size > 0 else None


def _same(one: Atom, two: Atom) -> bool:
    """Two free sizes that meet in a Reshape are taken for one: that they are two is mostly for
    want of knowing (after broadcasting either may be 1), and what is left over in the end is
    frozen."""
    free = one.size is None and two.size is None and not (one.bound or two.bound)
    if one is two or free:
        return True
    return bool(one.bound and two.bound) and resolve(((one,),)) == resolve(((two,),))


def _take(atoms: list[Atom], size: int, end: int) -> Layout | None:
    """Factors whose product is `size` off one end; the last of them is split where it must be."""
    left, taken = list(atoms), []
    while size > 1:
        if not left or left[end].size is None:
            return None
        atom = left.pop(end)
        own = atom.size or 1
        if size % own == 0:
            size //= own
        elif own % size == 0:
            sizes = (size, own // size) if end == 0 else (own // size, size)
            parts = [Atom(each) for each in sizes]
            unify(((atom,),), (tuple(parts),))
            left.insert(0 if end == 0 else len(left), parts[-1 - end])
            atom, size = parts[end], 1
        else:
            return None
        taken.append(atom)
    atoms[:] = left
    return resolve((tuple(taken if end == 0 else reversed(taken)),))


def expand(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, items = trace.of(node.input[0]), trace.items.get(node.input[1])
    rank = len(trace.shapes.get(node.output[0], ())) if items is None else len(items)
    if rank < len(x) and items is None:
        raise Unknown("it is expanded to sizes that only a run tells")
    rank = max(rank, len(x))
    own = (ONE,) * (rank - len(x)) + x
    there = [None] * rank if items is None else [Item(1)] * (rank - len(items)) + items
    found = []
    for each, item in zip(own, there, strict=True):
        if resolve(each) != ONE:
            if item is None:
                freeze(each, "it is expanded to sizes that only a run tells")
            found.append(each)
        elif item is not None and item.axis is not None:
            found.append(item.axis)
        else:
            for use in item.uses if item else ():
                freeze(use, "its size enters a computation")
            found.append(axis(item.value if item else None, "its size stands in an Expand"))
    if items is not None:
        target = Target(node.name, tuple(there), tuple(found), own, "expand")  # type: ignore[arg-type]
        trace.rewrites.append(target.rewrite)
    return [tuple(found)]


def constant_of_shape(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    items = trace.items.get(node.input[0])
    if items is None:
        raise Unknown("its size is computed")
    for item in items:
        for use in item.uses:
            freeze(use, "its size enters a computation")
    return [tuple(item.axis or axis(item.value, "its size is written out") for item in items)]


def flatten(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    at = attribute(node, "axis", 1)
    return [(merge(x[:at]), merge(x[at:]))]


def transpose(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    order = attribute(node, "perm", list(reversed(range(len(x)))))
    return [tuple(x[at] for at in order)]


def squeeze(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, axes = trace.of(node.input[0]), trace.option(node, "axes", 1)
    if axes is None:
        gone = {at for at, each in enumerate(x) if resolve(each) == ONE}
        if any(size_of(each) is None for each in x):
            raise Unknown("which axes are squeezed only a run tells")
    else:
        gone = {outer(x, at) for at in axes}
    return [tuple(each for at, each in enumerate(x) if at not in gone)]


def unsqueeze(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, axes = trace.of(node.input[0]), trace.option(node, "axes", 1) or []
    rank = len(x) + len(axes)
    new, old = {at % rank for at in axes}, iter(x)
    return [tuple(ONE if at in new else next(old) for at in range(rank))]


def concat(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    operands = [trace.of(name) for name in node.input]
    if len({len(each) for each in operands}) != 1:
        raise Unknown("its operands have different ranks")
    here = outer(operands[0], attribute(node, "axis", 0))
    found = list(operands[0])
    for other in operands[1:]:
        for at, each in enumerate(other):
            if at != here:
                unify(found[at], each)
    pieces = [each[here] for each in operands]
    if any(size_of(each) is None for each in pieces):
        for each in pieces:
            freeze(each, "it is concatenated with a free size")
        found[here] = axis(None)
    else:
        found[here] = tuple(segment for each in pieces for segment in resolve(each))
    return [tuple(found)]


def split(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    here = outer(x, attribute(node, "axis", 0))
    whole, sizes = sized(x[here]), trace.option(node, "split", 1)
    if sizes is None:
        each = -(-whole // len(node.output))
        sizes = [min(each, whole - each * at) for at in range(len(node.output))]
    pieces = cut(x[here], sizes)
    trace.rewrites.append(partial(rewrite_split, node.name, tuple(pieces)))
    return [(*x[:here], piece, *x[here + 1 :]) for piece in pieces]


def slices(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x = trace.of(node.input[0])
    try:
        starts, ends = trace.option(node, "starts", 1), trace.option(node, "ends", 2)
    except Unknown:
        return [_computed_slice(trace, node, x)]
    if starts is None or ends is None:
        raise Unknown("Slice has no bounds")
    axes = trace.option(node, "axes", 3) or list(range(len(starts)))
    steps = trace.option(node, "steps", 4) or [1] * len(starts)
    found, bounds = list(x), list[Bound]()
    for start, end, at, step in zip(starts, ends, axes, steps, strict=True):
        at = outer(x, at)
        size = size_of(x[at])
        bounds.append((start, end, at, step, None))
        if start == 0 and step == 1 and (end >= _FAR or (size is not None and end >= size)):
            continue
        if size is None or step != 1:
            freeze(x[at], "Slice takes single ones of it")
            found[at] = axis(_left(size, start, end, step), "Slice takes single ones of it")
            continue
        start, end = (min(max(b + size if b < 0 else b, 0), size) for b in (start, end))
        pieces = cut(x[at], [start, max(end - start, 0), size - max(start, end)])
        found[at] = pieces[1]
        bounds[-1] = (start, end, at, step, (pieces[0], pieces[1], pieces[2]))
    if any(each[-1] for each in bounds):
        if attribute(node, "starts") is not None:
            for *_, at, _, piece in bounds:
                freeze(x[at] if piece else ONE, "the bounds of this Slice cannot be rewritten")
        else:
            trace.rewrites.append(partial(rewrite_slice, node.name, tuple(bounds)))
    return [tuple(found)]


def _computed_slice(trace: Trace, node: onnx.NodeProto, x: Axes) -> Axes:
    """With bounds that only a run tells: the first ones of an axis are as many as that other axis
    has whose length is the end."""
    starts, ends = (trace.items.get(node.input[at], []) for at in (1, 2))
    axes, steps = trace.option(node, "axes", 3), trace.option(node, "steps", 4)
    if axes is None:
        raise Unknown("the bounds of Slice are computed")
    found = list(x)
    for k, at in enumerate(axes):
        at = outer(x, at)
        freeze(x[at], "Slice takes single ones of it")
        first = k < len(starts) and starts[k] == Item(0) and (steps is None or steps[k] == 1)
        end = ends[k].axis if first and k < len(ends) else None
        found[at] = end or axis(None)
    return tuple(found)


def _left(size: int | None, start: int, end: int, step: int) -> int | None:
    return None if size is None else len(range(size)[start:end:step])


def gather(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, indices = trace.of(node.input[0]), trace.of(node.input[1])
    at = outer(x, attribute(node, "axis", 0))
    freeze(x[at], "Gather takes single ones of it")
    if node.input[0] in trace.fixed and len(x) > 1:  # a table: its columns are made here
        trace.made.append((node.name, x[-1]))
    return [(*x[:at], *indices, *x[at + 1 :])]


def tile(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, repeats = trace.of(node.input[0]), trace.integers(node.input[1])
    if repeats is None or len(repeats) != len(x):
        raise Unknown("the repeats of Tile are computed")
    return [
        tuple(
            each if times == 1 else frozen_copy(each, times)
            for each, times in zip(x, repeats, strict=True)
        )
    ]


def frozen_copy(layout: Layout, times: int) -> Layout:
    """A new axis of so many times the length, both frozen."""
    freeze(layout, "Tile repeats it")
    size = size_of(layout)
    return axis(None if size is None else size * times, "Tile repeats it")


def depth_to_space(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, block = trace.of(node.input[0]), attribute(node, "blocksize")
    inner = axis(sized(x[1]) // block**2)
    area = axis(block**2, "DepthToSpace makes positions of it")
    crd = attribute(node, "mode", b"DCR") == b"CRD"
    unify(x[1], merge((inner, area) if crd else (area, inner)))
    return [(x[0], inner, *positions(trace, node, x))]


def space_to_depth(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, block = trace.of(node.input[0]), attribute(node, "blocksize")
    area = axis(block**2, "SpaceToDepth makes it of positions")
    return [(x[0], merge((area, x[1])), *positions(trace, node, x))]


SHAPES: dict[str, Rule] = {
    "Reshape": reshape,
    "Expand": expand,
    "ConstantOfShape": constant_of_shape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Gather": gather,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
