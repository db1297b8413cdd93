"""What a person sees while a run goes on: what is tried, the best so far, the time left.

On a terminal the last line is live; into a file or pipe every event is one plain line.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from sartor.records import Trial
from sartor.report.layout import Console
from sartor.report.text import figure


class Progress:
    """Tells of a run on stderr, so that stdout stays for the answer. `quiet` tells nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self.status: Any = None  # rich's, where there is one
        self.deadline: float | None = None
        self.trials: int | None = None
        self.tried = 0
        self.best = ""
        self.doing = ""

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.status = self.console.status("starting")
            self.status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.status:
            self.status.stop()
            self.status = None

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)

    def now(self, doing: str) -> None:
        """What is being done at this moment."""
        self.doing = doing
        if self.status:
            self.status.update(self._line())

    def _line(self) -> str:
        left = ""
        if self.trials is not None:
            left = f"trial {self.tried} of {self.trials}"
        elif self.deadline is not None:
            seconds = max(self.deadline - time.monotonic(), 0.0)
            left = f"{minutes(seconds)} left"
        return " | ".join(each for each in (self.doing, self.best, left) if each)

    def trial(self, trial: Trial, title: str, metric: str) -> None:
        """One finished trial."""
        self.tried += 1
        figures = trial.figures
        told: list[str] = []
        if "size" in figures:
            told.append(f"{figures['size'] / 1e6:.2f} MB")
        if "latency" in figures and "original.latency" in figures:
            gain = figures["original.latency"] / figures["latency"]
            told.append(f"{figure('latency', figures['latency'])} ({gain:.2f}x)")
        if metric in figures:
            change = _signed(figures, metric)
            told.append(f"{metric} {figures[metric]:.4f} ({change}) on {trial.examples:,}")
        told.append(f"{trial.seconds:.1f} s")
        if trial.reason:
            told.append(trial.reason)
        text = f"{trial.number:3d} {trial.state:8s} {title}: "
        self.say(text + ", ".join(told), None if trial.state == "done" else "dim")
        self.now(self.doing)

    def best_so_far(self, text: str) -> None:
        self.best = f"best: {text}"
        self.now(self.doing)


def minutes(seconds: float) -> str:
    """Such as 1:05."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _signed(figures: Any, metric: str) -> str:
    return f"{figures[metric] - figures[f'original.{metric}']:+.4f}"
