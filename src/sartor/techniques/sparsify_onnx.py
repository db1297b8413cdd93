"""Sparse weights for ONNX models that are trained while they become sparse."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from sartor.contracts import Bench, Failed, Model, Technique
from sartor.space import choice, span
from sartor.techniques._graph_onnx import Parts, finish, foreign, read

REQUIRES = ("torch", "lightning_fabric", "safetensors")

PATTERNS = {"any": None, "2:4": (2, 4), "1:4": (1, 4), "4:8": (4, 8)}


@dataclass(frozen=True)
class GradualPrune(Technique):
    """Zeros that grow along a cubic while the weights are trained (Zhu and Gupta 2017), so that the
    others learn to do without; the last third of the steps trains what is left.

    `density` is the share of weights that stays; `pattern` n:m keeps n of every m neighbouring
    inputs instead. No runtime here is faster for zeros: they save bytes once sparse-storage or a
    compressing transport packs them. Training as in Recover. Parts are the weights of products
    and convolutions."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[frozenset[str]] = frozenset({"training"})
    stage: ClassVar[str] = "weights"
    repair: ClassVar[str | None] = "density"

    density: float = span(0.9, 0.05, 0.95)
    pattern: str = choice("any", values=tuple(PATTERNS))
    scope: str = choice("global", "local")
    effort: float = choice(0.3, values=(0.1, 0.3, 1.0))
    rate: float = span(0.01, 0.001, 0.05, log=True)
    teacher: float = choice(0.5, values=(0.0, 0.5, 0.9, 1.0))
    balance: str = choice("none", "inverse")

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return foreign(self, model) or _trainer().untrainable(
            model, bench, self.effort, self.balance
        )

    def apply(self, model: Model, bench: Bench) -> Model:
        trainer, graph, parts = _trainer(), read(model), Parts()
        pattern = PATTERNS[self.pattern]
        sparse = trainer.Sparse(self.density, pattern, self.scope == "local")
        chosen = trainer.sparsifiable(graph, sparse)
        if not chosen:
            raise Failed("no product or convolution has enough weights to be made sparse")
        steps = trainer.granted(graph, bench, self.effort)
        plan = trainer.Plan(steps, rate=self.rate, teacher=self.teacher, balance=self.balance)
        for name in trainer.train(graph, plan, bench, sparse).names:
            if name in chosen:
                parts.touch(name)
            else:
                parts.skip(name, "small, grouped, or no weight of a product: trained, not pruned")
        return finish(model, self, graph, bench, parts)


def _trainer() -> ModuleType:
    from sartor.techniques import _training_onnx

    return _training_onnx
