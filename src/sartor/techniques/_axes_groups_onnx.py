"""The groups of a graph that can be thinned: channels, heads, widths; and thinning them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from sartor.techniques._axes_onnx import (
    Atom,
    Layout,
    Segment,
    leaves,
    places,
    resolve,
)
from sartor.techniques._axes_rewrite_onnx import Sizes
from sartor.techniques._axes_trace_onnx import FLOATS, Trace
from sartor.techniques._graph_onnx import Graph

_NOUNS = {"channels": "channels", "heads": "heads", "width": "wide"}


@dataclass(frozen=True, eq=False)
class Group:
    """An atom that weights make, and all that goes with it.

    `members` are (constant, axis); `kind` is "channels", "heads" or "width"; `node` the first one
    that makes it; `block` how many numbers of an axis each index stands for; `reason` why it must
    stay as it is."""

    atom: Atom
    name: str
    kind: str
    node: str
    members: tuple[tuple[str, int], ...]
    block: int
    reason: str | None

    @property
    def size(self) -> int:
        return self.atom.size or 0


def groups(trace: Trace) -> list[Group]:
    """In the order in which the graph makes them."""
    heads = {leaf for layout in trace.mixed for leaf in leaves(layout)}
    operators = {node.name: node.op_type for node in trace.graph.nodes}
    makers: dict[Atom, list[tuple[str, Segment]]] = {}
    for node, layout in trace.made:
        for segment in resolve(layout):
            for leaf in leaves((segment,)):
                makers.setdefault(leaf, []).append((node, segment))
    members = _members(trace)
    found: dict[Atom, Group] = {}
    names: set[str] = set()
    for leaf, made in makers.items():
        node = made[0][0]
        kind = "channels" if operators[node] in ("Conv", "ConvTranspose") else "width"
        kind = "heads" if leaf in heads else kind
        block = min(prod(each.size or 1 for each in segment) for _, segment in made)
        block //= leaf.size or 1
        outer = [each for _, segment in made for each in _outside(segment, leaf)]
        around = next((each for each in outer if each.frozen is None), None)
        noun = "in each" if outer else _NOUNS[kind]
        noun = "groups" if noun == "channels" and block > 1 else noun
        name = _fresh(f"{node} ({leaf.size} {noun})", names)
        reason = leaf.frozen
        if reason is None and around is not None and around in found:
            reason = f"it lies inside {found[around].name}: those go as a whole"
        found[leaf] = Group(leaf, name, kind, node, tuple(members.get(leaf, ())), block, reason)
    return list(found.values())


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while (found := name if number == 1 else f"{name} [{number}]") in taken:
        number += 1
    taken.add(found)
    return found


def _outside(segment: Segment, leaf: Atom) -> list[Atom]:
    """The leaves of the factors that lie outside the one with this leaf."""
    found: list[Atom] = []
    for factor in segment:
        own = list(leaves(((factor,),)))
        if leaf in own:
            return found
        found += own
    return found


def _members(trace: Trace) -> dict[Atom, list[tuple[str, int]]]:
    found: dict[Atom, list[tuple[str, int]]] = {}
    for name, tensor in trace.graph.constants():
        if tensor.data_type in FLOATS:
            for at, layout in enumerate(trace.axes[name]):
                for leaf in dict.fromkeys(leaves(layout)):
                    found.setdefault(leaf, []).append((name, at))
    return found


def keep(trace: Trace, kept: Mapping[Atom, np.ndarray]) -> None:
    """Thins the graph to these indices (ascending) of each atom: constants are cut, and what
    names a size is rewritten. The trace is of no use afterwards."""
    graph, sizes = trace.graph, {atom: len(which) for atom, which in kept.items()}
    stale = {
        name
        for name, layouts in trace.axes.items()
        if any(leaf in kept for layout in layouts for leaf in leaves(layout))
    }
    for name in [name for name, _ in graph.constants() if name in stale]:
        value = graph.constant(name)
        if value is not None:
            for at, layout in enumerate(trace.axes[name]):
                value = np.compress(mask(layout, kept), value, axis=at)
            graph.set_constant(name, value)
    _rewrite(trace, graph, sizes)
    info = [each for each in graph.proto.graph.value_info if each.name not in stale]
    del graph.proto.graph.value_info[:]
    graph.proto.graph.value_info.extend(info)
    _drop_idle(graph)
    graph.drop_unused()


def _rewrite(trace: Trace, graph: Graph, sizes: Sizes) -> None:
    graph.refresh()
    for rewrite in trace.rewrites:
        rewrite(graph, sizes)
    graph.refresh()


def mask(layout: Layout, kept: Mapping[Atom, np.ndarray]) -> np.ndarray:
    """Which positions along the axis stay."""
    found: np.ndarray | None = None
    for leaf in dict.fromkeys(leaves(layout)):
        if leaf in kept:
            stays = np.zeros((leaf.size or 0) + 1, bool)  # the last is that of places elsewhere
            stays[kept[leaf]] = stays[-1] = True
            here = stays[places(layout, leaf)]
            found = here if found is None else found & here
    return np.ones(_length(layout), bool) if found is None else found


def _length(layout: Layout) -> int:
    return sum(prod(atom.size or 1 for atom in segment) for segment in layout)


def _drop_idle(graph: Graph) -> None:
    """Removes nodes for whose results nobody asks any more: what computed the old sizes."""
    while True:
        idle = [
            node
            for node in graph.nodes
            if not any(graph.users(name) or name in graph.outputs for name in node.output)
        ]
        if not idle:
            return
        for node in idle:
            graph.proto.graph.node.remove(node)
        graph.refresh()
