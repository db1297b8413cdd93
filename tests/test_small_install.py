"""What a device has is enough: numpy, one runtime and what that runtime requires itself.

Everything else is hidden from the commands, and from the processes that they start, by a finder
that does not find it. `benchmarks/small_install.py` does the same in real environments.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Case, Said, Tailored
from onnx import numpy_helper

import sartor as package
from sartor import bundle
from sartor.contracts import Target
from sartor.registry import RUN_ALONE, open_model, plugins, runtime

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SLOW = ("openvino", "torch")  # processes that take seconds to start, started many times
HERE = [
    pytest.param(each.kind, marks=[pytest.mark.slow] if each.kind in SLOW else [])
    for each in plugins("runtimes")
    if each.kind in RUN_ALONE and not each.missing
]

FINDER = """
import sys
from importlib.machinery import PathFinder

class Device(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = path is None and name in {hidden!r}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path = [Device if each is PathFinder else each for each in sys.meta_path]
"""


def required(distribution: str) -> set[str]:
    """The distribution and all that it requires, in turn, without extras."""
    found, waiting = set(), [distribution]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            wanted = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for each in wanted:
            if "extra ==" not in each:
                waiting.append(re.findall(r"[\w.-]+", each)[0])
    return found


@pytest.fixture(scope="module")
def hiding(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """hiding(KIND): a folder that goes first on the path, so that nothing is found but what the
    small install with the runtime of that kind has."""
    brings = importlib.metadata.packages_distributions()

    def made(kind: str) -> Path:
        (wanted,) = EXTRAS[f"run-{kind}"]
        kept = required("numpy") | required(re.findall(r"[\w.-]+", wanted)[0])
        names = {top: {re.sub(r"[-_.]+", "-", d).lower() for d in of} for top, of in brings.items()}
        hidden = {top for top, of in names.items() if not of & kept and top != "sartor"}
        assert {"scipy", "rich", "psutil", "pandas"} <= hidden
        assert ("onnx" in hidden) == ("onnx" not in kept)
        place = tmp_path_factory.mktemp(f"only-{kind}")
        (place / "sitecustomize.py").write_text(FINDER.format(hidden=hidden))
        return place

    return made


def device(hidden: Path, *arguments: Any) -> Said:
    """Python of a device, with these arguments."""
    path = os.pathsep.join([str(hidden), str(Path(package.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path}, cwd=hidden,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


def command(hidden: Path, *arguments: Any) -> Said:
    return device(hidden, "-m", "sartor.cli", *arguments)


@pytest.fixture(scope="module")
def forms() -> ModuleType:
    """The benchmark, which writes one network in the form of each kind."""
    path = ROOT / "benchmarks" / "small_install.py"
    spec = importlib.util.spec_from_file_location("small_install", path)
    assert spec
    assert spec.loader
    module = sys.modules["small_install"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundled(kind: str, digits: Case, forms: ModuleType, place: Path) -> tuple[Path, Path]:
    """(original, bundle): the network of digits in the form of this kind, and the bundle of one
    whose weights were rounded a little."""
    held = [numpy_helper.to_array(each) for each in onnx.load(digits.model).graph.initializer]
    layers = [(held[at], held[at + 1]) for at in range(0, len(held), 2)]
    rounded = [tuple(np.float32(np.float16(each)) for each in pair) for pair in layers]
    models = []
    for name, weights in (("original", layers), ("artifact", rounded)):
        (place / name).mkdir(parents=True)
        path = forms.CASES[kind].write(weights, place / name)
        models.append(open_model(path, place / name / "taken"))
    original, artifact = models
    engine = runtime(kind)
    facts = {
        "task": {"kind": "classification", "output": "logits", "metric": "accuracy", "classes": 10,
                 "form": "logits"},
        "recipe": [],
        "original": {
            "digest": engine.digest(original), "path": str(original.payload), "kind": kind,
            "signature": original.signature,
        },
        "certificate": {
            "limits_asked": ["accuracy >= baseline - 0.1", "size <= 1.5 x baseline"],
            "objective": "latency", "rival": False,
        },
    }  # fmt: skip
    sample = {"pixels": digits.arrays["pixels"][:8]}
    bundle.write(
        artifact, place / "bundle", facts, sample, np.zeros(0, np.uint32), Target(), "rounded"
    )
    return Path(original.payload), place / "bundle"


@pytest.mark.parametrize("kind", HERE)
def test_a_bundle_is_loaded_and_verified_with_its_runtime_alone(
    kind: str, digits: Case, forms: ModuleType, hiding: Any, tmp_path: Path
) -> None:
    original, place = bundled(kind, digits, forms, tmp_path)
    hidden = hiding(kind)
    data = digits.data(tmp_path / "fresh", **digits.fresh)
    given = ("verify", place, "--data", data, "--original", original)
    said = command(hidden, *given, "--json")
    assert said.status == 0, said.err + said.out
    limits = {each["limit"]: each for each in said.json["limits"]}
    accuracy = limits["accuracy >= baseline - 0.1"]
    assert accuracy["outcome"] == "met"
    assert "accuracy >= baseline - 0.1" in said.err  # a table, without rich
    assert "verified: every limit is met here" in said.err
    script = (
        f"import numpy, sartor; model = sartor.load({str(place)!r}); "
        f"rows = numpy.load({data!r}); told = model.predict(rows['pixels'][:1]); "
        "print(told['logits'].argmax(), rows['label'][0])"
    )
    said = device(hidden, "-c", script)
    assert said.status == 0, said.err
    answer, label = said.out.split()[-2:]
    assert answer == label


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--help",), 0, "verify"),
        (("doctor",), 0, "pip install 'sartor[onnx]'"),
        (("report", "RUN"), 0, "certified"),
        pytest.param(
            ("compare", "BUNDLE", "BUNDLE", "--data", "DATA"),
            0,
            "Side by side",
            marks=pytest.mark.slow,
        ),
        (("compare", "MODEL", "BUNDLE", "--data", "DATA"), 2, "needs onnx, which is not installed"),
        (("profile", "MODEL", "--data", "DATA"), 2, "pip install 'sartor[onnx]'"),
        (("optimize", "MODEL", "--data", "DATA"), 2, "pip install 'sartor[onnx]'"),
        (("demo",), 2, "pip install 'sartor[demo]'"),
        (("verify", "BUNDLE", "--data", "TABLE"), 2, "pip install 'sartor[data]'"),
        (("compare", "BUNDLE", "OPENVINO", "--data", "DATA"), 2, "'sartor[run-openvino]'"),
    ],
)
def test_every_command_runs_or_says_what_to_install(
    arguments: tuple[str, ...], status: int, words: str, tailored: Tailored, hiding: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    few = {name: each[:60] for name, each in tailored.case.fresh.items()}
    (tmp_path / "table.csv").write_text("label\n1\n")
    (tmp_path / "model.xml").write_text("<net/>")
    known = {
        "RUN": tailored.folder, "BUNDLE": tailored.folder / "bundle", "MODEL": tailored.case.model,
        "DATA": tailored.case.data(tmp_path, **few), "TABLE": tmp_path / "table.csv",
        "OPENVINO": tmp_path / "model.xml",
    }  # fmt: skip
    said = command(hiding("onnx"), *(known.get(each, each) for each in arguments))
    told = " ".join((said.out + said.err).split())
    assert said.status == status, told
    assert words in told
    if status:
        assert len(said.err.splitlines()) == 1, said.err


def test_what_is_installed_always_is_numpy_and_a_kind_alone_is_its_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.findall(r"\w+", each)[0] for each in project["dependencies"]] == ["numpy"]
    assert {f"run-{kind}" for kind in RUN_ALONE} == {n for n in EXTRAS if n.startswith("run-")}
    assert all(len(EXTRAS[f"run-{kind}"]) == 1 for kind in RUN_ALONE)
    whole = {kind: json.dumps(EXTRAS[kind]) for kind in RUN_ALONE}
    assert all(f"run-{kind}" in told for kind, told in whole.items())
