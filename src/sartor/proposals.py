"""Recipes as points: what may be asked, what lies beside a recipe, how alike two recipes are."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sartor.contracts import STAGES, Recipe, Technique, technique_name, to_json, trains
from sartor.space import Choice, Domain, domains

Known = Mapping[str, type[Technique]]
Entry = Mapping[str, Any]

# A network may lose words, layers and channels in turn, weights be pruned and then trained, a
# graph be fused, rewritten and folded; elsewhere one technique a stage is enough.
MOST = {"structure": 3, "weights": 2, "graph": 3}
SLOTS = tuple(stage for stage in STAGES for _ in range(MOST.get(stage, 1)))
ROUNDS = 3  # in which structure is changed and trained
FEW = 1000  # a space of at most so many recipes is looked at as a whole
GRID = 12  # values of an interval that count as its neighbours' lattice and in a small space


def key_of(recipe: Recipe) -> str:
    return json.dumps([to_json(each) for each in recipe], sort_keys=True)


def rebuilt(known: Known, entries: Sequence[Entry]) -> Recipe | None:
    """The recipe of these JSON entries in the known classes; None where one is not known or a
    setting lies outside its domain."""
    steps = []
    for entry in entries:
        cls = known.get(entry["technique"])
        settings = {name: _value(v) for name, v in entry.items() if name != "technique"}
        if cls is None or not settings.keys() <= domains(cls).keys():
            return None
        if any(value not in domains(cls)[name] for name, value in settings.items()):
            return None
        steps.append(cls(**settings))
    return tuple(steps)


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def legal(recipe: Recipe, kind: str) -> bool:
    """In the order of the stages, none twice, and no more of a stage than there are slots; each
    takes the kind of model that the one before it makes. This holds for what is done to a model of
    one kind, up to its conversion, and in rounds (structure changed, trained, changed again,
    trained again) for each round."""
    parts = by_kind(recipe, kind)
    if any(kind not in each.kinds for kind, steps in parts for each in steps):
        return False
    return all(_ordered(each) for _, steps in parts for each in rounds(steps))


def by_kind(recipe: Recipe, kind: str) -> list[tuple[str, Recipe]]:
    """What is done to models of each kind in turn, its conversion included; of the kind that comes
    out last perhaps nothing."""
    found: list[tuple[str, Recipe]] = []
    steps: list[Technique] = []
    for each in recipe:
        steps.append(each)
        if each.makes:
            found.append((kind, tuple(steps)))
            kind, steps = each.makes, []
    return [*found, (kind, tuple(steps))]


def _ordered(steps: Recipe) -> bool:
    stages = [STAGES.index(each.stage) for each in steps]
    names = {technique_name(each) for each in steps}
    if {"session", "conversion"} <= {each.stage for each in steps}:
        return False
    if stages != sorted(stages) or len(names) < len(steps):
        return False
    return all(stages.count(at) <= SLOTS.count(stage) for at, stage in enumerate(STAGES))


def rounds(recipe: Recipe) -> list[Recipe]:
    """The steps on one kind of model, cut wherever its structure is changed again right after a
    training; what changes it last must be trained too, or they are one round, which is in no
    order."""
    cuts = [
        at
        for at in range(1, len(recipe))
        if recipe[at].stage == "structure" and _retrains(recipe[at - 1])
    ]
    parts = [recipe[a:b] for a, b in itertools.pairwise([0, *cuts, len(recipe)])]
    return parts if len(parts) <= ROUNDS and any(map(_retrains, parts[-1])) else [recipe]


def _retrains(technique: Technique) -> bool:
    return technique.stage == "weights" and trains(technique)


# -- what may be asked -------------------------------------------------------------------------


def singles(known: Known, kind: str) -> list[Recipe]:
    """Each technique by itself with its defaults, behind conversions where it needs some."""
    starts: list[Recipe] = [()]
    for start in starts:  # grows while it is gone through
        last, _ = by_kind(start, kind)[-1]
        passed = {last, *(each for each, _ in by_kind(start, kind))}
        converting = [cls() for cls in known.values() if cls.makes and last in cls.kinds]
        starts += [(*start, each) for each in converting if each.makes not in passed]
    found: list[Recipe] = []
    for cls in known.values():
        found += [each for start in starts if legal(each := (*start, cls()), kind)][:1]
    return found


def everything(known: Known, kind: str) -> list[Recipe] | None:
    """All recipes where there are few, else None."""
    own = [cls for cls in known.values() if kind in cls.kinds and not cls.makes]
    whole = _all_of(own)
    for cls in known.values():
        if cls.makes and kind in cls.kinds:
            others = {name: each for name, each in known.items() if kind not in each.kinds}
            behind, ways = everything(others, cls.makes), _variants(cls)
            if whole is None or behind is None or ways is None:
                return None
            if len(whole) * len(ways) * len(behind) > FEW:
                return None
            first = [each for each in whole if all(not step.makes for step in each)]
            whole += [(*a, b, *c) for a in first for b in ways for c in behind]
    if whole is None or len(whole) > FEW:
        return None
    return [each for each in whole if legal(each, kind)]


def _all_of(own: Sequence[type[Technique]]) -> list[Recipe] | None:
    """All recipes of these techniques, which convert nothing, where there are few, else None."""
    held = {stage: [_variants(cls) for cls in own if cls.stage == stage] for stage in STAGES}
    if any(each is None for lists in held.values() for each in lists):
        return None
    choices: list[list[Recipe]] = []
    for stage in STAGES:
        lists = [each for each in held[stage] if each is not None]
        most = min(SLOTS.count(stage), len(lists))
        choices.append(
            [
                picked
                for n in range(most + 1)
                for some in itertools.permutations(lists, n)
                for picked in itertools.product(*some)
            ]
        )
        if math.prod(map(len, choices)) > FEW:
            return None
    return [tuple(itertools.chain(*picked)) for picked in itertools.product(*choices)]


def _variants(cls: type[Technique]) -> list[Technique] | None:
    lists = {name: domain.grid(GRID) for name, domain in domains(cls).items()}
    if math.prod(map(len, lists.values())) > FEW:
        return None
    return [
        cls(**dict(zip(lists, values, strict=True)))
        for values in itertools.product(*lists.values())
    ]


def sample(known: Known, rng: np.random.Generator, kind: str) -> Recipe:
    """A recipe at random: each slot holds nothing with two chances of three, and behind a
    conversion there are as many slots again. What nothing was done to is converted, where it can
    be: a model as its framework left it is rarely the best."""
    steps: list[Technique] = []
    slots = list(SLOTS)
    for stage in slots:  # grows while it is gone through
        names = [n for n, cls in known.items() if cls.stage == stage and kind in cls.kinds]
        needed = stage == "conversion" and not steps
        if not names or (not needed and rng.random() < 2 / 3):
            continue
        picked = names[int(rng.integers(len(names)))]
        if all(technique_name(each) != picked for each in steps):
            if known[picked].makes:  # which keeps nothing of how the model before it was run
                steps = [each for each in steps if each.stage != "session"]
            steps.append(_sampled(known[picked], rng))
            kind = steps[-1].makes or kind
            slots += SLOTS if steps[-1].makes else ()
    return tuple(steps)


def _sampled(cls: type[Technique], rng: np.random.Generator) -> Technique:
    """Defaults but for some settings: what a technique's author thought good is a good start."""
    settings = {
        name: _tidy(domain, domain.sample(rng))
        for name, domain in domains(cls).items()
        if rng.random() < 0.5
    }
    return cls(**settings)


