"""How many of each group stay, so that a share of the multiply-accumulates, or of the weights,
remains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sartor.contracts import Bench, Failed
from sartor.techniques._axes_groups_onnx import Group
from sartor.techniques._axes_onnx import Atom, Layout, count, leaves, resolve, size_of
from sartor.techniques._axes_trace_onnx import FLOATS, Trace
from sartor.techniques._graph_onnx import watch

COUNTED = {
    "macs": "multiply-accumulates",
    "weights": "weights",
    "both": "multiply-accumulates and weights",
}


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one node for one example, or numbers of a weight: `factor` times the
    lengths of `axes`."""

    factor: float
    axes: tuple[Layout, ...]

    def at(self, sizes: Mapping[Atom, int]) -> float:
        total = self.factor
        for layout in self.axes:
            total *= count(layout, sizes) or 0
        return total


def costs(
    trace: Trace, bench: Bench, chosen: Sequence[Group], counting: str = "macs"
) -> list[Cost]:
    """What is counted, one of COUNTED; of "both" each makes a half of the whole."""
    if counting == "macs":
        return _products(trace, bench, chosen)
    if counting == "weights":
        return _weights(trace, chosen)
    sizes, found = {group.atom: group.size for group in chosen}, []
    for own in (_products(trace, bench, chosen), _weights(trace, chosen)):
        whole = sum(each.at(sizes) for each in own) or 1.0
        found += [Cost(each.factor / whole, each.axes) for each in own]
    return found


def _weights(trace: Trace, chosen: Sequence[Group]) -> list[Cost]:
    """Of every constant of floats with two axes or more."""
    atoms = {group.atom for group in chosen}
    found = []
    for name, tensor in trace.graph.constants():
        if len(tensor.dims) > 1 and tensor.data_type in FLOATS:
            factor, axes = 1.0, []
            for size, layout in zip(tensor.dims, trace.axes[name], strict=True):
                if atoms.isdisjoint(leaves(layout)):
                    factor *= size
                else:
                    axes.append(resolve(layout))
            found.append(Cost(factor, tuple(axes)))
    return found


def _products(trace: Trace, bench: Bench, chosen: Sequence[Group]) -> list[Cost]:
    """Of every product, convolution and recurrent layer; lengths that are free are those of one
    example."""
    atoms = {group.atom for group in chosen}
    free = [
        name
        for product in trace.products
        for name, _, layout in product.sizes
        if size_of(layout) is None
    ]
    shapes = _shapes(trace, list(dict.fromkeys(free)), bench)
    found = []
    for product in trace.products:
        factor, axes = 1.0, []
        for name, at, layout in product.sizes:
            size = size_of(layout)
            if atoms.isdisjoint(leaves(layout)) or size is None:
                factor *= shapes[name][at] if size is None else size
            else:
                axes.append(resolve(layout))
        found.append(Cost(factor, tuple(axes)))
    return found


def _shapes(trace: Trace, names: list[str], bench: Bench) -> dict[str, tuple[int, ...]]:
    batches = bench.batches("train", 1, 1) or bench.batches("search", 1, 1)
    if not names:
        return {}
    if batches is None:
        raise Failed("free sizes cannot be counted without a row of data")
    values = next(iter(watch(trace.graph, names, batches, bench)))
    return {name: value.shape for name, value in values.items()}


@dataclass(frozen=True)
class Ladder:
    """What a group may keep: `counts` from all of it down to the least, and what is `lost` at
    each. `total` makes what groups lose comparable; None where only the costs that hang on them
    can."""

    group: Group
    counts: tuple[int, ...]
    lost: tuple[float, ...]
    total: float | None = None


def counts(group: Group, least: float, wide: bool) -> tuple[int, ...]:
    """All, and the multiples of a step down to the least share: vector units work on 8 numbers at
    once (blocked convolutions with AVX-512 on 16, where `wide`); of heads every number will do."""
    lanes = 16 if wide and group.kind == "channels" else 8
    step = 1 if group.kind == "heads" else lanes // int(np.gcd(lanes, group.block))
    floor = max(int(np.ceil(least * group.size)), 1 if group.kind == "heads" else step)
    top = (group.size - 1) // step * step
    return (group.size, *range(top, floor - 1, -step))


def ladder(group: Group, steps: tuple[int, ...], scores: np.ndarray, scale: str) -> Ladder:
    """`scale` says what the scores are: "errors" that add up; "losses", of which small parts add
    up; "shares", which compare within a group only. Of the last two the logarithm of what is left
    counts: else one group would be emptied before the next one gives anything. Raises Failed
    where a score is not finite."""
    total = float(scores.sum())
    if not np.isfinite(total):
        raise Failed(f"weights or activations at {group.name} are not finite")
    shares = np.sort(scores) / total if total > 0 else np.full(len(scores), 1 / len(scores))
    gone = np.concatenate([[0.0], np.cumsum(shares)])
    lost = gone if scale == "errors" else -np.log(np.maximum(1.0 - gone, 1e-12))
    found = tuple(float(lost[group.size - each]) for each in steps)
    return Ladder(group, steps, found, None if scale == "shares" else max(total, 1e-30))


