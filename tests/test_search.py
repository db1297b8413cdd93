"""The search, on toys whose effects are known: what it asks, and that it finds what is there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from sartor.contracts import (
    STAGES,
    Bench,
    Failed,
    Model,
    Recipe,
    Technique,
    technique_name,
    to_json,
)
from sartor.fake_model import Facts
from sartor.proposals import SLOTS, Points, belief, legal, sample
from sartor.records import Journal, Trial, Verdict, trial_from_json
from sartor.registry import recipe as recipe_from_json
from sartor.registry import techniques
from sartor.search import GuidedSearch, key_of
from sartor.space import choice, domains
from sartor.testing_fake import fake_model

TOYS = dict(techniques("fake"))
LIMIT = "accuracy >= baseline - 0.01"


@dataclass
class Landscape:
    """What comes of a recipe of toys: their effects multiplied, without noise. The limit allows
    `slack` more errors than the original makes."""

    slack: float = 0.01
    objective: str = "seconds"

    def figures(self, recipe: Recipe) -> tuple[float, float]:
        """The objective as a ratio to the original's, and the error added."""
        facts = first = Facts()
        for technique in recipe:
            facts = technique.effect(facts)  # type: ignore[attr-defined]
        ratio = getattr(facts, self.objective) / getattr(first, self.objective)
        return ratio, facts.error - first.error

    def trial(self, number: int, recipe: Recipe) -> Trial:
        entries = tuple(to_json(each) for each in recipe)
        for technique in recipe:
            name = technique_name(technique)
            if name == "unwilling":
                return Trial(number, entries, "refused", "it refuses", culprit=name)
            if name == "broken":
                return Trial(number, entries, "failed", "it fails", culprit=name)
        ratio, lost = self.figures(recipe)
        p = 1 / (1 + math.exp((self.slack - lost) * 2000))  # as if some thousand rows were seen
        outcome = "met" if p <= 0.05 else "broken" if p >= 0.95 else "undecided"
        verdict = Verdict(
            LIMIT, outcome, 0.9 - lost, 0.9 - lost, 0.9 - lost, 0.9 - self.slack, p, "score", 2000
        )  # type: ignore[arg-type]
        if ratio > 1:
            return Trial(number, entries, "dropped", "no gain", {"objective": ratio}, (verdict,), p)
        return Trial(number, entries, "done", "", {"objective": ratio}, (verdict,), p, 1.0)

    def value(self, recipe: Recipe) -> float:
        """The objective where the limit holds, else that of the original."""
        trial = self.trial(0, recipe)
        return trial.figures["objective"] if trial.state == "done" and trial.p_value <= 0.05 else 1


def drive(
    searcher: GuidedSearch, landscape: Landscape, most: int, finished: Sequence[Trial] = ()
) -> list[tuple[Recipe, Trial]]:
    """Asks and tells, `finished` first."""
    seen: list[tuple[Recipe, Trial]] = []
    for number in range(most):
        asked = searcher.ask()
        if asked is None:
            break
        recipe, fidelity = asked
        assert 0 < fidelity <= 1
        trial = finished[number] if number < len(finished) else landscape.trial(number, recipe)
        searcher.tell(trial)
        seen.append((recipe, trial))
    return seen


def guided(seed: int = 0, trials: int | None = None, portfolio: bool = True) -> GuidedSearch:
    entries = [
        [{"technique": "fuse"}],
        [{"technique": "fuse"}, {"technique": "round", "bits": 4}],
    ]
    known = [recipe_from_json("fake", each) for each in entries] if portfolio else []
    return GuidedSearch("fake", TOYS, known, trials=trials, seed=seed)


def test_the_original_is_asked_first_then_the_portfolio() -> None:
    asked = [recipe for recipe, _ in drive(guided(), Landscape(), 4)]
    assert asked[0] == ()
    assert [technique_name(each) for each in asked[1]] == ["fuse"]
    assert [technique_name(each) for each in asked[2]] == ["fuse", "round"]


