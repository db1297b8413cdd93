"""The recipes to try first on an ONNX model, by what its graph holds and what the CPU can do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from sartor.contracts import Bench, Model
from sartor.machine import multiplies_integers
from sartor.techniques._graph_onnx import Graph, peek

Recipes = list[list[dict[str, Any]]]

_FAMILIES = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "LSTM": "recurrent",
    "GRU": "recurrent",
    "RNN": "recurrent",
    "MatMul": "product",
    "Gemm": "product",
    "Attention": "product",
    "Gather": "table",
}


@dataclass(frozen=True)
class Facts:
    """Numbers of weights by family, and what else decides the choice."""

    weights: Counter[str]
    attends: bool
    normed: bool
    calibrated: bool
    int8: bool

    @property
    def tables(self) -> bool:
        """Whether embedding tables are worth a step: a twentieth of the weights or more."""
        return self.weights["table"] >= 0.05 * sum(self.weights.values()) > 0


def portfolio(model: Model, bench: Bench) -> Recipes:
    """Ordered lists of JSON techniques: the quick and likely first, the bold later."""
    facts = _facts(peek(model), bench)
    if facts.weights["conv"] > max(facts.weights["product"], facts.weights["recurrent"]):
        recipes = _conv(facts)
    elif facts.attends:
        recipes = _transformer(facts)
    else:
        recipes = _plain(facts)
    if bench.target.threads > 1:  # small networks lose by sharing their work, others by waiting
        first = recipes[1 if facts.attends else 0]
        recipes[2:2] = [
            [*first, _step("session-options", arena=True, **how)]
            for how in ({"spinning": True}, {"threads": 1})
        ]
    if not facts.int8:  # integers may lose there: what keeps floats is tried in between
        recipes.insert(1, [_step("optimize-offline", level="extended")])
    known: Recipes = []
    for recipe in recipes:
        if recipe and recipe not in known:
            known.append(recipe)
    return known


def _facts(graph: Graph, bench: Bench) -> Facts:
    weights: Counter[str] = Counter()
    for node in graph.nodes:
        family = _FAMILIES.get(node.op_type, "")
        for name in node.input if family else ():
            tensor = graph.constant_tensor(name)
            if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT:
                weights[family] += int(np.prod(tensor.dims, dtype=np.int64))
    operators = {node.op_type for node in graph.nodes}
    normed = bool(operators & {"LayerNormalization", "SkipLayerNormalization", "ReduceMean"})
    return Facts(
        weights,
        attends=normed and bool(operators & {"Softmax", "Attention", "MultiHeadAttention"}),
        normed=normed,
        calibrated=bench.batches("train", 1, 1) is not None,
        int8=multiplies_integers(bench.target.features),
    )


def _step(technique: str, **settings: Any) -> dict[str, Any]:
    return {"technique": technique, **settings}


def _conv(facts: Facts) -> Recipes:
    """Static int8 with everything in between: 2.5 to 3.2 times on VNNI. Without calibration data
    there is no int8 convolution worth having."""
    static = "static-int8"
    offline, half = _step("optimize-offline", level="extended"), _step("float16-storage")
    if not facts.calibrated:
        return [[offline], [_step("dynamic-int8")], [half], [_step("cluster-weights")]]
    corrected = _step(static, bias_correction=True)
    return [
        [_step(static)],
        [corrected],
        [_step(static, bias_correction=True, calibration="percentile", percentile=99.999)],
        [_step(static, bias_correction=True, exceptions=1)],
        [_step("simplify"), corrected],
        [_step(static, per_channel=False, bias_correction=True)],
        *([_step("low-rank", share=share), corrected] for share in (0.5, 0.3)),
        [_step(static, bias_correction=True, exceptions=4, examples=512)],
        [offline],
        [half],
    ]


def _transformer(facts: Facts) -> Recipes:
    """Dynamic int8 of the fused graph: 3 to 4.5 times on VNNI. Smoothing costs no time and halves
    the error; embedding tables are rows of int8."""
    rows = [_step("weight-only", matmul=0)] if facts.tables else []
    apart = [_step("separate-norm")] if facts.normed else []
    fused = [_step("fuse-transformer"), *apart]
    smooth: dict[str, Any] = {"smooth": 0.8} if facts.calibrated else {}
    bold = [_step("weight-only", matmul=0, embeddings=4, block=32)] if rows else []
    recipes: Recipes = [
        [_step("weight-only")],  # built in a second and near the original: the early answer
        [*fused, _step("dynamic-int8"), *rows],  # the fastest, in a third of the time of the next
        [*fused, _step("dynamic-int8", **smooth), *rows],
        [*apart, _step("dynamic-int8", **smooth), *rows],
        [*fused, _step("dynamic-int8", **smooth), *bold],
        [_step("weight-only", matmul=4, embeddings=4, block=32)],
        [*fused, _step("optimize-offline", level="extended")],
        [_step("float16-storage")],
    ]
    if facts.calibrated:
        keep = _step("dynamic-int8", smooth=0.8, exceptions=2)
        static = _step("static-int8", ops="matmul", smooth=0.8)
        thin = _step("low-rank", share=0.8)
        recipes.insert(3, [*fused, keep, _step("weight-only", embeddings=8 if rows else 0)])
        recipes.insert(5, [*apart, static, *rows])
        recipes.append([thin, *fused, _step("dynamic-int8", **smooth), *rows])
    return recipes


def _plain(facts: Facts) -> Recipes:
    """Products, recurrences and tables without attention."""
    rows = [_step("weight-only", matmul=0)] if facts.tables else []
    mostly_rows = 2 * facts.weights["table"] > sum(facts.weights.values())
    recipes: Recipes = [
        [_step("dynamic-int8"), *rows],
        [_step("weight-only")],
        [_step("optimize-offline", level="extended"), *rows],
        [_step("weight-only", matmul=4, embeddings=4, block=32)],
        [_step("dynamic-int8", per_channel=False), *rows],
        [_step("float16-storage")],
        [_step("cluster-weights")],
    ]
    if facts.calibrated and facts.weights["product"]:
        recipes.insert(1, [_step("static-int8"), *rows])
        recipes.insert(2, [_step("dynamic-int8", smooth=0.8), *rows])
        recipes.append([_step("low-rank", share=0.7), _step("static-int8"), *rows])
    return [rows, *recipes] if mostly_rows else recipes
