"""What stays in PyTorch: frozen TorchScript, and int8 by torchao written as PyTorch's operators."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor import registry
from sartor.contracts import Model, Target, WrongRequest
from sartor.lab import Lab, Toy, apply
from sartor.techniques.convert_torch import ToOnnx
from sartor.techniques.quantize_torch import LinearInt8, considered
from sartor.techniques.script_torch import FreezeScript
from sartor.testing_runtimes import RUNTIME_LAWS, Specimen
from sartor.testing_torch import save_toys, toy_batch
from sartor.torch_archive import opened
from sartor.torch_program import program
from sartor.workers import Pool

ENGINE: Any = registry.runtime("torch")
TOYS = ("cnn", "transformer", "several", "branching")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    models = save_toys(tmp_path_factory.mktemp("toys"), only=TOYS)
    toys = [Toy(n, m, functools.partial(toy_batch, n)) for n, m in models.items()]
    with Lab(toys, tmp_path_factory.mktemp("lab")) as made:
        yield made


def made(lab: Lab, toy: str, *recipe: Any) -> Model:
    found = lab.make(lab.toys[toy], recipe)
    assert isinstance(found, Model), found
    return found


def refused(lab: Lab, toy: str, *recipe: Any) -> str:
    found = lab.make(lab.toys[toy], recipe)
    assert isinstance(found, str)
    return found


# -- frozen TorchScript -------------------------------------------------------------------------


def test_a_frozen_model_is_plain_torchscript(lab: Lab) -> None:
    """PyTorch reads the file by itself, its weights are constants, its batch norm is gone; what
    looks through TorchScript has nothing against it."""
    model = made(lab, "cnn", FreezeScript())
    with pytest.warns(DeprecationWarning, match="torch.jit.load"):
        module: Any = torch.jit.load(str(model.payload))
    assert not list(module.parameters())
    called = {node.kind() for node in module.graph.nodes()}
    assert "aten::conv2d" in called or "aten::_convolution" in called
    assert not {name for name in called if "norm" in name}
    assert ENGINE.open(model.payload).signature == lab.toys["cnn"].model.signature


def test_fusing_is_done_where_it_runs(lab: Lab) -> None:
    """oneDNN's layouts are in memory alone: the file is the same with and without."""
    fused, plain = (made(lab, "cnn", FreezeScript(fused=each)) for each in (True, False))
    files = [ENGINE.open(each.payload) for each in (fused, plain)]
    assert ENGINE.digest(files[0]) == ENGINE.digest(files[1])
    assert ENGINE.digest(fused) != ENGINE.digest(plain)
    with ENGINE.start(fused, Target()) as one, ENGINE.start(plain, Target()) as two:
        kinds = [{node.kind() for node in each.module.module.graph.nodes()} for each in (one, two)]
    assert any("mkldnn" in name for name in kinds[0])
    assert not any("mkldnn" in name for name in kinds[1])


@pytest.mark.parametrize(
    "law",
    ["takes any batch", "refuses wrong inputs", "answers threads alike", "keeps to its threads",
     "frees its memory", "changes nothing", "counts its parts"],
)  # fmt: skip
def test_a_fused_session_keeps_the_law(lab: Lab, law: str, tmp_path: Path) -> None:
    model = made(lab, "cnn", FreezeScript())
    specimen = Specimen("frozen", model, functools.partial(toy_batch, "cnn"))
    with Pool() as pool:
        RUNTIME_LAWS[law](specimen, tmp_path, pool)


def test_what_was_made_for_pytorch_stays_there(lab: Lab) -> None:
    assert "frozen already" in refused(lab, "cnn", FreezeScript(), FreezeScript(fused=False))
    assert "freeze-script made it" in refused(lab, "cnn", FreezeScript(), ToOnnx())


def test_settings_are_checked(lab: Lab) -> None:
    given = lab.toys["cnn"].model
    for settings, words in (({"fused": "yes"}, "true or false"), ({"fused": True}, "TorchScript")):
        with pytest.raises(WrongRequest, match=words):
            ENGINE.start(dataclasses.replace(given, settings=settings), Target())


def test_frozen_torchscript_is_tried_first(lab: Lab) -> None:
    toy = lab.toys["cnn"]
    assert registry.portfolio(toy.model, lab.bench(toy)) == [(FreezeScript(),)]


# -- int8 ---------------------------------------------------------------------------------------


@pytest.fixture
def _torchao() -> None:
    pytest.importorskip("torchao", reason="int8 in PyTorch needs torchao: sartor[torchao]")


@pytest.mark.usefixtures("_torchao")
@pytest.mark.parametrize("dynamic", [True, False])
def test_int8_is_written_without_torchao(lab: Lab, dynamic: bool) -> None:
    model = made(lab, "transformer", LinearInt8(dynamic=dynamic))
    found = program(opened(Path(model.payload)))
    targets = {call.target for call in found.block.calls}
    assert all(each.startswith(("torch.ops.aten.", "_operator.")) for each in targets)
    assert ("torch.ops.aten._int_mm.default" in targets) is dynamic
    rounded = [each for each in found.weights.values() if each.dtype == "int8"]
    assert sum(each.sizes[-1] > 1 for each in rounded) == 3  # zero points besides
    assert set(model.lineage[-1].touched) == {"joined", "up", "down"}
    reasons = dict(model.lineage[-1].skipped)
    assert "no linear layer" in reasons["table"]
    assert "do not pay" in reasons["head"]


@pytest.mark.usefixtures("_torchao")
def test_exceptions_are_what_rounding_hurts_most(lab: Lab) -> None:
    """The layer whose rounding alone takes the answer farthest from the original's is spared."""
    toy = lab.toys["transformer"]
    model = made(lab, "transformer", LinearInt8(dynamic=True, exceptions=1))
    (spared,) = {"joined", "up", "down"} - set(model.lineage[-1].touched)
    assert "changes the answer most" in dict(model.lineage[-1].skipped)[spared]
    assert "would stay in float" in refused(lab, "transformer", LinearInt8(exceptions=4))
    batch = toy.batch(16, 5)
    right = lab.answers(toy.model, batch)["logits"]
    off = [
        float(np.square(lab.answers(each, batch)["logits"] - right).mean())
        for each in (made(lab, "transformer", LinearInt8(dynamic=True)), model)
    ]
    assert off[1] < off[0]


@pytest.mark.usefixtures("_torchao")
def test_int8_can_be_frozen(lab: Lab) -> None:
    """Sizes stay free in what is followed through one call."""
    plain = made(lab, "transformer", LinearInt8(dynamic=True))
    frozen = made(lab, "transformer", LinearInt8(dynamic=True), FreezeScript())
    for rows in (1, 5):
        batch = toy_batch("transformer", rows, rows)
        one, two = lab.answers(plain, batch), lab.answers(frozen, batch)
        np.testing.assert_allclose(one["logits"], two["logits"], atol=1e-5)


def test_layers_that_cannot_be_rounded(lab: Lab) -> None:
    """TorchScript has no layers to be told apart; a weight of two layers is not doubled."""
    toy = lab.toys["branching"]
    assert "exported programs alone" in str(apply(LinearInt8(), toy.model, lab.bench(toy)))
    _, skipped = considered(program(opened(Path(lab.toys["several"].model.payload))))
    reasons = dict(skipped)
    assert any("read elsewhere" in reasons.get(name, "") for name in ("once", "twice"))
