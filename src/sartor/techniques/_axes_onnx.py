"""Which sizes of which tensors go together: axes as sums of products of atoms.

An axis has a layout: segments that lie behind one another (a concatenation), each of them a product
of atoms, the outer first (what a Reshape merges). An atom is a size that is kept or thinned as one,
wherever it occurs. `unify` says that two axes are the same: atoms become one, or are found to
consist of others. What cannot be told apart so is frozen: no wrong cut, at worst none.

    64 channels                    ((c,),)
    12 heads of 32 in one axis     ((h, d),)
    two branches concatenated      ((a,), (b,))
    a size of 1                    ((),)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

CONFLICT = "its sizes are put together in a way that is not followed here"


@dataclass(eq=False, slots=True)
class Atom:
    """A size that is thinned as one. `size` is None where it is free (a batch, a sequence).

    `bound` is what it was found to consist of; only an atom without it is a leaf. `frozen` is the
    reason why a leaf must stay as it is."""

    size: int | None
    frozen: str | None = None
    bound: Layout | None = None


Segment = tuple[Atom, ...]
Layout = tuple[Segment, ...]
Axes = tuple[Layout, ...]
ONE: Layout = ((),)


class _Conflict(Exception):
    """Two layouts cannot be brought to one."""


def axis(size: int | None, frozen: str | None = None) -> Layout:
    """An axis of one new atom; sizes of 1 have none."""
    if size is None:
        frozen = frozen or "its size is free"
    return ONE if size == 1 else ((Atom(size, frozen),),)


def size_of(layout: Layout) -> int | None:
    """The length of the axis; None where it is free."""
    total = 0
    for segment in layout:
        known = [atom.size for atom in segment if atom.size is not None]
        if len(known) < len(segment):
            return None
        total += prod(known)
    return total


def resolve(layout: Layout) -> Layout:
    """The layout in leaves as far as sums of products can say it: an atom *inside* a product that
    is itself a sum stays as it is, with its `bound`."""
    return tuple(found for segment in layout for found in _segments(segment))


def _segments(segment: Segment) -> Layout:
    if not segment:
        return ONE
    inside = tuple(leaf for atom in segment[1:] for leaf in _factors(atom))
    outer = segment[0]
    if outer.bound is None:
        return ((outer, *inside),)
    return tuple((*each, *inside) for each in resolve(outer.bound))


def _factors(atom: Atom) -> Segment:
    if atom.bound is None:
        return (atom,)
    bound = resolve(atom.bound)
    return bound[0] if len(bound) == 1 else (atom,)


def leaves(layout: Layout) -> Iterator[Atom]:
    """Every leaf, in order; one that occurs twice is given twice."""
    for segment in layout:
        for atom in segment:
            if atom.bound is None:
                yield atom
            else:
                yield from leaves(atom.bound)


def freeze(layout: Layout, reason: str) -> None:
    """The first reason stays."""
    for leaf in leaves(layout):
        leaf.frozen = leaf.frozen or reason


def merge(parts: Sequence[Layout]) -> Layout:
    """Neighbouring axes as one, the outer first."""
    if not parts:
        return ONE
    inside = tuple(atom for part in parts[1:] for atom in as_factors(part))
    return tuple((*segment, *inside) for segment in resolve(parts[0]))


def as_factors(layout: Layout) -> Segment:
    """The axis as factors of a product: a sum becomes one atom that is bound to it."""
    found = resolve(layout)
    return found[0] if len(found) == 1 else (Atom(size_of(found), bound=found),)


def cut(layout: Layout, sizes: Sequence[int]) -> list[Layout]:
    """The axis in pieces of these sizes, which make up the whole of it. What cannot be cut there
    is frozen, and so are its pieces."""
    pieces: list[list[Segment]] = []
    rest = list(resolve(layout))
    try:
        for wanted in sizes:
            piece: list[Segment] = []
            while wanted > 0:
                rest = list(resolve(tuple(rest)))  # the last cut may have gone through others
                first = size_of(tuple(rest[:1])) if rest else None
                if first is None:
                    raise _Conflict
                if first > wanted:
                    rest[:1] = _cut_segment(rest[0], wanted)
                    first = wanted
                wanted -= first
                piece.append(rest.pop(0))
            pieces.append(piece)
    except _Conflict:
        freeze(layout, CONFLICT)
        return [axis(size, CONFLICT) for size in sizes]
    return [tuple(piece) for piece in pieces]


def _cut_segment(segment: Segment, wanted: int) -> list[Segment]:
    """A product in two behind one another: its outermost atom becomes a sum."""
    outer, inside = segment[0], segment[1:]
    inner = size_of((inside,))
    if not inner or wanted % inner or outer.size is None or outer.bound is not None:
        raise _Conflict
    first = axis(wanted // inner, outer.frozen)
    second = axis(outer.size - wanted // inner, outer.frozen)
    outer.bound = (*first, *second)
    return [(*first[0], *inside), (*second[0], *inside)]


def unify(one: Layout, two: Layout) -> None:
    """Both axes are the same from now on; where that cannot be said both are frozen."""
    one, two = _without_common(resolve(one), resolve(two))
    if one == two:
        return
    size = size_of(one)
    try:
        if size is None or size != size_of(two):
            raise _Conflict
        _match(one, two)
    except _Conflict:
        reasons = [leaf.frozen for side in (one, two) for leaf in leaves(side) if leaf.frozen]
        for side in (one, two):
            freeze(side, next(iter(reasons), CONFLICT))


def _without_common(one: Layout, two: Layout) -> tuple[Layout, Layout]:
    """Two products without the factors that they share at either end, free sizes among them."""
    if len(one) != 1 or len(two) != 1:
        return one, two
    first, second = one[0], two[0]
    while first and second and first[0] is second[0]:
        first, second = first[1:], second[1:]
    while first and second and first[-1] is second[-1]:
        first, second = first[:-1], second[:-1]
    return (first,), (second,)


def _match(one: Layout, two: Layout) -> None:
    """Segment by segment; the longer one of two is cut where the shorter one ends."""
    while one and two:
        one, two = resolve(one), resolve(two)
        sizes = [size_of((side[0],)) or 0 for side in (one, two)]
        if sizes[0] > sizes[1]:
            one = (*_cut_segment(one[0], sizes[1]), *one[1:])
        elif sizes[1] > sizes[0]:
            two = (*_cut_segment(two[0], sizes[0]), *two[1:])
        else:
            _match_products(one[0], two[0])
            one, two = one[1:], two[1:]


def _match_products(one: Segment, two: Segment) -> None:
    """Factor by factor from outside; the larger one of two is split by the smaller one."""
    while one and two:
        first, second = one[0], two[0]
        if first.size == second.size:
            _join(first, second)
            one, two = one[1:], two[1:]
        elif (first.size or 0) > (second.size or 0):
            one = (*_split(first, second.size or 0), *one[1:])
        else:
            two = (*_split(second, first.size or 0), *two[1:])


def _split(atom: Atom, outer: int) -> Segment:
    if atom.bound is not None:  # a sum, or split while this match went on
        found = resolve(atom.bound)
        if len(found) != 1:
            raise _Conflict
        return found[0]
    if not outer or atom.size is None or atom.size % outer:
        raise _Conflict
    parts = (Atom(outer, atom.frozen), Atom(atom.size // outer, atom.frozen))
    atom.bound = (parts,)
    return parts


def _join(one: Atom, two: Atom) -> None:
    if one is two:
        return
    if one.bound is not None and two.bound is not None:
        unify(one.bound, two.bound)
        return
    kept, gone = (one, two) if two.bound is None else (two, one)
    if any(leaf is gone for leaf in leaves(((kept,),))):
        return
    gone.bound = ((kept,),)
    if gone.frozen:
        freeze(((kept,),), gone.frozen)


def broadcast(operands: Sequence[Axes]) -> Axes:
    """The axes of an elementwise result, by numpy's rule: aligned at the last axis, sizes of 1
    stretched. Two free sizes may be equal or one of them 1, which gives a free size of its own."""
    rank = max(map(len, operands), default=0)
    found = []
    for at in range(-rank, 0):
        here = [resolve(each[at]) for each in operands if len(each) >= -at]
        wide = [layout for layout in here if layout != ONE] or [ONE]
        fixed = [layout for layout in wide if size_of(layout) is not None]
        for other in wide:
            unify(wide[0], other)
        wide = [resolve(layout) for layout in wide]
        same = all(layout == wide[0] for layout in wide)
        found.append(wide[0] if same else (fixed or [axis(None)])[0])
    return tuple(found)


def square(layout: Layout) -> bool:
    """Whether an atom is multiplied by itself: thinning it would thin twice."""
    for segment in resolve(layout):
        seen: set[Atom] = set()
        for atom in segment:
            own = set(leaves(((atom,),)))
            if seen & own or (atom.bound is not None and square(atom.bound)):
                return True
            seen |= own
    return False


def places(layout: Layout, atom: Atom) -> np.ndarray:
    """For each position along the axis the index within `atom` that it belongs to, or -1."""
    found = []
    for segment in resolve(layout):
        sizes = [each.size or 1 for each in segment]
        where = np.full(prod(sizes), -1)
        for at, each in enumerate(segment):
            own = np.arange(each.size or 1) if each is atom else _inner_places(each, atom)
            if own is not None:
                turned = own.reshape([-1 if at == here else 1 for here in range(len(sizes))])
                where = np.broadcast_to(turned, sizes).reshape(-1)
        found.append(where)
    return np.concatenate(found)


def _inner_places(each: Atom, atom: Atom) -> np.ndarray | None:
    if each.bound is None or atom not in leaves(each.bound):
        return None
    return places(each.bound, atom)


def count(layout: Layout, sizes: Mapping[Atom, int]) -> int | None:
    """The length of the axis with `sizes` in the place of those of some leaves."""
    total = 0
    for segment in resolve(layout):
        number = 1
        for atom in segment:
            one = sizes.get(atom, atom.size) if atom.bound is None else count(atom.bound, sizes)
            if one is None:
                return None
            number *= one
        total += number
    return total
