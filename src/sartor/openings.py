"""What a run tries first: what is known to be good for such a model, and for what a conversion
makes of it."""

from __future__ import annotations

from collections.abc import Mapping

from sartor.building import Stopped
from sartor.contracts import Recipe, Technique
from sartor.registry import portfolio
from sartor.trials import Laboratory


def openings(lab: Laboratory, known: Mapping[str, type[Technique]]) -> list[Recipe]:
    """The portfolio of the original's kind; then each conversion that is allowed, and behind it
    the portfolio of the model that it makes. What a conversion makes is kept in the store, and
    where it fails the first trial says why."""
    found = portfolio(lab.original, lab.bench)
    for cls in known.values():
        if not cls.makes or lab.original.kind not in cls.kinds:
            continue
        start: Recipe = (cls(),)
        found.append(start)
        try:
            model = lab.build(start)
        except Stopped as end:
            lab.stops[lab.key(lab.original, start[0])] = (end.state, end.reason)
            continue
        found += [(*start, *each) for each in portfolio(model, lab.bench)]
    return found
