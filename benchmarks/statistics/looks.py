"""Certification that may stop early: a betting sequence beside the test of fixed size.

The holdout is looked at after 512, 768, 1,024 ... rows. A limit is certified early where the
sequence reaches a fifth of the level, and else, at the last row, by the test of fixed size at the
other four fifths. With more data the sequence goes on; the test of fixed size is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from chain import remembered

from sartor import paired
from sartor.certify import BET, LOOKS
from sartor.sequences import Sequence

EARLY = BET["final"]  # of the level, for the sequence


@dataclass(frozen=True)
class Looks:
    """Shares of the repetitions certified: before the last row, in the end, after the holdout was
    continued with more data; by the test of fixed size at the whole level; and the mean share of
    the rows that were used."""

    early: float
    certified: float
    continued: float
    fixed: float
    used: float


def ends(rows: int) -> list[int]:
    return [*(each for each in LOOKS if each < rows), rows]


def one_hypothesis(
    rows: int, drop: float, flips: float, repetitions: int, margin: float = 0.01,
    level: float = 0.05, more: tuple[int, ...] = (1, 2, 4),
) -> Looks:  # fmt: skip
    """A limit of "at most so much worse" where the truth is `drop`. `more`: further data, in
    holdouts, each with a look of its own; only where nothing was certified before."""
    rng = np.random.default_rng([rows, round(1e6 * drop), round(1e6 * flips)])
    chances = [(flips - drop) / 2, 1 - flips, (flips + drop) / 2]
    early = certified = continued = fixed = 0
    used = 0.0
    with remembered():
        for _ in range(repetitions):
            at, sequence = _early(rng, rows, chances, margin, level)
            gains, losses, found = sequence.gains, sequence.losses, at < rows or sequence.sure
            early += at < rows
            used += at / rows
            whole = gains, losses, rows
            if at < rows:  # what the test of fixed size would have said of the whole holdout
                rest = rng.multinomial(rows - at, chances)
                whole = gains + int(rest[0]), losses + int(rest[2]), rows
            p = paired.p_value(*whole, -margin)
            fixed += p <= level
            found = found or p <= (1 - EARLY) * level
            certified += found
            continued += found or _later(rng, sequence, rows, chances, more)
    share = (each / repetitions for each in (early, certified, continued, fixed, used))
    return Looks(*share)


@dataclass
class _Seen:
    """A sequence and the counts that went into it."""

    sequence: Sequence
    level: float
    gains: int = 0
    losses: int = 0

    def extend(self, counts: np.ndarray) -> None:
        gains, _, losses = (int(each) for each in counts)
        self.gains, self.losses = self.gains + gains, self.losses + losses
        self.sequence = self.sequence.extended(np.repeat([1.0, 0.0, -1.0], counts))

    @property
    def sure(self) -> bool:
        return self.sequence.p_value <= self.level


def _early(
    rng: np.random.Generator, rows: int, chances: list[float], margin: float, level: float
) -> tuple[int, _Seen]:
    seen, before = _Seen(Sequence(border=-margin, worst=-1.0, best=1.0), EARLY * level), 0
    for at in ends(rows):
        seen.extend(rng.multinomial(at - before, chances))
        before = at
        if seen.sure:
            return at, seen
    return rows, seen


def _later(
    rng: np.random.Generator, seen: _Seen, rows: int, chances: list[float], more: tuple[int, ...]
) -> bool:
    for times in more:
        seen.extend(rng.multinomial(times * rows, chances))
        if seen.sure:
            return True
    return False
