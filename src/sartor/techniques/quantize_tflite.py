"""Integers in TensorFlow Lite's files, by ai-edge-quantizer: weights alone, weights with
activations rounded at run time, and all of it; with our choice of what stays in float."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ai_edge_quantizer import calibrator, qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.utils import qsv_utils

from sartor.contracts import Arrays, Bench, Failed, Model, Step, Technique, Unneeded, WrongRequest
from sartor.fitting import batches
from sartor.libraries import first_line, quiet
from sartor.space import choice
from sartor.tflite_calls import Caller
from sartor.tflite_file import Flat, operator_name, part_names, read
from sartor.tflite_write import packed, text, unpacked

WEIGHED = frozenset({
    "FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL",
    "EMBEDDING_LOOKUP", "GATHER",
})  # fmt: skip
EXCEPTIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LOOKED = 16  # rows on which it is measured what an operator's rounding does to the answer
MOST_LOOKS = 64  # operators that are tried one by one; the largest, where there are more
_METHODS = {
    "minmax": AlgorithmName.MIN_MAX_UNIFORM_QUANT,
    "octav": AlgorithmName.OCTAV,
    "mse": AlgorithmName.MSE,
}
_EVERY = qtyping.TFLOperationName.ALL_SUPPORTED


@dataclass(frozen=True)
class _Rounding(Technique):
    """What the three have in common. `exceptions` operators stay in float: those whose rounding
    alone changes the answer most, by measurement on training examples. Parts are the operators
    with weights."""

    kinds: ClassVar[frozenset[str]] = frozenset({"tflite"})
    stage: ClassVar[str] = "precision"
    repair: ClassVar[str | None] = "exceptions"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    exceptions: int = choice(0, values=EXCEPTIONS)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes TensorFlow Lite models, not {model.kind}"
        able = _weighed(read(Path(model.payload)))
        if not able:
            return "no operator has weights in float"
        if len(able) <= self.exceptions:
            return f"only {len(able)} operators have weights in float: none would be left to round"
        wanted = self.exceptions or self.needs
        if wanted and bench.batches("train", 1, 1) is None:
            return "it needs calibration examples: give the data a train split"
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        flat = read(Path(model.payload))
        able = _weighed(flat)
        spared = self._worst(model, flat, able, bench)[: self.exceptions] if self.exceptions else []
        data = _settled(self._rounded(model, bench, spared), flat)
        bench.scratch.mkdir(parents=True, exist_ok=True)
        path = bench.scratch / f"rounded-{hashlib.sha256(data).hexdigest()[:20]}.tflite"
        path.write_bytes(data)
        made = self._fitted(dataclasses.replace(model, payload=path.absolute()))
        try:
            touched, skipped = _account(flat, read(path), able, spared)
        except WrongRequest as damage:
            raise Failed(f"ai-edge-quantizer: {damage}") from None
        if not touched:
            raise Unneeded(f"nothing was rounded: {skipped[0][1]}")
        self._try(made, bench)
        step = Step(self, tuple(touched), tuple(skipped))
        return dataclasses.replace(made, lineage=(*model.lineage, step))

    def _fitted(self, model: Model) -> Model:
        return model

    @abstractmethod
    def _config(self, tool: Any, pattern: str, flat: Flat) -> None:
        """Tells the quantizer what to do with the operators of the file that the pattern finds."""

    def _ends(self, tool: Any) -> None:
        """Tells it what to do with inputs and outputs."""

    def _ranges(self, tool: Any, model: Model, bench: Bench) -> Any:
        return None

    def _rounded(
        self, model: Model, bench: Bench, spared: Sequence[str] = (), alone: str | None = None
    ) -> bytes:
        """The file with all operators rounded but those that are spared, or with one `alone`."""
        with quiet():
            try:
                tool = quantizer.Quantizer(str(model.payload))
                pattern = ".*" if alone is None else _pattern(alone)
                self._config(tool, pattern, read(Path(model.payload)))
                for name in spared:
                    tool.update_quantization_recipe(
                        _pattern(name), _EVERY, algorithm_key=AlgorithmName.NO_QUANTIZE
                    )
                self._ends(tool)
                ranges = self._ranges(tool, model, bench)
                made = tool.quantize(ranges, enable_progress_report=False)
                return bytes(made.quantized_model)
            except Exception as error:  # a quantizer raises anything
                raise Failed(f"ai-edge-quantizer: {first_line(error)}") from None

    def _worst(self, model: Model, flat: Flat, able: Sequence[str], bench: Bench) -> list[str]:
        """The operators in order of what their rounding alone does to the answer, the worst
        first."""
        settings = dataclasses.replace(self, exceptions=0)

        def measure() -> Mapping[str, np.ndarray]:
            batches = _rows(model, bench, LOOKED)
            right = _answers(Path(model.payload), model, batches)
            found = [_off(self._one(model, bench, name, batches), right) for name in able]
            return {"off": np.array(found)}

        if len(able) > MOST_LOOKS:
            sizes = _sizes(flat)
            able = sorted(able, key=lambda name: -sizes[name])[:MOST_LOOKS]
        off = bench.remember(f"tflite rounding {settings}", measure)["off"]
        return [able[at] for at in np.argsort(-off, kind="stable")]

    def _one(
        self, model: Model, bench: Bench, name: str, batches: Sequence[Arrays]
    ) -> list[Arrays] | None:
        try:
            data = self._rounded(model, bench, alone=name)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "one.tflite"
                path.write_bytes(data)
                return _answers(path, self._fitted(model), batches)
        except Failed:  # cannot be rounded by itself
            return None

    def _try(self, made: Model, bench: Bench) -> None:
        """Raises Failed where LiteRT does not run what came out, or gives no numbers."""
        batches = _rows(made, bench, 1)
        for answers in _answers(Path(made.payload), made, batches):
            for name, each in answers.items():
                if not np.isfinite(each).all():
                    raise Failed(f"the rounded model gives no numbers as {name}")


@dataclass(frozen=True)
class DynamicRange(_Rounding):
    """Weights in `bits`, activations rounded to int8 at each call: LiteRT's default, and the
    fastest for transformers. What has no kernel for 4 bits has 8. `block`: of 4 bits, so many
    weights of fully connected layers and embeddings share a scale (0: a channel does, as it does
    where its length is no multiple of the block). `method`:
    how scales are chosen: by the extremes, by OCTAV (Sakr et al., ICML 2022), or by the least
    squared error."""

    bits: int = choice(8, 4)
    block: int = choice(0, 32, 64, 128)
    method: str = choice("minmax", values=tuple(_METHODS))

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if self.block and self.bits != 4:
            return "blocks share a scale in 4 bits only: write bits=4 or block=0"
        if self.block and self.method == "mse":
            return "ai-edge-quantizer has no mse in blocks: write method=octav or block=0"
        return super().refuse(model, bench)

    def _config(self, tool: Any, pattern: str, flat: Flat) -> None:
        method, sorts = _METHODS[self.method], qtyping.QuantGranularity
        tool.add_dynamic_config(pattern, _EVERY, 8, sorts.CHANNELWISE, method)
        if self.bits == 4:  # the last that is able counts, and each pattern is told once
            tool.add_dynamic_config(f"(?:{pattern})", _EVERY, 4, sorts.CHANNELWISE, method)
        if self.block:
            grain = sorts[f"BLOCKWISE_{self.block}"]
            tool.add_dynamic_config(f"(?:(?:{pattern}))", _EVERY, 4, grain, method)
            for name in _uneven(flat, self.block):
                if re.search(pattern, f"{name};"):
                    odd = _pattern(name)
                    tool.add_dynamic_config(odd, _EVERY, 4, sorts.CHANNELWISE, method)


@dataclass(frozen=True)
class WeightsOnly(_Rounding):
    """Weights in `bits`, computed with as floats: small, near the original, no faster. What has no
    kernel for 4 bits has 8. `method` as in dynamic-range."""

    bits: int = choice(8, 4)
    method: str = choice("minmax", values=tuple(_METHODS))

    def _config(self, tool: Any, pattern: str, flat: Flat) -> None:
        grain = qtyping.QuantGranularity.CHANNELWISE
        for bits in (8, 4) if self.bits == 4 else (8,):  # the last that is able counts
            name = pattern if bits == 8 else f"(?:{pattern})"
            tool.add_weight_only_config(name, _EVERY, bits, grain, _METHODS[self.method])


@dataclass(frozen=True)
class FullInt8(_Rounding):
    """int8 weights and activations whose ranges are fixed beforehand from training `examples`: what
    microcontrollers and accelerators take. `ranges`: the average of the examples' extremes, or the
    widest. `activations`: 8 or 16 bits. `interface`: "float32" leaves inputs and outputs in float;
    "integers" makes them integers in the file, and a session of ours rounds what it is given.
    It ruins transformers more often than not."""

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    activations: int = choice(8, 16)
    ranges: str = choice("average", "widest")
    examples: int = choice(128, values=(32, 128, 512))
    interface: str = choice("float32", "integers")

    def _fitted(self, model: Model) -> Model:
        ports = (*model.signature.inputs, *model.signature.outputs)
        integers = any(port.dtype in ("int8", "uint8", "int16") for port in ports)
        if self.interface == "float32" or integers:  # what takes integers goes on taking them
            return model
        return dataclasses.replace(model, settings={**model.settings, "interface": "float32"})

    def _config(self, tool: Any, pattern: str, flat: Flat) -> None:
        tool.add_static_config(pattern, _EVERY, self.activations, 8)

    def _ends(self, tool: Any) -> None:
        if self.interface == "float32":
            for name in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                tool.update_quantization_recipe(".*", name, algorithm_key=AlgorithmName.NO_QUANTIZE)

    def _ranges(self, tool: Any, model: Model, bench: Bench) -> Any:
        how = {"average": qsv_utils.moving_average_update, "widest": qsv_utils.min_max_update}
        found = calibrator.Calibrator(
            Path(model.payload).read_bytes(), num_threads=1, qsv_update_func=how[self.ranges]
        )
        batches = _rows(model, bench, self.examples)
        key = next(iter(found.get_signature_list()), None)
        found.calibrate({key: batches}, tool._recipe_manager)
        return found.get_model_qsvs()


# -- what there is to round ------------------------------------------------------------------------


def _weighed(flat: Flat) -> list[str]:
    """The operators with float weights of two axes or more."""
    return [
        name
        for name, operator in zip(part_names(flat), flat.operators, strict=True)
        if flat.operator(operator) in WEIGHED and _weights(flat, operator)
    ]


def _weights(flat: Flat, operator: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tensors = [flat.tensors[int(at)] for at in operator.get("inputs", ()) if at >= 0]
    return [
        each
        for each in tensors
        if flat.constant(each) and each.get("type", 0) == 0 and len(each.get("shape", ())) > 1
    ]


def _uneven(flat: Flat, block: int) -> list[str]:
    """The operators with weights whose last axis is no whole number of blocks."""
    return [
        name
        for name, operator in zip(part_names(flat), flat.operators, strict=True)
        if any(int(each["shape"][-1]) % block for each in _weights(flat, operator))
    ]


def _sizes(flat: Flat) -> dict[str, int]:
    return {
        name: sum(flat.constant(each) for each in _weights(flat, operator))
        for name, operator in zip(part_names(flat), flat.operators, strict=True)
    }


def _account(
    before: Flat, after: Flat, able: Sequence[str], spared: Sequence[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Which operators have integers for weights now, and why the others have none."""
    floats = {
        each.get("name", "")
        for each in after.tensors
        if after.constant(each) and each.get("type", 0) == 0
    }
    touched, skipped = [], []
    for name, operator in zip(part_names(before), before.operators, strict=True):
        if name not in able:
            continue
        left = [each for each in _weights(before, operator) if each.get("name", "") in floats]
        if not left:
            touched.append(name)
        elif name in spared:
            skipped.append((name, "its rounding changes the answer most"))
        else:
            code = before.model["operator_codes"][operator.get("opcode_index", 0)]
            skipped.append((name, f"ai-edge-quantizer has no such {operator_name(code)}"))
    return touched, skipped


