"""ExecuTorch: programs looked through without it, run and written with it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.contracts import Failed, Model, Port, Target, WrongRequest
from sartor.executorch_file import FIELDS, METHOD, _described, _names, decoded, read
from sartor.flat_reader import Damaged, schema_of
from sartor.lab import Toy, ToyBench, apply
from sartor.registry import format_of, kind_of, plugins, runtime, techniques

HERE = all(importlib.util.find_spec(each) for each in ("executorch", "torchao", "torch"))
needs_executorch = pytest.mark.skipif(
    not HERE, reason="executorch is not installed: the extra executorch"
)


# -- without ExecuTorch ---------------------------------------------------------------------------


def test_a_format_is_named_by_kind_or_suffix_and_guessed() -> None:
    assert format_of("pte") == format_of(".PTE") == ("executorch", ".pte")
    assert format_of("executorch") == ("executorch", "")
    with pytest.raises(WrongRequest, match="did you mean 'executorch'"):
        format_of("executor")
    with pytest.raises(WrongRequest, match=r"did you mean 'pt[e2]'"):
        format_of("ptt")


def test_what_is_missing_is_named_with_its_extra() -> None:
    (engine,) = (each for each in plugins("runtimes") if each.kind == "executorch")
    assert {"executorch", "torch"} <= set(engine.imports)
    assert engine.missing or HERE or not importlib.util.find_spec("executorch")
    if engine.missing:
        assert "sartor[executorch]" in engine.remedy


NONSENSE = {
    "empty": b"",
    "short": b"\x3c\0\0\0ET12",
    "another magic": b"\x3c\0\0\0TFL3" + bytes(200),
    "a header that says more than there is": b"\x3c\0\0\0ET12eh00\x20\0\0\0"
    + (10**6).to_bytes(8, "little") + bytes(200),
    "a root that lies outside": b"\xff\xff\0\0ET12" + bytes(200),
    "tables of zeros": b"\x10\0\0\0ET12" + bytes(200),
}  # fmt: skip


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_refused_in_one_sentence(what: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.pte"
    path.write_bytes(NONSENSE[what])
    with pytest.raises(WrongRequest) as refusal:
        read(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with pytest.raises(WrongRequest, match="no such file"):
        read(tmp_path / "gone.pte")
    assert kind_of(path) == "executorch"


def test_the_schema_has_every_table_that_it_names() -> None:
    schema = schema_of(FIELDS)
    for fields in schema.values():
        for _, form in fields:
            inner = form.strip("[]")
            assert inner in schema or inner in ("1", "4", "8", "s", "union")


def tensor(*sizes: int) -> dict[str, Any]:
    return {"val_type": 5, "val": {"scalar_type": 6, "sizes": sizes}}


def test_names_are_those_of_mappings_else_numbers() -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    names = {"type": "builtins.dict", "context": '["a", "b"]', "children_spec": [leaf, leaf]}
    both = {"type": "builtins.tuple", "context": "null", "children_spec": [names, leaf]}
    assert _names(json.dumps([1, both]), "input") == ["a", "b", "input_2"]
    for odd in ("", "{", "[1]", "[1, 2]", json.dumps([1, {**names, "context": '["a"]'}])):
        assert _names(odd, "input") == []
    deep = '[1, {"type": "builtins.tuple", "children_spec": [' * 5000
    assert _names(deep, "input") == []
    plan = {"values": [tensor(1, 3), tensor(1)], "inputs": [0], "outputs": [1]}
    found = _described(plan)
    assert found.inputs == (Port("input_0", "float32", (1, 3)),)
    assert found.outputs == (Port("output_0", "float32", (1,)),)
    with pytest.raises(Damaged, match="not tensors alone"):
        _described({**plan, "outputs": []})


# -- with it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    from sartor import testing_executorch

    return testing_executorch.save_toys(tmp_path_factory.mktemp("toys"), ("mlp", "several"))


def _changed(change: Callable[[dict[str, Any]], None], path: Path, tmp_path: Path) -> Path:
    """The file written anew by ExecuTorch's own serializer, with something changed in it."""
    from executorch.exir._serialize import _program

    data = path.read_bytes()
    held = _program.deserialize_pte_binary(data)
    change(held.program)
    made = tmp_path / "changed.pte"
    made.write_bytes(bytes(_program.serialize_pte_binary(held)))
    return made


def _first(program: Any) -> Any:
    return program.execution_plan[0]


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "an input that is none": (lambda p: _first(p).inputs.append(999), "names the number 999"),
    "another backend": (
        lambda p: setattr(_first(p).delegates[0], "id", "QnnBackend"), "'QnnBackend'"
    ),
    "a call on nothing": (
        lambda p: _first(p).chains[0].instructions[0].instr_args.args.append(5000),
        "a call names the number 5000",
    ),
    "endless memory": (
        lambda p: _first(p).non_const_buffer_sizes.append(2**40), "bytes of memory"
    ),
    "a foreign kernel": (
        lambda p: setattr(_first(p).operators[0], "name", "llama::open"), "'llama::open'"
    ),
    "no method": (lambda p: p.execution_plan.clear(), "0 methods"),
}  # fmt: skip


