"""What the original's inner values teach, besides its answers.

Tensors keep their names while a graph is changed, so that a tensor of the changed graph is compared
with that of the original which bears its name: what is left of the fifth layer with the fifth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.contracts import Arrays, Bench, Failed
from sartor.techniques._autograd_onnx import GraphModule
from sartor.techniques._graph_onnx import Graph, read

HINTS = ("none", "hidden", "relations")
_MOST = 6  # tensors that are compared
_ENDS = ("Add", "LayerNormalization", "Relu", "Clip", "Concat", "BatchNormalization")


class Hints(nn.Module):
    """The loss of inner values, one of two:

    "hidden": squared distance to the original's hidden states, through a learned projection where
    widths differ (Romero et al., "FitNets", ICLR 2015), in shares of their variance;
    "relations": how alike the rows of a batch are to one another, which no width matters to (Tung
    and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019).

    Raises Failed where the original is no ONNX graph or the two have no inner tensor in common."""

    def __init__(self, kind: str, graph: Graph, bench: Bench) -> None:
        super().__init__()
        self.kind = kind
        if bench.teacher.kind != "onnx":
            raise Failed(f"hints={kind} takes an original in ONNX; hints=none does without")
        original = read(bench.teacher)
        self.names = _common(graph, original)
        if not self.names:
            raise Failed(f"hints={kind}: no inner tensor of the original is left to compare with")
        self.teacher = GraphModule(original).eval().requires_grad_(False)
        self.projections = nn.ParameterDict()

    def prepare(self, answers: Mapping[str, Tensor], batch: Arrays, seed: int) -> None:
        """Makes the projections, once the widths are seen on a batch."""
        if self.kind != "hidden":
            return
        taught, rng = self.taught(batch), torch.Generator().manual_seed(seed)
        for at, name in enumerate(self.names):
            ours, theirs = (_channels(each[name]).shape[-1] for each in (answers, taught))
            if ours != theirs:
                start = torch.randn(ours, theirs, generator=rng) / math.sqrt(ours)
                self.projections[str(at)] = nn.Parameter(start)

    def forward(self, answers: Mapping[str, Tensor], taught: Mapping[str, Tensor]) -> Tensor:
        gaps = [self._gap(at, answers[n], taught[n]) for at, n in enumerate(self.names)]
        return torch.stack(gaps).mean()

    def _gap(self, at: int, ours: Tensor, theirs: Tensor) -> Tensor:
        if self.kind == "relations":
            return F.mse_loss(_alike(ours), _alike(theirs)) * len(ours)
        ours, theirs = _channels(ours.float()), _channels(theirs.float())
        if str(at) in self.projections:
            ours = ours @ self.projections[str(at)]
        return F.mse_loss(ours, theirs) / theirs.var().clamp_min(1e-6)

    @torch.no_grad()
    def taught(self, batch: Arrays) -> dict[str, Tensor]:
        """The original's answers and inner values."""
        feeds = {name: torch.from_numpy(batch[name]) for name in self.teacher.inputs}
        found: dict[str, Tensor] = self.teacher(feeds, self.names)
        return found


def _common(graph: Graph, original: Graph) -> tuple[str, ...]:
    """Inner tensors that both graphs make with the same operator, spread over the depth."""
    makers = {node.output[0]: node.op_type for node in original.nodes if node.output}
    shared = [
        node.output[0]
        for node in graph.nodes
        if node.op_type in _ENDS
        and makers.get(node.output[0]) == node.op_type
        and node.output[0] not in graph.outputs
        and _varies(graph, node.input)
    ]
    step = max(len(shared) / _MOST, 1.0)
    picked = [shared[len(shared) - 1 - int(i * step)] for i in range(min(_MOST, len(shared)))]
    return tuple(reversed(picked))


def _varies(graph: Graph, inputs: Sequence[str]) -> bool:
    """Whether it follows the data and is no sum of shapes: a weight is among the inputs, or
    everything is computed."""
    return all(graph.constant_tensor(name) is None or graph.constant_tensor(name).dims  # type: ignore[union-attr]
               for name in inputs if name)  # fmt: skip


def _channels(value: Tensor) -> Tensor:
    """Channels last, everything else as rows."""
    moved = value.movedim(1, -1) if value.ndim == 4 else value
    return moved.reshape(-1, moved.shape[-1])


def _alike(value: Tensor) -> Tensor:
    """[rows, rows] cosines."""
    flat = F.normalize(value.float().flatten(1), dim=1)
    return flat @ flat.T
