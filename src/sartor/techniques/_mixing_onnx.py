"""Rows of a batch mixed with one another, for the original to say what comes of them: as many
lessons as are wanted from few rows (after Beyer et al., "Knowledge distillation: a good teacher is
patient and consistent", CVPR 2022).

    batch, own = Mixing(0.3, graph, bench)(batch, rows, (seed, step))

Half of the rows are changed. Numbers become a mean with those of another row, which has at most
the given share; of places in a table (words) that share is taken from another row. Masks, types
and what else is whole numbers stay the row's own, and so does a padded row's length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sartor.contracts import Arrays, Bench, Failed
from sartor.techniques._graph_onnx import Graph

HALF = 0.5  # of the rows


class Mixing:
    """Raises Failed where no input can be mixed."""

    def __init__(self, share: float, graph: Graph, bench: Bench) -> None:
        self.share, self.lengths = share, bench.lengths("train")
        ports = {port.name: np.dtype(port.dtype).kind for port in bench.teacher.signature.inputs
                 if port.dtype != "str"}  # fmt: skip
        tables = {
            node.input[1]
            for node in graph.nodes
            if node.op_type == "Gather" and graph.constant_tensor(node.input[0]) is not None
        }
        self.words = sorted(
            name for name in tables if ports.get(name, "") in "iu" and name in ports
        )
        self.numbers = sorted(name for name, kind in ports.items() if kind == "f")
        if not (self.words or self.numbers):
            raise Failed("rows cannot be mixed: no input holds numbers, or places in a table")

    def __call__(
        self, batch: Arrays, rows: np.ndarray, seed: Sequence[int]
    ) -> tuple[Arrays, np.ndarray]:
        """The batch of these rows, and [N] which of them are still their own."""
        rng, count = np.random.default_rng([*seed, 77]), len(rows)
        changed, other = rng.random(count) < HALF, rng.permutation(count)
        made = dict(batch)
        for name in self.numbers:
            value = batch[name]
            part = np.where(changed, rng.uniform(0, self.share, count), 0.0).astype(value.dtype)
            made[name] = value + _rows(part, value.ndim) * (value[other] - value)
        taken: dict[tuple[int, ...], np.ndarray] = {}
        for name in self.words:
            value = batch[name]
            if value.shape not in taken:
                taken[value.shape] = self._taken(value.shape, rows, other, changed, rng)
            made[name] = np.where(taken[value.shape], value[other], value)
        return made, ~changed

    def _taken(
        self, shape: tuple[int, ...], rows: np.ndarray, other: np.ndarray, changed: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:  # fmt: skip
        """Which words come from the other row: none behind the end of either."""
        axes = len(shape)
        taken: np.ndarray = (rng.random(shape) < self.share) & _rows(changed, axes)
        if self.lengths is not None and axes > 1:
            lengths = np.asarray(self.lengths)[rows]
            ends = _rows(np.minimum(lengths, lengths[other]), axes)
            taken &= _rows(np.arange(shape[1]), axes - 1) < ends
        return taken


def _rows(values: np.ndarray, axes: int) -> np.ndarray:
    """One number a row, to go with arrays of so many axes."""
    return values.reshape(-1, *(1,) * (axes - 1))
