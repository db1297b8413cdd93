"""Thinner layers: whole channels, heads and units go, with all weights that belong to them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sartor.contracts import Bench, Failed, Model, Technique
from sartor.libraries import first_line
from sartor.space import choice, span
from sartor.techniques._axes_groups_onnx import Group, groups, keep
from sartor.techniques._axes_onnx import Atom
from sartor.techniques._axes_rules_onnx import trace
from sartor.techniques._axes_trace_onnx import Trace
from sartor.techniques._graph_onnx import (
    Graph,
    Parts,
    finish,
    foreign,
    peek,
    read,
    unchanged,
    watch,
)
from sartor.techniques._importance_onnx import IMPORTANCE
from sartor.techniques._refit_onnx import refit
from sartor.techniques._shares_onnx import (
    COUNTED,
    Budget,
    costs,
    counts,
    descend,
    give_back,
    ladder,
    level,
)

_WITH_ROWS = ("error", "taylor", "activation")


@dataclass(frozen=True)
class StructuredPrune(Technique):
    """Removes channels of convolutions, heads of attention and units of hidden layers, the least
    important first, until `share` of the multiply-accumulates is left (`counting` "macs"), of the
    weights, or of "both", the mean of the two shares; what is left is a smaller ordinary model.
    Nothing is trained afterwards.

    What must go together (over residual sums, concatenations, groups, reshapes into heads) is
    found in the graph, as in Fang et al., "DepGraph", CVPR 2023; what an operator computes jointly
    over stays whole. `importance`: "magnitude" is the norm of the weights (Li et al., ICLR 2017),
    "activation" the mean magnitude on `examples` training rows, "taylor" the change of the loss to
    first order (Molchanov et al., CVPR 2019; by torch), "random" a control. `scope` "global"
    trades groups against each other by importance lost for what is saved, each group's importance
    adding up to 1; "local" keeps the same share of each. A group keeps `least` of itself, and
    multiples of 8 (convolutions of 16 with AVX-512). Parts are the groups, named by the first node
    that makes them."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "structure"
    repair: ClassVar[str | None] = "share"
    neutral: ClassVar[Mapping[str, float]] = {"share": 1.0}
    claims: ClassVar[frozenset[str]] = frozenset({"macs", "size", "latency"})

    share: float = span(0.8, 0.1, 1.0)
    counting: str = choice(*COUNTED)
    what: str = choice("all", "channels", "heads", "width")
    importance: str = choice("error", "magnitude", "taylor", "activation", "random")
    scope: str = choice("global", "local")
    least: float = choice(0.1, values=(0.05, 0.1, 0.25, 0.5))
    refit: bool = choice(True, False)
    examples: int = choice(128, values=(32, 128, 512))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        if self.importance == "taylor" and importlib.util.find_spec("torch") is None:
            return "importance=taylor takes gradients by torch, which is not installed"
        if self.importance in _WITH_ROWS and bench.batches("train", 1, 1) is None:
            return (
                f"importance={self.importance} needs training rows, of which there are none; "
                "importance=magnitude does without"
            )
        chosen, parts = self._chosen(groups(trace(peek(model))), bench)
        if not chosen:
            return f"nothing can be made thinner: {parts.most_frequent_reason()}"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        traced = trace(read(model))
        chosen, parts = self._chosen(groups(traced), bench)
        if self.share == 1.0:
            for group in chosen:
                parts.skip(group.name, "share 1 keeps all of it")
            return unchanged(model, self, parts)
        if not chosen:
            raise Failed(f"nothing can be made thinner: {parts.most_frequent_reason()}")
        kept = self._kept(traced, chosen, bench)
        for group in chosen:
            if len(kept[group.atom]) < group.size:
                parts.touch(group.name)
            else:
                parts.skip(group.name, "the others lose less for what they save")
        thinner = {atom: which for atom, which in kept.items() if len(which) < (atom.size or 0)}
        if self.refit and bench.batches("train", 1, 1) is not None:
            refit(traced, thinner, kept, bench, self.examples)
        keep(traced, thinner)
        _try(traced.graph, bench)
        return finish(model, self, traced.graph, bench, parts)

    def _chosen(
        self, every: list[Group], bench: Bench
    ) -> tuple[dict[Group, tuple[int, ...]], Parts]:
        """The groups that may become thinner with what each may keep; the others skipped with
        reasons."""
        chosen, parts = {}, Parts()
        wide = "avx512f" in bench.target.features
        for group in every:
            steps = counts(group, self.least, wide)
            if group.reason:
                parts.skip(group.name, group.reason)
            elif self.what not in ("all", group.kind):
                parts.skip(group.name, f"what={self.what} leaves {group.kind} as they are")
            elif len(steps) == 1:
                parts.skip(group.name, f"{group.size} are too few to keep {self.least:g} of them")
            else:
                chosen[group] = steps
        return chosen, parts

    def _kept(
        self, traced: Trace, chosen: Mapping[Group, tuple[int, ...]], bench: Bench
    ) -> dict[Atom, np.ndarray]:
        """Atom -> the indices that stay, ascending."""
        every = list(chosen)
        scores = IMPORTANCE[self.importance](traced, every, bench, self.examples)
        scale = {"error": "errors", "taylor": "losses"}.get(self.importance, "shares")
        ladders = [ladder(each, chosen[each], scores[each.atom], scale) for each in every]
        budget = Budget(ladders, costs(traced, bench, every, self.counting))
        if budget.lowest() > self.share:
            counted = COUNTED[self.counting]
            raise Failed(
                f"what may be removed leaves {budget.lowest():.2f} of the {counted}, more than "
                f"{self.share:g}"
            )
        (descend if self.scope == "global" else level)(budget, self.share)
        give_back(budget, self.share)
        return {
            atom: np.sort(np.argsort(-scores[atom], kind="stable")[:size])
            for atom, size in budget.sizes.items()
        }


def _try(graph: Graph, bench: Bench) -> None:
    """Runs two rows. Raises Failed where ONNX Runtime does not: sizes were followed wrongly."""
    batches = bench.batches("search", 2, 2) or bench.batches("train", 2, 2)
    try:
        for _ in watch(graph, graph.outputs, batches or (), bench):
            return
    except Failed:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no other base class
        said = first_line(error)
        raise Failed(f"ONNX Runtime does not run the thinner model: {said}") from error
