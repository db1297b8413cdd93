"""Distributions of the tests and intervals, in numpy alone.

Where a bundle is verified nothing else need be installed: scipy is as large as numpy and a
runtime together and takes longer to import. The functions bear scipy's names, and the tests hold
them against scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

_EPSILON = float(np.finfo(np.float64).eps)
_MOST = 100_000  # terms of a fraction; it needs about as many as the root of the counts
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680)
_LARGE = 16.0  # from where on these terms give all digits


# --- the normal distribution ---------------------------------------------------------------------


def ndtr(x: float) -> float:
    """P(a standard normal variable <= x)."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def ndtri(p: float) -> float:
    """The p-quantile of the standard normal distribution: infinite for 0 and 1."""
    if 0 < p < 1:
        return NormalDist().inv_cdf(p)
    return math.copysign(math.inf, p - 0.5) if p in (0, 1) else math.nan


def expit(x: float) -> float:
    """The share whose logit is x."""
    grown = math.exp(-abs(x))
    return 1 / (1 + grown) if x >= 0 else grown / (1 + grown)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# --- the beta and the binomial distribution ------------------------------------------------------


@lru_cache(maxsize=32)
def log_factorials(n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """log(0!) ... log(n!): [n + 1]."""
    return np.array([math.lgamma(each + 1) for each in range(n + 1)])


def betainc(a: float, b: float, x: float, rest: float | None = None) -> float:
    """P(Beta(a, b) <= x), which for whole a is P(Binomial(a + b - 1, x) >= a). `rest` is 1 - x,
    where it is known to more digits than x tells."""
    y = 1 - x if rest is None else rest
    if x <= 0 or y <= 0:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - betainc(b, a, y, x)
    return _density(a, b, x, y) * _fraction(a, b, x) / a


def _density(a: float, b: float, x: float, y: float) -> float:
    """x^a y^b / B(a, b), the density of Beta(a, b) by the logit of x, in the form of Loader (2000,
    "Fast and accurate computation of binomial probabilities"): no digits are lost to large
    logarithms."""
    n = a + b
    log = _beyond_stirling(n) - _beyond_stirling(a) - _beyond_stirling(b)
    log -= _deviance(a, n * x) + _deviance(b, n * y)
    return math.exp(log) * math.sqrt(a * b / (2 * math.pi * n))


def _beyond_stirling(z: float) -> float:
    """log Gamma(z + 1) without Stirling's formula for it."""
    if z < _LARGE:
        return math.lgamma(z + 1) - (z + 0.5) * math.log(z) + z - 0.5 * math.log(2 * math.pi)
    series = 0.0
    for term in reversed(_STIRLING):
        series = series / (z * z) + term
    return series / z


def _deviance(seen: float, expected: float) -> float:
    """seen log(seen / expected) - seen + expected."""
    more = seen - expected
    return seen * math.log1p(more / expected) - more


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (Abramowitz and Stegun 26.5.8) by
    Lentz's method."""
    a, b, x = float(a), float(b), float(x)  # numpy's own numbers are slower here
    lower = 1 / _away(1 - (a + b) * x / (a + 1))
    upper, value = 1.0, lower
    for m in range(1, _MOST):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            lower = 1 / _away(1 + term * lower)
            upper = _away(1 + term / upper)
            value *= lower * upper
        if abs(lower * upper - 1) <= _EPSILON:
            break
    return value


def _away(value: float) -> float:
    """From 0, by which it is to be divided."""
    return value if abs(value) > 1e-300 else 1e-300


def betaincinv(a: float, b: float, p: float) -> float:
    """The p-quantile of Beta(a, b): Newton's method on the logarithm of the chance, by the logit
    of the share, where it is nearly straight in the tails; halved where a step leads out."""
    if not 0 < p < 1:
        return float(p >= 1)
    if p > 0.5:
        return 1 - betaincinv(b, a, 1 - p)
    a, b, p = float(a), float(b), float(p)
    low, high = -700.0, 700.0
    at = min(max(math.log(a / b) + ndtri(p) * math.sqrt(1 / a + 1 / b), low), high)
    for _ in range(200):
        x, y = expit(at), expit(-at)
        chance, slope = betainc(a, b, x, y), _density(a, b, x, y)
        low, high = (at, high) if chance < p else (low, at)
        usable = chance > 0 and slope > 0
        new = at - math.log(chance / p) * chance / slope if usable else math.nan
        new = new if low < new < high else (low + high) / 2
        if abs(new - at) <= 4 * _EPSILON * max(abs(at), 1):
            break
        at = new
    return expit(at)


# --- Student's t ---------------------------------------------------------------------------------


def stdtr(free: float, t: float) -> float:
    """P(Student's t with so many degrees of freedom <= t)."""
    square = t * t
    if math.isinf(square):
        return float(t > 0)
    inner, outer = square / (free + square), free / (free + square)
    if square < 1:
        return 0.5 + math.copysign(0.5 * betainc(0.5, free / 2, inner, outer), t)
    tail = 0.5 * betainc(free / 2, 0.5, outer, inner)
    return tail if t < 0 else 1 - tail


def stdtrit(free: float, p: float) -> float:
    """The p-quantile of Student's t with so many degrees of freedom."""
    if not 0 < p < 1:
        return ndtri(p)
    tail = min(p, 1 - p)
    if tail < 0.25:
        share = betaincinv(free / 2, 0.5, 2 * tail)
        far = math.sqrt(free * (1 - share) / share) if share > 0 else math.inf
    else:
        share = betaincinv(0.5, free / 2, 1 - 2 * tail)
        far = math.sqrt(free * share / (1 - share))
    return math.copysign(far, p - 0.5)


# --- roots ---------------------------------------------------------------------------------------


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where the function changes its sign between two places, to 1e-12 of what is between them: by
    parabolas where these may be trusted, else by halves (Chandrupatla 1997)."""
    a, b = low, high
    fa, fb = function(a), function(b)
    c, fc, step = a, fa, 0.5
    nearest = 1e-12 * abs(high - low)
    while True:
        best, least = (a, fa) if abs(fa) < abs(fb) else (b, fb)
        smallest = (2 * _EPSILON * abs(best) + nearest) / max(abs(b - a), 1e-300)
        if smallest > 0.5 or least == 0:
            return best
        at = a + min(max(step, smallest), 1 - smallest) * (b - a)
        found = function(at)
        if (found > 0) == (fa > 0):
            c, fc = a, fa
        else:
            c, fc, b, fb = b, fb, a, fa
        a, fa = at, found
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        step = 0.5
        if phi**2 < xi and (1 - phi) ** 2 < 1 - xi:
            step = fa / (fb - fa) * fc / (fb - fc)
            step += (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
