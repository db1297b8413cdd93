"""The whole procedure with the search in the loop, where every candidate's truth is known.

50 candidates a run, three limits (accuracy, accuracy in each of four segments, flips), a search
that goes after the best on the search part, then the early answer, the frozen finalists, the ledger
and certification by Sartor's own code. The table is printed by `simulate.py`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import betainc, ndtr, ndtri

from sartor import paired
from sartor.certify import Certification, Certifier
from sartor.contracts import Task
from sartor.finalists import Finalist, freeze
from sartor.ledger import SHARE, Ledger
from sartor.limits import Limit, parse, parse_objective
from sartor.metrics import Truth
from sartor.records import Trial
from sartor.verdicts import Evidence

TASK = Task("classification", "answer", "accuracy", classes=2)
SEGMENTS = (0.4, 0.3, 0.2, 0.1)  # shares of the rows
BATCH = 5  # recipes that are proposed at once
SURELY = 0.1  # p-value on the search part below which an early answer is asked for

Recipe = tuple[int, ...]  # the parts of the model that are changed
Mode = Literal["once", "killed", "longer", "three runs", "three runs, fishing"]


@dataclass(frozen=True)
class Kind:
    """What a candidate truly does in each segment: by how much its accuracy drops, and the share of
    its answers that change. `good`: it keeps all limits with room to spare."""

    drop: tuple[float, ...]
    flips: tuple[float, ...]
    good: bool = False

    @property
    def cuts(self) -> tuple[np.ndarray, np.ndarray]:
        """Where a standard normal variable is a loss (below) and a gain (above), by segment."""
        drop, flips = np.array(self.drop), np.array(self.flips)
        return ndtri((flips + drop) / 2), -ndtri(np.maximum(flips - drop, 0) / 2)


def even(drop: float, flips: float, good: bool = False) -> Kind:
    return Kind((drop,) * 4, (flips,) * 4, good)


@dataclass(frozen=True)
class World:
    """Candidates of some kinds, in turn. A candidate changes some of `parts`, and what decides
    whether it loses or gains a row is the sum over them: neighbours err on the same rows. With 0
    parts every candidate errs on rows of its own."""

    kinds: tuple[Kind, ...]
    margin: float = 0.01
    margin_by_segment: float | None = 0.05
    most_flips: float | None = 0.04
    parts: int = 12
    candidates: int = 50
    search_rows: int = 1000
    holdout_rows: int = 2000

    @property
    def limits(self) -> tuple[Limit, ...]:
        texts = [f"accuracy >= baseline - {self.margin}"]
        if self.margin_by_segment is not None:
            texts.append(f"accuracy@group >= baseline - {self.margin_by_segment}")
        if self.most_flips is not None:
            texts.append(f"flips <= {self.most_flips}")
        return tuple(map(parse, texts))

    def kind(self, recipe: Recipe) -> Kind:
        return self.kinds[sum(recipe) % len(self.kinds)]


# One limit binds and the others are kept with ease: there a wrong certificate is likeliest.
ON_ACCURACY = (even(0.01, 0.012), even(0.01, 0.02), even(0.01, 0.016))
ON_SEGMENT = (Kind((-0.004,) * 3 + (0.05,), (0.008,) * 3 + (0.06,)),)
ON_FLIPS = (even(0.0, 0.02),)
GOOD = even(0.0, 0.01, good=True)

WORLDS = {
    "accuracy on its limit, every candidate errs on its own": World(ON_ACCURACY, parts=0),
    "accuracy on its limit": World(ON_ACCURACY),
    "the smallest segment on its limit": World(ON_SEGMENT),
    "flips on their limit": World(ON_FLIPS, most_flips=0.02),
    "each candidate on another limit": World(
        (*ON_ACCURACY[:2], *ON_SEGMENT, even(0.0, 0.03)), most_flips=0.03
    ),
    "all limits on the border at once": World(
        (even(0.01, 0.02),), margin_by_segment=0.01, most_flips=0.02
    ),
    "a third of the candidates good": World((*ON_ACCURACY[:2], GOOD)),
}


# --- data ---------------------------------------------------------------------------------------


def sizes_of(rows: int) -> list[int]:
    return [round(rows * share) for share in SEGMENTS]


@lru_cache
def mixed(rows: int) -> np.ndarray:
    """The order in which certification sees the rows: they are drawn segment by segment."""
    return np.random.default_rng(0).permutation(rows)


@lru_cache
def groups(rows: int) -> np.ndarray:
    """The segment of every row, in that order."""
    return np.repeat(np.array(["a", "b", "c", "d"]), sizes_of(rows))[mixed(rows)]


def outcomes(latents: np.ndarray, recipes: Sequence[Recipe], kinds: Sequence[Kind]) -> np.ndarray:
    """+1 gain, -1 loss, 0 neither [rows, recipes], from standard normal latents [rows, parts]."""
    weights = np.zeros((latents.shape[1], len(recipes)), dtype=np.float32)
    for at, recipe in enumerate(recipes):
        weights[list(recipe), at] = 1 / math.sqrt(len(recipe))
    decisive = latents @ weights
    cuts = np.array([each.cuts for each in kinds], dtype=np.float32)  # [recipes, 2, segments]
    found = np.empty(decisive.shape, dtype=np.int8)
    start = 0
    for segment, size in enumerate(sizes_of(len(latents))):
        part = decisive[start : start + size]
        low, high = cuts[:, 0, segment], cuts[:, 1, segment]
        found[start : start + size] = (part > high).astype(np.int8) - (part < low)
        start += size
    return found


def count(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gains and losses [segments, K] and rows [segments] of changes [rows, K]."""
    n = np.array(sizes_of(len(changes)))
    starts = np.cumsum([0, *n[:-1]])
    gains, losses = (
        np.add.reduceat(each, starts, axis=0, dtype=np.int64) for each in (changes > 0, changes < 0)
    )
    return gains, losses, n


