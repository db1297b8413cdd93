"""Buying quality back: the smallest repair that meets the limits, in few trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sartor.contracts import Bench, Model, Technique, to_json
from sartor.records import Trial, Verdict
from sartor.repairs import Repairs, bolder
from sartor.space import choice, span

VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Spare(Technique):
    """Keeps some parts as they are."""

    kinds: ClassVar[frozenset[str]] = frozenset({"fake"})
    repair: ClassVar[str | None] = "exceptions"
    exceptions: int = choice(0, values=VALUES)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        return model


def told(spare: Spare, needed: int, parts: int = 99, gain: float = 0.5) -> Trial:
    """The limit holds from `needed` exceptions on; each exception costs a little."""
    p = 0.01 if spare.exceptions >= needed else 0.99
    outcome: Any = "met" if p < 0.5 else "broken"
    verdict = Verdict("accuracy >= 0.9", outcome, 0.9, 0.8, 1.0, 0.9, p, "score test", 500)
    return Trial(
        1, (to_json(spare),), "done", figures={"objective": gain + spare.exceptions / 1000},
        verdicts=(verdict,), p_value=p, steps=({"touched": ["part"] * (parts - spare.exceptions)},),
    )  # fmt: skip


def repaired(needed: int, parts: int = 99, best: float = 1.0) -> list[int]:
    """The numbers of exceptions that are tried, beginning with none."""
    repairs, spare, tried = Repairs({"spare": Spare}), Spare(), []
    while True:
        tried.append(spare.exceptions)
        found = repairs.after(told(spare, needed, parts), (spare,), best)
        if found is None:
            return tried
        (spare,) = found  # type: ignore[assignment]


@pytest.mark.parametrize("needed", VALUES[1:])
def test_the_smallest_number_that_meets_the_limit_is_found_by_halving(needed: int) -> None:
    tried = repaired(needed)
    assert needed in tried
    assert len(tried) - 1 <= math.ceil(math.log2(len(VALUES)))
    assert len(set(tried)) == len(tried)


def test_what_no_number_repairs_is_given_up_after_as_many_trials() -> None:
    assert len(repaired(1000)) - 1 <= math.ceil(math.log2(len(VALUES)))


def test_what_meets_its_limits_is_not_repaired() -> None:
    assert repaired(0) == [0]


def test_no_more_parts_are_spared_than_there_are() -> None:
    assert all(each < 5 for each in repaired(1000, parts=5))


def test_what_gains_no_more_than_the_best_is_not_repaired() -> None:
    assert repaired(4, best=0.4) == [0]


@dataclass(frozen=True)
class Thin(Spare):
    """Keeps a share of the network."""

    stage: ClassVar[str] = "structure"
    repair: ClassVar[str | None] = "share"
    share: float = span(1.0, 0.1, 1.0)


def sized(share: float, fixed: float, limit: str = "size <= 20 MB") -> Trial:
    """A network of which `fixed` MB stay whatever becomes of the other 100."""
    size = (fixed + 100 * share) * 1e6
    outcome: Any = "met" if size <= 20e6 else "broken"
    p = 0.0 if size <= 20e6 else 1.0
    verdict = Verdict(limit, outcome, size, size, size, 20e6, p, "exact", 0)
    return Trial(1, (to_json(Thin(share=share)),), "dropped", verdicts=(verdict,), p_value=p)


@pytest.mark.parametrize("fixed", [0.0, 1.0, 5.0, 8.0])
def test_what_is_too_big_is_made_thinner_until_it_fits(fixed: float) -> None:
    share, tried = 0.9, 0
    while found := bolder(sized(share, fixed), (Thin(share=share), Spare()), 1.0):
        assert isinstance(found[0], Thin)
        assert found[1] == Spare()
        assert found[0].share < share
        share, tried = found[0].share, tried + 1
    assert share * 100 + fixed <= 20
    assert share * 100 + fixed > 12  # and not much thinner than it must be
    assert tried <= 4


def test_what_does_not_fit_at_its_thinnest_is_given_up() -> None:
    assert bolder(sized(0.1, 90.0), (Thin(share=0.1),), 1.0) is None


def test_what_lost_its_quality_is_not_made_thinner() -> None:
    assert bolder(sized(0.9, 0.0, "accuracy >= 0.9"), (Thin(share=0.9),), 1.0) is None


def test_what_is_too_slow_is_not_made_milder() -> None:
    slow = Verdict("latency.p95 <= 1 ms", "broken", 2.0, 1.9, 2.1, 1.0, 0.999, "ranks", 99)
    told = Trial(1, (to_json(Thin()),), "done", figures={"objective": 0.5}, verdicts=(slow,))
    assert Repairs({"thin": Thin}).after(told, (Thin(share=0.5),), 1.0) is None
    assert bolder(told, (Thin(share=0.5),), 1.0) is not None


@dataclass(frozen=True)
class Train(Spare):
    """Trains for a share of what was granted."""

    needs: ClassVar[frozenset[str]] = frozenset({"training"})
    stage: ClassVar[str] = "weights"
    repair: ClassVar[str | None] = "effort"
    effort: float = choice(0.1, values=(0.1, 0.3, 1.0))


def lost(recipe: tuple[Technique, ...]) -> Trial:
    verdict = Verdict("accuracy >= 0.9", "broken", 0.8, 0.7, 0.85, 0.9, 0.99, "score test", 500)
    entries = tuple(map(to_json, recipe))
    steps = tuple({"touched": ["part"] * 99} for _ in recipe)
    return Trial(1, entries, "done", figures={"objective": 0.5}, verdicts=(verdict,), steps=steps)


def stopped(recipe: tuple[Technique, ...], state: Any) -> Trial:
    entries = tuple(map(to_json, recipe))
    return Trial(2, entries, state, reason="its training takes 900 s", culprit="train")


@pytest.mark.parametrize("state", ["refused", "failed"])
@pytest.mark.parametrize("done", [0.1, 0.3])
def test_where_there_is_no_time_to_train_longer_another_step_is_made_milder(
    state: str, done: float
) -> None:
    repairs = Repairs({"thin": Thin, "train": Train})
    recipe: tuple[Technique, ...] = (Thin(share=0.3), Train(effort=0.1))
    longer = repairs.after(lost(recipe), recipe, 1.0)
    assert longer == (Thin(share=0.3), Train(effort=0.3))
    if done == 0.3:
        recipe, longer = longer, repairs.after(lost(longer), longer, 1.0)
        assert longer == (Thin(share=0.3), Train(effort=1.0))
    milder = repairs.after(stopped(longer, state), longer, 1.0)
    assert milder is not None
    assert milder[1] == Train(effort=done)
    assert isinstance(milder[0], Thin)
    assert 0.3 < milder[0].share < 1.0
    assert repairs.after(stopped(longer, state), longer, 1.0) is None  # once is enough


def test_what_was_refused_for_another_reason_is_no_want_of_time() -> None:
    repairs = Repairs({"thin": Thin, "train": Train})
    recipe = (Thin(share=0.3), Train(effort=0.1))
    assert repairs.after(stopped(recipe, "refused"), recipe, 1.0) is None  # it never trained
    longer = repairs.after(lost(recipe), recipe, 1.0)
    assert longer is not None
    other = Trial(2, tuple(map(to_json, longer)), "refused", culprit="thin")
    assert repairs.after(other, longer, 1.0) is None


def test_what_gains_no_more_than_the_best_is_not_made_milder_for_want_of_time() -> None:
    repairs = Repairs({"thin": Thin, "train": Train})
    recipe = (Thin(share=0.3), Train(effort=0.1))
    longer = repairs.after(lost(recipe), recipe, 1.0)
    assert longer is not None
    assert repairs.after(stopped(longer, "refused"), longer, 0.4) is None


def test_what_training_made_good_beyond_doubt_goes_on_in_steps() -> None:
    def kept(p: float) -> Trial:
        met = Verdict("accuracy >= 0.9", "met", 0.95, 0.94, 0.96, 0.9, p, "score test", 500)
        figures = {"objective": 0.2}
        return Trial(1, (), "done", figures=figures, verdicts=(met,), p_value=p)

    recipe = (Thin(share=0.4), Train())
    milder = bolder(kept(1e-6), recipe, best=0.2)
    assert milder is not None
    assert isinstance(milder[0], Thin)
    assert 0.2 <= milder[0].share <= 0.4 * 2 / 3
    assert bolder(kept(0.02), recipe, best=0.2) is None  # it may be luck
    assert bolder(kept(1e-6), recipe, best=0.1) is None  # something else gains more
    assert bolder(kept(1e-6), recipe[:1], best=0.2) is None  # what trains nothing is cheap to try
