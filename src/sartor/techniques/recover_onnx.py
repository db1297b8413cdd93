"""Training for ONNX models: what pruning, factorizing and rounding lost is trained back."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

from sartor.contracts import Bench, Model, Technique
from sartor.space import choice, span
from sartor.techniques._graph_onnx import Graph, Parts, attribute, finish, foreign, peek, read

REQUIRES = ("torch", "lightning_fabric", "safetensors")
EFFORTS = (0.1, 0.3, 1.0)
MIXED = 0.15
SHORT = 300.0  # seconds of budget below which there is no time to train
ROWS = 500  # training rows below which a portfolio with training is not worth its time


@dataclass(frozen=True)
class Recover(Technique):
    """Trains all weights of the graph as it is, after its structure was changed, against the
    labels and the original's answers (Hinton, Vinyals and Dean 2015). Zeros of pruned weights stay
    zeros, the ranks of factors stay.

    `effort` is the share of the granted training, counted in work (multiply-accumulates and numbers
    moved): a network of a third of the original's gets three times the steps, as they cost the
    same. `balance` lets rare
    classes count more, each class as much as any other: for limits and objectives that ask for
    them (recall, average precision), against accuracy. `mixed`: half of the rows are mixed with
    others, by this share of each, and taught by the original alone: where rows are few. `rate`,
    `teacher`, `temperature` and `hints` as in Plan. Parts are the weights."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[frozenset[str]] = frozenset({"training"})
    stage: ClassVar[str] = "weights"
    repair: ClassVar[str | None] = "effort"
    values_only: ClassVar[bool] = True

    effort: float = choice(0.3, values=EFFORTS)
    rate: float = span(0.01, 0.001, 0.1, log=True)
    teacher: float = choice(0.5, values=(0.0, 0.5, 0.9, 1.0))
    temperature: float = choice(2.0, values=(1.0, 2.0, 4.0))
    hints: str = choice("none", "hidden", "relations")
    balance: str = choice("none", "inverse")
    mixed: float = choice(0.0, values=(0.0, MIXED, 0.3))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason is None and self.mixed and not self.teacher:
            reason = "mixed rows have no label: only the original can teach them"
        if reason is None and not any(step.touched for step in model.lineage):
            reason = "nothing was changed that training could win back"
        return reason or _trainer().untrainable(model, bench, self.effort, self.balance)

    def apply(self, model: Model, bench: Bench) -> Model:
        return _trained(self, model, bench)


