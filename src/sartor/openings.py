"""What a run tries first: what is known to be good for such a model, and for what a conversion
makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest

from sartor.building import Stopped
from sartor.contracts import Model, Recipe, Technique, technique_name
from sartor.registry import portfolio
from sartor.trials import Laboratory


def openings(lab: Laboratory, known: Mapping[str, type[Technique]]) -> list[Recipe]:
    """The portfolio of the original's kind, and of each kind that it may become, behind the
    conversions: the first of each, then the second of each and so on, since no runtime is the best
    for all models. What a conversion makes is kept in the store, and where it fails the first trial
    says why."""
    waiting: list[tuple[Recipe, Model]] = [((), lab.original)]
    lists: list[list[Recipe]] = []
    for start, model in waiting:  # grows while it is gone through
        own: list[Recipe] = [start] if start else []
        offered = [(*start, *each) for each in _offered(model, lab, known)]
        converting = [each for each in offered if any(s.makes for s in each[len(start) :])]
        lists.append([*own, *(each for each in offered if each not in converting)])
        lists.append(converting)  # what comes before a conversion is tried without it first
        for cls in known.values():
            if not cls.makes or model.kind not in cls.kinds:
                continue
            then: Recipe = (*start, cls())
            if cls.makes == lab.original.kind or cls.makes in (each.makes for each in start):
                continue
            try:
                waiting.append((then, lab.build(then)))
            except Stopped as end:
                lab.stops[lab.key(model, then[-1])] = (end.state, end.reason)
                lists.append([then])
    turns = chain.from_iterable(zip_longest(*lists))
    return list(dict.fromkeys(each for each in turns if each is not None))


def _offered(
    model: Model, lab: Laboratory, known: Mapping[str, type[Technique]]
) -> Iterator[Recipe]:
    """The portfolio of the model's kind, without conversions that are not allowed."""
    for each in portfolio(model, lab.bench):
        if all(technique_name(step) in known for step in each if step.makes):
            yield each
