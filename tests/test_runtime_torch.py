"""PyTorch models: what is read and what is refused, and what is made of modules in memory."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hostile import torch_files
from torch import Tensor, nn

from sartor import torch_archive as archives
from sartor.contracts import Arrays, Glimpse, Model, Target, WrongRequest
from sartor.registry import adopt, open_model, runtime
from sartor.runtimes._torch_adopt import matched
from sartor.testing_torch import Several, save_toys, taken_in, toy_batch, toy_modules
from sartor.workers import Pool

ENGINE: Any = runtime("torch")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return save_toys(tmp_path_factory.mktemp("toys"))


def look(**arrays: Any) -> Any:
    return lambda: Glimpse({name: np.asarray(each) for name, each in arrays.items()})


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# -- files of strangers -------------------------------------------------------------------------


@pytest.mark.parametrize("name", torch_files.PROGRAMS)
def test_hostile_programs_are_refused_with_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = torch_files.PROGRAMS[name]
    _refused(tmp_path, make(), "model.pt2", words, monkeypatch)


@pytest.mark.parametrize("name", torch_files.SCRIPTS)
def test_hostile_torchscript_is_refused_with_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = torch_files.SCRIPTS[name]
    _refused(tmp_path, make(), "model.ts", words, monkeypatch)


def _refused(
    folder: Path, data: bytes, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened or taken in: the same sentence."""
    monkeypatch.chdir(folder)
    path = folder / name
    path.write_bytes(data)
    ways: list[Any] = [lambda: open_model(path), lambda: adopt(str(path), folder / "in")]
    for way in ways:
        with pytest.raises(WrongRequest) as refusal:
            way()
        said = str(refusal.value)
        assert words in said, said
        assert "\n" not in said
        assert len(said) < 700
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(("folder", "suffix"), [("CODE/", ".py"), ("code/", ".PY")])
def test_pytorch_is_given_no_code_that_was_not_seen(
    folder: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ts"
    path.write_bytes(torch_files.elsewhere(folder, suffix))
    known = save_toys(tmp_path / "good", only=("mlp",))["mlp"].signature
    with pytest.raises(WrongRequest, match="cannot be read by PyTorch"):
        ENGINE.start(ENGINE.open(path, known), Target())
    assert not (tmp_path / "ran").exists()


class Called(nn.Module):
    """Submodules that are called as operators are that touch files."""

    def __init__(self) -> None:
        super().__init__()
        self.save, self.load = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.load(self.save(x).relu() + self.save(x))
        return answers


def test_submodules_may_be_called_save_and_load(tmp_path: Path) -> None:
    with torch_files.quiet():
        torch.jit.save(torch.jit.script(Called()), str(tmp_path / "script.ts"))
        torch.jit.save(torch.jit.trace(Called(), torch.zeros(2, 6)), str(tmp_path / "traced.ts"))
    for name in ("script.ts", "traced.ts"):
        model = adopt(str(tmp_path / name), tmp_path / "in", look=look(x=rows(8, 6)))
        with ENGINE.start(model, Target()) as run:
            assert run({"x": rows(2, 6)})["output"].shape == (2, 3)


def test_no_row_is_kept_in_torchscript(toys: dict[str, Model]) -> None:
    """PyTorch writes down what it traced with."""
    archive = archives.opened(Path(toys["branching"].payload))
    assert not [name for name in archive.entries if "traced_inputs" in name]


@pytest.mark.parametrize("name", torch_files.HARMLESS)
def test_what_the_loader_of_pytorch_runs_is_never_looked_at(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt2"
    path.write_bytes(torch_files.HARMLESS[name]())
    model = open_model(path)
    with ENGINE.start(model, Target()) as run:
        assert run(toy_batch("mlp", 2))["output"].shape == (2, 4)
    ENGINE.digest(model)
    assert not (tmp_path / "ran").exists()


def test_a_known_signature_does_not_let_a_hostile_file_run(tmp_path: Path) -> None:
    """A bundle's signature is taken from its own text: the file is looked through all the same."""
    path = tmp_path / "model.pt2"
    path.write_bytes(torch_files.PROGRAMS["system"][0]())
    known = open_model(Path(save_toys(tmp_path / "good", only=("mlp",))["mlp"].payload)).signature
    with pytest.raises(WrongRequest, match="known to be safe"):
        ENGINE.start(ENGINE.open(path, known), Target())


def test_pickles_are_read_with_trust_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = torch_files.pickled(tmp_path / "bomb.pt", torch_files.Bomb())
    with pytest.raises(WrongRequest, match="--trust"):
        adopt(str(bomb), tmp_path / "in", look=look(x=rows(4, 32)))
    assert not (tmp_path / "ran").exists()
    whole = torch_files.pickled(tmp_path / "whole.pth", toy_modules()["mlp"])
    with pytest.raises(WrongRequest, match="--trust"):
        adopt(str(whole), tmp_path / "in", look=look(x=rows(4, 32)))
    model = adopt(str(whole), tmp_path / "in", look=look(x=rows(4, 32)), trust=True)
    assert Path(model.payload).suffix == ".pt2"
    state = torch_files.pickled(tmp_path / "state.pt", toy_modules()["mlp"].state_dict())
    for trust in (False, True):
        with pytest.raises(WrongRequest, match="weights and no model"):
            adopt(str(state), tmp_path / "in", look=look(x=rows(4, 32)), trust=trust)


def test_what_is_no_archive_is_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(b"\x80\x02" + bytes(100))
    with pytest.raises(WrongRequest, match="--trust"):
        adopt(str(path), tmp_path / "in")
    with pytest.raises(WrongRequest, match="cannot be read by PyTorch"):
        adopt(str(path), tmp_path / "in", trust=True)


def test_a_program_of_somebody_elses_is_brought_in(tmp_path: Path) -> None:
    """Saved by PyTorch itself, with its author's paths and an example in it: a clean copy, with
    the name that the data have for its input, which PyTorch reads too."""
    module = toy_modules()["cnn"]
    shapes = {"image": {0: torch.export.Dim("batch")}}
    made = torch.export.export(module, (torch.zeros(3, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(made, tmp_path / "theirs.pt2")
    model = adopt(
        str(tmp_path / "theirs.pt2"), tmp_path / "in", look=look(pixels=rows(4, 3, 16, 16))
    )
    assert [port.name for port in model.signature.inputs] == ["pixels"]
    assert model.signature.inputs[0].shape == (None, 3, 16, 16)
    assert b"testing_torch.py" in (tmp_path / "theirs.pt2").read_bytes()
    assert b"testing_torch.py" not in Path(model.payload).read_bytes()
    image = rows(2, 3, 16, 16)
    again = torch.export.load(model.payload).module()(torch.from_numpy(image))
    with ENGINE.start(model, Target()) as run, torch.inference_mode():
        found = run({"pixels": image})["output"]
        assert np.allclose(found, module(torch.from_numpy(image)).numpy(), atol=1e-6)
    assert np.allclose(found, again.detach().numpy(), atol=1e-6)


def test_a_live_program_is_taken_too(tmp_path: Path) -> None:
    module = toy_modules()["mlp"]
    made = torch.export.export(module, (torch.zeros(3, 32),))
    model = adopt(made, tmp_path)
    assert model.signature.inputs[0].shape == (3, 32)


def test_torchscript_is_taken_in_with_data(tmp_path: Path) -> None:
    path = tmp_path / "theirs.ts"
    with torch_files.quiet():
        traced = torch.jit.trace(toy_modules()["mlp"], torch.zeros(2, 32))
        torch.jit.save(traced, str(path))
    with pytest.raises(WrongRequest, match="with data"):
        open_model(path)
    model = adopt(str(path), tmp_path / "in", look=look(rows=rows(9, 32)))
    assert Path(model.payload).suffix == ".ts"
    assert [(p.name, p.shape) for p in model.signature.inputs] == [("rows", (None, 32))]
    batch = rows(4, 32)
    with ENGINE.start(model, Target()) as run, torch.inference_mode():
        right = toy_modules()["mlp"](torch.from_numpy(batch)).numpy()
        assert np.allclose(run({"rows": batch})["output"], right, atol=1e-6)


# -- modules in memory --------------------------------------------------------------------------


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = toy_modules()["cnn"].train()
    module.head.weight.grad = torch.ones_like(module.head.weight)
    before = {name: each.clone() for name, each in module.state_dict().items()}
    taken_in(module, tmp_path, functools.partial(toy_batch, "cnn"))
    assert all(each.training for each in module.modules())
    assert all(each.requires_grad for each in module.parameters())
    assert module.head.weight.grad is not None
    after = module.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())


def test_the_same_module_is_the_same_model_in_another_process(tmp_path: Path) -> None:
    here = taken_in(
        toy_modules()["several"], tmp_path / "1", functools.partial(toy_batch, "several")
    )
    with Pool() as pool:
        there = pool.call(_digest_of_several, tmp_path / "2", timeout=300)
    assert there == ENGINE.digest(here)
    other = taken_in(
        toy_modules(9)["several"], tmp_path / "3", functools.partial(toy_batch, "several")
    )
    assert ENGINE.digest(other) != ENGINE.digest(here)


def _digest_of_several(folder: Path) -> str:
    engine: Any = runtime("torch")
    batch = functools.partial(toy_batch, "several")
    digest: str = engine.digest(taken_in(toy_modules()["several"], folder, batch))
    return digest


def test_data_of_another_length_make_the_same_model(tmp_path: Path) -> None:
    """What the examples were is no part of it, where the length is free."""
    one, two = (
        ENGINE.adopt(
            toy_modules()["transformer"], tmp_path / str(steps),
            look(**dict.fromkeys(("input_ids", "attention_mask"), np.ones((5, steps), np.int64))),
        )
        for steps in (9, 14)
    )  # fmt: skip
    assert ENGINE.digest(one) == ENGINE.digest(two)


def test_a_weight_that_is_read_twice_is_stored_once(toys: dict[str, Model]) -> None:
    archive = archives.opened(Path(toys["several"].payload))
    weights = [name for name in archive.entries if name.startswith("data/weights/weight_")]
    unique = {each.data_ptr() for each in Several().parameters()}
    assert len(weights) == len(unique)


def test_file_and_factory_with_weights(tmp_path: Path) -> None:
    module = toy_modules()["mlp"]
    torch.save(module.state_dict(), tmp_path / "kept.pt")
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\ndef make():\n"
        "    inner = [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]\n"
        "    return nn.Sequential(*inner, nn.Linear(64, 4)), 'kept.pt'\n\n"
        "def other():\n    return nn.Linear(32, 4), 'kept.pt'\n\n"
        "def gone():\n    return nn.Linear(32, 4), 'no.safetensors'\n\n"
        "def breaks():\n    raise ValueError('no such\\n thing')\n\n"
        "def needs(width, *, depth=1):\n    return nn.Linear(width, 4)\n"
    )
    given = f"{tmp_path / 'model.py'}"
    model = adopt(f"{given}:make", tmp_path / "in", look=look(x=rows(8, 32)))
    batch = rows(3, 32)
    with ENGINE.start(model, Target()) as run, torch.inference_mode():
        right = module(torch.from_numpy(batch)).numpy()
        assert np.allclose(run({"x": batch})["output"], right, atol=1e-6)
    for name, words in {
        "other": "does not fit the model", "gone": "no such file", "breaks": "no such thing",
        "needs": "needs width and is called without arguments",
    }.items():  # fmt: skip
        with pytest.raises(WrongRequest, match=words):
            adopt(f"{given}:{name}", tmp_path / "in", look=look(x=rows(8, 32)))


def test_a_factory_is_loaded_as_python_loads_it(tmp_path: Path) -> None:
    """What lies beside it can be imported, when it is called too; data classes find their types."""
    (tmp_path / "sartor_test_layers.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Width:\n    numbers: int = 32\n"
    )
    (tmp_path / "sartor_test_later.py").write_text("OUT = 4\n")
    (tmp_path / "model.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from torch import nn\nfrom sartor_test_layers import Width\n\n"
        "@dataclass\nclass Config:\n    width: Width\n\n"
        "def make():\n    from sartor_test_later import OUT\n"
        "    return nn.Linear(Config(Width()).width.numbers, OUT)\n"
    )
    model = adopt(f"{tmp_path / 'model.py'}:make", tmp_path / "in", look=look(x=rows(8, 32)))
    assert model.signature.outputs[0].shape == (None, 4)


class Structured(nn.Module):
    """Nested answers, an optional input, an answer that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        scores = self.head(x if scale is None else x * scale)
        return {"scores": scores, "inner": (scores.amax(1), [scores.argmin(1)]), "count": 3}


def test_names_of_inputs_and_outputs(tmp_path: Path) -> None:
    model = ENGINE.adopt(Structured(), tmp_path / "1", look(x=rows(4, 6), label=np.zeros((4, 2))))
    assert [port.name for port in model.signature.inputs] == ["x"]
    outputs = [(port.name, port.dtype) for port in model.signature.outputs]
    assert outputs == [("scores", "float32"), ("inner_0", "float32"), ("inner_1_0", "int64")]
    model = ENGINE.adopt(Structured(), tmp_path / "2", look(x=rows(4, 6), scale=rows(4, 1)))
    assert [port.name for port in model.signature.inputs] == ["x", "scale"]


def test_arrays_are_told_apart() -> None:
    wide, thin, text = rows(4, 6), rows(4), np.array(list("abcd"))
    assert list(matched(["x"], ["x"], Glimpse({"pixels": wide, "age": thin}))) == ["x"]
    assert matched(["x"], ["x"], Glimpse({"pixels": wide, "age": thin}))["x"][0] == "pixels"
    assert matched(["x"], ["x"], Glimpse({"age": thin}))["x"][0] == "age"
    both = matched(["a", "b"], ["a", "b"], Glimpse(unnamed=(wide, thin)))
    assert {name: array.ndim for name, (_, array) in both.items()} == {"a": 2, "b": 1}
    for given in (
        Glimpse({"p": wide, "q": wide, "name": text}),
        Glimpse({"age": thin, "size": thin}),
        Glimpse(unnamed=(wide, wide, wide)),
        Glimpse(),
    ):
        with pytest.raises(WrongRequest, match="the model takes x"):
            matched(["x"], ["x"], given)
    with pytest.raises(WrongRequest, match="takes left, right and the data have left"):
        matched(["left", "right"], ["left", "right"], Glimpse({"left": wide}))


class Pair(NamedTuple):
    scores: Tensor
    inner: Tensor


@dataclass
class Held:
    scores: Tensor
    inner: Tensor


class Giving(nn.Module):
    """The same two answers in one form or another."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form, self.head = form, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.form(self.head(x), x)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (Pair, ["scores", "inner"]),
        (Held, ["scores", "inner"]),
        (lambda one, two: {"a_b": one, "a": {"b": two}}, ["a_b", "a_b_out"]),
        (lambda one, two: {"x": one, "kept": two}, ["x_out", "kept"]),
    ],
)
def test_answers_of_every_form_have_names_of_their_own(
    form: Callable[[Tensor, Tensor], Any], names: list[str], tmp_path: Path
) -> None:
    module = Giving(form)
    model = ENGINE.adopt(module, tmp_path, look(x=rows(4, 6)))
    assert Path(model.payload).suffix == ".pt2"
    assert [port.name for port in model.signature.outputs] == names
    batch = rows(5, 6)
    with ENGINE.start(model, Target()) as run, torch.inference_mode():
        found = run({"x": batch})
        right = module.head(torch.from_numpy(batch)).numpy()
    assert np.allclose(found[names[0]], right, atol=1e-6)
    assert np.array_equal(found[names[1]], batch)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(6)])
