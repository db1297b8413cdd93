"""What a run tries first: what is known to be good for such a model, and for what a conversion
makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, takewhile, zip_longest

from sartor.building import Stopped
from sartor.contracts import Model, Recipe, Technique, technique_name
from sartor.proposals import legal
from sartor.registry import kinds, portfolio
from sartor.trials import Laboratory

FIRST = 2  # recipes that are tried before anything is converted


def openings(
    lab: Laboratory, known: Mapping[str, type[Technique]]
) -> tuple[list[Recipe], Iterator[Recipe]]:
    """What to try at once, and what is found out when that was tried: converting a model may take
    longer than the first answer."""
    offered = _offered(lab.original, lab, known)
    own = (each for each in offered if not any(step.makes for step in each))
    return list(islice(own, FIRST)), _in_turns(lab, known)


def _in_turns(lab: Laboratory, known: Mapping[str, type[Technique]]) -> Iterator[Recipe]:
    """The portfolio of the original's kind, and of each kind that it may become, behind the
    conversions: the first of each, then the second of each and so on, since no runtime is the best
    for all models. What a conversion makes is kept in the store, and where it fails the first trial
    says why."""
    waiting: list[tuple[Recipe, Model]] = [((), lab.original)]
    lists: list[tuple[Recipe, list[Recipe]]] = []
    later: list[
        list[Recipe | None]
    ] = []  # what stands before a conversion is tried by itself first
    for start, model in waiting:  # grows while it is gone through
        own = [start] if start else []
        offered = [(*start, *each) for each in _offered(model, lab, known)]
        crossed = [each for each in offered if any(step.makes for step in each[len(start) :])]
        later.append([*(None for _ in own), *crossed])
        lists.append((start, [*own, *(each for each in offered if each not in crossed)]))
        for cls in known.values():
            if not cls.makes or model.kind not in cls.kinds or not _wanted(cls.makes, lab):
                continue
            then: Recipe = (*start, cls())
            if cls.makes == lab.original.kind or cls.makes in (each.makes for each in start):
                continue
            try:
                waiting.append((then, lab.build(then)))
            except Stopped as end:
                lab.stops[lab.key(model, then[-1])] = (end.state, end.reason)
                lists.append((then, [then]))
                later.append([])
    own_first: Iterator[Sequence[Recipe | None]] = chain.from_iterable(
        (each, then) for (_, each), then in zip(lists, later, strict=True)
    )
    turns = chain.from_iterable(zip_longest(*own_first, _thinner(lists, lab)))
    yield from dict.fromkeys(each for each in turns if each is not None)


def _offered(
    model: Model, lab: Laboratory, known: Mapping[str, type[Technique]]
) -> Iterator[Recipe]:
    """The portfolio of the model's kind, without conversions that are not allowed."""
    for each in portfolio(model, lab.bench):
        if all(technique_name(step) in known for step in each if step.makes):
            yield each


def _wanted(kind: str, lab: Laboratory) -> bool:
    """Whether a model of this kind is, or leads to, what the target takes."""
    return not lab.formats or not set(lab.formats).isdisjoint(kinds(kind))


def _thinner(lists: Sequence[tuple[Recipe, Sequence[Recipe]]], lab: Laboratory) -> list[Recipe]:
    """Where the target takes other formats than the original's: what changes structure and weights
    before a conversion to one of them, and behind it the first guess for what comes out."""
    found: list[Recipe] = []
    for start, recipes in () if lab.rival else lists:
        heads = dict.fromkeys(_head(each[len(start) :]) for each in recipes)
        for way, others in lists:
            if way and way[:-1] == start and way[-1].makes in lab.formats:
                tail = others[min(1, len(others) - 1)][len(start) :]
                found += [(*start, *head, *tail) for head in heads if head]
    return [each for each in found if legal(each, lab.original.kind)]


def _head(recipe: Recipe) -> Recipe:
    """What it does to structure and weights before all else."""
    return tuple(takewhile(lambda each: each.stage in ("structure", "weights"), recipe))