def test_what_comes_later_is_asked_for_when_the_portfolio_was_tried() -> None:
    asked_for = []

    def later() -> Iterator[Recipe]:
        asked_for.append(len(searcher.told))
        yield recipe_from_json("fake", [{"technique": "fuse"}])  # known by then
        yield recipe_from_json("fake", [{"technique": "round"}])

    portfolio = [recipe_from_json("fake", [{"technique": "fuse"}])]
    searcher = GuidedSearch("fake", TOYS, portfolio, later=later())
    assert searcher.upcoming(9)[:2] == [(), *portfolio]
    assert not asked_for
    asked = [recipe for recipe, _ in drive(searcher, Landscape(), 3)]
    assert asked_for == [2]
    assert [technique_name(each) for each in asked[2]] == ["round"]


@pytest.mark.parametrize("seed", range(3))
def test_only_legal_recipes_and_none_twice(seed: int) -> None:
    seen = [recipe for recipe, _ in drive(guided(seed), Landscape(), 80)]
    assert len(seen) == 80
    assert len({key_of(each) for each in seen}) == 80
    for recipe in seen:
        names = [technique_name(each) for each in recipe]
        assert set(names) <= set(TOYS)
        assert len(set(names)) == len(names)
        stages = [STAGES.index(each.stage) for each in recipe]
        assert stages == sorted(stages)
        for stage in STAGES:
            assert [each.stage for each in recipe].count(stage) <= SLOTS.count(stage)
        for technique in recipe:
            for name, domain in domains(technique).items():
                assert getattr(technique, name) in domain


def test_recipes_of_the_portfolio_with_what_is_not_allowed_are_left_out() -> None:
    known = {name: cls for name, cls in TOYS.items() if name != "round"}
    entries = [[{"technique": "round"}], [{"technique": "fuse"}]]
    first = [recipe_from_json("fake", each) for each in entries]
    searcher = GuidedSearch("fake", known, first, seed=0)
    asked = [recipe for recipe, _ in drive(searcher, Landscape(), 30)]
    assert [technique_name(each) for each in asked[1]] == ["fuse"]
    assert not any(technique_name(each) == "round" for recipe in asked for each in recipe)


def test_the_same_seed_asks_the_same_and_another_something_else() -> None:
    one, same, other = (
        [key_of(recipe) for recipe, _ in drive(guided(seed), Landscape(), 40)] for seed in (5, 5, 6)
    )
    assert one == same
    assert one[:3] == other[:3]  # the portfolio
    assert one != other


@pytest.mark.parametrize("stopped", [0, 1, 6, 20])
def test_what_is_upcoming_is_asked_and_looking_changes_nothing(stopped: int) -> None:
    plain = [key_of(recipe) for recipe, _ in drive(guided(3), Landscape(), 30)]
    searcher = guided(3)
    seen = drive(searcher, Landscape(), stopped)
    ahead = [key_of(recipe) for recipe in searcher.upcoming(4)]
    assert len(set(ahead)) == 4
    assert ahead[0] == plain[stopped]
    assert not set(ahead) & {key_of(recipe) for recipe, _ in seen}
    assert ahead == [key_of(recipe) for recipe in searcher.upcoming(4)]
    rest = [key_of(recipe) for recipe, _ in drive(searcher, Landscape(), 30 - stopped)]
    assert rest == plain[stopped:]


def test_nothing_is_upcoming_where_nothing_is_left() -> None:
    searcher = GuidedSearch("fake", {"fuse": TOYS["fuse"]}, (), seed=0)
    assert len(searcher.upcoming(5)) == 2
    drive(searcher, Landscape(objective="bytes"), 9)
    assert searcher.upcoming(3) == []


def test_it_survives_refusals_and_failures_and_learns_from_them() -> None:
    """Toys that only ever refuse or fail are not tried again and again."""
    seen = drive(guided(1, portfolio=False), Landscape(), 80)
    states = [trial.state for _, trial in seen]
    assert "refused" in states
    assert "failed" in states
    assert states[40:].count("refused") + states[40:].count("failed") <= 2
    assert states.count("done") >= 40


