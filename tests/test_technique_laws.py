"""The technique laws over every technique that the registry finds, on toy models."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_onnx import exported

from sartor import registry, testing_torch
from sartor.contracts import Technique
from sartor.fake_model import Facts, write
from sartor.testing import LAWS, Broken, Lab, Toy
from sartor.testing_onnx import save_toys, toy_batch, toy_models
from sartor.workers import Worker

# (technique, law) -> why it does not hold yet. A gap that was closed must go from here.
KNOWN_GAPS: dict[tuple[str, str], str] = {
    ("broken", "refuses"): "it is there to fail on every model, for tests of the search",
    ("unwilling", "refuses"): "it is there to refuse every model, for tests of the search",
}


def onnx_toys(folder: Path) -> list[Toy]:
    open_model = registry.runtime("onnx").open
    paths = save_toys(folder)
    toys = [Toy(n, open_model(p), functools.partial(toy_batch, n)) for n, p in paths.items()]
    onnx.save(exported(toy_models()["transformer"]), folder / "exported.onnx")
    batch = functools.partial(toy_batch, "transformer")
    return [*toys, Toy("exported", open_model(folder / "exported.onnx"), batch)]


def fake_rows(rows: int, seed: int) -> dict[str, np.ndarray]:
    return {"row": np.arange(rows, dtype=np.int64) + 1000 * seed}


def fake_toys(folder: Path) -> list[Toy]:
    open_model = registry.runtime("fake").open
    sorts = {"usual": Facts(bytes=90_000), "good": Facts(bytes=500_000, error=0.02)}
    return [Toy(n, open_model(write(f, folder, n)), fake_rows) for n, f in sorts.items()]


def torch_toys(folder: Path) -> list[Toy]:
    models = testing_torch.save_toys(folder)
    return [Toy(n, m, functools.partial(testing_torch.toy_batch, n)) for n, m in models.items()]


def openvino_toys(folder: Path) -> list[Toy]:
    """Two: NNCF takes a second for each, and many laws ask it many times."""
    from sartor import testing_openvino

    models = testing_openvino.save_toys(folder, ("mlp", "cnn"))
    return [Toy(n, m, functools.partial(toy_batch, n)) for n, m in models.items()]


def tflite_toys(folder: Path) -> list[Toy]:
    from sartor import testing_tflite

    open_model, batch = registry.runtime("tflite").open, testing_tflite.toy_batch
    paths = testing_tflite.save_toys(folder)
    return [Toy(n, open_model(p), functools.partial(batch, n)) for n, p in paths.items()]


def savedmodel_toys(folder: Path) -> list[Toy]:
    from sartor import testing_savedmodel

    batch = testing_savedmodel.toy_batch
    models = testing_savedmodel.save_toys(folder)
    return [Toy(n, m, functools.partial(batch, n)) for n, m in models.items()]


TOYS = {
    "savedmodel": savedmodel_toys,
    "onnx": onnx_toys,
    "fake": fake_toys,
    "torch": torch_toys,
    "tflite": tflite_toys,
    "openvino": openvino_toys,
}
MISSING = {
    plugin.kind: f"needs {', '.join(plugin.missing)}: pip install 'sartor[{plugin.extra}]'"
    for plugin in registry.plugins("runtimes")
    if plugin.kind in TOYS and plugin.missing
}
# Laws that have a quantizer at work again and again; NNCF and litert-torch take seconds each time.
LONG = {"composes", "extremes", "same_elsewhere"}
LONGER = {*LONG, "deterministic", "leaves_state", "narrows"}


@pytest.fixture(scope="module")
def labs(tmp_path_factory) -> Iterator[dict[str, Lab]]:
    with contextlib.ExitStack() as open_labs:
        yield {
            kind: open_labs.enter_context(
                Lab(toys(tmp_path_factory.mktemp(f"{kind}-toys")), tmp_path_factory.mktemp(kind))
            )
            for kind, toys in TOYS.items()
            if kind not in MISSING
        }


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker("laws") as made:
        yield made


def every() -> list:
    """(kind, technique, law) of all that are installed; one that says so for each kind and each
    file of techniques that is not."""
    found = []
    for plugin in registry.plugins("techniques"):
        if plugin.missing:
            why = f"needs {', '.join(plugin.missing)}: pip install 'sartor[{plugin.extra}]'"
            mark = pytest.mark.skip(reason=why)
            found.append(pytest.param("", "", "", id=f"{plugin.name}:not-installed", marks=mark))
    for kind in TOYS:
        for name, cls in ({} if kind in MISSING else registry.techniques(kind)).items():
            for law in LAWS:
                slow = (
                    cls.makes in ("tflite", "executorch")
                    or (kind == "tflite" and law in LONG)
                    or ("openvino" in (kind, cls.makes) and law in LONGER)
                )
                marks = [pytest.mark.slow] if slow else []
                found.append(pytest.param(kind, name, law, id=f"{kind}:{name}-{law}", marks=marks))
    return found


@pytest.mark.parametrize(("kind", "name", "law"), every())
def test_law(labs: dict[str, Lab], worker: Worker, kind: str, name: str, law: str) -> None:
    cls: type[Technique] = registry.techniques(kind)[name]
    facts = {"worker": worker} if law == "same_elsewhere" else {}
    if (name, law) not in KNOWN_GAPS:
        LAWS[law](labs[kind], cls, **facts)
        return
    with pytest.raises(Broken):
        LAWS[law](labs[kind], cls, **facts)


def test_every_kind_with_techniques_has_toys() -> None:
    kinds = {plugin.kind for plugin in registry.plugins("techniques")}
    assert kinds <= set(TOYS)


def test_known_gaps_name_what_exists() -> None:
    kinds = [kind for kind in TOYS if kind not in MISSING]
    known = {(name, law) for kind in kinds for name in registry.techniques(kind) for law in LAWS}
    assert set(KNOWN_GAPS) <= known
    assert all(len(sentence) > 20 for sentence in KNOWN_GAPS.values())
