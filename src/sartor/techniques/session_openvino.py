"""How an OpenVINO model is run: settings of its session, as a technique."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sartor import openvino_ir
from sartor.contracts import Bench, Model, Step, Technique
from sartor.machine import BFLOAT
from sartor.space import choice
from sartor.techniques._graph_openvino import foreign

REQUIRES = ("openvino",)
_HALF = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
_COMPRESSED = frozenset({"i8", "u8", "i4", "u4", "nf4"})


@dataclass(frozen=True)
class SessionSettings(Technique):
    """What OpenVINO would otherwise choose by the processor, chosen here and kept in the bundle.

    `dynamic_quantization`: so many values of what goes into a product with compressed weights share
    a scale and are rounded to eight bits (0: none are). `precision`: in which floats are computed,
    where the processor has more than float32. `hint`: "throughput" gives each thread a stream of
    its own, for callers that ask at the same time. `threads`: at most so many (0: as many as the
    target allows)."""

    kinds: ClassVar[frozenset[str]] = frozenset({"openvino"})
    stage: ClassVar[str] = "session"

    dynamic_quantization: int = choice(64, values=(0, 32, 64, 128))
    precision: str = choice("f32", "bf16", "f16")
    hint: str = choice("latency", "throughput")
    threads: int = choice(0, values=(0, 1, 2, 4, 8))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason is not None:
            return reason
        wanted = {"bf16": BFLOAT, "f16": _HALF}.get(self.precision)
        if wanted and not wanted & bench.target.features:
            return f"the target's processor computes nothing in {self.precision}"
        if self.threads > bench.target.threads:
            return f"{self.threads} threads are more than the target's {bench.target.threads}"
        if self.dynamic_quantization and not _compressed(model):
            return "no weights are compressed: there is no dynamic quantization of products"
        if self._settings(bench) == dict(model.settings):
            return "these are the settings that it has"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        step = Step(self, ("session",))
        return dataclasses.replace(
            model, settings=self._settings(bench), lineage=(*model.lineage, step)
        )

    def _settings(self, bench: Bench) -> dict[str, Any]:
        """Those that differ from what a session takes by itself."""
        chosen: dict[str, Any] = {}
        if self.dynamic_quantization:
            chosen["dynamic_quantization"] = self.dynamic_quantization
        if self.precision != "f32":
            chosen["precision"] = self.precision
        if self.hint != "latency" and bench.target.threads > 1:
            chosen["hint"] = self.hint
        if 0 < self.threads < bench.target.threads:
            chosen["threads"] = self.threads
        return chosen


def _compressed(model: Model) -> bool:
    layers = openvino_ir.layers(Path(model.payload))
    return any(
        each.facts.get("type") == "Const" and each.data.get("element_type") in _COMPRESSED
        for each in layers
    )