@dataclass(frozen=True)
class Tune(Technique):
    """Trains a graph in the form in which it is stored.

    After static-int8, weight-only (8 or 4 bits) and few-levels this is quantization-aware training:
    every rounding is in place, and what comes out is the same graph of integers with better values
    (Jacob et al., CVPR 2018); the scales stay those of the calibration, but for few-levels, which
    wants a `rate` of 0.03. After cluster-weights the centres of the clusters are trained, each by
    the sum of its weights' gradients (Han et al., "Deep Compression", ICLR 2016). Settings as in
    Recover. Parts are the weights."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[frozenset[str]] = frozenset({"training"})
    stage: ClassVar[str] = "tuning"
    repair: ClassVar[str | None] = "effort"
    values_only: ClassVar[bool] = True

    effort: float = choice(0.1, values=EFFORTS)
    rate: float = span(0.003, 0.0003, 0.05, log=True)
    teacher: float = choice(0.9, values=(0.0, 0.5, 0.9, 1.0))
    temperature: float = choice(2.0, values=(1.0, 2.0, 4.0))
    balance: str = choice("none", "inverse")

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason is None and not any(_stored(step.technique) for step in model.lineage):
            reason = (
                "nothing is stored in few bits: static-int8, weight-only or cluster-weights comes "
                "before it"
            )
        return reason or _trainer().untrainable(model, bench, self.effort, self.balance)

    def apply(self, model: Model, bench: Bench) -> Model:
        return _trained(self, model, bench)


def _stored(technique: Technique) -> bool:
    return technique.stage in ("precision", "storage")


def _trained(how: Recover | Tune, model: Model, bench: Bench) -> Model:
    graph, parts = read(model), Parts()
    trainer = _trainer()
    steps = trainer.granted(graph, bench, how.effort)
    plan = trainer.Plan(
        steps, rate=how.rate, teacher=how.teacher, temperature=how.temperature,
        hints=getattr(how, "hints", "none"), balance=how.balance, mixed=getattr(how, "mixed", 0.0),
    )  # fmt: skip
    for name in trainer.train(graph, plan, bench).names:
        parts.touch(name)
    return finish(model, how, graph, bench, parts)


def training_cost(model: Model, bench: Bench) -> tuple[float, int]:
    """Seconds of a step that trains this model here, and how much work it is for an example:
    what the training that a run grants is planned by. Raises Failed where it cannot be trained."""
    found: tuple[float, int] = _trainer().cost(read(model), bench)
    return found


def portfolio(model: Model, bench: Bench) -> list[list[dict[str, Any]]]:
    """Smaller networks trained back, the milder first, each with little training: what gains and
    loses too much gets more of it."""
    if bench.budget < SHORT or bench.count("train") < ROWS:
        return []
    graph = peek(model)
    operators = {node.op_type for node in graph.nodes}
    attends = bool(operators & {"Softmax", "Attention"}) and "Conv" not in operators
    return _transformer(bench) if attends else _layers(_depthwise(graph))


def _depthwise(graph: Graph) -> bool:
    """Whether some convolution reads each channel by itself."""
    for node in graph.nodes:
        if node.op_type == "Conv" and attribute(node, "group", 1) > 1:
            kernel = graph.constant_tensor(node.input[1])
            if kernel is not None and kernel.dims[1] == 1:
                return True
    return False


def _layers(depthwise: bool) -> list[list[dict[str, Any]]]:
    """Depthwise networks have their weights where their sums are few, and lose what they know to
    a rate that others gain by (docs/log.md)."""
    last = _step("static-int8", bias_correction=True)
    brief = _step("recover", effort=EFFORTS[0], rate=0.01 if depthwise else 0.03)
    counting = {"counting": "both"} if depthwise else {}
    pruned = [_step("structured-prune", share=share, **counting) for share in (0.5, 0.3, 0.15)]
    found = [
        *([each, brief, last] for each in pruned),
        # What is thin already is slow by the number of its layers.
        *([_step("drop-layers", keep=keep), pruned[1], brief, last] for keep in (0.5, 0.25)),
        [pruned[1], brief, _step("static-int8"), _step("tune", effort=EFFORTS[0])],
    ]
    if depthwise:
        return found
    low = [_step("low-rank", share=0.3)], [pruned[0], _step("low-rank", share=0.4)]
    return [*found, *([*each, brief, last] for each in low)]


def _transformer(bench: Bench) -> list[list[dict[str, Any]]]:
    """Mild ones first: what is too big is made thinner by as much as it is before it is trained,
    and of a sentence encoder nine tenths of the products are won back whole, of a half not. Tables
    have four bits where size is limited, which costs next to nothing."""
    small = any(limit.metric == "size" for limit in bench.limits)
    fewer = {"embeddings": 4, "block": 32} if small else {}
    last = [
        _step("fuse-transformer"), _step("separate-norm"), _step("dynamic-int8", smooth=0.8),
        _step("weight-only", matmul=0, **fewer),
    ]  # fmt: skip
    hints = "hidden" if bench.teacher.kind == "onnx" else "none"
    brief = _step("recover", effort=EFFORTS[0], rate=0.003, teacher=0.9, hints=hints, mixed=MIXED)
    words, low = _step("trim-vocabulary", occurrences=2), _step("low-rank", share=0.9)
    smaller = [
        [low, words, _step("structured-prune", share=0.7)],
        [words, _step("structured-prune", share=0.7)],
        [words, _step("drop-layers", keep=0.5)],
        [low, words, _step("structured-prune", share=0.5)],
    ]
    return [[*each, brief, *last] for each in smaller]


def _step(technique: str, **settings: Any) -> dict[str, Any]:
    return {"technique": technique, **settings}


def _trainer() -> ModuleType:
    """Imported where something is trained, and nowhere else: it takes three seconds."""
    from sartor.techniques import _training_onnx

    return _training_onnx
