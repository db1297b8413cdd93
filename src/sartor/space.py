"""The domain of a setting: which values it may take and how a search walks over them.

A technique declares each setting with `choice(...)` or `span(...)`; nothing else declares it again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Choice:
    """A finite set of values, in an order that means something (mild to bold) where one exists."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return any(value == known and type(value) is type(known) for known in self.values)

    def sample(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]

    def grid(self, most: int) -> list[Any]:
        if len(self.values) <= most:
            return list(self.values)
        picks = np.linspace(0, len(self.values) - 1, most).round().astype(int)
        return [self.values[i] for i in dict.fromkeys(picks.tolist())]

    def neighbours(self, value: Any) -> list[Any]:
        at = self.values.index(value)
        return [self.values[i] for i in (at - 1, at + 1) if 0 <= i < len(self.values)]


@dataclass(frozen=True)
class Span:
    """An interval of numbers; whole numbers where both ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.whole and not isinstance(value, int):
            return False
        return self.low <= value <= self.high

    def at(self, share: float) -> Any:
        """The value at `share` (0 to 1) of the way from low to high."""
        if self.log:
            value = math.exp(
                math.log(self.low) + share * (math.log(self.high) - math.log(self.low))
            )
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def sample(self, rng: np.random.Generator) -> Any:
        return self.at(float(rng.random()))

    def grid(self, most: int) -> list[Any]:
        return list(dict.fromkeys(self.at(share) for share in np.linspace(0, 1, max(most, 2))))

    def neighbours(self, value: Any) -> list[Any]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        here = math.log(value) if self.log else value
        share = 0.0 if high == low else (here - low) / (high - low)
        near = [self.at(max(share - 0.1, 0.0)), self.at(min(share + 0.1, 1.0))]
        return [each for each in dict.fromkeys(near) if each != value]


Domain = Choice | Span


def choice(default: Any, *others: Any, values: Sequence[Any] | None = None) -> Any:
    """A field with a finite domain: the default and the others, or `values` in their order."""
    domain = Choice(tuple(values) if values is not None else (default, *others))
    return dataclasses.field(default=default, metadata={"domain": domain})


def span(default: float, low: float, high: float, *, log: bool = False) -> Any:
    """A dataclass field with an interval as its domain."""
    return dataclasses.field(default=default, metadata={"domain": Span(low, high, log)})


def domains(technique: Any) -> dict[str, Domain]:
    """Setting name -> domain, for a technique or its class, in the order of declaration."""
    return {
        field.name: field.metadata["domain"]
        for field in dataclasses.fields(technique)
        if "domain" in field.metadata
    }
