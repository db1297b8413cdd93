"""Fewer bits for OpenVINO models, by NNCF: eight-bit arithmetic with ranges from examples, and
compressed weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sartor.contracts import Bench, Failed, Model, Step, Technique, Unneeded
from sartor.libraries import one_line, quiet
from sartor.machine import multiplies_integers, saturates
from sartor.openvino_core import opened, ov
from sartor.space import choice
from sartor.techniques._graph_openvino import (
    examples,
    finish,
    foreign,
    in_integers,
    operators,
    rounded,
    weighty,
)
from sartor.techniques._sensitivity_openvino import worst

REQUIRES = ("openvino", "nncf")  # imported where they are used: NNCF takes seconds
EXCEPTIONS = (0, 1, 2, 4, 8, 16)
# NNCF rounds their weights, and OpenVINO 2026.4 then does not run them.
RECURRENT = ("LSTMSequence", "GRUSequence", "LSTMCell", "GRUCell")


@dataclass(frozen=True)
class PostTrainingInt8(Technique):
    """int8 weights and activations with ranges from training examples, by NNCF.

    `preset`: "performance" takes ranges symmetric about zero, "mixed" those of activations as they
    are. `smooth` is the alpha of SmoothQuant for products (0: off; Xiao et al., ICML 2023).
    `bias_correction` removes from each bias what rounding adds to the mean output. `exceptions`
    layers stay in float: those whose rounding changes the answer most, by measurement on training
    examples. Where the processor's products of eight bits can overflow, weights take seven."""

    kinds: ClassVar[frozenset[str]] = frozenset({"openvino"})
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    stage: ClassVar[str] = "precision"
    repair: ClassVar[str | None] = "exceptions"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    preset: str = choice("performance", "mixed")
    smooth: float = choice(0.0, 0.5, 0.8, 0.95)
    bias_correction: bool = choice(True, False)
    examples: int = choice(128, values=(32, 128, 300))
    exceptions: int = choice(0, values=EXCEPTIONS)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model) or rounded(model)
        if reason is None and bench.batches("train", 1, 1) is None:
            return "quantization needs calibration examples: give the data a train split"
        return reason

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = self._quantized(model, bench, ())
        spared: list[str] = []
        if self.exceptions:
            have = [op.get_friendly_name() for op in weighty(graph) if in_integers(op)]
            if len(have) <= self.exceptions:
                raise Unneeded(f"{len(have)} layers are quantized: too few for so many exceptions")
            how = f"{self.preset} {self.smooth} {self.bias_correction} {self.examples}"
            spared = worst(model, graph, have, bench, how)[: self.exceptions]
            graph = self._quantized(model, bench, spared)
        layers = weighty(graph)
        touched = [op.get_friendly_name() for op in layers if in_integers(op)]
        if not touched:
            raise Unneeded("NNCF found nothing to quantize")
        exempt = set(spared)
        skipped = [
            (name, "an exception: its rounding changes the answer most")
            if name in exempt
            else (name, "NNCF leaves it in float")
            for name in (op.get_friendly_name() for op in layers)
            if name not in touched
        ]
        return finish(model, self, graph, bench, Step(self, tuple(touched), tuple(skipped)))

    def _quantized(
        self, model: Model, bench: Bench, spared: tuple[str, ...] | list[str]
    ) -> ov.Model:
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
            OverflowFix,
        )

        attends = "Softmax" in operators(model) or "ScaledDotProductAttention" in operators(model)
        smooth = AdvancedSmoothQuantParameters(convolution=-1, matmul=self.smooth or -1)
        overflow = OverflowFix.ENABLE if saturates(bench.target.features) else OverflowFix.DISABLE
        try:
            with quiet():
                return nncf.quantize(
                    opened(Path(model.payload)),
                    nncf.Dataset(list(examples(model, bench, self.examples))),
                    preset=nncf.QuantizationPreset(self.preset),
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=self.examples,
                    model_type=nncf.ModelType.TRANSFORMER if attends or self.smooth else None,
                    ignored_scope=nncf.IgnoredScope(
                        names=list(spared), types=list(RECURRENT), validate=False
                    ),
                    advanced_parameters=AdvancedQuantizationParameters(
                        overflow_fix=overflow,
                        disable_bias_correction=not self.bias_correction,
                        smooth_quant_alphas=smooth,
                    ),
                )
        except Exception as error:  # its classes and the C++ side's share no other base
            raise Failed(f"NNCF: {one_line(error)}") from None