def test_programs_in_training_are_refused(layer: nn.Module, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 6), layer)
    made = torch.export.export(module.train(), (torch.zeros(4, 6),))
    torch.export.save(made, tmp_path / "theirs.pt2")
    for given in (str(tmp_path / "theirs.pt2"), made):
        with pytest.raises(WrongRequest, match="exported in training mode"):
            adopt(given, tmp_path / "in", look=look(x=rows(4, 6)))
    made = torch.export.export(module.eval(), (torch.zeros(4, 6),))
    assert adopt(made, tmp_path / "in").kind == "torch"


def test_rows_that_answer_for_each_other_are_remarked(tmp_path: Path) -> None:
    for layer, remarked in ((nn.BatchNorm1d(6), True), (nn.LayerNorm(6), False)):
        with torch_files.quiet():
            made = torch.jit.trace(layer.train(), torch.ones(2, 6), check_trace=False)
        model = ENGINE.adopt(made, tmp_path / str(remarked), look(input=rows(8, 6)))
        said = [each for each in ENGINE.remarks(model) if "rows beside it" in each]
        assert bool(said) is remarked


class Deciding(nn.Module):
    """Answers otherwise from a number on that only the last of the known rows reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(x)
        return -answers if float(x.max()) > 10 else answers


def test_decisions_that_tracing_would_fix_are_seen(tmp_path: Path) -> None:
    given = rows(32, 6)
    model = ENGINE.adopt(Deciding(), tmp_path / "1", look(x=given))
    assert any("what its code decides" in each for each in ENGINE.remarks(model))
    given[-1, 0] = 11
    with pytest.raises(WrongRequest, match="decides something by the values of the rows"):
        ENGINE.adopt(Deciding(), tmp_path / "2", look(x=given))


class Remembering(nn.Module):
    """Keeps its last answer, as PyTorch's older weight norm keeps a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last: Tensor = self.head(x)
        return self.last


