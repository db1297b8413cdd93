"""The portfolio: lawful recipes, the likely one first, by graph, data and CPU."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from sartor.contracts import Model, Target
from sartor.lab import Toy, ToyBench
from sartor.proposals import legal
from sartor.registry import recipe, runtime
from sartor.techniques import recover_onnx
from sartor.techniques.portfolio_onnx import portfolio
from sartor.techniques.session_onnx import SessionOptions
from sartor.testing_onnx import save_toys, toy_batch

VNNI = Target(features=frozenset({"avx2", "avx512_vnni"}))
NAMES = ("mlp", "cnn", "lstm", "transformer", "several", "embedding")


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, Toy]:
    paths = save_toys(tmp_path_factory.mktemp("toys"))
    return {
        name: Toy(name, runtime("onnx").open(paths[name]), functools.partial(toy_batch, name))
        for name in NAMES
    }


def first(toy: Toy, tmp_path, **facts) -> list[str]:
    bench = ToyBench(toy, tmp_path, **{"target": VNNI, **facts})
    return [step["technique"] for step in portfolio(toy.model, bench)[0]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [("train", "search"), ("search",)])
def test_recipes_are_lawful_and_there_are_neither_few_nor_many(toys, tmp_path, name, parts):
    bench = ToyBench(toys[name], tmp_path, parts=parts, target=VNNI)
    recipes = portfolio(toys[name].model, bench)
    assert 4 <= len(recipes) <= 12
    assert len({str(each) for each in recipes}) == len(recipes)
    for entries in recipes:
        steps = recipe("onnx", entries)
        if parts == ("search",):
            assert not any("calibration" in step.needs for step in steps)


@pytest.mark.parametrize("name", NAMES)
def test_most_recipes_can_be_carried_out(toys, tmp_path, name):
    """The first one here needs no luck, and a refusal further down is the exception."""
    bench = ToyBench(toys[name], tmp_path, target=VNNI)
    refused = [
        any(step.refuse(toys[name].model, bench) for step in recipe("onnx", entries))
        for entries in portfolio(toys[name].model, bench)
    ]
    assert sum(refused) <= len(refused) / 2


def test_the_first_recipe_fits_the_graph(toys, tmp_path):
    assert first(toys["cnn"], tmp_path) == ["static-int8"]
    assert first(toys["transformer"], tmp_path) == ["weight-only"]
    bench = ToyBench(toys["transformer"], tmp_path / "second", target=VNNI)
    second = portfolio(toys["transformer"].model, bench)[1]
    assert [entry["technique"] for entry in second] == [
        "fuse-transformer", "separate-norm", "dynamic-int8", "weight-only",
    ]  # fmt: skip
    assert first(toys["lstm"], tmp_path) == ["dynamic-int8"]
    assert first(toys["mlp"], tmp_path) == ["dynamic-int8"]
    assert first(toys["embedding"], tmp_path) == ["weight-only"]
    assert first(toys["cnn"], tmp_path, parts=("search",)) == ["optimize-offline"]


@pytest.mark.parametrize("name", ["cnn", "lstm", "embedding", "several"])
def test_the_first_recipe_makes_a_smaller_model(toys, tmp_path, name):
    toy = toys[name]
    bench = ToyBench(toy, tmp_path, target=VNNI)
    made: Model = toy.model
    for step in recipe("onnx", portfolio(toy.model, bench)[0]):
        assert step.refuse(made, bench) is None
        made = step.apply(made, bench)
    assert runtime("onnx").size(made) < 0.7 * runtime("onnx").size(toy.model)


def test_without_fast_integers_floats_come_second(toys, tmp_path):
    bench = ToyBench(toys["mlp"], tmp_path, target=Target(features=frozenset({"avx2"})))
    assert portfolio(toys["mlp"].model, bench)[1][0]["technique"] == "optimize-offline"


def test_where_threads_are_shared_the_session_is_looked_at(toys, tmp_path):
    two = dataclasses.replace(VNNI, threads=2)
    bench = ToyBench(toys["transformer"], tmp_path, target=two)
    wanted = [
        each[-1]
        for each in portfolio(toys["transformer"].model, bench)
        if each[-1]["technique"] == "session-options"
    ]
    assert [each.get("spinning") or each["threads"] for each in wanted] == [True, 1]
    assert not any(step.refuse(bench.teacher, bench) for step in recipe("onnx", wanted))


def test_options_of_a_session_are_refused_where_they_say_nothing(toys, tmp_path):
    model, one = toys["mlp"].model, ToyBench(toys["mlp"], tmp_path, target=VNNI)
    two = ToyBench(toys["mlp"], tmp_path / "2", target=dataclasses.replace(VNNI, threads=2))
    plain = dataclasses.replace(SessionOptions(), arena=True)
    assert "that it has" in str(plain.refuse(model, two))
    assert "2" in str(dataclasses.replace(plain, threads=4).refuse(model, two))
    for waiting in ({"spinning": True}, {"mode": "parallel"}):
        chosen = dataclasses.replace(plain, **waiting)
        assert chosen.refuse(model, two) is None
        assert "one thread" in str(chosen.refuse(model, one))
        assert "one thread" in str(dataclasses.replace(chosen, threads=1).refuse(model, two))
    made = dataclasses.replace(plain, level="basic", threads=1).apply(model, two)
    assert made.settings == {"graph_level": "basic", "threads": 1}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_that_train_are_lawful_too(toys, tmp_path, monkeypatch, name):
    monkeypatch.setattr(recover_onnx, "ROWS", 1)
    found = recover_onnx.portfolio(toys[name].model, ToyBench(toys[name], tmp_path))
    assert found
    for entries in found:
        assert legal(recipe("onnx", entries), "onnx"), entries
    assert not recover_onnx.portfolio(toys[name].model, ToyBench(toys[name], tmp_path, budget=60.0))
