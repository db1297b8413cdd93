"""The runtime laws over every runtime that the registry finds, and proof that they can fail."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sartor.contracts import Arrays, Target
from sartor.registry import plugins, runtime
from sartor.runtimes.onnx import OnnxSession
from sartor.testing_fake import fake_model
from sartor.testing_runtimes import RUNTIME_LAWS, Broken, Specimen
from sartor.workers import Pool

KINDS = [plugin.kind for plugin in plugins("runtimes") if not plugin.missing]
EVERY = [
    pytest.param(
        plugin.kind,
        marks=pytest.mark.skipif(
            bool(plugin.missing),
            reason=f"needs {', '.join(plugin.missing)}: pip install 'sartor[{plugin.extra}]'",
        ),
    )
    for plugin in plugins("runtimes")
]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool() as made:
        yield made


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Specimen]]:
    """Every runtime comes with specimens: a module `sartor.testing_<kind>` that gives them."""
    return {
        kind: importlib.import_module(f"sartor.testing_{kind}").specimens(
            tmp_path_factory.mktemp(kind)
        )
        for kind in KINDS
    }


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("law", RUNTIME_LAWS)
def test_law(
    law: str, kind: str, specimens: dict[str, list[Specimen]], tmp_path: Path, pool: Pool
) -> None:
    for specimen in specimens[kind]:
        place = tmp_path / specimen.name
        place.mkdir()
        RUNTIME_LAWS[law](specimen, place, pool)


# -- each law can fail ----------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> Specimen:
    (tmp_path / "fake").mkdir()
    return Specimen(
        "fake", fake_model(tmp_path / "fake", bytes=9999), lambda n, _: {"row": np.arange(n)}
    )


def _broken(law: str, specimen: Specimen, folder: Path, pool: Pool) -> str:
    with pytest.raises(Broken) as broken:
        RUNTIME_LAWS[law](specimen, folder, pool)
    return str(broken.value)


def test_wrong_answers_are_seen(fake: Specimen, tmp_path: Path, pool: Pool) -> None:
    wrong = dataclasses.replace(fake, reference=lambda b: {"logits": np.ones((len(b["row"]), 4))})
    assert "off by" in _broken("agrees", wrong, tmp_path, pool)


def test_a_wrong_signature_is_seen(fake: Specimen, tmp_path: Path, pool: Pool) -> None:
    signature = fake.model.signature
    outputs = (dataclasses.replace(signature.outputs[0], shape=(None, 5)),)
    model = dataclasses.replace(
        fake.model, signature=dataclasses.replace(signature, outputs=outputs)
    )
    wrong = dataclasses.replace(fake, model=model)
    assert "which is not" in _broken("keeps its signature", wrong, tmp_path, pool)
    assert "signature differs" in _broken("survives saving", wrong, tmp_path, pool)


class _Engine:
    """The fake runtime with one method replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    def __call__(self, name: str, method: object) -> None:
        self.patch.setattr(type(runtime("fake")), name, method)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> _Engine:
    return _Engine(monkeypatch)


def test_a_wrong_size_is_seen(fake: Specimen, tmp_path: Path, pool: Pool, engine: _Engine) -> None:
    engine("size", lambda self, model: 1)
    assert "size 1, saved 9999" in _broken("survives saving", fake, tmp_path, pool)


def test_a_digest_of_the_place_is_seen(
    fake: Specimen, tmp_path: Path, pool: Pool, engine: _Engine
) -> None:
    engine("digest", lambda self, model: str(model.payload))
    assert "digest differs" in _broken("survives saving", fake, tmp_path, pool)
    assert "another process" in _broken("digest is the same elsewhere", fake, tmp_path, pool)


class _Careless:
    """A session that takes anything."""

    def __init__(self, spread: float = 0.0) -> None:
        self.spread, self.calls = spread, 0

    def __call__(self, batch: Arrays) -> Arrays:
        self.calls += 1
        rows = len(next(iter(batch.values()), np.zeros(1)))
        return {"logits": np.full((rows, 4), self.spread * self.calls + rows, np.float32)}

    def __enter__(self) -> _Careless:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def test_careless_sessions_are_seen(
    fake: Specimen, tmp_path: Path, pool: Pool, engine: _Engine
) -> None:
    engine("start", lambda self, model, target: _Careless())
    assert "was accepted" in _broken("refuses wrong inputs", fake, tmp_path, pool)
    assert "off by" in _broken("takes any batch", fake, tmp_path, pool)
    engine("start", lambda self, model, target: _Careless(spread=1.0))
    assert "8 threads" in _broken("answers threads alike", fake, tmp_path, pool)


def test_a_session_that_writes_beside_the_model_is_seen(
    fake: Specimen, tmp_path: Path, pool: Pool, engine: _Engine
) -> None:
    def parts(self: object, model: object, sample: object) -> tuple[()]:
        Path(fake.model.payload).with_suffix(".log").write_text("I was here")
        return ()

    engine("parts", parts)
    assert "files beside it" in _broken("changes nothing", fake, tmp_path, pool)
    assert "no parts" in _broken("counts its parts", fake, tmp_path, pool)


def test_leaks_and_threads_are_seen(
    specimens: dict[str, list[Specimen]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run in this process, where a session can be made to stay."""
    from sartor.testing_fake import InProcess

    monkeypatch.setattr(OnnxSession, "__exit__", lambda self, *exc: _KEPT.append(self))
    cnn = specimens["onnx"][1]
    here: Pool = InProcess()  # type: ignore[assignment]
    assert "cycles of load and close" in _broken("frees its memory", cnn, tmp_path, here)
    _KEPT.clear()
    more = runtime("onnx").start
    monkeypatch.setattr(
        type(runtime("onnx")), "start", lambda self, model, target: more(model, Target(threads=3))
    )
    assert "threads of its own" in _broken("keeps to its threads", cnn, tmp_path, here)
    _KEPT.clear()


_KEPT: list[OnnxSession] = []


def test_nonsense_that_opens_is_seen(
    fake: Specimen, tmp_path: Path, pool: Pool, engine: _Engine
) -> None:
    engine("open", lambda self, path: fake.model)
    assert "was opened" in _broken("opens no nonsense", fake, tmp_path, pool)