class Budget:
    """Where on its ladder each group stands, and what that costs.

    Where importances of groups do not compare, a group's is worth what hangs on it of what is
    counted: groups of like importance throughout then give the same share."""

    def __init__(self, ladders: Sequence[Ladder], costs: Sequence[Cost]) -> None:
        self.ladders = ladders
        self.rungs = [0] * len(ladders)
        self.sizes = {each.group.atom: each.group.size for each in ladders}
        self._costs = costs
        self.whole = sum(each.at(self.sizes) for each in costs) or 1.0
        atoms = [{leaf for layout in each.axes for leaf in leaves(layout)} for each in costs]
        self._own = [
            [cost for cost, own in zip(costs, atoms, strict=True) if each.group.atom in own]
            for each in ladders
        ]
        self._worths = [self._worth(at) for at in range(len(ladders))]
        self.near = [
            [
                at
                for at, other in enumerate(ladders)
                if any({each.group.atom, other.group.atom} <= own for own in atoms)
            ]
            for each in ladders
        ]

    @property
    def share(self) -> float:
        return sum(each.at(self.sizes) for each in self._costs) / self.whole

    def _worth(self, at: int) -> float:
        ladder = self.ladders[at]
        if ladder.total is not None:
            return ladder.total
        without = {each.group.atom: each.group.size for each in self.ladders}
        whole = sum(each.at(without) for each in self._own[at])
        without[ladder.group.atom] = 0
        return whole - sum(each.at(without) for each in self._own[at])

    def step(self, at: int, rung: int) -> float:
        """What is lost from this rung to the next one down."""
        lost = self.ladders[at].lost
        return self._worths[at] * (lost[rung + 1] - lost[rung])

    def set(self, at: int, rung: int) -> None:
        self.rungs[at] = rung
        self.sizes[self.ladders[at].group.atom] = self.ladders[at].counts[rung]

    def lowest(self) -> float:
        """The share that is left with every group at its least."""
        least = {each.group.atom: each.counts[-1] for each in self.ladders}
        return sum(each.at(least) for each in self._costs) / self.whole

    def price(self, at: int) -> float:
        """Importance lost for the cost that one rung further down saves."""
        ladder, rung = self.ladders[at], self.rungs[at]
        if rung + 1 == len(ladder.counts):
            return np.inf
        before = sum(each.at(self.sizes) for each in self._own[at])
        below = self.sizes | {ladder.group.atom: ladder.counts[rung + 1]}
        saved = before - sum(each.at(below) for each in self._own[at])
        return self.step(at, rung) / saved if saved > 0 else np.inf

    def together(self, share: float) -> None:
        """Every group to the highest rung that keeps so little of it."""
        for at, each in enumerate(self.ladders):
            fits = [
                rung for rung, number in enumerate(each.counts) if number <= share * each.counts[0]
            ]
            self.set(at, fits[0] if fits else len(each.counts) - 1)


def descend(budget: Budget, share: float) -> None:
    """Always the rung that loses least importance for what it saves (greedy: what a rung saves
    depends on the sizes beside it), until no more than the share is left; the last one is that
    which loses least of all that get there."""
    prices = [budget.price(at) for at in range(len(budget.ladders))]
    while budget.share > share:
        at = int(np.argmin(prices))
        budget.set(at, budget.rungs[at] + 1)
        if budget.share <= share:
            budget.set(at, budget.rungs[at] - 1)
            at = min(_enough(budget, share), key=lambda at: budget.step(at, budget.rungs[at]))
            budget.set(at, budget.rungs[at] + 1)
        for near in {at, *budget.near[at]}:
            prices[near] = budget.price(near)


def _enough(budget: Budget, share: float) -> list[int]:
    """The groups whose next rung alone leaves no more than the share."""
    found = []
    for at, each in enumerate(budget.ladders):
        if budget.rungs[at] + 1 < len(each.counts):
            budget.set(at, budget.rungs[at] + 1)
            if budget.share <= share:
                found.append(at)
            budget.set(at, budget.rungs[at] - 1)
    return found


def level(budget: Budget, share: float) -> None:
    """The same share of each group, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        budget.together(middle)
        low, high = (low, middle) if budget.share > share else (middle, high)
    budget.together(low)


def give_back(budget: Budget, share: float) -> None:
    """One rung up where there is room left for it, the dearest first."""
    lowered = [at for at, rung in enumerate(budget.rungs) if rung]
    for at in sorted(lowered, key=lambda at: -budget.step(at, budget.rungs[at] - 1)):
        budget.set(at, budget.rungs[at] - 1)
        if budget.share > share:
            budget.set(at, budget.rungs[at] + 1)