def test_it_survives_trials_about_which_nothing_is_known() -> None:
    searcher = guided()
    for number in range(25):
        asked = searcher.ask()
        assert asked is not None
        entries = tuple(to_json(each) for each in asked[0])
        odd = [
            Trial(number, entries, "failed", "crashed"),
            Trial(number, entries, "done"),
            Trial(number, entries, "done", figures={"objective": math.nan}),
            Trial(number, entries, "done", figures={"objective": math.inf}, p_value=math.nan),
            Trial(number, entries, "dropped", figures={"size": 1.0}),
        ]
        searcher.tell(odd[number % len(odd)])


def test_it_ends_after_its_trials() -> None:
    searcher = guided(trials=7)
    assert len(drive(searcher, Landscape(), 99)) == 7
    assert searcher.ask() is None


def test_it_ends_where_there_is_nothing_to_try() -> None:
    searcher = GuidedSearch("fake", {}, (), seed=0)
    assert [recipe for recipe, _ in drive(searcher, Landscape(), 5)] == [()]


def test_it_ends_where_everything_was_tried() -> None:
    searcher = GuidedSearch("fake", {"fuse": TOYS["fuse"], "pack": TOYS["pack"]}, (), seed=0)
    seen = {
        tuple(technique_name(each) for each in recipe)
        for recipe, _ in drive(searcher, Landscape(objective="bytes"), 99)
    }
    assert seen == {(), ("fuse",), ("pack",), ("fuse", "pack")}


@pytest.mark.parametrize("stopped", [0, 1, 3, 8, 17])
def test_told_a_journal_it_asks_what_it_would_have_asked(stopped: int, tmp_path: Path) -> None:
    """Killed after `stopped` trials and started again with what the journal holds."""
    whole = drive(guided(3), Landscape(), 24)
    journal = Journal(tmp_path / "run.jsonl")
    for _, trial in whole[:stopped]:
        journal.add("trial", **vars(trial))
    finished = [trial_from_json(entry) for entry in journal.events("trial")]
    again = drive(guided(3), Landscape(), 24, finished)
    assert [key_of(recipe) for recipe, _ in again] == [key_of(recipe) for recipe, _ in whole]


def test_told_what_was_never_asked_it_goes_on() -> None:
    """A journal of another version may hold recipes that this one would not ask, or in another
    order; nothing of it is asked again."""
    searcher = guided()
    told = [recipe for recipe, _ in drive(guided(9), Landscape(), 12)][::-1]
    for number, recipe in enumerate(told):
        searcher.tell(Landscape().trial(number, recipe))
    asked = [key_of(recipe) for recipe, _ in drive(searcher, Landscape(), 20)]
    assert not set(asked) & {key_of(each) for each in told}


def test_what_gains_but_loses_quality_is_repaired() -> None:
    """Round to 4 bits breaks the limit: it is tried again with more exceptions, at once."""
    landscape = Landscape(slack=0.015)
    searcher = GuidedSearch(
        "fake", TOYS, [recipe_from_json("fake", [{"technique": "round", "bits": 4}])], seed=0
    )
    seen = drive(searcher, landscape, 4)
    exceptions = [[each.exceptions for each in recipe] for recipe, _ in seen[1:4]]  # type: ignore[attr-defined]
    assert exceptions[:2] == [[0], [1]]
    outcomes = [trial.verdicts[0].outcome for _, trial in seen[1:4]]
    assert outcomes[0] == "broken"
    assert exceptions[2] == [2]
    assert outcomes[2] == "met"


def test_what_breaks_a_count_is_not_repaired() -> None:
    """More exceptions would not make a file smaller."""
    first = recipe_from_json("fake", [{"technique": "round"}])
    searcher = GuidedSearch("fake", TOYS, [first], seed=0)
    assert searcher.ask() == ((), 1.0)
    searcher.tell(Landscape().trial(0, ()))
    searcher.ask()
    size = Verdict("size <= 1 MB", "broken", 2e6, 2e6, 2e6, 1e6, 1.0, "exact", 0)
    searcher.tell(replace(Landscape().trial(1, first), state="dropped", verdicts=(size,)))
    asked = searcher.ask()
    assert asked is not None
    assert [technique_name(each) for each in asked[0]] != ["round"]


