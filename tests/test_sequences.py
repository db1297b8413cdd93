"""Betting on means: how often it errs however often one looks, where the truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sartor.sequences import Sequence, from_json, mean_interval

LOOKS = range(100, 2001, 100)


def changes(rng: np.random.Generator, drop: float, flips: float, rows: int) -> np.ndarray:
    """-1 where only the original is right, 1 where only the candidate is."""
    return rng.choice([-1.0, 0.0, 1.0], rows, p=[(flips + drop) / 2, 1 - flips, (flips - drop) / 2])


@pytest.mark.parametrize("flips", [0.01, 0.03, 0.3])
def test_looking_twenty_times_errs_no_more_often_than_once(flips: float) -> None:
    rng = np.random.default_rng(int(flips * 100))
    wrong = 0
    for _ in range(400):
        sequence, values = Sequence(-0.01, -1, 1), changes(rng, 0.01, flips, LOOKS[-1])
        for at in LOOKS:
            sequence = sequence.extended(values[at - 100 : at])
            wrong += sequence.p_value <= 0.05
            if sequence.p_value <= 0.05:
                break
    assert wrong / 400 <= 0.08  # a true 5 % stays below in 99 of 100 runs


def test_what_keeps_its_limit_is_shown_before_the_end() -> None:
    rng = np.random.default_rng(3)
    sequence = Sequence(-0.01, -1, 1).extended(changes(rng, 0.0, 0.002, 2000))
    assert sequence.p_value < 0.01
    assert sequence.seen == 2000


def test_pieces_and_their_order_make_no_difference() -> None:
    values = changes(np.random.default_rng(4), 0.0, 0.1, 1000)
    once = Sequence(-0.05, -1, 1).extended(values)
    pieces = Sequence(-0.05, -1, 1).extended(values[600:]).extended(values[:600])
    assert pieces.logs == pytest.approx(once.logs)
    assert pieces.levels == once.levels


def test_it_goes_on_from_json() -> None:
    values = changes(np.random.default_rng(5), 0.0, 0.1, 500)
    sequence = Sequence(-0.05, -1, 1).extended(values)
    read = from_json(json.loads(json.dumps(sequence.to_json())))
    assert read == sequence
    assert read.extended(values) == sequence.extended(values)


def test_many_values_are_not_kept() -> None:
    rng = np.random.default_rng(6)
    assert Sequence(0.4, 0, 1).extended(rng.random(1000)).levels is None


def test_values_below_the_worst_are_an_error() -> None:
    with pytest.raises(ValueError, match="below the worst"):
        Sequence(0.0, -1, 1).extended(np.array([-1.5]))


def test_a_border_that_no_mean_can_lie_below_is_shown_at_once() -> None:
    assert Sequence(-2.0, -1, 1).extended(np.array([-1.0])).p_value == 0


def test_needs_says_about_how_many_more() -> None:
    rng = np.random.default_rng(7)
    sequence = Sequence(-0.01, -1, 1).extended(changes(rng, 0.0, 0.001, 400))
    needs = sequence.needs(0.001)
    assert needs is not None
    more = sequence.extended(changes(rng, 0.0, 0.001, 2 * needs))
    assert more.p_value <= 0.001
    assert Sequence(0.9, 0, 1).extended(np.zeros(10)).needs(0.05) is None


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_its_interval_holds_the_mean_at_every_look(share: float) -> None:
    rng = np.random.default_rng(8)
    missed = 0
    for _ in range(200):
        values = (rng.random(LOOKS[-1]) < share).astype(float)
        for at in LOOKS[::4]:
            levels, counts = np.unique(values[:at], return_counts=True)
            found = mean_interval(levels, counts, 0.0, 1.0)
            assert found.low <= found.estimate <= found.high
            if not found.low <= share <= found.high:
                missed += 1
                break
    assert missed / 200 <= 0.08


def test_an_interval_of_equal_values_reaches_to_the_better_side() -> None:
    found = mean_interval(np.array([0.0]), np.array([1000]), -1.0, 1.0)
    assert -0.02 < found.low < 0
    assert 0 < found.high < 0.02
    assert math.isclose(found.estimate, 0.0)
