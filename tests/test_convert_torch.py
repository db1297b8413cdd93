"""PyTorch to ONNX: every toy, both exporters, and what stands behind the conversion."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sartor import proposals, registry
from sartor.contracts import Failed, Model, describe, technique_name
from sartor.lab import Lab, Toy, alike, apply, keeps
from sartor.search import GuidedSearch
from sartor.techniques import convert_torch
from sartor.techniques.convert_torch import ToOnnx
from sartor.testing_torch import save_toys, taken_in, toy_batch, toy_modules
from sartor.torch_graph import Script


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    models = save_toys(tmp_path_factory.mktemp("toys"))
    toys = [Toy(n, m, functools.partial(toy_batch, n)) for n, m in models.items()]
    with Lab(toys, tmp_path_factory.mktemp("lab")) as made:
        yield made


def made(lab: Lab, toy: str, **settings: Any) -> Model:
    found = lab.make(lab.toys[toy], (ToOnnx(**settings),))
    assert isinstance(found, Model), found
    return found


def answers_alike(lab: Lab, toy: str, model: Model, seed: int = 5, like: str = "") -> None:
    for rows in (1, 4):
        batch = toy_batch(like or toy, rows, seed)
        right, found = lab.answers(lab.toys[toy].model, batch), lab.answers(model, batch)
        for name, one in right.items():
            assert found[name].shape == one.shape
            assert np.allclose(found[name], one, atol=1e-4)


@pytest.mark.parametrize("toy", ["mlp", "cnn", "lstm", "transformer", "several", "branching"])
def test_every_toy_answers_alike(lab: Lab, toy: str) -> None:
    model = made(lab, toy)
    assert model.kind == "onnx"
    assert model.signature == lab.toys[toy].model.signature
    assert registry.runtime("onnx").open(model.payload).signature == model.signature
    answers_alike(lab, toy, model)


@pytest.mark.parametrize("toy", ["cnn", "transformer"])
def test_the_exporter_by_graph(lab: Lab, toy: str) -> None:
    model = made(lab, toy, exporter="dynamo")
    assert model.signature == lab.toys[toy].model.signature
    answers_alike(lab, toy, model)


def test_weights_keep_their_names_and_batch_norms_are_folded(lab: Lab) -> None:
    graph = onnx.load(made(lab, "cnn").payload).graph
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
    assert {"head.weight", "inner.weight"} <= {each.name for each in graph.initializer}
    assert b"/tmp/" not in Path(made(lab, "cnn").payload).read_bytes()


def test_what_answers_otherwise_is_no_conversion(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first exporter is caught at a wrong answer and the second takes over; where both are
    wrong it fails with a sentence."""
    real = convert_torch._EXPORTERS["trace"]

    def wrong(*given: Any) -> onnx.ModelProto:
        proto = real(*given)
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.2), tensor.name))
        return proto

    toy = lab.toys["mlp"]
    monkeypatch.setattr(convert_torch, "_EXPORTERS", {"trace": wrong, "dynamo": real})
    found = apply(ToOnnx(), toy.model, lab.bench(toy, seed=3))
    assert isinstance(found, Model)
    answers_alike(lab, "mlp", found)
    monkeypatch.setattr(convert_torch, "_EXPORTERS", {"trace": wrong, "dynamo": wrong})
    with pytest.raises(Failed, match="of its spread"):
        ToOnnx().apply(toy.model, lab.bench(toy, seed=4))
    with pytest.raises(Failed, match="trace: "):
        ToOnnx(exporter="trace").apply(toy.model, lab.bench(toy, seed=4))


class Tied(nn.Module):
    """Two classes with the same weights; `tilt` decides between them by next to nothing."""

    def __init__(self, tilt: float) -> None:
        super().__init__()
        self.head, self.tilt = nn.Linear(32, 2), tilt
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-1, 1, 32).repeat(2, 1))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(x) + torch.tensor([0.0, self.tilt])
        return found


def test_answers_that_flip_are_no_conversion(tmp_path: Path) -> None:
    """Close in every number, and yet another answer for more than one row of a thousand."""
    batch = functools.partial(toy_batch, "mlp")
    toy = Toy("tied", taken_in(Tied(-1e-4), tmp_path / "tied", batch), batch)
    with Lab([toy], tmp_path / "lab") as lab:
        (tmp_path / "lab").mkdir(exist_ok=True)
        model = made(lab, "tied")
        rows = [batch(64, seed) for seed in range(3)]
        compare = functools.partial(
            convert_torch._compare, model=toy.model, path=model.payload, rows=rows, output="output"
        )
        compare(Script(Tied(-1e-4), ["*"]))
        with pytest.raises(Failed, match="192 of 192 answers of ONNX Runtime are others"):
            compare(Script(Tied(1e-4), ["*"]))
        with pytest.raises(Failed, match="of its spread"):
            compare(Script(Tied(1.0), ["*"]))


