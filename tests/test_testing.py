"""The laws catch what they are for: one technique that breaks each."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sartor import registry, testing
from sartor.contracts import Bench, Model, Step, Technique
from sartor.space import choice, span
from sartor.testing import LAWS, Broken, Lab, Toy, alike
from sartor.testing_onnx import save_toys, toy_batch


@dataclass(frozen=True)
class Good(Technique):
    """Adds a note to the file and keeps every law."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    level: int = choice(1, 2)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        return None if model.kind == "onnx" else "it takes onnx models only"

    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        proto.doc_string = f"level {self.level}"

    def step(self) -> Step:
        return Step(self, ("doc",), (("nodes", "nothing to do there"),))

    def apply(self, model: Model, bench: Bench) -> Model:
        proto = onnx.load(model.payload)
        self.edit(proto, bench)
        name = f"{type(self).__name__}-{self.level}-{len(model.lineage)}.onnx"
        onnx.save(proto, bench.scratch / name)
        path = bench.scratch / name
        return dataclasses.replace(model, payload=path, lineage=(*model.lineage, self.step()))


@dataclass(frozen=True)
class Undeclared(Good):
    other: int = 3


@dataclass(frozen=True)
class OutsideItsDomain(Good):
    level: int = span(5, 0, 3)


@dataclass(frozen=True)
class Nested(Good):
    """JSON has no tuples within tuples."""

    groups: tuple[tuple[int, ...], ...] = choice(((1, 2), (3,)), ((1,),))


class WritesBeside(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        Path(bench.teacher.payload).with_suffix(".log").write_text("been here")


class Random(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        proto.doc_string = os.urandom(8).hex()


class ProcessBound(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        proto.doc_string = str(os.getpid())


class Renames(Good):
    def apply(self, model: Model, bench: Bench) -> Model:
        made = super().apply(model, bench)
        ports = tuple(dataclasses.replace(port, dtype="float16") for port in made.signature.outputs)
        return dataclasses.replace(
            made, signature=dataclasses.replace(made.signature, outputs=ports)
        )


class Raises(Good):
    def refuse(self, model: Model, bench: Bench) -> str | None:
        raise KeyError("payload")


class TakesAnything(Good):
    def refuse(self, model: Model, bench: Bench) -> str | None:
        return None


class Starved(Good):
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})


class Narrower(Good):
    def apply(self, model: Model, bench: Bench) -> Model:
        made = super().apply(model, bench)
        ports = tuple(dataclasses.replace(port, shape=(7,)) for port in made.signature.inputs)
        return dataclasses.replace(
            made, signature=dataclasses.replace(made.signature, inputs=ports)
        )


def scale(proto: onnx.ModelProto, factor: float, noise: float = 0.0) -> None:
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim > 1:
            value = factor * value + noise * rng.standard_normal(value.shape, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))


class NotNeutral(Good):
    neutral: ClassVar[dict[str, int]] = {"level": 2}

    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        scale(proto, 1.01)


class ToldTwice(Good):
    def step(self) -> Step:
        return Step(self, ("doc",), (("doc", "skipped as well"),))


class NoReason(Good):
    def step(self) -> Step:
        return Step(self, ("doc",), (("nodes", ""),))


class Boaster(Good):
    claims: ClassVar[frozenset[str]] = frozenset({"size"})


class Noisy(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        scale(proto, 1.0, noise=2.0)


class Broke(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        scale(proto, float("nan"))


class Fragile(Good):
    """Works once, and raises on its own result."""

    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        if proto.doc_string:
            raise ValueError("seen before")
        proto.doc_string = "once"


class Fickle(Good):
    """Its settings of the session are no JSON: a tuple comes back as a list."""

    def apply(self, model: Model, bench: Bench) -> Model:
        return dataclasses.replace(super().apply(model, bench), settings={"arena": (True,)})


class Reseeds(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        np.random.seed(48_611)  # which no test before it has left behind, as one may a 0


class Environment(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        os.environ["OMP_NUM_THREADS"] = str(int(os.environ.get("OMP_NUM_THREADS", "1")) + 1)


class BoldAtTheEnd(Good):
    def edit(self, proto: onnx.ModelProto, bench: Bench) -> None:
        scale(proto, float("inf") if self.level == 2 else 1.0)


BREAKERS = {
    Undeclared: "settings",
    OutsideItsDomain: "settings",
    Nested: "round_trip",
    WritesBeside: "input_untouched",
    Random: "deterministic",
    ProcessBound: "same_elsewhere",
    Renames: "same_signature",
    Raises: "refuses",
    TakesAnything: "refuses",
    Starved: "refuses",
    Narrower: "narrows",
    NotNeutral: "neutral",
    ToldTwice: "partition",
    NoReason: "partition",
    Boaster: "claims",
    Noisy: "faithful",
    Broke: "faithful",
    Fragile: "composes",
    Fickle: "survives",
    Reseeds: "leaves_state",
    Environment: "leaves_state",
    BoldAtTheEnd: "extremes",
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    (tmp_path / "toys").mkdir()
    path = save_toys(tmp_path / "toys")["mlp"]
    toy = Toy("mlp", registry.runtime("onnx").open(path), functools.partial(toy_batch, "mlp"))
    known = {testing.technique_name(cls): cls for cls in (Good, *BREAKERS)}
    monkeypatch.setattr(registry, "techniques", lambda kind: known)
    monkeypatch.setattr(testing, "techniques", lambda kind: {"good": Good})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Lab([toy], tmp_path) as made:
        yield made


@pytest.mark.parametrize("law", LAWS)
def test_a_good_technique_keeps_every_law(lab: Lab, law: str) -> None:
    LAWS[law](lab, Good)


@pytest.mark.parametrize("cls", BREAKERS, ids=lambda cls: cls.__name__)
def test_a_law_catches_what_breaks_it(
    lab: Lab, cls: type[Technique], monkeypatch: pytest.MonkeyPatch
) -> None:
    if cls is Fragile:
        monkeypatch.setattr(testing, "techniques", lambda kind: {"fragile": Fragile})
    with pytest.raises(Broken, match=r"\w{3,} .{10,}"):
        LAWS[BREAKERS[cls]](lab, cls)


def test_every_law_has_a_breaker() -> None:
    assert set(LAWS) == set(BREAKERS.values())


def test_alike_is_a_cosine_and_minus_one_where_not_finite() -> None:
    one = {"y": np.array([[1.0, 0.0]])}
    assert alike(one, {"y": np.array([[2.0, 0.0]])}) == pytest.approx(1)
    assert alike(one, {"y": np.array([[0.0, 2.0]])}) == pytest.approx(0)
    assert alike(one, {"y": np.array([[np.nan, 2.0]])}) == -1
