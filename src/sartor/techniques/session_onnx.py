"""How an ONNX model is run: options of its session, as a technique."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sartor.contracts import Bench, Model, Step, Technique
from sartor.space import choice
from sartor.techniques._graph_onnx import foreign


@dataclass(frozen=True)
class SessionOptions(Technique):
    """What ONNX Runtime would otherwise be told by Sartor's defaults, chosen here and kept in the
    bundle. The file stays as it is.

    `threads`: at most so many (0: as many as the target allows); a small network is faster on one.
    `spinning`: threads that wait keep their cores busy, which answers sooner and takes the cores
    from everybody else. `mode`: "parallel" runs branches of the graph at the same time.
    `level`: how far ONNX Runtime rewrites the graph when it loads it; less is faster where
    `optimize-offline` did it before. `arena`: memory is kept between calls, which takes more of
    it (off here unless it is chosen, on in a session without this technique)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "session"

    arena: bool = choice(False, True)
    level: str = choice("all", "extended", "basic")
    threads: int = choice(0, values=(0, 1, 2, 4, 8))
    spinning: bool = choice(False, True)
    mode: str = choice("sequential", "parallel")

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        if self.threads > bench.target.threads:
            return f"{self.threads} threads are more than the target's {bench.target.threads}"
        single = self.threads == 1 or bench.target.threads == 1
        if single and (self.spinning or self.mode != "sequential"):
            return "one thread neither waits for others nor runs branches beside one another"
        if self._settings(model, bench) == dict(model.settings):
            return "these are the options that it has"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        step = Step(self, ("session",))
        return dataclasses.replace(
            model, settings=self._settings(model, bench), lineage=(*model.lineage, step)
        )

    def _settings(self, model: Model, bench: Bench) -> dict[str, Any]:
        """The model's, with those of here that differ from what a session takes by itself."""
        threads = self.threads if self.threads < bench.target.threads else 0
        chosen = {
            "arena": None if self.arena else False,
            "graph_level": None if self.level == "all" else self.level,
            "threads": threads or None,
            "spinning": True if self.spinning else None,
            "execution_mode": None if self.mode == "sequential" else self.mode,
        }
        found = dict(model.settings) | chosen
        return {name: value for name, value in found.items() if value is not None}
