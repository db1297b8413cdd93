"""How long certifying takes, from what is known so far."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from sartor.answer import Answering
from sartor.evaluate import BLOCKS
from sartor.measuring import ROUNDS, START_SECONDS, Measuring
from sartor.records import Trial


def race_seconds(*latencies: float) -> float:
    trials = (
        Trial(n, (), "done", figures={"original.latency": x}) for n, x in enumerate(latencies)
    )
    lab = SimpleNamespace(seen={str(each.number): each for each in trials})
    given: Any = SimpleNamespace(lab=lab, timing_seconds=20.0)
    found: float = Measuring.race_seconds.fget(given)  # type: ignore[attr-defined]
    return found


def test_nothing_known_keeps_no_more_than_the_rounds_may_take() -> None:
    assert race_seconds() == 20.0 + BLOCKS * START_SECONDS


@pytest.mark.parametrize(("call", "least"), [(1e-5, 0.0), (0.01, 1.0), (1.0, 100.0)])
def test_slow_calls_take_their_time(call: float, least: float) -> None:
    found = race_seconds(call)
    assert math.isfinite(found)
    assert found >= least
    assert found <= BLOCKS * START_SECONDS + max(20.0, 3 * ROUNDS * 3 * call)


def test_what_is_told_again_changes_nothing_of_what_is_kept() -> None:
    """A run that goes on tells its old trials again, before it knows the later ones."""
    kept: list[list[Trial]] = []
    trial = Trial(1, ({"technique": "a"},), "done", figures={"objective": 0.5}, model="m")
    for built in (False, True):
        lab = SimpleNamespace(has_built=lambda _, b=built: b, keep=kept.append, rival=True)
        given: Any = SimpleNamespace(lab=lab, trials=[trial], early=None)
        Answering._keep(given, trial)
    assert kept == [[trial]]
