"""The layers that repeat in an ONNX graph, found by how values flow and not by names.

A tensor is a cut where all that comes before it reaches the outputs through it alone: in the terms
of compilers, it post-dominates what comes before. What enters from the side (the mask of an
attention) takes nothing from that. The cuts behind a tensor are a chain; what lies between two
neighbours of it is a segment, and segments that come again in the same order are a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx

from sartor.techniques._graph_onnx import Graph

# Operators that read the shape of a tensor and none of its values.
_SHAPE_ONLY = frozenset({"Shape", "Size"})

# Operators through which one of their inputs passes as it is, beside what is added to it.
_JOINS = frozenset(
    {
        *("Add", "Sum", "Identity", "Dropout"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    }
)

# Operators without weights to speak of, which make a layer neither heavy nor another shape. A norm
# may be one operator or several.
_LIGHT = _JOINS | {
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Mish"),
    *("Tanh", "Erf", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Softplus", "Swish"),
    *("Mul", "Sub", "Div", "Pow", "Sqrt", "Reciprocal", "ReduceMean", "Neg", "Abs", "Min", "Max"),
    *("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization"),
}

_LONGEST = 64  # segments of one layer: a decoder's, with every norm in five operators, has 20
_END = ""  # behind all outputs


@dataclass(frozen=True)
class Layer:
    """One of several alike: the tensor it reads, the one it makes of it, its nodes in order. It
    bears the name of its first node."""

    input: str
    output: str
    nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.nodes[0]


@dataclass(frozen=True)
class _Segment:
    """What lies between two cuts. Those of the same structure have the same `sign`; `residual` ones
    hold weights beside a path on which the input passes as it is; `passing` are they and the light
    ones."""

    input: str
    output: str
    nodes: tuple[str, ...]
    sign: int
    residual: bool
    passing: bool


def stacks(graph: Graph) -> list[tuple[Layer, ...]]:
    """The layers that can be taken out, by stack (an encoder, a decoder, a tower), each in the
    order in which they are computed; at least two a stack.

    Layers of a stack have the same operators; their widths may differ, as those of the stages of
    a ResNet do. A layer's input and output have the same shape, and the input reaches the output on
    a residual path in every segment that holds weights."""
    flow, shapes = _Flow(graph), graph.shapes()
    found: list[tuple[Layer, ...]] = []
    taken: set[str] = set()
    for chain in flow.chains():
        for layers in _repeats([flow.segment(*pair) for pair in pairwise(chain)]):
            free = [each for each in layers if taken.isdisjoint(each.nodes) and _fits(each, shapes)]
            if len(free) > 1:
                found.append(tuple(free))
                taken.update(name for each in free for name in each.nodes)
    return found


def take_out(graph: Graph, layers: Sequence[Layer]) -> None:
    """Rewires the readers of each layer's output to its input and removes what nothing needs any
    more."""
    moved = {layer.output: layer.input for layer in layers}
    for name, source in moved.items():
        while source in moved:  # the layer before goes too
            source = moved[source]
        moved[name] = source
    for node in graph.nodes:
        for at, name in enumerate(node.input):
            node.input[at] = moved.get(name, name)
    graph.refresh()
    for name, source in moved.items():
        if name in graph.outputs or graph.users(name):  # as a port, or in the body of a node
            maker = graph.producers[name]
            graph.replace(
                maker, [onnx.helper.make_node("Identity", [source], [name], name=maker.name)]
            )
    _drop_dead(graph)
    graph.drop_unused()


def _drop_dead(graph: Graph) -> None:
    """Removes the nodes from which nothing leads to an output."""
    dead: set[str] = set()
    for node in reversed(graph.nodes):
        read = any(
            name in graph.outputs or any(user.name not in dead for user in graph.users(name))
            for name in node.output
            if name
        )
        if not read:
            dead.add(node.name)
    for node in [each for each in graph.nodes if each.name in dead]:
        graph.proto.graph.node.remove(node)
    graph.refresh()


class _Flow:
    """How values flow to the outputs: for every tensor that reaches one, its nearest cut."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.places = {node.name: at for at, node in enumerate(graph.nodes)}
        self.next: dict[str, str] = {}
        self._signs: dict[object, int] = {}
        self._depth = {_END: 0}
        made = [name for node in graph.nodes for name in node.output if name]
        for name in reversed([*(port.name for port in graph.proto.graph.input), *made]):
            ends = [_END] if name in graph.outputs else []
            ends += [out for node in self.readers(name) for out in node.output if out in self.next]
            if ends:
                meet = ends[0]
                for each in ends[1:]:
                    meet = self._meet(meet, each)
                self.next[name], self._depth[name] = meet, self._depth[meet] + 1

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read the values of a tensor."""
        return [node for node in self.graph.users(name) if node.op_type not in _SHAPE_ONLY]

    def _meet(self, one: str, two: str) -> str:
        """The first tensor that lies on every path from both."""
        while one != two:
            if self._depth[one] < self._depth[two]:
                one, two = two, one
            one = self.next[one]
        return one

    def chains(self) -> Iterator[list[str]]:
        """The chains of cuts on which residual segments lie, the one with the most of them first.
        No segment is on two of them."""
        counts: dict[str, int] = {_END: 0}
        starts: dict[str, None] = {}
        covered: set[str] = set()
        for name, after in self.next.items():  # the last tensors first
            residual = after != _END and self.passes(name, after)
            residual = residual and self.segment(name, after).residual
            counts[name] = counts[after] + residual
            if residual:
                starts[name] = None
        for name in starts:
            after = self.next[name]
            while after not in starts and after != _END:
                after = self.next[after]
            covered.add(after)
        seen: set[str] = set()
        for name in sorted(starts.keys() - covered, key=lambda each: (-counts[each], each)):
            chain = [name]
            while chain[-1] not in seen and self.next[chain[-1]] != _END:
                seen.add(chain[-1])
                chain.append(self.next[chain[-1]])
            yield chain

    def passes(self, name: str, after: str) -> bool:
        """Whether the tensor is added as it is to what ends up in its next cut."""
        waiting, seen = [name], {name}
        while waiting:
            for node in self.readers(waiting.pop()):
                out = node.output[0]
                if node.op_type in _JOINS and out == after:
                    return True
                if node.op_type in _JOINS and out in self.next and out not in seen:
                    seen.add(out)
                    waiting.append(out)
        return False

    def segment(self, name: str, after: str) -> _Segment:
        """All that lies on a path from a tensor to its next cut."""
        waiting, found = [name], {}
        while waiting:
            for node in self.readers(waiting.pop()):
                if node.name not in found and any(out in self.next for out in node.output):
                    found[node.name] = node
                    waiting += [out for out in node.output if out in self.next and out != after]
        nodes = sorted(found.values(), key=lambda node: self.places[node.name])
        light = all(node.op_type in _LIGHT for node in nodes)
        residual = not light and self.passes(name, after)
        structure = tuple(sorted((node.op_type, self._axes(node)) for node in nodes))
        sign = self._signs.setdefault(structure, len(self._signs))
        names = tuple(node.name for node in nodes)
        return _Segment(name, after, names, sign, residual, residual or light)

    def _axes(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """How many axes each of the node's constants has; -1 for what is computed."""
        tensors = [self.graph.constant_tensor(name) for name in node.input]
        return tuple(-1 if tensor is None else len(tensor.dims) for tensor in tensors)


