"""Which rows a training takes in each of its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_WINDOW = 16  # batches among which rows of like length are put together


@dataclass(frozen=True)
class Order:
    """Every epoch over `rows` has an order of its own, by the seed and the step alone; with
    `lengths` ([rows or more]), rows of like length come together."""

    rows: int
    batch: int
    seed: int
    lengths: np.ndarray | None = None

    def __call__(self, at: int) -> np.ndarray:
        """The rows of step `at`."""
        size = min(self.batch, self.rows)
        each = max(self.rows // size, 1)
        epoch, turn = divmod(at, each)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        if self.lengths is None:
            return order[turn * size : (turn + 1) * size]
        window = order[turn // _WINDOW * _WINDOW * size :][: _WINDOW * size]
        window = window[np.argsort(self.lengths[window], kind="stable")]
        cuts = [window[i : i + size] for i in range(0, len(window) - size + 1, size)]
        mixed = np.random.default_rng((self.seed, epoch, turn // _WINDOW))
        return np.asarray(cuts[mixed.permutation(len(cuts))[turn % _WINDOW % len(cuts)]])
