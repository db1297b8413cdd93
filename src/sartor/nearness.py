"""How near the answers of a model in another form are to its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(arrays: Sequence[np.ndarray]) -> float:
    """Between the least and the largest finite number; 1 where there is none, or but one."""
    known = np.concatenate([each[np.isfinite(each)].astype(np.float64).ravel() for each in arrays])
    return (float(np.ptp(known)) if known.size else 0.0) or 1.0


def gap(found: np.ndarray, right: np.ndarray) -> float:
    """The largest difference; infinite where shape, type or what is no number differs, and where
    whole numbers do."""
    if found.shape != right.shape or found.dtype != right.dtype:
        return float("inf")
    if right.dtype.kind != "f":
        return 0.0 if np.array_equal(found, right) else float("inf")
    known = np.isfinite(right)
    if not np.array_equal(found[~known], right[~known], equal_nan=True):
        return float("inf")
    one, two = found[known].astype(np.float64), right[known].astype(np.float64)
    return float(np.abs(one - two).max(initial=0.0))
