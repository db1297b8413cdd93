"""Batch norms that are there for the training alone.

Exporters fold batch norms into the convolutions before them, and a network that has lost half of
its channels is hard to train without: every change of a layer moves what all later ones see. So
each convolution gets one for the time of the training, which starts as the identity on the training
rows and is folded in again at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sartor.techniques._graph_onnx import Graph

_EPSILON = 1e-5
_MOMENTUM = 0.1


class Norms(nn.Module):
    """One batch norm behind each convolution with a weight of its own, unless the graph has batch
    norms. `tensors` are the outputs that it stands behind."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.nodes: dict[str, onnx.NodeProto] = {}
        if not any(node.op_type == "BatchNormalization" for node in graph.nodes):
            self.nodes = {node.output[0]: node for node in graph.nodes if _own(graph, node)}
        self.gains, self.shifts = nn.ParameterDict(), nn.ParameterDict()
        self.means: dict[str, Tensor] = {}
        self.spreads: dict[str, Tensor] = {}
        self.keys = {name: str(at) for at, name in enumerate(self.nodes)}

    @property
    def tensors(self) -> frozenset[str]:
        return frozenset(self.nodes)

    @property
    def moving(self) -> list[Tensor]:
        """What follows the data in training."""
        return [*self.means.values(), *self.spreads.values()]

    def begin(self, seen: Iterable[Mapping[str, Tensor]]) -> None:
        """Starts as the identity: `seen` are the convolutions' outputs on some batches."""
        sums: dict[str, list[Tensor]] = {}
        for values in seen:
            for name in self.nodes:
                rows = values[name].detach().float().movedim(1, -1).flatten(0, -2)
                sums.setdefault(name, []).append(torch.stack([rows.mean(0), (rows * rows).mean(0)]))
        for name, each in sums.items():
            mean, square = torch.stack(each).mean(0)
            spread = (square - mean * mean).clamp_min(0)
            self.means[name], self.spreads[name] = mean.clone(), spread.clone()
            self.gains[self.keys[name]] = nn.Parameter((spread + _EPSILON).sqrt())
            self.shifts[self.keys[name]] = nn.Parameter(mean.clone())

    def apply_to(self, name: str, value: Tensor, training: bool) -> Tensor:
        key = self.keys[name]
        if key not in self.gains:
            return value
        return F.batch_norm(
            value, self.means[name], self.spreads[name], self.gains[key], self.shifts[key],
            training, _MOMENTUM, _EPSILON,
        )  # fmt: skip

    @torch.no_grad()
    def fold(self, graph: Graph) -> None:
        """Into the weights and biases of the graph, which were written before."""
        for name, node in self.nodes.items():
            key = self.keys[name]
            if key not in self.gains:
                continue
            factor = self.gains[key] / (self.spreads[name] + _EPSILON).sqrt()
            weight = graph.constant(node.input[1])
            assert weight is not None  # `_own` saw it
            shape = (-1, *(1,) * (weight.ndim - 1))
            graph.set_constant(node.input[1], weight * factor.numpy().reshape(shape))
            before = graph.constant(node.input[2]) if len(node.input) > 2 else np.float32(0)
            bias = (torch.from_numpy(np.array(before)) - self.means[name]) * factor
            if len(node.input) < 3:
                node.input.append(graph.fresh(f"{node.input[1]}_bias"))
            graph.set_constant(node.input[2], (bias + self.shifts[key]).numpy())
        graph.refresh()


def _own(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether it is a convolution in float whose weight and bias nobody else reads."""
    if node.op_type != "Conv" or node.domain:
        return False
    names = [name for name in node.input[1:] if name]
    tensors = [graph.constant_tensor(name) for name in names]
    alone = all(len(graph.users(name)) == 1 for name in names)
    return (
        alone
        and len(names) == len(node.input) - 1
        and all(
            tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT for tensor in tensors
        )
    )
