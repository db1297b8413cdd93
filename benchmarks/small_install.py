"""What a device needs: for each kind of artifact a fresh environment with the small install and one
runtime, in which a bundle is loaded and its certificate measured again.

    python benchmarks/small_install.py [--kinds onnx openvino ...] [--work FOLDER]

A network for scikit-learn's digits is written in the form of each kind, optimized here, and its
bundle taken to an environment that `pip install 'sartor[run-KIND]'` made; "converted" is an
OpenVINO bundle of an ONNX model under limits that name no baseline, verified without its original.
Printed are a table (MB of what pip installed, seconds of fresh processes: the best of five) and
what each command said there. It ends with status 1 where one did not do as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import sartor

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5
TEXT = """<ir_version: 8, opset_import: ["": 17]>
digits (float[N, 64] pixels) => (float[N, 10] logits) {
    a = Gemm(pixels, w0, b0)
    b = Relu(a)
    c = Gemm(b, w1, b1)
    d = Relu(c)
    logits = Gemm(d, w2, b2)
}"""
LIMITS = ("accuracy >= baseline - 0.03", "size <= 0.6 x baseline", "latency <= 5 x baseline")
ALONE = ("accuracy >= 0.85", "size <= 2 MB", "latency <= 5 ms")
Layers = list[tuple[np.ndarray, np.ndarray]]

# What pip itself and its tools take is not counted: no device needs them.
SIZES = """
import importlib.metadata, json
found = {}
for each in importlib.metadata.distributions():
    files = [each.locate_file(name) for name in each.files or ()]
    found[each.name] = sum(path.stat().st_size for path in files if path.is_file())
print(json.dumps({k: v for k, v in found.items() if k not in ("pip", "setuptools", "wheel")}))
"""
IMPORT = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
PREDICT = (
    "import numpy as np, sartor; m = sartor.load({!r}); "
    "print(m.predict(np.load({!r})['pixels'][:1])['logits'].argmax())"
)


@dataclass(frozen=True)
class Case:
    """A kind of artifact, how the network comes in, and what is asked of it."""

    kind: str
    write: Callable[[Layers, Path], Path]
    technique: str
    limits: tuple[str, ...] = LIMITS
    formats: tuple[str, ...] = ()


def trained(work: Path) -> Layers:
    """The network's layers, and rows for a run and for another day beside them."""
    pixels, label = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pixels))
    parts = {"train": order[:500], "eval": order[500:1200], "fresh": order[1200:]}
    for name, rows in parts.items():
        np.savez(work / f"{name}.npz", pixels=pixels[rows], label=label[rows])
    found = MLPClassifier((640, 640), max_iter=30, batch_size=100, random_state=0)
    with warnings.catch_warnings(action="ignore"):  # that more passes would help
        found.fit(pixels[parts["train"]], label[parts["train"]])
    pairs = zip(found.coefs_, found.intercepts_, strict=True)
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in pairs]


def as_onnx(layers: Layers, folder: Path) -> Path:
    model = onnx.parser.parse_model(TEXT)
    for at, pair in enumerate(layers):
        for stem, array in zip("wb", pair, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, f"{stem}{at}"))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def as_openvino(layers: Layers, folder: Path) -> Path:
    from sartor.openvino_core import opened, written

    return written(opened(as_onnx(layers, folder)), folder, "model")


def as_tflite(layers: Layers, folder: Path) -> Path:
    from sartor.testing_tflite import Draft

    draft = Draft(0)
    first = here = draft.tensor("pixels", "float32", (1, 64))
    for at, (weight, bias) in enumerate(layers):
        turned = np.ascontiguousarray(weight.T)
        given = [here, draft.constant(f"w{at}", turned), draft.constant(f"b{at}", bias)]
        here = draft.op(
            "FULLY_CONNECTED", given, (1, bias.size), options="FullyConnectedOptions",
            fusedActivationFunction=int(at < len(layers) - 1),
        )  # fmt: skip
    (folder / "model.tflite").write_bytes(draft.written({"pixels": first}, {"logits": here}))
    return folder / "model.tflite"


class Network(torch.nn.Module):
    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*weight.shape) for weight, _ in layers)
        for layer, pair in zip(self.layers, layers, strict=True):
            for name, array in zip(("weight", "bias"), pair, strict=True):
                layer.get_parameter(name).data = torch.from_numpy(np.array(array.T, order="C"))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        for layer in self.layers[:-1]:
            pixels = torch.relu(layer(pixels))
        return {"logits": self.layers[-1](pixels)}


def as_torch(layers: Layers, folder: Path) -> Path:
    rows = {"pixels": torch.zeros(4, 64)}
    free = {"pixels": {0: torch.export.Dim("rows")}}
    program = torch.export.export(Network(layers).eval(), (), rows, dynamic_shapes=free)
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


CASES = {
    "onnx": Case("onnx", as_onnx, "weight-only"),
    "openvino": Case("openvino", as_openvino, "half-weights"),
    "tflite": Case("tflite", as_tflite, "dynamic-range"),
    "torch": Case("torch", as_torch, "linear-int8"),
    "converted": Case("openvino", as_onnx, "to-openvino", ALONE, ("openvino",)),
}