@dataclass(frozen=True)
class Train(Technique):
    """Trains: the more, the less is lost."""

    kinds: ClassVar[frozenset[str]] = frozenset({"fake"})
    stage: ClassVar[str] = "tuning"
    needs: ClassVar[frozenset[str]] = frozenset({"training"})
    repair: ClassVar[str | None] = "effort"
    width: int = choice(1, values=(1, 2, 3))
    effort: float = choice(0.1, values=(0.1, 0.3, 1.0))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        return model


def trained(number: int, recipe: Recipe) -> Trial:
    """Thinner is faster and loses more: at 2 wide only the longest training wins it back."""
    lost, ratio = 0.0, 1.0
    for each in recipe:
        assert isinstance(each, Train)
        lost, ratio = {1: 9.0, 2: 0.1, 3: 0.2}[each.width] / each.effort / 10, each.width / 4
    p = 0.999 if lost > 0.01 else 0.001
    verdict = Verdict(LIMIT, "broken" if p > 0.5 else "met", 0.9 - lost, 0, 1, 0.89, p, "score", 99)
    figures = {"objective": ratio}
    return Trial(number, tuple(map(to_json, recipe)), "done", "", figures, (verdict,), p, 1.0)


def test_a_little_training_decides_what_is_trained_longer() -> None:
    """All of the portfolio is trained a little first; then what came nearest, again and again."""
    searcher = GuidedSearch("fake", {"train": Train}, [(Train(each),) for each in (1, 2, 3)])
    asked = []
    for number in range(7):
        recipe, _ = searcher.ask() or pytest.fail("nothing is asked")
        if number == 4:
            (ahead,) = searcher.upcoming(1)
            assert ahead != recipe
        asked += [(each.width, each.effort) for each in recipe]  # type: ignore[attr-defined]
        searcher.tell(trained(number, recipe))
    assert asked[:5] == [(1, 0.1), (2, 0.1), (3, 0.1), (2, 0.3), (2, 1.0)]
    # 3 wide would gain less than what was found; what is 1 wide is worth it yet.
    assert asked[5] == (1, 0.3)


@dataclass(frozen=True)
class Thin(Train):
    stage: ClassVar[str] = "structure"
    needs: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Recover(Train):
    stage: ClassVar[str] = "weights"


def test_structure_may_be_changed_in_rounds_that_end_in_training() -> None:
    thin, train, last = Thin(), Recover(), Train()
    assert legal((thin, train, Thin(width=2), Recover(effort=1.0), last), "fake")
    assert not legal((thin, train, thin, last), "fake")  # its last thinning is not trained
    assert not legal((thin, thin, train), "fake")
    assert not legal((thin, train) * 4, "fake")
    assert not legal((thin, train, last, thin, train), "fake")


@dataclass(frozen=True)
class Session(Train):
    stage: ClassVar[str] = "session"


@dataclass(frozen=True)
class Convert(Train):
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "other"


def test_the_session_comes_last_and_no_conversion_keeps_it() -> None:
    assert legal((Train(), Session()), "fake")
    assert not legal((Session(), Train()), "fake")
    assert legal((Train(), Convert()), "fake")
    assert not legal((Session(), Convert()), "fake")


def test_rounds_are_other_points_than_their_last() -> None:
    known = {"thin": Thin, "recover": Recover, "train": Train}
    milder, bolder = (Thin(width=1), Recover()), (Thin(width=3), Recover())
    points = Points(known)
    made = points.of([milder, (*milder, *bolder), (*bolder, *bolder), bolder])
    made = points.of([milder, (*milder, *bolder), (*bolder, *bolder), bolder])
    assert len({tuple(row) for row in made}) == 4
    assert math.isfinite(belief((*milder, *bolder, *bolder), known, "fake"))