def belief(recipe: Recipe, known: Known, kind: str) -> float:
    """The logarithm of how likely the recipe is taken to be the best before anything was tried: as
    likely as `sample` draws it (but for two draws of one technique, and with an interval taken as
    `GRID` values, and were there no more places in a stage than techniques), where the square root
    is taken for its techniques: those are few for settings that are many. So techniques that are
    the only ones of their stage, few steps and what their authors chose are believed in."""
    steps = settings = 0.0
    parts = by_kind(recipe, kind)
    for (at, part), stage in itertools.product(parts, dict.fromkeys(SLOTS)):
        names = sum(cls.stage == stage and at in cls.kinds for cls in known.values())
        slots = min(SLOTS.count(stage), names)
        held = sum(each.stage == stage for each in part)
        if slots:
            once = min(held, slots)  # in rounds there may be more
            ways = math.comb(slots, once) * 2 ** (slots - once) / 3**slots
            steps += math.log(ways) - held * math.log(names)
    for technique in recipe:
        usual = {field.name: field.default for field in dataclasses.fields(technique)}
        for name, domain in domains(technique).items():
            values = len(domain.values) if isinstance(domain, Choice) else GRID
            same = getattr(technique, name) == usual[name]
            settings += math.log(0.5 * same + 0.5 / values)
    return steps / 2 + settings