def quick_p(world: World, changes: np.ndarray) -> np.ndarray:
    """[K] p-values of "some limit is not kept" for changes [rows, K]."""
    return p_of_counts(world, *count(changes))


def p_of_counts(world: World, gains: np.ndarray, losses: np.ndarray, n: np.ndarray) -> np.ndarray:
    """By the score test and the binomial one: what the search goes by here, for speed."""
    gained, lost, rows = gains.sum(0), losses.sum(0), n.sum()
    p = ndtr(-paired.score(gained, lost, rows, -world.margin))
    if world.margin_by_segment is not None:
        within = paired.score(gains, losses, n[:, None], -world.margin_by_segment)
        p = np.maximum(p, ndtr(-within.min(0)))
    if world.most_flips is not None:
        flips = gained + lost
        p = np.maximum(p, betainc(rows - flips, flips + 1, 1 - world.most_flips))
    return np.asarray(p)


class Holdout:
    """Stands for a sealed part, what it opens to, and the beginning of that: the simulation's
    measurements know what is in it."""

    digest = "simulated"

    def __init__(self, rows: int, seen: int | None = None) -> None:
        self.all, self.rows = rows, rows if seen is None else seen
        self.segments = {"group": groups(rows)[: self.rows]}

    def __len__(self) -> int:
        return self.rows

    def open(self) -> Any:
        return self

    def first(self, rows: int) -> Holdout:
        return Holdout(self.all, rows)


def evidence(changes: np.ndarray, size: int, part: Holdout) -> Evidence:
    """Answers in which the original is wrong just where the candidate gains."""
    label = np.zeros(len(changes), dtype=np.int64)
    before, after = (changes > 0).astype(np.int64), (changes < 0).astype(np.int64)
    truth = Truth(label, before, segments=part.segments)
    return Evidence((1000, size), answers=(before, after), truth=truth)


# --- one repetition -----------------------------------------------------------------------------


class Killed(Exception):
    """The run was killed while it measured."""


