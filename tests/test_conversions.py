"""Recipes over several kinds of models: stages begin anew behind each conversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from sartor import openings
from sartor.building import Stopped
from sartor.contracts import Bench, Model, Recipe, Signature, Technique, technique_name
from sartor.proposals import Points, belief, by_kind, everything, legal, neighbours, sample, singles
from sartor.space import choice


@dataclass(frozen=True)
class Idle(Technique):
    """Does nothing, to a model of the first of three kinds."""

    kinds: ClassVar[frozenset[str]] = frozenset({"first"})

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        return model


@dataclass(frozen=True)
class ToSecond(Idle):
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "second"


@dataclass(frozen=True)
class Thin(Idle):
    kinds: ClassVar[frozenset[str]] = frozenset({"second"})
    stage: ClassVar[str] = "structure"


@dataclass(frozen=True)
class Recover(Idle):
    kinds: ClassVar[frozenset[str]] = frozenset({"second"})
    needs: ClassVar[frozenset[str]] = frozenset({"training"})
    stage: ClassVar[str] = "weights"


@dataclass(frozen=True)
class Round(Idle):
    kinds: ClassVar[frozenset[str]] = frozenset({"second"})
    stage: ClassVar[str] = "precision"

    bits: int = choice(8, 4)


@dataclass(frozen=True)
class ToThird(Idle):
    kinds: ClassVar[frozenset[str]] = frozenset({"second"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "third"


@dataclass(frozen=True)
class Fewer(Idle):
    kinds: ClassVar[frozenset[str]] = frozenset({"third"})
    stage: ClassVar[str] = "precision"


@dataclass(frozen=True)
class Pack(Idle):
    kinds: ClassVar[frozenset[str]] = frozenset({"third"})
    stage: ClassVar[str] = "structure"


KNOWN = {technique_name(cls): cls for cls in (ToSecond, Thin, Recover, Round, ToThird, Fewer, Pack)}
LONG: Recipe = (ToSecond(), Thin(), Round(), ToThird(), Pack(), Fewer())


def test_stages_begin_anew_behind_a_conversion() -> None:
    assert legal(LONG, "first")
    assert legal((Thin(), Round(), ToThird(), Pack()), "second")
    assert not legal((ToThird(), Round()), "second")  # takes another kind
    assert not legal((ToSecond(), Round(), Thin()), "first")
    assert not legal((ToSecond(), ToThird(), Fewer(), Pack()), "first")
    assert not legal((ToThird(), ToThird()), "second")
    assert [kind for kind, _ in by_kind(LONG, "first")] == ["first", "second", "third"]
    assert by_kind((), "first") == [("first", ())]


def test_rounds_of_training_stand_before_a_conversion() -> None:
    again = (Thin(), Recover(), Thin(), Recover(), ToThird(), Fewer())
    assert legal(again, "second")
    assert not legal((Thin(), Recover(), Thin(), ToThird()), "second")


@pytest.mark.parametrize("kind", ["first", "second", "third"])
def test_what_is_drawn_is_legal_and_reaches_every_kind(kind: str) -> None:
    rng = np.random.default_rng(0)
    drawn = [sample(KNOWN, rng, kind) for _ in range(400)]
    assert all(legal(each, kind) for each in drawn)
    reached = {by_kind(each, kind)[-1][0] for each in drawn}
    assert reached == {"first": {"second", "third"}, "second": {"second", "third"}}.get(
        kind, {"third"}
    )
    for each in drawn[:40]:
        assert all(legal(near, kind) for near in neighbours(each, KNOWN, kind))
        assert np.isfinite(belief(each, KNOWN, kind))


def test_a_recipe_is_converted_by_one_change() -> None:
    before = (Thin(), Round())
    assert (*before, ToThird()) in neighbours(before, KNOWN, "second")
    assert before in neighbours((*before, ToThird()), KNOWN, "second")
    assert (*before, ToThird(), Fewer()) in neighbours((*before, ToThird()), KNOWN, "second")


def test_each_technique_by_itself_stands_behind_the_conversions_it_needs() -> None:
    alone = singles(KNOWN, "first")
    assert len(alone) == len(KNOWN)
    assert (ToSecond(), ToThird(), Fewer()) in alone
    assert (ToSecond(), Round()) in alone
    assert (Fewer(),) in singles(KNOWN, "third")


def test_all_recipes_of_a_small_space_are_those_that_are_legal() -> None:
    found = everything(KNOWN, "first")
    assert found is not None
    assert len(set(found)) == len(found)
    assert all(legal(each, "first") for each in found)
    rng = np.random.default_rng(1)
    assert {sample(KNOWN, rng, "first") for _ in range(2000)} <= set(found)
    # second: 2 x 2 x 3 without rounds; third: 2 x 2 more behind each that is converted
    assert len(found) == 1 + 12 * (1 + 4)


def test_a_pair_of_stages_on_two_kinds_has_no_order_to_learn() -> None:
    points = Points(KNOWN)
    rows = points.of([(Round(), ToThird(), Fewer()), (Round(), ToThird()), (ToThird(), Fewer())])
    both, left, right = rows
    assert (both == np.maximum(left, right)).all()


def test_belief_in_converting_and_not_is_that_of_the_draw() -> None:
    """Of recipes with as many steps, what is drawn more often is believed in more."""
    rng = np.random.default_rng(2)
    drawn = [sample(KNOWN, rng, "second") for _ in range(4000)]
    plain, converted = (Round(),), (ToThird(),)
    counts = [sum(each == wanted for each in drawn) for wanted in (plain, converted)]
    believed = [belief(each, KNOWN, "second") for each in (plain, converted)]
    assert (counts[0] > counts[1]) == (believed[0] > believed[1])


class _Laboratory:
    """As much of one as the openings ask: a conversion makes a model of its kind."""

    bench = None
    formats: tuple[str, ...] = ()
    rival = True

    def __init__(self, kind: str, broken: bool = False) -> None:
        self.original = Model(kind, None, Signature((), ()))
        self.broken = broken
        self.stops: dict[str, tuple[str, str]] = {}

    def build(self, recipe: Recipe) -> Model:
        if self.broken:
            raise Stopped("failed", recipe[-1], "an operator is not known")
        return Model(recipe[-1].makes or "", None, Signature((), ()))

    def key(self, model: Model, technique: Technique) -> str:
        return f"{model.kind} {technique_name(technique)}"


def _portfolio(model: Model, bench: Bench) -> list[Recipe]:
    return {
        "first": [],
        "second": [(Thin(),), (Round(), ToThird()), (Round(),)],
        "third": [(Fewer(),), (Pack(),)],
    }[model.kind]


def all_of(kind: str) -> list[Recipe]:
    first, later = openings.openings(_Laboratory(kind), KNOWN)  # type: ignore[arg-type]
    found = list(later)
    assert set(first) <= set(found)
    return found


def test_each_kind_has_its_turn_in_what_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "portfolio", _portfolio)
    found = all_of("second")
    crossed = (Round(), ToThird())
    assert found[:4] == [(Thin(),), crossed, (ToThird(),), (Round(),)]
    assert found[4:] == [(ToThird(), Fewer()), (ToThird(), Pack())]
    there = all_of("first")
    assert there[0] == (ToSecond(),)
    assert (ToSecond(), *crossed) in there
    assert (ToSecond(), ToThird(), Pack()) in there
    assert there.index((ToSecond(), Thin())) < there.index((ToSecond(), *crossed))
    assert all(legal(each, "first") for each in there)


def test_conversions_that_are_left_out_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "portfolio", _portfolio)
    own = {name: cls for name, cls in KNOWN.items() if name != "to-third"}
    first, later = openings.openings(_Laboratory("second"), own)  # type: ignore[arg-type]
    assert first == list(later) == [(Thin(),), (Round(),)]
    lab = _Laboratory("second", broken=True)
    _, later = openings.openings(lab, KNOWN)  # type: ignore[arg-type]
    assert not lab.stops  # nothing is converted before the first were tried
    found = list(later)
    assert (ToThird(),) in found
    assert (ToThird(), Fewer()) not in found
    assert lab.stops == {"second to-third": ("failed", "an operator is not known")}
