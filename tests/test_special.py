"""Distributions and roots by numpy alone are scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import special as theirs
from scipy.stats import binom

from sartor import paired, special

SAME = 1e-10
sizes = st.floats(-1.0, 12.0).map(math.exp)  # of counts, and of degrees of freedom
chances = st.one_of(st.floats(1e-12, 1 - 1e-9), st.floats(-200, -1e-6).map(math.exp))
many = settings(max_examples=300, deadline=None)


def near(value: float) -> object:
    return pytest.approx(value, rel=SAME, abs=1e-290)


@many
@given(st.floats(-35, 35), chances)
@example(0.0, 0.5)
def test_the_normal_distribution_and_logits(x: float, p: float) -> None:
    assert special.ndtr(x) == near(theirs.ndtr(x))
    assert special.ndtri(p) == near(theirs.ndtri(p))
    assert special.expit(x) == near(theirs.expit(x))
    assert special.logit(p) == near(theirs.logit(p))


@many
@given(sizes, sizes, st.floats(-8, 8), chances)
def test_the_beta_distribution(a: float, b: float, away: float, p: float) -> None:
    """Within eight standard errors of its mean, where something depends on it."""
    x = a / (a + b) + away * math.sqrt(a * b / (a + b + 1)) / (a + b)
    if 0 < x < 1:
        assert special.betainc(a, b, x) == near(theirs.betainc(a, b, x))
    quantile = theirs.betaincinv(a, b, p)
    assume(1e-280 < quantile < 1)
    assert special.betaincinv(a, b, p) == near(quantile)


@many
@given(sizes, st.floats(-40, 40), st.floats(1e-9, 1 - 1e-9))
def test_students_t(free: float, t: float, p: float) -> None:
    assume(abs(t) > 1e-3)  # below, scipy's own loses digits
    assert special.stdtr(free, t) == near(theirs.stdtr(free, t))
    assert special.stdtrit(free, p) == pytest.approx(theirs.stdtrit(free, p), rel=SAME, abs=1e-9)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_ends(p: float) -> None:
    far = math.inf if p else -math.inf
    assert special.ndtri(p) == special.stdtrit(3.0, p) == far
    assert special.stdtr(3.0, far) == special.betainc(2, 3, p) == special.betaincinv(2, 3, p) == p
    assert special.betainc(2, 3, -0.5) == 0
    assert special.betainc(2, 3, 1.5) == 1
    assert math.isnan(special.ndtri(-0.1))
    assert math.isnan(special.ndtri(math.nan))


@pytest.mark.parametrize("n", [1, 17, 400, 20_000])
def test_log_factorials(n: int) -> None:
    np.testing.assert_allclose(special.log_factorials(n), theirs.gammaln(np.arange(n + 1) + 1))


@pytest.mark.parametrize(("n", "border"), [(14, -0.2), (60, 0.0), (300, -0.01), (3000, 0.03)])
@pytest.mark.parametrize("p_loss", [0.004, 0.05, 0.3])
def test_chances_of_flips_follow_from_one_another(n: int, border: float, p_loss: float) -> None:
    """The sum that the exact paired test takes, against scipy's chances one by one."""
    rate, share = 2 * p_loss + border, (p_loss + border) / (2 * p_loss + border)
    if rate <= 0 or share < 0:
        return
    fewest, m = paired._smallest_gains(n, border, 1.3), np.arange(n + 1)
    found = paired._reached(m, fewest, share)
    np.testing.assert_allclose(found, binom.sf(fewest - 1, m, share), atol=1e-12)
    whole = binom.pmf(m, n, rate) @ binom.sf(fewest - 1, m, share)
    assert paired._tail(n, border, fewest, p_loss) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (lambda x: x**3 - 2, 0.0, 5.0),
        (lambda x: math.tanh(20 * (x - 0.123)), -3.0, 5.0),
        (lambda x: math.exp(-x) - 1e-6, 0.0, 1000.0),
        (lambda x: (x - 1) ** 5, -2.0, 7.0),
        (lambda x: x, 0.0, 1.0),  # at an end
        (lambda x: 1.0 if x > 1 / 3 else -1.0, 0.0, 1.0),  # a step
        (lambda x: (x - 3e-9) * 1e9, 1e-9, 8e-9),
    ],
)
def test_roots(function: object, low: float, high: float) -> None:
    calls = []

    def counted(x: float) -> float:
        calls.append(x)
        return function(x)  # type: ignore[operator, no-any-return]

    found, near = special.root(counted, low, high), 2e-12 * (high - low)
    assert low <= found <= high
    assert function(found - near) * function(found + near) <= 0  # type: ignore[operator]
    assert len(calls) < 60