def test_without_rows_it_fails(lab: Lab) -> None:
    toy = lab.toys["mlp"]
    with pytest.raises(Failed, match="no rows"):
        ToOnnx().apply(toy.model, lab.bench(toy, parts=()))


class Reading(nn.Module):
    """Takes two inputs and reads one of them."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.head = at, nn.Linear(16, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.head((left, right)[self.at][:, :16])
        return answers


@pytest.mark.parametrize("at", [0, 1])
def test_an_input_that_is_not_read_stays_an_input(at: int, tmp_path: Path) -> None:
    batch = functools.partial(toy_batch, "several")
    toy = Toy("reading", taken_in(Reading(at), tmp_path / "in", batch), batch)
    (tmp_path / "lab").mkdir()
    with Lab([toy], tmp_path / "lab") as lab:
        model = made(lab, "reading", exporter="trace")
        assert registry.runtime("onnx").open(model.payload).signature == toy.model.signature
        answers_alike(lab, "reading", model, like="several")


def test_float64_computes_in_float32(tmp_path: Path) -> None:
    """ONNX Runtime has no convolution in float64; what goes in and comes out stays float64."""

    def batch(rows: int, seed: int) -> dict[str, np.ndarray]:
        return {"image": toy_batch("cnn", rows, seed)["image"].astype(np.float64)}

    toy = Toy("wide", taken_in(toy_modules()["cnn"].double(), tmp_path / "in", batch), batch)
    assert {port.dtype for port in toy.model.signature.outputs} == {"float64"}
    (tmp_path / "lab").mkdir()
    with Lab([toy], tmp_path / "lab") as lab:
        model = made(lab, "wide", exporter="trace")
        assert registry.runtime("onnx").open(model.payload).signature == toy.model.signature
        kinds = {each.data_type for each in onnx.load(model.payload).graph.initializer}
        assert onnx.TensorProto.DOUBLE not in kinds
        found, right = (lab.answers(each, batch(4, 5)) for each in (model, toy.model))
        assert np.allclose(found["output"], right["output"], atol=1e-4)


@pytest.mark.parametrize("size", [40, 100])
def test_a_batch_that_a_program_insists_on(size: int, lab: Lab, tmp_path: Path) -> None:
    """Also where there are fewer rows than that."""
    example = (torch.zeros(size, 32),)
    program = torch.export.export(toy_modules()["mlp"], example)
    model = registry.adopt(program, tmp_path)
    rows = {"input": toy_batch("mlp", size, 5)["x"]}
    toy = Toy("fixed", model, lambda rows, seed: {"input": toy_batch("mlp", rows, seed)["x"]})
    bench = lab.bench(lab.toys["mlp"], seed=size)

    def batches(split: str, size: int = 1, most: int | None = None) -> Iterator[Any]:
        listed = bench.batches(split, size, most)
        return ({"input": batch["x"]} for batch in listed or ())

    given: Any = SimpleNamespace(batches=batches, scratch=tmp_path, task=bench.task)
    found = ToOnnx().apply(toy.model, given)
    assert found.signature.inputs[0].shape == (size, 32)
    assert lab.answers(found, rows)["output"].shape == (size, 4)


# -- behind it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(registry.techniques("onnx")))
def test_every_technique_of_onnx_works_behind_it(lab: Lab, name: str) -> None:
    """On every toy, or refuses it: graphs of the exporter are graphs like any other."""
    technique = registry.techniques("onnx")[name]()
    for toy in lab.toys.values():
        model = lab.make(toy, (ToOnnx(), technique))
        if isinstance(model, str):
            continue
        assert [technique_name(step.technique) for step in model.lineage] == ["to-onnx", name]
        assert keeps(toy.model.signature, model.signature, model.kind)
        batch = toy.batch(5, 9)
        found = alike(lab.answers(toy.model, batch), lab.answers(model, batch))
        assert found >= 0.7, f"{describe((ToOnnx(), technique))} on {toy.name}: cosine {found:.3f}"


def test_the_portfolio_knows_what_it_makes(lab: Lab) -> None:
    model = made(lab, "transformer")
    bench = lab.bench(lab.toys["transformer"])
    named = [[technique_name(t) for t in recipe] for recipe in registry.portfolio(model, bench)]
    assert any("dynamic-int8" in names for names in named)
    own = registry.portfolio(lab.toys["transformer"].model, bench)
    assert {technique_name(t) for recipe in own for t in recipe} <= {"freeze-script"}


# -- the search ---------------------------------------------------------------------------------


def test_what_a_recipe_may_hold() -> None:
    assert registry.kinds("torch")[:2] == ("torch", "onnx")
    assert registry.kinds("onnx")[:1] == ("onnx",)
    known = registry.reachable("torch")
    assert {"to-onnx", *registry.techniques("onnx")} <= set(known)
    int8, low = known["dynamic-int8"](), known["low-rank"]()
    assert proposals.legal((), "torch")
    assert proposals.legal((ToOnnx(), low, int8), "torch")
    assert not proposals.legal((int8,), "torch")
    assert not proposals.legal((low, ToOnnx()), "torch")
    assert not proposals.legal((ToOnnx(), ToOnnx()), "torch")
    assert not proposals.legal((ToOnnx(), int8), "onnx")
    assert proposals.legal((low, int8), "onnx")


def test_a_conversion_that_is_left_out_is_put_in() -> None:
    recipe = registry.recipe("torch", [{"technique": "static-int8"}])
    assert [technique_name(each) for each in recipe] == ["to-onnx", "static-int8"]
    assert registry.recipe("torch", [{"technique": "to-onnx"}, {"technique": "simplify"}])
    with pytest.raises(ValueError, match="no technique 'nonsense' for torch"):
        registry.recipe("torch", [{"technique": "nonsense"}])
    with pytest.raises(ValueError, match="did you mean 'static-int8'"):
        registry.recipe("torch", [{"technique": "static-int-8"}])


@pytest.mark.parametrize("seed", range(3))
def test_the_search_converts_first(seed: int) -> None:
    """Whatever it draws, a conversion stands before what needs one."""
    rng = np.random.default_rng(seed)
    known = registry.reachable("torch")
    drawn = [proposals.sample(known, rng, "torch") for _ in range(200)]
    assert all(proposals.legal(each, "torch") for each in drawn)
    assert all(each for each in drawn)
    assert any(len(each) > 2 for each in drawn)
    near = proposals.neighbours(max(drawn, key=len), known, "torch")
    assert near
    assert all(proposals.legal(each, "torch") for each in near)
    alone = proposals.singles(known, "torch")
    assert (ToOnnx(),) in alone
    assert len(alone) == len(known)
    seeker = GuidedSearch("torch", known, seed=seed)
    asked = seeker.ask()
    assert asked == ((), 1.0)


def test_a_small_space_is_gone_through_as_a_whole() -> None:
    known = {name: registry.reachable("torch")[name] for name in ("to-onnx", "separate-norm")}
    found = proposals.everything(known, "torch")
    assert found is not None
    assert () in found
    assert all(not each or isinstance(each[0], ToOnnx) for each in found)


class Written(nn.Module):
    """Batch norms as Keras writes them, channels last; a kernel that two convolutions share, and a
    product by rows, which no convolution can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        rest = torch.Generator().manual_seed(3)
        for name, shape in {"mean": 8, "scale": 8, "shift": 8, "rows": (1, 16, 1, 1)}.items():
            self.register_buffer(name, torch.rand(shape, generator=rest) + 0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = (self.first(image).permute(0, 2, 3, 1) - self.mean) * self.scale + self.shift
        x = torch.relu(x).permute(0, 3, 1, 2)
        x = self.deep(x).permute(0, 2, 3, 1) / self.scale
        x = self.point(x.permute(0, 3, 1, 2)) + self.point(torch.relu(x).permute(0, 3, 1, 2))
        return (self.deep(x).permute(0, 2, 3, 1) * self.rows + self.shift).mean((1, 2))


def test_sums_and_products_by_channel_go_into_convolutions(tmp_path: Path) -> None:
    def batch(rows: int, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {"image": rng.standard_normal((rows, 3, 16, 16), np.float32)}

    model = taken_in(Written().eval(), tmp_path / "in", batch)
    with Lab([Toy("written", model, batch)], tmp_path / "lab") as own:
        made = own.make(own.toys["written"], (ToOnnx(),))
        assert isinstance(made, Model), made
        given = batch(4, 9)
        right, found = own.answers(model, given)["output"], own.answers(made, given)["output"]
    assert np.allclose(found, right, atol=1e-4)
    operators = [node.op_type for node in onnx.load(made.payload).graph.node]
    assert not {"Sub", "Div"} & set(operators)
    assert operators.count("Mul") == 1
    assert operators.count("Add") == 2  # of the two branches, and behind the product by rows
    assert operators.count("Conv") == 5
