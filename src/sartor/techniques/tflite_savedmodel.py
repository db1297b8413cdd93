"""TensorFlow's SavedModels to TensorFlow Lite, by TensorFlow's own converter."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sartor.contracts import Bench, Failed, Model, Signature, Step, Technique
from sartor.fitting import fixed, to_compare
from sartor.libraries import lines_of
from sartor.tflite_form import compare, stored

REQUIRES = ("tensorflow", "ai_edge_litert")  # imported where they are used
WHOLE = "model"


@dataclass(frozen=True)
class SavedmodelToTflite(Technique):
    """Writes the signature serving_default as a `.tflite` file in floats, by TFLiteConverter. Sizes
    become fixed: as the target asks (`Target.fixed`), and else the target's batch; another free
    size is refused. LiteRT's answers are held against TensorFlow's on rows of the training data
    (else of the search part): where they differ by more than 1e-3 of their spread, or more than one
    answer of a thousand is another, it fails. The model is one part as a whole."""

    kinds: ClassVar[frozenset[str]] = frozenset({"savedmodel"})
    stage: ClassVar[str] = "conversion"
    makes: ClassVar[str | None] = "tflite"

    def refuse(self, model: Model, bench: Bench) -> str | None:
        if model.kind not in self.kinds:
            return f"takes SavedModels of TensorFlow, not {model.kind}"
        try:
            fixed(model.signature, bench)
        except Failed as free:
            return str(free)
        return None

    def apply(self, model: Model, bench: Bench) -> Model:
        from sartor.savedmodel_calls import Caller

        signature = fixed(model.signature, bench)
        batches = to_compare(bench, signature, free=1)
        with Caller(Path(model.payload), model.signature) as right:  # looks the file through again
            data = _converted(Path(model.payload), signature, bench.scratch)
            names = [[p.name for p in side] for side in (signature.inputs, signature.outputs)]
            path, signature = stored(
                data, signature, (names[0], names[1]), bench.scratch, "TFLiteConverter"
            )
            compare(path, signature, right, batches, bench.task.output)
        return dataclasses.replace(
            model, kind="tflite", payload=path, signature=signature, settings={},
            lineage=(*model.lineage, Step(self, (WHOLE,))),
        )  # fmt: skip


def _converted(path: Path, signature: Signature, scratch: Path) -> bytes:
    from sartor.savedmodel_calls import converted, resaved, silent

    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as place, silent():
        try:
            resaved(path, signature, Path(place))
            return converted(Path(place))
        except Exception as error:  # a converter raises anything
            raise Failed(f"TFLiteConverter: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """What the converter's error says, and the operators that it names, on one line."""
    lines = lines_of(error)
    telling = [line for line in lines if re.search(r"tf\.\w+|TF Select ops|not supported", line)]
    return (telling or lines)[0][:300]


def portfolio(model: Model, bench: Bench) -> list[list[dict[str, Any]]]:
    """The conversion by itself. What rounds behind it is the portfolio of what comes out."""
    return [[{"technique": "savedmodel-to-tflite"}]]