def optimized(case: Case, layers: Layers, work: Path, folder: Path) -> Path:
    """The run of the case in `folder`; returns its original."""
    shutil.copy(work / "eval.npz", folder)  # a ledger of its own
    original = case.write(layers, folder)
    run = sartor.optimize(
        str(original), str(folder / "eval.npz"), list(case.limits), "size",
        out=folder / "run", techniques=[case.technique], formats=list(case.formats), trials=3,
    )  # fmt: skip
    kind = sartor.load(folder / "run").facts["kind"] if run.status == 0 else ""
    if kind != case.kind:
        raise SystemExit(f"no {case.kind} bundle to take along: {run.answer['message']}")
    return original


def built(work: Path) -> Path:
    """The package as a wheel, made of a copy: what an earlier build left would get into it."""
    for name in ("src", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, work / "source" / name)
    make = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work, work / "source"]
    subprocess.run(make, check=True)
    return next(work.glob("sartor-*.whl"))


@dataclass(frozen=True)
class Device:
    """An environment with the small install and one runtime, and nothing of ours around it."""

    folder: Path

    def __post_init__(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)

    def run(self, *command: str | Path) -> tuple[int, str]:
        """The status of a command of this environment, and all that it said."""
        program, *rest = map(str, command)
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        around = {name: each for name, each in os.environ.items() if name not in hidden}
        done = subprocess.run(
            [self.folder / "bin" / program, *rest], cwd=self.folder, env=around, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def install(self, wheel: Path, kind: str) -> None:
        constraints = ROOT / "constraints.txt"
        wanted = f"{wheel}[run-{kind}]"
        status, said = self.run("python", "-m", "pip", "install", "-q", "-c", constraints, wanted)
        if status:
            raise SystemExit(said)

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.run("python", "-c", SIZES)[1])
        return found

    def seconds(self, code: str) -> float:
        """Of this code in a fresh process, the best of five."""
        script = IMPORT.format(code)
        return min(float(self.run("python", "-c", script)[1].split()[-1]) for _ in range(REPEATS))


def commands(case: Case, original: Path, place: Path) -> list[tuple[list[str], int, str]]:
    """Command, the status that it should end with, and what it should say."""
    rows, table, bundle = (str(place / name) for name in ("fresh.npz", "fresh.csv", "bundle"))
    given = ["--original", str(original)] if case.limits is LIMITS else []
    return [
        (["sartor", "--help"], 0, "verify"),
        (["sartor", "doctor"], 0, "missing"),
        (["sartor", "report", str(place / "run")], 0, "certified"),
        (["python", "-c", PREDICT.format(bundle, rows)], 0, ""),
        (["sartor", "verify", bundle, "--data", rows, *given], 0, "verified: every limit"),
        (["sartor", "verify", bundle, "--data", table, *given], 2, "sartor[data]"),
        (["sartor", "optimize", str(original), "--data", rows], 2, "sartor[onnx]"),
        (["sartor", "demo"], 2, "sartor[demo]"),
    ]


def taken_along(name: str, original: Path, wheel: Path, place: Path) -> tuple[str, bool]:
    """A row of the table, and whether every command did as it should; says what they said."""
    case, device, bundle = CASES[name], Device(place / "env"), place / "bundle"
    device.install(wheel, case.kind)
    shutil.copytree(place / "run" / "bundle", bundle)
    shutil.copy(place.parent / "fresh.npz", place)
    (place / "fresh.csv").write_text("label\n1\n")
    sizes, good, took = device.sizes(), True, 0.0
    for command, wanted, words in commands(case, original, place):
        began = time.monotonic()
        status, said = device.run(*command)
        right = status == wanted and words in said and "Traceback" not in said
        good &= right
        told = re.sub(r"\s+", " ", said)[-300:] if right and command[1] != "verify" else said
        print(f"\n[{name}] {' '.join(command)}")
        print(f"status {status}, {'as it should' if right else 'WRONG'}: {told}")
        took = time.monotonic() - began if words.startswith("verified") else took
    loaded = f"import sartor; sartor.load({str(bundle)!r})"
    small = sizes["sartor"] + sizes["numpy"]
    others = ", ".join(sorted(each for each in sizes if each not in ("sartor", "numpy")))
    figures = [sum(sizes.values()) / 1e6, small / 1e6]
    starts = [device.seconds(each) for each in ("import sartor", loaded, "import sartor.verifying")]
    row = [
        name,
        *(f"{x:.0f}" for x in figures),
        *(f"{x:.2f}" for x in starts),
        f"{took:.0f}",
        others,
    ]
    return f"| {' | '.join(row)} |", good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "small")
    asked = parser.parse_args()
    work = asked.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    layers = trained(work)
    wheel, rows, good = built(work), [], True
    for name in asked.kinds:
        (work / name).mkdir()
        original = optimized(CASES[name], layers, work, work / name)
        row, right = taken_along(name, original, wheel, work / name)
        rows.append(row)
        good &= right
    print(
        "\n| kind | MB in all | of it sartor and numpy | import sartor, s | load, s | import what "
        "verify needs, s | verify, s | besides |\n|---|---:|---:|---:|---:|---:|---:|---|"
    )
    print("\n".join(rows))
    sys.exit(not good)


if __name__ == "__main__":
    main()