def test_what_a_module_keeps_of_earlier_calls_is_no_hindrance(tmp_path: Path) -> None:
    module = Remembering()
    module(torch.zeros(1, 6))
    model = ENGINE.adopt(module, tmp_path, look(x=rows(4, 6)))
    assert model.signature.outputs[0].shape == (None, 3)
    assert module.last.grad_fn is not None


def test_scripted_parts_of_a_module(tmp_path: Path) -> None:
    with torch_files.quiet():
        module = nn.Sequential(torch.jit.script(nn.Linear(6, 6)), nn.Linear(6, 3))
    model = ENGINE.adopt(module, tmp_path, look(input=rows(4, 6)))
    assert model.signature.outputs[0].shape == (None, 3)


@pytest.mark.parametrize("module", [nn.LazyLinear(3), nn.Linear(6, 3, device="meta")])
def test_weights_that_are_not_there_yet(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WrongRequest, match="no numbers in weight yet"):
        ENGINE.adopt(module, tmp_path, look(x=rows(4, 6)))


class Odd(nn.Module):
    """What goes wrong in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        if self.how == "numpy":  # leaves PyTorch: neither exported nor traced
            return torch.from_numpy(np.sort(self.head(x).detach().numpy()))
        if self.how == "random":
            return self.head(x) + torch.rand(1)
        if self.how == "nothing":
            return 3
        if self.how == "bfloat16":
            return self.head(x).bfloat16()
        if self.how == "complex":
            return torch.fft.rfft(self.head(x))
        if self.how == "one":
            return self.head(x.reshape(1, 6))
        return self.head(x).relu_().add_(x.mul_(2).sum())


@pytest.mark.parametrize(
    ("how", "words"),
    {
        "numpy": "PyTorch cannot export this Odd",
        "random": "differently from call to call",
        "nothing": "returns no tensor",
        "bfloat16": "numpy cannot carry",
        "complex": "is complex64, a type that is not known",
    }.items(),
)
def test_modules_that_cannot_be_taken_in(how: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(WrongRequest, match=words) as refusal:
        ENGINE.adopt(Odd(how), tmp_path, look(x=rows(4, 6)))
    assert "\n" not in str(refusal.value)


def test_data_that_do_not_fit_and_things_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(WrongRequest, match="does not run on rows of the data"):
        ENGINE.adopt(Odd("fine"), tmp_path, look(x=rows(4, 7)))
    with pytest.raises(WrongRequest, match="holds text"):
        ENGINE.adopt(Odd("fine"), tmp_path, look(x=np.array([["a"]])))
    with pytest.raises(WrongRequest, match="not one row"):
        ENGINE.adopt(Odd("fine"), tmp_path, look(x=rows(0, 6)))
    with pytest.raises(WrongRequest, match="exported with data"):
        adopt(Odd("fine"), tmp_path)
    with pytest.raises(WrongRequest, match="Tensor is no model"):
        adopt(torch.zeros(3), tmp_path)
    for given in ((Odd("fine"), torch.zeros(3)), (Odd("fine"), "weights.pt", 3)):
        with pytest.raises(WrongRequest, match=r"the tuple \(Odd, .* is no model"):
            adopt(given, tmp_path)


def test_a_model_of_one_row_at_a_time_says_so(tmp_path: Path) -> None:
    model = ENGINE.adopt(Odd("one"), tmp_path, look(x=rows(4, 6)))
    assert model.signature.inputs[0].shape == (1, 6)
    assert any("one row at a time" in each for each in ENGINE.remarks(model))


class Tabular(nn.Module):
    """Whole numbers that are no tokens: there are always five; beside them words, as many as one
    likes, for an LSTM, which PyTorch exports for one length only."""

    def __init__(self, words: bool) -> None:
        super().__init__()
        self.words = words
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(20, 3)
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, row: Tensor) -> Tensor:
        found = self.table(row)
        answers: Tensor = self.lstm(found)[0][:, -1] if self.words else self.head(found.flatten(1))
        return answers


def test_a_length_that_cannot_stay_free(tmp_path: Path) -> None:
    """It is a remark where the module leaves it free and the export does not."""
    given = look(row=np.random.default_rng(0).integers(0, 9, (8, 5)))
    for words, remarks in ((False, []), (True, ["the model exports for rows of one length only"])):
        model = ENGINE.adopt(Tabular(words), tmp_path / str(words), given)
        assert model.signature.inputs[0].shape == (None, 5)
        assert [each.partition(":")[0] for each in ENGINE.remarks(model)] == remarks


def test_lower_precision(tmp_path: Path) -> None:
    half = ENGINE.adopt(nn.Linear(6, 3).half(), tmp_path / "1", look(x=rows(4, 6)))
    assert half.signature.inputs[0].dtype == "float16"
    brain = ENGINE.adopt(nn.Linear(6, 3).bfloat16(), tmp_path / "2", look(x=rows(4, 6)))
    assert brain.signature.inputs[0].dtype == "float32"
    assert any("bfloat16" in each for each in ENGINE.remarks(brain))


def test_wrappers_are_taken_off(tmp_path: Path) -> None:
    model = ENGINE.adopt(nn.DataParallel(nn.Linear(6, 3)), tmp_path, look(x=rows(4, 6)))
    assert model.signature.outputs[0].shape == (None, 3)


# -- running ------------------------------------------------------------------------------------


def test_rows_of_the_caller_stay_as_they_are(tmp_path: Path) -> None:
    """A model that writes into its input gets a copy; so does one whose rows are read-only."""
    model = ENGINE.adopt(Odd("inplace"), tmp_path, look(x=rows(4, 6)))
    given, kept = rows(4, 6), rows(4, 6)
    given.setflags(write=False)
    with ENGINE.start(model, Target()) as run:
        first = run({"x": given})["output"]
        second = run({"x": kept.copy()})["output"]
    assert np.array_equal(given, kept)
    assert np.array_equal(first, second)


def test_sizes_that_are_fixed_are_held_to(toys: dict[str, Model]) -> None:
    lstm = toys["lstm"]
    assert lstm.signature.inputs[0].shape == (None, 12, 16)
    with (
        ENGINE.start(lstm, Target()) as run,
        pytest.raises(WrongRequest, match=r"x float32\[\?, 12"),
    ):
        run({"x": rows(2, 11, 16)})


def test_threads_are_given_back(toys: dict[str, Model]) -> None:
    before = torch.get_num_threads()
    with ENGINE.start(toys["mlp"], Target(threads=before + 1)) as run:
        run(toy_batch("mlp", 1))
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_only_a_cpu_and_no_settings(toys: dict[str, Model]) -> None:
    with pytest.raises(WrongRequest, match="'cpu'"):
        ENGINE.start(toys["mlp"], Target(device="cuda"))
    with pytest.raises(WrongRequest, match="no setting"):
        ENGINE.digest(Model("torch", toys["mlp"].payload, toys["mlp"].signature, {"threads": 1}))


@pytest.mark.parametrize(
    ("toy", "macs"),
    {
        "mlp": 32 * 64 + 64 * 64 + 64 * 4,
        "lstm": 12 * (16 * 128 + 32 * 128) + 32 * 4,
        "several": 32 * 64 + 16 * 64 + 2 * 64 * 64 + 64 * 3,
    }.items(),
)
def test_work_and_weights_are_counted(toy: str, macs: int, toys: dict[str, Model]) -> None:
    parts = ENGINE.parts(toys[toy], toy_batch(toy, 1))
    assert sum(part.macs or 0 for part in parts) == macs
    held = {each.data_ptr(): each.numel() for each in toy_modules()[toy].parameters()}
    assert sum(part.parameters for part in parts) == sum(held.values())


def test_parts_bear_the_names_of_layers(toys: dict[str, Model]) -> None:
    parts = ENGINE.parts(toys["cnn"], toy_batch("cnn", 1))
    assert {"stem", "norm", "inner", "depthwise", "pointwise", "head"} <= {p.name for p in parts}
    assert {p.operator for p in parts if p.name == "stem"} == {"conv2d"}
    whole = ENGINE.parts(toys["branching"], toy_batch("branching", 1))
    assert [(part.name, part.parameters) for part in whole] == [
        ("model", 32 * 64 + 64 + 64 * 4 + 4)
    ]


# -- folders ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers write it: a classifier of two small layers."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch_files.quiet():
        transformers.BertForSequenceClassification(config).save_pretrained(place)
    return place


def words(steps: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    mask = (np.arange(steps) < rng.integers(3, steps + 1, 6)[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(1, 64, (6, steps)) * mask, "attention_mask": mask}


def test_a_folder_of_hugging_faces(encoder: Path, tmp_path: Path) -> None:
    import transformers

    model = adopt(str(encoder), tmp_path, look=look(**words(), label=np.zeros(6)))
    assert [port.name for port in model.signature.outputs] == ["logits"]
    assert model.signature.inputs[0].shape == (None, None)
    with torch_files.quiet():
        live = transformers.BertForSequenceClassification.from_pretrained(encoder).eval()
    batch: Arrays = {name: each[:2, :5] for name, each in words().items()}
    with ENGINE.start(model, Target()) as run, torch.inference_mode():
        right = live(**{name: torch.from_numpy(each) for name, each in batch.items()}).logits
        assert np.allclose(run(batch)["logits"], right.numpy(), atol=1e-5)


def test_a_folder_is_read_without_the_network_and_leaves_it_to_others(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from huggingface_hub import constants

    offline: list[bool] = []
    real = transformers.BertForSequenceClassification.from_pretrained.__func__

    def spied(cls: Any, *given: Any, **named: Any) -> Any:
        offline.append(constants.is_offline_mode())
        return real(cls, *given, **named)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        transformers.BertForSequenceClassification, "from_pretrained", classmethod(spied)
    )
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    adopt(str(encoder), tmp_path, look=look(**words()))
    assert offline == [True]
    assert not constants.is_offline_mode()
    assert "HF_HUB_OFFLINE" not in os.environ


def test_folders_that_are_refused(encoder: Path, tmp_path: Path) -> None:
    def copied(name: str, **changed: Any) -> str:
        place = tmp_path / name
        place.mkdir()
        for each in encoder.iterdir():
            (place / each.name).write_bytes(each.read_bytes())
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | changed))
        return str(place)

    given = look(**words())
    code = copied("code", auto_map={"AutoModel": "modeling_evil.Evil"})
    (Path(code) / "modeling_evil.py").write_text(torch_files.RAN)
    unknown = copied("unknown", architectures=["NoSuchModel"])
    odd = copied("odd", architectures=["__builtins__"])
    number = copied("number", architectures=5)
    pickled = Path(copied("pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    wider = copied("wider", architectures=["BertForQuestionAnswering"])
    broken = Path(copied("broken"))
    (broken / "config.json").write_text("{")
    cut = Path(copied("cut"))
    (cut / "model.safetensors").write_bytes(b"12345678")
    for place, what in {
        code: "code of the folder's own", unknown: "does not know", odd: "does not know",
        number: "no architecture",
        str(pickled): "no model.safetensors", wider: "would be random numbers",
        str(broken): "cannot be read", str(cut): "cannot be read",
        str(tmp_path / "empty"): "no folder of a model",
    }.items():  # fmt: skip
        Path(place).mkdir(exist_ok=True)
        with pytest.raises(WrongRequest, match=what) as refusal:
            adopt(place, tmp_path / "in", look=given)
        assert "\n" not in str(refusal.value)
