"""What is installed here, and what each missing part needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Said

from sartor import doctor, kernels, registry
from sartor.contracts import WrongRequest

Sartor = Callable[..., Said]


def test_it_names_what_is_here(sartor: Sartor) -> None:
    said = sartor("doctor", "--json")
    assert said.status == 0, said.err
    found = said.json
    kinds = {entry["kind"]: entry for entry in found["runtimes"]}
    assert kinds["onnx"]["missing"] == []
    assert {"onnxruntime", "onnx"} <= set(kinds["onnx"]["versions"])
    names = {name for entry in found["techniques"] for name in entry["names"]}
    assert set(registry.techniques("onnx")) <= names
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["energy"].startswith(("measured by", "estimated from CPU time"))
    assert found["kernels"][0]["missing"] == ""
    assert found["kernels"][0]["uses"] in ("portable C", "AVX2", "AVX-512")
    for word in ("forest kernel", "onnxruntime", "static-int8", "Runtimes", "Techniques"):
        assert word in said.err


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.Plugin:
    """A runtime whose framework nobody has installed."""
    path = tmp_path / "magic.py"
    path.write_text("import no_such_framework\n\nclass Magic:\n    suffixes = ('.magic',)\n")
    plugin = registry._read("runtimes", "magic", "sartor.runtimes.magic", path)
    real = registry.plugins
    both: Callable[[str], Any] = lambda group: (  # noqa: E731
        (*real(group), plugin) if group == "runtimes" else real(group)
    )
    monkeypatch.setattr(doctor, "plugins", both)
    return plugin


def test_it_says_what_is_missing_without_importing_it(
    lacking: registry.Plugin, sartor: Sartor
) -> None:
    said = sartor("doctor", "--json")
    assert said.status == 0, said.err
    entry = next(each for each in said.json["runtimes"] if each["kind"] == "magic")
    assert entry == {
        "kind": "magic",
        "suffixes": [".magic"],
        "missing": ["no_such_framework"],
        "extra": "magic",
        "remedy": "pip install 'sartor[magic]'",
        "versions": {},
    }
    assert "no_such_framework" in said.err
    assert "sartor[magic]" in " ".join(said.err.split())


def test_it_says_why_the_kernel_is_missing(sartor: Sartor, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.missing.cache_clear()
    monkeypatch.setitem(sys.modules, "sartor.kernels._forest", None)
    try:
        assert "install a C compiler" in kernels.missing()
        assert "forest kernel: missing: it was not built" in sartor("doctor").out
        with pytest.raises(WrongRequest, match="forest kernel is missing"):
            kernels.forest()
    finally:
        kernels.missing.cache_clear()