def _repeats(segments: Sequence[_Segment]) -> Iterator[list[Layer]]:
    """The layers of a chain, by their structure, for each structure that comes twice or more."""
    stretches: list[list[_Segment]] = [[]]
    for segment in segments:
        if segment.passing:
            stretches[-1].append(segment)
        else:
            stretches.append([])
    while pattern := _best_pattern(stretches):
        layers: list[Layer] = []
        rest: list[list[_Segment]] = []
        for stretch in stretches:
            begin = 0
            for at in _occurrences(pattern, [each.sign for each in stretch]):
                rest.append(stretch[begin:at])
                begin = at + len(pattern)
                layers.append(_joined(stretch[at:begin]))
            rest.append(stretch[begin:])
        yield layers
        stretches = rest


def _joined(segments: Sequence[_Segment]) -> Layer:
    nodes = tuple(name for each in segments for name in each.nodes)
    return Layer(segments[0].input, segments[-1].output, nodes)


def _best_pattern(stretches: Sequence[Sequence[_Segment]]) -> tuple[int, ...]:
    """The run of segments whose repetitions cover most, the shortest of those; () without one.

    It begins with a residual segment: the norm or activation behind the sum is then the layer's
    own, and what is in front of the first layer belongs to none."""
    best: tuple[int, ...] = ()
    most, tried = 0, set()
    signs = [[each.sign for each in stretch] for stretch in stretches]
    for stretch, own in zip(stretches, signs, strict=True):
        for start in [at for at, each in enumerate(stretch) if each.residual]:
            for end in range(start + 1, min(len(own), start + _LONGEST) + 1):
                pattern = tuple(own[start:end])
                if pattern in tried:
                    continue
                tried.add(pattern)
                count = sum(sum(1 for _ in _occurrences(pattern, each)) for each in signs)
                covered = count * len(pattern)
                if count > 1 and (covered, -len(pattern)) > (most, -len(best)):
                    best, most = pattern, covered
    return best


def _occurrences(pattern: Sequence[int], signs: Sequence[int]) -> Iterator[int]:
    """Where the pattern begins, from the left, none within another one."""
    at = 0
    while at + len(pattern) <= len(signs):
        if tuple(signs[at : at + len(pattern)]) == tuple(pattern):
            yield at
            at += len(pattern)
        else:
            at += 1


def _fits(layer: Layer, shapes: Mapping[str, tuple[int | None, ...]]) -> bool:
    """Whether input and output are of one shape, as far as it is known."""
    one, two = shapes.get(layer.input), shapes.get(layer.output)
    if one is None or two is None:
        return True
    same = all(a == b or None in (a, b) for a, b in zip(one, two, strict=False))
    return len(one) == len(two) and same