def _tidy(domain: Domain, value: Any) -> Any:
    """Three digits are enough, and equal recipes are then equal."""
    if isinstance(domain, Choice) or domain.whole:
        return value
    return min(max(float(f"{value:.3g}"), domain.low), domain.high)


def neighbours(recipe: Recipe, known: Known, kind: str) -> list[Recipe]:
    """The recipes one change away: a setting moved, a step left out, put in (with its defaults) or
    replaced by another of its stage, two steps of a stage in the other order."""
    found: list[Recipe] = []
    for at, technique in enumerate(recipe):
        before, after = recipe[:at], recipe[at + 1 :]
        found.append((*before, *after))
        for name, domain in domains(technique).items():
            for value in _moved(domain, getattr(technique, name)):
                found.append((*before, dataclasses.replace(technique, **{name: value}), *after))
        for cls in known.values():
            if cls.stage == technique.stage and not isinstance(technique, cls):
                found.append((*before, cls(), *after))
        if after and after[0].stage == technique.stage:
            found.append((*before, after[0], technique, *after[1:]))
    for cls in known.values():
        for at in range(len(recipe) + 1):
            found.append((*recipe[:at], cls(), *recipe[at:]))
    return [each for each in found if legal(each, kind)]


def _moved(domain: Domain, value: Any) -> list[Any]:
    if isinstance(domain, Choice):
        return [each for each in domain.values if each != value]
    return [_tidy(domain, each) for each in domain.neighbours(value)]


# -- how alike ---------------------------------------------------------------------------------

SETTING = 0.5  # what a setting weighs beside the presence of its technique


class Points:
    """Recipes as vectors: for each technique whether it is there, for each of its settings the
    value (its place in the domain for numbers, one of many for names), for two techniques of a
    stage, on one kind of model, which comes first. Axes appear as they are met."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.axes: dict[Any, int] = {}
        self.rows: dict[Any, dict[int, float]] = {}

    def copied(self) -> Points:
        made = Points(self.known)
        made.axes, made.rows = dict(self.axes), dict(self.rows)
        return made

    def of(self, recipes: Sequence[Recipe]) -> np.ndarray:
        for each in recipes:
            if each not in self.rows:
                self.rows[each] = self._row([to_json(step) for step in each])
        return self._stacked([self.rows[each] for each in recipes])

    def __call__(self, recipes: Sequence[Sequence[Entry]]) -> np.ndarray:
        """[len(recipes), axes met so far]."""
        return self._stacked([self._row(each) for each in recipes])

    def _stacked(self, rows: Sequence[Mapping[int, float]]) -> np.ndarray:
        made = np.zeros((len(rows), len(self.axes)))
        for at, row in enumerate(rows):
            for axis, value in row.items():
                made[at, axis] = value
        return made

    def _row(self, entries: Sequence[Entry]) -> dict[int, float]:
        row: dict[int, float] = {}
        stages: dict[tuple[int, str], list[str]] = {}
        converted = 0
        held: Counter[str] = Counter()
        for entry in entries:
            cls = self.known.get(entry["technique"])
            held[entry["technique"]] += 1
            name = entry["technique"] + "'" * (held[entry["technique"]] - 1)  # of a later round
            row[self._axis(name)] = 1.0
            for setting, domain in domains(cls).items() if cls else ():
                key, value = _coordinate(domain, _value(entry.get(setting)))
                if value:
                    row[self._axis((name, setting, key))] = SETTING * value
            if cls:
                stages.setdefault((converted, cls.stage), []).append(name)
                converted += cls.makes is not None
        for names in stages.values():
            for pair in itertools.combinations(names, 2):
                row[self._axis(pair)] = SETTING
        return row

    def _axis(self, key: Any) -> int:
        return self.axes.setdefault(key, len(self.axes))


def _coordinate(domain: Domain, value: Any) -> tuple[str, float]:
    if isinstance(domain, Choice):
        numbers = all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in domain.values
        )
        if not numbers:
            return json.dumps(value), 1.0
        if value not in domain.values:
            return "", 0.0
        return "", domain.values.index(value) / max(len(domain.values) - 1, 1)
    if value is None:
        return "", 0.0
    low, high, here = domain.low, domain.high, value
    if domain.log:
        low, high, here = math.log(low), math.log(high), math.log(value)
    return "", (here - low) / (high - low) if high > low else 0.0