@needs_executorch
@pytest.mark.parametrize("what", CHANGES)
def test_programs_that_say_odd_things_are_refused(
    what: str, toys: dict[str, Model], tmp_path: Path
) -> None:
    change, said = CHANGES[what]
    same = _changed(lambda program: None, toys["several"].payload, tmp_path)
    assert read(same).signature == toys["several"].signature
    with pytest.raises(WrongRequest, match=said):
        read(_changed(change, toys["several"].payload, tmp_path))


@needs_executorch
def test_what_was_cut_or_changed_is_refused_or_decoded_but_never_more(
    toys: dict[str, Model],
) -> None:
    """Any byte of the tables: a sentence, or a program; never another error."""
    data = toys["mlp"].payload.read_bytes()
    rng = np.random.default_rng(0)
    for length in (64, 500, len(data) - 1):
        with pytest.raises(Damaged):
            decoded(memoryview(data[:length]))
    for _ in range(400):
        odd = bytearray(data)
        odd[int(rng.integers(8, 2500))] = int(rng.integers(256))
        with contextlib.suppress(Damaged):
            decoded(memoryview(bytes(odd)))


@needs_executorch
def test_a_file_says_what_it_takes_and_calls(toys: dict[str, Model]) -> None:
    found = read(toys["several"].payload)
    assert found.method == METHOD
    assert [port.name for port in found.signature.inputs] == ["left", "right"]
    assert found.calls == ["XnnpackBackend", "aten::mean.out"]
    assert runtime("executorch").parts(toys["several"], {})[0].operator == "ExecuTorch, 2 calls"


@needs_executorch
def test_the_pool_of_threads_is_one_for_all_sessions(toys: dict[str, Model]) -> None:
    engine = runtime("executorch")
    with engine.start(toys["mlp"], Target(threads=2)):
        with (
            pytest.raises(Failed, match="ExecuTorch computes with 2 threads"),
            engine.start(toys["mlp"], Target(threads=1)),
        ):
            pass
        with engine.start(toys["several"], Target(threads=2)):
            pass
    with engine.start(toys["mlp"], Target(threads=1)) as run:
        assert run({"x": np.zeros((1, 32), np.float32)})["logits"].shape == (1, 4)
    with pytest.raises(Failed, match="closed"):
        run({"x": np.zeros((1, 32), np.float32)})


def bench(name: str, folder: Path, **facts: Any) -> tuple[Toy, ToyBench]:
    from sartor import testing_torch

    batch = functools.partial(testing_torch.toy_batch, name)
    mine = Toy(name, testing_torch.save_toys(folder, only=(name,))[name], batch)
    return mine, ToyBench(mine, folder / "bench", **facts)


@needs_executorch
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_programs_of_pytorch_are_written_in_floats_and_in_eight_bits(
    name: str, tmp_path: Path
) -> None:
    shapes = (("input_ids", (1, 20)), ("attention_mask", (1, 20))) if name != "cnn" else ()
    mine, where = bench(name, tmp_path, target=Target(fixed=shapes))
    known = techniques("torch")
    floats = apply(known["torch-to-executorch"](), mine.model, where)
    whole = apply(known["executorch-int8"](), mine.model, where)
    for made in (floats, whole):
        assert isinstance(made, Model), made
        assert made.kind == "executorch"
        assert [p.name for p in made.signature.outputs] == [
            p.name for p in mine.model.signature.outputs
        ]
    assert isinstance(whole, Model)
    assert any("conv" in each or "linear" in each for each in whole.lineage[-1].touched)


@needs_executorch
def test_a_free_length_is_refused_by_name(tmp_path: Path) -> None:
    mine, where = bench("transformer", tmp_path)
    for name in ("torch-to-executorch", "executorch-int8"):
        said = str(techniques("torch")[name]().refuse(mine.model, where))
        assert "'input_ids' has a free length and ExecuTorch takes fixed shapes only" in said


@needs_executorch
def test_answers_that_differ_are_no_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sartor.techniques import executorch_torch

    mine, where = bench("mlp", tmp_path)
    honest = executorch_torch._answers

    def dishonest(*given: Any) -> Any:
        return [[each + 1 for each in listed] for listed in honest(*given)]

    monkeypatch.setattr(executorch_torch, "_answers", dishonest)
    with pytest.raises(Failed, match=r"ExecuTorch's .* differs from PyTorch's"):
        techniques("torch")["torch-to-executorch"]().apply(mine.model, where)
