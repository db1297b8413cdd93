"""A model of what recipes bring: Gaussian processes over recipes, and what to try next by them.

The kernel is a sum of two: a linear one, since what techniques bring multiplies to a good part
(their logarithms add), and a squared-exponential one for what they do together. What was seen on
another model counts by how like it is: its values are taken to correlate with this model's
(Bonilla and others, NeurIPS 2007). What to try next: the largest expected improvement times the
probability that every limit holds (Schonlau and others 1998; Gardner and others, ICML 2014).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, special

Floats = np.ndarray

LENGTHS = (0.15, 0.4, 1.0)  # the reach of the second kernel
SIGNALS = ((0.3, 0.2), (0.1, 0.6))  # variances of the two kernels, as shares of y's
NOISES = (0.01, 0.1)  # variance of one observation, likewise


@dataclass(frozen=True)
class Observed:
    """Points [n, axes], their values [n], which model each was seen on [n] (0: this one) and how
    that model's values correlate with this one's [n] (1 for this one)."""

    points: Floats
    values: Floats
    models: Floats
    likeness: Floats


def predict(seen: Observed, wanted: Floats, centre: float | None = None) -> tuple[Floats, Floats]:
    """Mean and standard deviation at `wanted` [m, axes], for this model. `centre`: the value far
    from all points; the mean where it is None. The variances are those, of a few, under which
    the values are likeliest."""
    middle = float(seen.values.mean()) if centre is None else centre
    scale = max(float(np.sqrt(np.mean((seen.values - middle) ** 2))), 1e-3)
    y = (seen.values - middle) / scale
    same = seen.models[:, None] == seen.models[None]
    share = np.where(same, 1.0, np.outer(seen.likeness, seen.likeness))
    tried = [
        _fitted(seen.points, share, y, setting)
        for setting in itertools.product(SIGNALS, LENGTHS, NOISES)
    ]
    _, ((a, b), length, _), factor, solved = max(tried, key=lambda each: each[0])
    cross = _kernel(seen.points, wanted, a, b, length) * seen.likeness[:, None]
    half = linalg.solve_triangular(factor, cross, lower=True, check_finite=False)
    prior = a * (1 + np.square(wanted).sum(1)) + b
    variance = np.maximum(prior - np.square(half).sum(0), 1e-6)
    return middle + scale * (cross.T @ solved), scale * np.sqrt(variance)


Setting = tuple[tuple[float, float], float, float]  # of SIGNALS, LENGTHS and NOISES


def _fitted(
    points: Floats, share: Floats, y: Floats, setting: Setting
) -> tuple[float, Setting, Floats, Floats]:
    """The log likelihood under a setting (but for a constant), and what a prediction needs."""
    (a, b), length, noise = setting
    gram = _kernel(points, points, a, b, length) * share + noise * np.eye(len(y))
    factor = linalg.cholesky(gram, lower=True, check_finite=False)
    solved = linalg.cho_solve((factor, True), y, check_finite=False)
    fit = -0.5 * float(y @ solved) - float(np.log(np.diag(factor)).sum())
    return fit, setting, factor, solved


def _kernel(p: Floats, q: Floats, a: float, b: float, length: float) -> Floats:
    inner = p @ q.T
    squares = np.square(p).sum(1)[:, None] + np.square(q).sum(1)[None] - 2 * inner
    found: Floats = a * (1 + inner) + b * np.exp(-squares / (2 * length**2))
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
