"""Whether a graph in torch answers as ONNX Runtime does: looked at before it teaches anything.

What is trained is the torch module, what is written back and shipped is the graph. Where the two
differ (an attribute that is not followed, a version of an operator that means something else), all
training and every gradient would be of another network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import torch

from sartor.contracts import Bench, Failed
from sartor.libraries import first_line
from sartor.nearness import spread
from sartor.techniques._graph_onnx import Graph, start, write

if TYPE_CHECKING:
    from sartor.techniques._autograd_onnx import GraphModule

_ROWS = 4
_NEAR = 0.01  # of the answers' spread: the largest difference
_ROUNDED = 0.05  # the mean one where inner values are rounded, which may go either way at a tie
_NOISE = 1e-5  # of the largest answer: what two orders of a sum in float32 may differ by
_ROUNDING = {"QuantizeLinear", "DequantizeLinear", "MatMulNBits", "GatherBlockQuantized"}


def agree(net: GraphModule, graph: Graph, bench: Bench) -> None:
    """Raises Failed where the module, in float32, answers the first training rows otherwise than
    ONNX Runtime does. The module is in evaluation mode afterwards."""
    rows = min(_fixed(graph) or _ROWS, bench.count("train"))
    batch = bench.pick("train", np.arange(rows))
    feeds = {name: np.asarray(batch[name]) for name in net.inputs}
    with torch.no_grad():
        found = net.eval()({name: torch.from_numpy(value) for name, value in feeds.items()})
    rounded = any(node.op_type in _ROUNDING for node in graph.nodes)
    for name, right in _answers(graph, feeds, bench).items():
        apart = _apart(found[name].numpy(), right, rounded)
        if not apart <= (_ROUNDED if rounded else _NEAR):
            raise Failed(
                f"in torch it answers otherwise: {name} differs "
                + (f"by {apart:.1%} of its spread" if np.isfinite(apart) else "in shape or values")
                + f" on {rows} rows"
            )


def _fixed(graph: Graph) -> int:
    """Rows of the only batch that the graph takes; 0 where their number is free."""
    sizes = graph.proto.graph.input[0].type.tensor_type.shape.dim
    return int(sizes[0].dim_value) if sizes else 0


def _answers(graph: Graph, feeds: dict[str, np.ndarray], bench: Bench) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    # Operator by operator, as the module: nothing is fused, and loading takes no time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        session = start(write(graph.proto, Path(folder)), bench.target.threads, options)
        try:
            values = session.run(list(graph.outputs), feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no other base class
            raise Failed(f"ONNX Runtime does not run it: {first_line(error)}") from error
    return dict(zip(graph.outputs, values, strict=True))


def _apart(found: np.ndarray, right: np.ndarray, rounded: bool) -> float:
    """In shares of the answers' spread; of whole numbers, the share that differs. Infinite where
    shapes do, or what is no number."""
    if found.shape != right.shape:
        return np.inf
    if right.dtype.kind != "f":
        return float(np.mean(found != right)) if right.size else 0.0
    known = np.isfinite(right)
    if not np.array_equal(known, np.isfinite(found)):
        return np.inf
    one, two = found[known].astype(np.float64), right[known].astype(np.float64)
    gaps = np.abs(one - two) - _NOISE * np.abs(two).max(initial=0)
    if not gaps.size:
        return 0.0
    return max(float(gaps.mean() if rounded else gaps.max()), 0.0) / spread([right])