@dataclass(frozen=True)
class CompressedWeights(Technique):
    """Weights in few bits, by NNCF; they are expanded when the model is loaded or multiplied.

    `mode`: "int8", "int4" or "nf4" (four bits at the quantiles of a normal; Dettmers et al., 2023).
    With four bits: `group` values share a scale, and of the layers only `ratio` take four bits, the
    others, and embedding tables and the last layer unless `all_layers`, eight."""

    kinds: ClassVar[frozenset[str]] = frozenset({"openvino"})
    stage: ClassVar[str] = "storage"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    mode: str = choice("int8", "int4", "nf4")
    group: int = choice(64, values=(32, 64, 128))
    ratio: float = choice(1.0, values=(0.5, 0.8, 1.0))
    all_layers: bool = choice(False, True)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return foreign(self, model) or rounded(model)

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = self._compressed(opened(Path(model.payload)))
        layers = weighty(graph)
        touched = [op.get_friendly_name() for op in layers if in_integers(op)]
        if not touched:
            raise Unneeded("NNCF found no weights to compress")
        names = [op.get_friendly_name() for op in layers]
        skipped = [(name, "NNCF leaves it in float") for name in names if name not in touched]
        return finish(model, self, graph, bench, Step(self, tuple(touched), tuple(skipped)))

    def _compressed(self, graph: ov.Model) -> ov.Model:
        import nncf

        modes = {
            "int8": nncf.CompressWeightsMode.INT8_ASYM,
            "int4": nncf.CompressWeightsMode.INT4_ASYM,
            "nf4": nncf.CompressWeightsMode.NF4,
        }
        few: dict[str, Any] = {}
        if self.mode != "int8":
            few = {"group_size": self.group, "ratio": self.ratio, "all_layers": self.all_layers}
        try:
            with quiet():
                return nncf.compress_weights(graph, mode=modes[self.mode], **few)
        except Exception as error:  # its classes and the C++ side's share no other base
            raise Failed(f"NNCF: {one_line(error)}") from None


@dataclass(frozen=True)
class HalfWeights(Technique):
    """Weights of float32 stored as float16, and expanded when the model is loaded. OpenVINO leaves
    those in float32 that float16 cannot hold."""

    kinds: ClassVar[frozenset[str]] = frozenset({"openvino"})
    stage: ClassVar[str] = "storage"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return foreign(self, model)

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = opened(Path(model.payload))
        wide = [op.get_friendly_name() for op in weighty(graph) if not in_integers(op)]
        if not wide:
            raise Unneeded("no weights are in float32")
        return finish(model, self, graph, bench, Step(self, tuple(wide)), halves=True)


# -- what to try first --------------------------------------------------------------------------


def portfolio(model: Model, bench: Bench) -> list[list[Mapping[str, Any]]]:
    """Eight-bit arithmetic where the processor has it and there are examples; then weights."""
    if rounded(model):
        return []
    held = operators(model)
    attends = "Softmax" in held and "Convolution" not in held
    int8: dict[str, Any] = {"technique": "post-training-int8"}
    compressed: dict[str, Any] = {"technique": "compressed-weights"}
    dynamic: dict[str, Any] = {"technique": "session-settings", "dynamic_quantization": 64}
    recipes: list[list[Mapping[str, Any]]] = []
    if bench.batches("train", 1, 1) is not None and multiplies_integers(bench.target.features):
        recipes += [[int8], [{**int8, "preset": "mixed"}], [{**int8, "exceptions": 1}]]
        if attends:
            recipes.insert(0, [{**int8, "smooth": 0.95}])
    if "MatMul" in held:
        recipes += [[compressed], [compressed, dynamic]]
        recipes += [[{**compressed, "mode": "int4"}, dynamic]]
    return [*recipes, [{"technique": "half-weights"}]]