@dataclass
class Repetition:
    """The rows of one repetition and all that is tried on them."""

    world: World
    rng: np.random.Generator
    ledger: Ledger
    killing: float = 0.0
    fishing: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    nearest: Recipe | None = None  # on the holdout, for a user who fishes

    def __post_init__(self) -> None:
        world, rng = self.world, self.rng
        self.width = world.parts or 2 * world.candidates
        shape = ((world.search_rows, self.width), (world.holdout_rows, self.width))
        self.search, self.holdout = (rng.standard_normal(each, dtype=np.float32) for each in shape)
        self.gain = rng.uniform(0.2, 1.0, self.width)

    def explore(self, trials: int) -> None:
        """Tries so many recipes more, in batches: half of them neighbours of the surest on the
        search part, the others of the one with the best objective among those that may pass."""
        aim = len(self.trials) + trials
        while len(self.trials) < aim:
            wanted = [self._propose(ahead) for ahead in range(min(BATCH, aim - len(self.trials)))]
            fresh = {_name(each): each for each in wanted if _name(each) not in self.recipes}
            recipes = list(fresh.values())
            if not recipes:
                continue
            kinds = [self.world.kind(each) for each in recipes]
            p = quick_p(self.world, outcomes(self.search, recipes, kinds))
            for (name, recipe), sure in zip(fresh.items(), p, strict=True):
                self._tell(name, recipe, float(sure))

    def _tell(self, name: str, recipe: Recipe, p: float) -> None:
        gained = self.gain[list(recipe)].sum() / (self.gain.sum() if self.world.parts else 1.2)
        size = int(950 - 700 * gained)
        self.recipes[name], self.sizes[name] = recipe, size
        trial = Trial(
            len(self.trials), ({"technique": name},), "done", p_value=p, model=name,
            figures={"objective": size / 1000},
        )  # fmt: skip
        self.trials.append(trial)

    def _any(self, ahead: int) -> Recipe:
        if not self.world.parts:
            return (len(self.trials) + ahead,)
        return tuple(np.flatnonzero(self.rng.random(self.width) < 0.5).tolist()) or (0,)

    def _propose(self, ahead: int) -> Recipe:
        if not self.world.parts or len(self.trials) < 2 * BATCH:
            return self._any(ahead)
        if self.nearest is not None and self.rng.random() < 0.5:
            parent = self.nearest
        elif self.rng.random() < 0.5:
            parent = self.recipes[min(self.trials, key=lambda t: t.p_value).model]
        else:
            hopeful = [each for each in self.trials if each.p_value <= 0.3] or self.trials
            parent = self.recipes[min(hopeful, key=lambda t: t.figures["objective"]).model]
        turned = set(self.rng.integers(0, self.width, self.rng.integers(1, 4)).tolist())
        return tuple(sorted(set(parent) ^ turned)) or (0,)

    def measure(self, finalist: Finalist, part: Holdout | None) -> Evidence:
        if self.killing and self.rng.random() < self.killing:
            raise Killed
        if part is None:
            return Evidence((1000, self.sizes[finalist.digest]))
        seen = mixed(self.world.holdout_rows)[: len(part)]
        changes = self.changes([finalist.digest])[seen, 0]
        return evidence(changes, self.sizes[finalist.digest], part)

    def changes(self, names: Sequence[str]) -> np.ndarray:
        """What these candidates change on the holdout [rows, names]."""
        recipes = [self.recipes[each] for each in names]
        return outcomes(self.holdout, recipes, [self.world.kind(each) for each in recipes])

    def run(self, name: str, *, again: bool = False) -> set[str]:
        """One run from its search to its certificate; the digests of what it certified. `again`:
        it is then continued with as many trials more."""
        holdout: Any = Holdout(self.world.holdout_rows)
        certifier = Certifier(
            self.world.limits, parse_objective("size"), TASK, self.measure, holdout, self.ledger,
            name,
        )  # fmt: skip
        self.explore(self.world.candidates // 2)
        half, early = freeze(self.trials), None
        if half and half[0].trial.p_value <= SURELY:
            found = self._until_done(lambda: certifier.early(half[0]))
            early = found.rows[0]
        self.explore(self.world.candidates - self.world.candidates // 2)
        certified: set[str] = set()
        for more in (False, True) if again else (False,):
            if more:
                self.explore(self.world.candidates)
            finalists = freeze(self.trials)
            found = self._until_done(lambda frozen=finalists: certifier.final(frozen, early))
            certified |= {r.finalist.digest for r in found.rows if r.status == "certified"}
            tested = [row for row in found.rows if row.verdicts]
            if tested and self.fishing:
                best = min(tested, key=lambda row: row.p_value)
                self.nearest = self.recipes[best.finalist.digest]
        return certified

    def _until_done(self, certify: Callable[[], Certification]) -> Certification:
        while True:
            try:
                return certify()
            except Killed:  # started anew: the journal froze the same finalists
                continue


def _name(recipe: Recipe) -> str:
    return "-".join(map(str, recipe))


# --- many ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How many of the repetitions certified a wrong candidate by the procedure; by testing every
    finalist at 5 % instead of stopping; by testing every candidate so; and how many certified a
    good one."""

    wrong: int
    walking_on: int
    everything: int
    good: int
    repetitions: int


@contextmanager
def remembered() -> Iterator[None]:
    """Comparisons of paired counts are remembered: the same counts come again and again here."""
    own = paired.compare
    paired.compare = lru_cache(maxsize=1 << 17)(own)
    try:
        yield
    finally:
        paired.compare = own


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for ledgers, which wait for the disk at every line: in memory that costs nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def certification(world: World, repetitions: int, seed: int = 0, mode: Mode = "once") -> Counts:
    """Search and certification, early answer and ledger included, so many times.

    "once": one run, whose share of the error rate is made the whole 5 %; "killed": likewise, the
    run being killed now and then while it measures and started anew; "longer": one run that is
    continued with as many trials more; "three runs" on one holdout; "fishing": each of them
    goes on from what the run before it had found to come nearest on the holdout. The last three
    share 5 %."""
    rng, total = np.random.default_rng(seed), 0.05 / SHARE if mode in ("once", "killed") else 0.05
    wrong = walking = everything = good = 0
    with remembered(), in_memory() as folder:
        for number in range(repetitions):
            ledger = Ledger(folder / f"{number}.jsonl", Holdout.digest, total)
            killing, fishing = (0.005 if mode == "killed" else 0.0), mode.endswith("fishing")
            one = Repetition(world, rng, ledger, killing, fishing)
            certified = one.run("0", again=mode == "longer")
            for run in range(1, 3 if mode.startswith("three") else 1):
                one.trials.clear()
                one.recipes.clear()
                certified |= one.run(str(run))
            names = list(one.recipes)
            bad = {each for each in names if not world.kind(one.recipes[each]).good}
            p = quick_p(world, one.changes(names))
            passing = {each for each, p in zip(names, p, strict=True) if p <= 0.05}
            kinds = {name: world.kind(tuple(map(int, name.split("-")))) for name in certified}
            wrong += any(not kind.good for kind in kinds.values())
            walking += bool(passing & bad & {each.digest for each in freeze(one.trials)})
            everything += bool(passing & bad)
            good += any(kind.good for kind in kinds.values())
    return Counts(wrong, walking, everything, good, repetitions)