def _settled(data: bytes, before: Flat) -> bytes:
    """The file with the free sizes of its outputs, which new tensors at the end do not state."""
    model = unpacked(data)
    names, tensors = {port.name for port in before.signature.outputs}, model.subgraphs[0].tensors
    sides = ({text(o.name): o.tensorIndex for o in s.outputs} for s in model.signatureDefs or ())
    places = next((side for side in sides if set(side) == names), {})
    lost = False
    for port in before.signature.outputs:
        if None in port.shape and port.name in places:
            tensor = tensors[places[port.name]]
            stated = [-1 if each is None else each for each in port.shape]
            lost |= list(_listed(tensor.shapeSignature)) != stated
            tensor.shapeSignature = stated
    return packed(model) if lost else data


def _listed(shape: Any) -> list[int]:
    return [] if shape is None else [int(each) for each in shape]


def _pattern(name: str) -> str:
    """Finds the operator with this output among those that ai-edge-quantizer joins by ;"""
    return f"^{re.escape(re.sub(r'#[0-9]+$', '', name))};"


# -- rows ------------------------------------------------------------------------------------------


def _rows(model: Model, bench: Bench, most: int) -> list[dict[str, np.ndarray]]:
    return list(batches(bench, model.signature, most, parts=("train", "search")))


