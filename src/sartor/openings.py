"""What a run tries first: what is known to be good for such a model, and for what a conversion
makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest

from sartor.building import Stopped
from sartor.contracts import Model, Recipe, Technique
from sartor.proposals import by_kind, legal
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
        own = [start] if start else []
        lists.append([*own, *((*start, *each) for each in portfolio(model, lab.bench))])
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
    turns = chain.from_iterable(zip_longest(*lists, _thinner(lists, lab)))
    return list(dict.fromkeys(each for each in turns if each is not None))


def _thinner(lists: Sequence[Sequence[Recipe]], lab: Laboratory) -> list[Recipe]:
    """Where a format is asked for: what changes structure and weights of the original's kind alone,
    followed by each way there."""
    kind = lab.original.kind
    if lab.rival or not lists:
        return []
    plain = [
        each
        for each in lists[0]
        if each and all(step.stage in ("structure", "weights", "graph") for step in each)
    ]
    ways = [each[:2] for way in lists[1:] for each in way if each[0].kinds >= {kind}]
    ends = [each for each in dict.fromkeys(ways) if by_kind(each, kind)[-1][0] in lab.formats]
    return [(*each, *end) for each in plain for end in ends if legal((*each, *end), kind)]
