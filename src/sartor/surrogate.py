"""A model of what recipes bring: Gaussian processes over recipes, and what to try next by them.

The kernel is a sum of two: a linear one, since what techniques bring multiplies to a good part
(their logarithms add), and a squared-exponential one for what they do together. One process for
the logarithm of the objective, one for the margin of each limit, one for whether a recipe can be
carried out at all. What to try next: the largest expected improvement times the probability that
every limit holds (Schonlau and others 1998; Gardner and others, ICML 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, special

Floats = np.ndarray

LINEAR, NEAR, LENGTH = 0.5, 0.5, 1.0  # variances of the two kernels, and the reach of the second
NOISE = 0.01  # variance of one observation, beside a variance of 1 of what is observed


@dataclass(frozen=True)
class Observed:
    """Points [n, axes], their values [n] and how much each counts [n]: 1 for this model's own, less
    for what was seen on another."""

    points: Floats
    values: Floats
    weights: Floats


def predict(seen: Observed, wanted: Floats, centre: float | None = None) -> tuple[Floats, Floats]:
    """Mean and standard deviation at `wanted` [m, axes]. `centre`: the value far from all points;
    the weighted mean where it is None."""
    own = np.average(seen.values, weights=seen.weights) if centre is None else centre
    spread = np.sqrt(np.average((seen.values - own) ** 2, weights=seen.weights))
    scale = max(float(spread), 1e-3)
    y = (seen.values - own) / scale
    gram = _kernel(seen.points, seen.points)
    gram[np.diag_indices_from(gram)] += NOISE / seen.weights + (1 - seen.weights)
    cross = _kernel(seen.points, wanted)
    factor = linalg.cho_factor(gram, lower=True, check_finite=False)
    mean = cross.T @ linalg.cho_solve(factor, y, check_finite=False)
    half = linalg.solve_triangular(factor[0], cross, lower=True, check_finite=False)
    prior = LINEAR * (1 + np.square(wanted).sum(1)) + NEAR
    variance = np.maximum(prior - np.square(half).sum(0), 1e-6)
    return own + scale * mean, scale * np.sqrt(variance)


def _kernel(a: Floats, b: Floats) -> Floats:
    inner = a @ b.T
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * inner
    found: Floats = LINEAR * (1 + inner) + NEAR * np.exp(-squares / (2 * LENGTH**2))
    return found


def expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Of a value that should be small."""
    z = (best - mean) / deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    found: Floats = deviation * (z * special.ndtr(z) + density)
    return found


def holds(mean: Floats, deviation: Floats, bar: float = 0.0) -> Floats:
    """The probability that a margin lies above the bar."""
    found: Floats = special.ndtr((mean - bar) / deviation)
    return found


def stacked(parts: Sequence[Floats]) -> Floats:
    """Rows of different width under each other; axes that a row does not know are 0."""
    wide = max(each.shape[1] for each in parts)
    return np.concatenate([np.pad(each, ((0, 0), (0, wide - each.shape[1]))) for each in parts])
