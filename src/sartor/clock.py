"""The budget of a run: time or a number of trials."""

from __future__ import annotations

import time
import uuid

from sartor.spec import Spec


class Clock:
    """Counts from `began` (time.monotonic). What earlier sessions of the run `spent` counts too."""

    def __init__(self, spec: Spec, began: float, spent: float) -> None:
        self.began, self.session = began, uuid.uuid4().hex[:8]
        self.spent, self.trials = spent, spec.trials
        self.deadline = None if spec.trials is not None else began + spec.budget - spent

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def total(self) -> float:
        """Seconds of this session and of those before it."""
        return self.spent + self.elapsed()

    def left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()
