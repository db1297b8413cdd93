"""Weights that become zeros while the others are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sartor.techniques._graph_onnx import Graph, attribute

_GROWTH = 0.7  # share of the steps in which zeros are added
_UPDATES = 20  # times that it is chosen anew which weights are zeros


@dataclass(frozen=True)
class Sparse:
    """What is to become zero: all but `density` of the weights of layers with at least `smallest`
    numbers, or in every `pattern[1]` neighbouring inputs all but `pattern[0]`."""

    density: float
    pattern: tuple[int, int] | None = None
    local: bool = False
    smallest: int = 1024


def sparsifiable(graph: Graph, sparse: Sparse) -> dict[str, int]:
    """Weight -> its axis of inputs, for the products and convolutions of one group whose weight
    `sparse` is about."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        tensor = graph.tensors.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in ("Conv", "Gemm", "MatMul") or tensor is None:
            continue
        dims, turned = list(tensor.dims), bool(attribute(node, "transB", 0))
        axis = 1 if node.op_type == "Conv" or turned else 0
        whole = sparse.pattern is None or (len(dims) > axis and dims[axis] % sparse.pattern[1] == 0)
        large = tensor.data_type == 1 and len(dims) >= 2 and math.prod(dims) >= sparse.smallest
        if large and whole and attribute(node, "group", 1) == 1:
            found[tensor.name] = axis
    return found


class Sparsity:
    """Masks for a list of weights that fill up with zeros along a cubic (Zhu and Gupta, "To prune,
    or not to prune", 2017): quickly at first, while there is much that nobody misses.

    The order among all weights is global, each in units of its own scale, or with `local` each
    weight's own. `axes`: of the inputs of each weight."""

    def __init__(
        self, weights: Sequence[nn.Parameter], axes: Sequence[int], how: Sparse, steps: int
    ) -> None:
        self.weights, self.axes, self.how = weights, axes, how
        self.last = max(round(_GROWTH * steps), 1)
        self.every = max(self.last // _UPDATES, 1)
        self.masks: list[Tensor] = [torch.ones_like(each) for each in weights]

    @torch.no_grad()
    def update(self, at: int) -> None:
        """After step `at`: new masks where it is time, zeros where they are wanted."""
        if at <= self.last and (at % self.every == 0 or at == self.last):
            share = min(at / self.last, 1.0)
            goal = self.how.density if self.how.pattern is None else 0.0
            self._choose(1 - (1 - goal) * (1 - (1 - share) ** 3))
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)

    def _choose(self, density: float) -> None:
        """`density`: of the weights, or with a pattern of the groups that do not follow it yet."""
        if self.how.pattern is not None:
            pairs = zip(self.weights, self.axes, strict=True)
            self.masks = [_patterned(w, axis, self.how.pattern, density) for w, axis in pairs]
            return
        sizes = [each.detach().abs() for each in self.weights]
        if self.how.local:
            self.masks = [(s >= _threshold(s.flatten(), density)).float() for s in sizes]
            return
        scaled = [size / size.square().mean().sqrt().clamp_min(1e-12) for size in sizes]
        bound = _threshold(torch.cat([each.flatten() for each in scaled]), density)
        self.masks = [(each >= bound).float() for each in scaled]


def _threshold(values: Tensor, density: float) -> float:
    """The value that this share of all is not below."""
    below = min(int((1 - density) * len(values)), len(values) - 1)
    return float(values.kthvalue(below + 1).values) if below else 0.0


def _patterned(weight: Tensor, axis: int, pattern: tuple[int, int], free: float) -> Tensor:
    """Of every m neighbours along the inputs the n largest stay, but in a share `free` of the
    groups: those that would lose most."""
    keep, of = pattern
    moved = weight.detach().abs().movedim(axis, -1)
    groups = moved.reshape(-1, of)
    largest = groups.argsort(stable=True, dim=-1, descending=True)[:, :keep]
    best = torch.zeros_like(groups).scatter_(-1, largest, 1.0)
    lost = (groups * (1 - best)).sum(-1)
    chosen = lost.argsort(stable=True)[: math.ceil((1 - free) * len(groups))]
    mask = torch.ones_like(groups)
    mask[chosen] = best[chosen]
    return mask.reshape(moved.shape).movedim(-1, axis).contiguous()
