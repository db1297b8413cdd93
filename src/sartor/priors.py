"""What earlier runs teach: which recipes were good on models like this one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sartor.contracts import Model
from sartor.data import Part
from sartor.registry import runtime


UNLIKE, ALIKE = 0.1, 0.95  # correlations between models without and with all in common


@dataclass(frozen=True)
class Lesson:
    """A trial of an earlier run on another model: what was observed of it (the logarithm of the
    objective, the margin of each limit), which run it was (1, 2 ...; 0: this one), and how that
    model's values are taken to correlate with this one's."""

    recipe: tuple[Mapping[str, Any], ...]
    state: str
    observed: Mapping[str, float]
    source: int
    likeness: float


def features(model: Model, part: Part) -> dict[str, float]:
    """In a child: the share of the model's bytes ("bytes:Conv") and of its multiply-accumulates
    ("macs:Conv") that each operator holds; each kind of share sums to 1."""
    sums: dict[str, Counter[str]] = {"bytes": Counter(), "macs": Counter()}
    for each in runtime(model.kind).parts(model, part.example(0)):
        sums["bytes"][each.operator] += each.bytes
        sums["macs"][each.operator] += each.macs or 0
    return {
        f"{what}:{operator}": round(amount / total, 4)
        for what, counted in sums.items()
        if (total := sum(counted.values()))
        for operator, amount in sorted(counted.items())
        if amount
    }


def correlation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """How what was seen on one model is taken to correlate with another: by the share that their
    features have in common. Even unlike models share a machine and its arithmetic."""
    kinds = {name.split(":")[0] for name in (*a, *b)}
    common = sum(min(a.get(name, 0.0), b.get(name, 0.0)) for name in a)
    return UNLIKE + (ALIKE - UNLIKE) * common / max(len(kinds), 1)