def test_what_rather_holds_is_trained_longer_before_what_comes_nearer() -> None:
    """Half a point above the bound, in doubt, is nearer to a certificate than a tenth below it."""
    searcher = GuidedSearch("fake", {"train": Train}, [(Train(each),) for each in (1, 2)])
    for number, off in ((0, 0.0), (1, 0.001), (2, -0.005)):
        recipe, _ = searcher.ask() or pytest.fail("nothing is asked")
        p = 0.6 if off > 0 else 0.2
        verdict = Verdict(LIMIT, "undecided", 0.89 - off, 0, 1, 0.89, p, "score", 99)
        figures = {"objective": (1.0, 0.5, 0.75)[number]}
        entries = tuple(map(to_json, recipe))
        searcher.tell(Trial(number, entries, "done", "", figures, (verdict,), p, 1.0))
    recipe, _ = searcher.ask() or pytest.fail("nothing is asked")
    assert recipe == (Train(2, 0.3),)


def random_recipe(rng: np.random.Generator) -> Recipe:
    """A legal recipe: for each slot a technique or none, settings at random."""
    steps: list[Technique] = []
    for stage in SLOTS:
        names = [name for name, cls in TOYS.items() if cls.stage == stage]
        picked = str(rng.choice(names)) if names and rng.random() < 1 / 3 else ""
        if picked and not any(technique_name(each) == picked for each in steps):
            chosen: dict[str, Any] = {
                name: domain.sample(rng) for name, domain in domains(TOYS[picked]).items()
            }
            steps.append(TOYS[picked](**chosen))
    return tuple(steps)


@pytest.mark.parametrize("objective", ["seconds", "bytes"])
def test_it_beats_random_search(objective: str) -> None:
    """The best that holds the limit after 40 trials, without a portfolio, ten seeds each."""
    landscape, most = Landscape(objective=objective), 40
    ours, theirs = [], []
    for seed in range(10):
        seen = drive(guided(seed, portfolio=False), landscape, most)
        ours.append(min(landscape.value(recipe) for recipe, _ in seen))
        rng = np.random.default_rng(seed)
        theirs.append(min(landscape.value(random_recipe(rng)) for _ in range(most)))
    assert np.mean(ours) < 0.9 * np.mean(theirs)
    assert sum(a <= b for a, b in zip(ours, theirs, strict=True)) >= 6


def test_belief_is_in_few_steps_and_in_what_authors_chose() -> None:
    rng = np.random.default_rng(0)
    drawn = [each for _ in range(300) if len(each := sample(TOYS, rng, "fake")) > 1]
    for each in drawn:
        usual = tuple(type(step)() for step in each)
        assert belief(each, TOYS, "fake") <= belief(usual, TOYS, "fake")
    means = [
        np.mean([belief(each, TOYS, "fake") for each in drawn if len(each) == steps])
        for steps in (2, 3, 4)
    ]
    assert means == sorted(means, reverse=True)


def test_keys_tell_recipes_apart() -> None:
    entries: list[list[dict[str, Any]]] = [
        [],
        [{"technique": "fuse"}],
        [{"technique": "round"}],
        [{"technique": "round", "bits": 4}],
        [{"technique": "fuse"}, {"technique": "round"}],
    ]
    keys = [key_of(recipe_from_json("fake", each)) for each in entries]
    assert len(set(keys)) == len(keys)
    for key, each in zip(keys, entries, strict=True):
        assert (
            key
            == key_of(recipe_from_json("fake", json.loads(key)))
            == key_of(recipe_from_json("fake", each))
        )


def test_the_toys_fail_as_the_landscape_says(tmp_path: Path) -> None:
    model = fake_model(tmp_path)
    with pytest.raises(Failed):
        TOYS["broken"]().apply(model, None)  # type: ignore[arg-type]
    assert TOYS["unwilling"]().refuse(model, None)  # type: ignore[arg-type]
