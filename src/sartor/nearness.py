"""How near the answers of a model in another form are to its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# Of the answers' spread, and of the rows: what conversion may change where both compute in float32.
NEAR, FLIPS = 1e-3, 1e-3


def spread(arrays: Sequence[np.ndarray]) -> float:
    """Between the least and the largest finite number; 1 where there is none, or but one."""
    known = np.concatenate([each[np.isfinite(each)].astype(np.float64).ravel() for each in arrays])
    return (float(np.ptp(known)) if known.size else 0.0) or 1.0


def gap(found: np.ndarray, right: np.ndarray) -> float:
    """The largest difference; infinite where shape, type or what is no finite number differs, and
    where whole numbers do."""
    if found.shape != right.shape or found.dtype != right.dtype:
        return float("inf")
    if right.dtype.kind != "f":
        return 0.0 if np.array_equal(found, right) else float("inf")
    known = np.isfinite(right)
    if not np.array_equal(found[~known], right[~known], equal_nan=True):
        return float("inf")
    one, two = found[known].astype(np.float64), right[known].astype(np.float64)
    widest = float(np.abs(one - two).max(initial=0.0))
    return widest if np.isfinite(widest) else float("inf")


def difference(
    right: Sequence[Sequence[np.ndarray]],
    found: Iterable[Sequence[np.ndarray]],
    names: Sequence[str],
    answer: str,
    who: str,
    whose: str,
    near: float = NEAR,
    flips: float = FLIPS,
) -> tuple[str, int] | None:
    """What is wrong with the answers of `who`, in words, and in which batch; None where they are
    near enough to those that are right, which are `whose`. Answers are [batch][output]; `answer`
    names the output whose largest number decides."""
    spreads = [spread([each[at] for each in right]) for at in range(len(names))]
    flipped = seen = 0
    for batch, (ones, twos) in enumerate(zip(found, right, strict=True)):
        for name, one, two, usual in zip(names, ones, twos, spreads, strict=True):
            off = gap(one, two) / usual
            if not off <= near:
                rows = len(two) if two.ndim else 1
                told = f"{who}'s {name} differs from {whose} by {off:.1e} of its spread"
                return f"{told} for {rows} rows", batch
            if name == answer and two.ndim > 1 and two.shape[-1] > 1 and two.dtype.kind == "f":
                changed = one.argmax(-1) != two.argmax(-1)
                flipped, seen = flipped + int(changed.sum()), seen + changed.size
    if flipped > flips * seen:
        return f"{flipped} of {seen} answers of {who} are others than {whose}", 0
    return None
