"""Shares of independent groups held against each other.

Each group's share has an exact upper and lower confidence bound (Clopper and Pearson 1934), which
as a function of its level is a distribution; effects of several groups are judged by drawing from
the bounds that are unfavourable (Fay, Proschan and Brittain, "Combining one-sample confidence
procedures for inference in the two-sample case", Biometrics 2015). For paired outcomes, before and
after, the group's four cells are drawn together with one more observation in the worst of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sartor.stats import Floats

DRAWS = 40_000


@dataclass(frozen=True)
class Bounds:
    """Draws [G, R] of the shares after (`new`) and before (`old`) of each group, from the
    distribution of their upper (`high`) and lower (`low`) bounds."""

    new_high: Floats
    new_low: Floats
    old_high: Floats
    old_low: Floats


def bounds(cells: Floats, seed: int = 0, draws: int = DRAWS) -> Bounds:
    """`cells` [G, 4]: how many rows of each group are (before, after) = (0, 0), (0, 1), (1, 0),
    (1, 1); effective numbers may be fractions."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_gamma(cells[:, :, None], size=(*cells.shape, draws))
    more = rng.standard_exponential(size=(len(cells), draws))
    total = drawn.sum(1) + more
    new, old = drawn[:, 1] + drawn[:, 3], drawn[:, 2] + drawn[:, 3]
    return Bounds((new + more) / total, new / total, (old + more) / total, old / total)


def p_value(violated: np.ndarray) -> float:
    """From draws [R] of whether the hypothesis to be rejected still holds."""
    return float((np.count_nonzero(violated) + 1) / (len(violated) + 1))