def _answers(path: Path, model: Model, batches: Sequence[Arrays]) -> list[Arrays]:
    with Caller(path, model.signature) as caller:
        return [caller(batch) for batch in batches]


def _off(found: Sequence[Arrays] | None, right: Sequence[Arrays]) -> float:
    """The mean squared difference of the answers, as a share of the right ones' variance."""
    if found is None:
        return 0.0
    total = 0.0
    for name, first in right[0].items():
        if first.dtype.kind == "f":
            one, two = (
                np.concatenate([each[name].ravel() for each in side]) for side in (found, right)
            )
            total += float(np.square(one - two).mean()) / (float(two.var()) or 1.0)
    return total


def portfolio(model: Model, bench: Bench) -> list[list[dict[str, Any]]]:
    """The recipes to try first on a file of floats: integers that LiteRT is fast with, then those
    that are small."""
    flat = read(Path(model.payload))
    if not _weighed(flat):
        return []
    return fitted(
        convolves=any(flat.operator(each) == "CONV_2D" for each in flat.operators),
        calibrated=bench.batches("train", 1, 1) is not None,
    )


def fitted(convolves: bool, calibrated: bool) -> list[list[dict[str, Any]]]:
    full: list[list[dict[str, Any]]] = [[{"technique": "full-int8"}]] if calibrated else []
    dynamic: list[list[dict[str, Any]]] = [[{"technique": "dynamic-range"}]]
    first = [*full, *dynamic] if convolves else [*dynamic, *full]
    return [
        *first,
        [{"technique": "weights-only"}],
        [{"technique": "dynamic-range", "bits": 4, "block": 32, "method": "octav"}],
    ]
