"""The command line: what it refuses and with which words, what it prints for programs."""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Case, Said, Tailored, command
from hostile import onnx_files

Sartor = Callable[..., Said]
COMMANDS = ("optimize", "profile", "compare", "verify", "report", "doctor", "demo")


def assert_refused(said: Said, *words: str) -> None:
    """Exit 2, and on stderr one line alone, which says what is wrong and what to write."""
    lines = said.err.splitlines()
    assert said.status == 2, said
    assert len(lines) == 1, said.err
    assert lines[0].startswith("sartor: ")
    assert "Traceback" not in said.err
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"
    assert said.out == ""


# -- the request ----------------------------------------------------------------------------------

FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown metric in a limit": (("--limit", "acuracy >= 0.9"), ("'acuracy'", "'accuracy'")),
    "unknown unit": (("--limit", "size <= 3 parsec"), ("parsec", "MB")),
    "unit of another metric": (("--limit", "latency <= 3 MB"), ("MB", "ms")),
    "unknown statistic": (("--limit", "latency.p42 <= 3 ms"), ("'p42'", "latency.p95")),
    "no value": (("--limit", "accuracy >="), ("no value", "20 MB")),
    "wrong way round": (("--limit", "accuracy <= 0.9"), ("accuracy >= 0.9",)),
    "no limit at all": (("--limit", "fast"), ("fast",)),
    "unknown objective": (("--minimize", "beauty"), ("'beauty'", "latency")),
    "objective the wrong way": (("--minimize", "throughput"), ("maximize throughput",)),
    "two objectives": (("--minimize", "size", "--maximize", "throughput"), ("one objective",)),
    "budget in words": (("--budget", "soon"), ("'soon'", "10m")),
    "no budget": (("--budget", "0s"), ("budget", "10m")),
    "a budget without its unit": (("--budget", "10"), ("budget 10: write its unit", "10m")),
    "too many threads": (("--threads", "9999"), ("threads 9999", "write 1 to")),
    "no threads": (("--threads", "0"), ("threads 0",)),
    "threads in words": (("--threads", "many"), ("--threads", "'many'")),
    "no batch": (("--batch", "0"), ("batch 0",)),
    "no trials": (("--trials", "0"), ("trials 0",)),
    "negative seed": (("--seed", "-3"), ("seed -3",)),
    "unknown flag": (("--limits", "size <= 1 MB"), ("--limits",)),
    "unknown technique": (("--technique", "statik-int8"), ("'statik-int8'", "static-int8")),
    "unknown technique left out": (("--without", "magic"), ("'magic'", "static-int8")),
    "unknown primary metric": (("--metric", "beauty"), ("'beauty'", "accuracy")),
    "metric of another task": (("--metric", "r2"), ("regression", "classification")),
    "unknown output": (("--output", "gone"), ("'gone'", "logits")),
    "unknown label": (("--label", "gone"), ("'gone'", "thickness")),
    "unknown segment": (("--segment", "gone"), ("'gone'", "thickness")),
    "segment in a limit": (("--limit", "accuracy@gone >= 0.5"), ("'gone'",)),
    "missing journal": (("--replay", "gone.jsonl"), ("gone.jsonl", "no such file")),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_wrong_flags(name: str, sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    flags, words = FLAGS[name]
    out = tmp_path / "out"
    said = sartor("optimize", tiny.model, "--data", tiny.data(tmp_path), "--out", out, *flags)
    assert_refused(said, *words)
    assert not out.exists() or not list(out.iterdir())  # a corrected command may use it


def test_no_data(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    assert_refused(sartor("optimize", tiny.model, "--out", tmp_path / "out"), "--data")


def test_no_model(sartor: Sartor) -> None:
    assert_refused(sartor("optimize"), "MODEL", "sartor optimize --help")


def test_unknown_command(sartor: Sartor) -> None:
    assert_refused(sartor("optimise"), "'optimise'", "optimize", "sartor --help")


TOML: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": ('minimise = "latency"', ("'minimise'", "'minimize'")),
    "unknown key in a section": ("[search]\ntrails = 3", ("'trails'", "'trials'")),
    "unknown section": ("[serach]\ntrials = 3", ("'serach'", "'search'")),
    "no TOML": ("limits = [", ("not TOML",)),
    "a value of another type": ('trials = "many"', ("trials", "whole number")),
}


@pytest.mark.parametrize("name", TOML)
def test_wrong_toml(name: str, sartor: Sartor, tmp_path: Path) -> None:
    text, words = TOML[name]
    (tmp_path / "sartor.toml").write_text(text)
    said = sartor("optimize", tmp_path / "sartor.toml", "--out", tmp_path / "out")
    assert_refused(said, *words)


def test_missing_toml(sartor: Sartor, tmp_path: Path) -> None:
    said = sartor("optimize", tmp_path / "gone.toml", "--out", tmp_path / "out")
    assert_refused(said, "gone.toml", "no such file")


# -- the model ------------------------------------------------------------------------------------


def optimize(sartor: Sartor, model: Any, data: Any, out: Path) -> Said:
    return sartor("optimize", model, "--data", data, "--trials", 1, "--out", out)


def test_missing_model(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    data = tiny.data(tmp_path)
    said = optimize(sartor, tmp_path / "gone.onnx", data, tmp_path / "out")
    assert_refused(said, "gone.onnx", "no such file")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_model(share: float, sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    whole = tiny.model.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole[: int(share * len(whole))])
    assert_refused(optimize(sartor, cut, tiny.data(tmp_path), tmp_path / "out"), "cut.onnx")


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_as_model(seed: int, sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    path = tmp_path / "random.onnx"
    path.write_bytes(np.random.default_rng(seed).bytes(9000))
    said = optimize(sartor, path, tiny.data(tmp_path), tmp_path / "out")
    assert_refused(said, "random.onnx")


@pytest.mark.parametrize("name", ["external_climbs", "external_absolute", "external_link"])
def test_external_data_elsewhere(name: str, sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    path, words = onnx_files.write(name, tmp_path)
    said = optimize(sartor, path, tiny.data(tmp_path / "data"), tmp_path / "out")
    assert_refused(said, *words)


def test_code_without_a_function_says_which_there_are(
    sartor: Sartor, tiny: Case, tmp_path: Path
) -> None:
    code = tmp_path / "net.py"
    code.write_text("import nothing_of_that_name\ndef make(): ...\ndef _own(): ...\n")
    said = optimize(sartor, code, tiny.data(tmp_path), tmp_path / "out")
    assert_refused(said, f"{code} is code", f"as in {code}:make")
    code.write_text("def one(): ...\ndef two(): ...\n")
    said = optimize(sartor, code, tiny.data(tmp_path), tmp_path / "out")
    assert_refused(said, f"{code}:FUNCTION, one of one, two")
    code.write_text("def (")
    assert_refused(optimize(sartor, code, tiny.data(tmp_path), tmp_path / "out"), "none in it yet")


def test_a_refused_request_leaves_no_folder(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    said = sartor(
        "optimize", tiny.model, "--data", tiny.data(tmp_path), "--out", out, "--metric", "beauty"
    )
    assert_refused(said, "'beauty'")
    assert not out.parent.exists()


def test_ctrl_c_is_answered_at_once(tiny: Case, tmp_path: Path) -> None:
    asked = command(
        "optimize", tiny.model, "--data", tiny.data(tmp_path), "--out", tmp_path / "o",
        "--budget", "60s",
    )  # fmt: skip
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        lines = [running.stderr.readline()]  # it has begun
        running.send_signal(signal.SIGINT)
        lines += running.stderr.readlines()
    assert running.returncode == 130
    told = next(at for at, line in enumerate(lines) if "Ctrl-C again: at once" in line)
    assert any("the same command goes on where it was" in line for line in lines[told + 1 :])


def test_format_nobody_knows(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.docx"
    path.write_bytes(b"text")
    said = optimize(sartor, path, tiny.data(tmp_path), tmp_path / "out")
    assert_refused(said, "'.docx'", ".onnx")


# -- the data -------------------------------------------------------------------------------------


def _but(array: np.ndarray, row: int, value: Any) -> np.ndarray:
    changed = array.astype(float) if isinstance(value, float) else array.copy()
    changed[row] = value
    return changed


def _split(arrays: dict[str, np.ndarray], holdout: np.ndarray) -> np.ndarray:
    rest = np.where(np.arange(len(holdout)) % 2, "search", "train")
    return np.where(holdout, "holdout", rest)


Change = Callable[[dict[str, np.ndarray]], dict[str, Any]]
ARRAYS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "another name": (
        lambda a: {"pixels": None, "images": a["pixels"]},
        ("inputs are pixels", "the data have", "images"),
    ),
    "another shape": (lambda a: {"pixels": a["pixels"][:, :63]}, ("(1000, 63)", "[N, 64]")),
    "another rank": (
        lambda a: {"pixels": a["pixels"].reshape(-1, 8, 8)}, ("(1000, 8, 8)", "[N, 64]"),
    ),
    "another type": (lambda a: {"pixels": a["pixels"].astype("U4")}, ("pixels", "float32")),
    "complex numbers": (
        lambda a: {"pixels": a["pixels"].astype(complex)}, ("complex128", "float32"),
    ),
    "Python objects": (lambda a: {"label": a["label"].astype(object)}, ("Python objects",)),
    "labels from 1": (lambda a: {"label": a["label"] + 1}, ("10 classes", "subtract 1")),
    "one label below 0": (lambda a: {"label": _but(a["label"], 7, -1)}, ("10 classes", "1 are")),
    "labels as text": (lambda a: {"label": a["label"].astype(str)}, ("text", "0..C-1")),
    "NaN as label": (lambda a: {"label": _but(a["label"], 5, np.nan)}, ("row 5",)),
    "NaN in inputs": (
        lambda a: {"pixels": _but(a["pixels"], 3, np.nan)}, ("pixels", "NaN", "row 3"),
    ),
    "infinite inputs": (lambda a: {"pixels": _but(a["pixels"], 4, np.inf)}, ("infinite", "row 4")),
    "other numbers of rows": (
        lambda a: {"label": a["label"][:-1]}, ("pixels 1000", "label 999"),
    ),
    "no rows": (lambda a: {name: each[:0] for name, each in a.items()}, ("empty",)),
    "one row": (lambda a: {name: each[:1] for name, each in a.items()}, ("few",)),
    "no holdout": (
        lambda a: {"split": _split(a, np.zeros(len(a["label"]), bool))}, ("holdout is empty",),
    ),
    "a holdout of one class": (
        lambda a: {"split": _split(a, a["label"] == 3)}, ("every label of the holdout is 3",),
    ),
    "a split of unknown parts": (
        lambda a: {"split": np.where(a["label"] > 4, "final", "search")}, ("final", "holdout"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_data_that_do_not_fit(name: str, sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    change, words = ARRAYS[name]
    data = tiny.data(tmp_path, **change(tiny.arrays))
    out = tmp_path / "out"
    assert_refused(optimize(sartor, tiny.model, data, out), *words)
    assert not out.exists() or not list(out.iterdir())
    assert not list(tmp_path.glob("*.sartor-ledger"))  # nothing was spent on it


def test_missing_data(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    said = optimize(sartor, tiny.model, tmp_path / "gone.npz", tmp_path / "out")
    assert_refused(said, "gone.npz", "no such file")


def test_truncated_data(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    path = Path(tiny.data(tmp_path))
    path.write_bytes(path.read_bytes()[:3000])
    assert_refused(optimize(sartor, tiny.model, path, tmp_path / "out"), "cut short")


def test_pickled_data_need_trust(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(tiny.arrays))
    out = tmp_path / "out"
    assert_refused(optimize(sartor, tiny.model, path, out), "pickle", "--trust")
    said = sartor(
        "optimize", tiny.model, "--data", path, "--trials", 1, "--out", out, "--trust"
    )  # the same folder: a refused request has left nothing in the way
    assert said.status == 0, said.err


# -- the output folder ----------------------------------------------------------------------------


def test_folder_of_something_else(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert_refused(optimize(sartor, tiny.model, tiny.data(tmp_path), out), "not empty", "new")
    assert [each.name for each in out.iterdir()] == ["thesis.txt"]


def test_another_programs_journal(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    (out / "run.jsonl").write_text('{"step": 1, "loss": 0.3}\n')
    (out / "work" / "precious").write_text("")
    assert_refused(optimize(sartor, tiny.model, tiny.data(tmp_path), out), "not empty")
    assert (out / "work" / "precious").exists()


def test_file_as_folder(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    data = tiny.data(tmp_path)
    assert_refused(optimize(sartor, tiny.model, data, tmp_path / "out"), "is a file")
    below = tmp_path / "out" / "below"
    assert_refused(optimize(sartor, tiny.model, data, below), "cannot be written")


def test_a_folder_holds_one_request(
    sartor: Sartor, tailored: Tailored, tiny: Case, tmp_path: Path
) -> None:
    before = (tailored.folder / "run.jsonl").read_bytes()
    said = optimize(sartor, tiny.model, tiny.data(tmp_path), tailored.folder)
    assert_refused(said, "another request", "model", "limits")
    assert (tailored.folder / "run.jsonl").read_bytes() == before


# -- other commands -------------------------------------------------------------------------------


def test_wrong_requests_of_other_commands(
    sartor: Sartor, tailored: Tailored, digits: Case, cancer: Case, tmp_path: Path
) -> None:
    data, other = tailored.data, cancer.data(tmp_path)
    assert_refused(sartor("verify", tmp_path, "--data", data), "no bundle")
    assert_refused(sartor("verify", tailored.folder, "--data", other), "pixels")
    assert_refused(sartor("report", tmp_path), "no run")
    assert_refused(sartor("compare", digits.model, "gone.onnx", "--data", data), "gone.onnx")
    assert_refused(sartor("compare", digits.model, cancer.model, "--data", data), "other inputs")
    assert_refused(sartor("profile", "gone.onnx", "--data", data), "gone.onnx")
    assert_refused(sartor("verify", tailored.folder), "--data")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, sartor: Sartor) -> None:
    said = sartor(command, "--help")
    assert said.status == 0
    assert f"sartor {command}" in said.out
    assert said.err == ""


def test_the_commands_are_these(sartor: Sartor) -> None:
    listed = re.search(r"\{([a-z,]+)\}|^positional arguments:\n  COMMAND\n((?:    .*\n)+)",
                       sartor("--help").out, re.M)  # fmt: skip
    assert listed is not None
    names = re.findall(r"^    ([a-z]+)", listed[2] or "", re.M)
    assert sorted(names) == sorted(COMMANDS)


def test_version(sartor: Sartor) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", sartor("--version").out)


def test_nothing_asked(sartor: Sartor) -> None:
    said = sartor()
    assert said.status == 2
    assert "optimize" in said.out


# -- for programs ---------------------------------------------------------------------------------


def test_json_says_what_was_found(tailored: Tailored) -> None:
    answer = tailored.said.json
    assert answer["status"] == 0
    assert answer["recipe"]
    assert all(step["technique"] for step in answer["recipe"])
    assert Path(answer["artifact"]) == tailored.folder / "bundle"
    limits = {each["limit"]: each for each in answer["limits"]}
    assert set(limits) == {
        "accuracy >= baseline - 0.03",
        "size <= 0.5 x baseline",
        "latency better than the original's",
    }
    for verdict in limits.values():
        assert verdict["outcome"] == "met"
        assert verdict["low"] <= verdict["estimate"] <= verdict["high"]
        assert verdict["method"]
    for name in ("size", "latency", "latency.p95", "accuracy", "throughput"):
        assert answer["figures"][name] > 0
        assert answer["figures"][f"original.{name}"] > 0


def test_json_names_the_artifacts_files(tailored: Tailored) -> None:
    named = tailored.said.json["files"]
    bundle = tailored.folder / "bundle"
    on_disk = {each.relative_to(bundle).as_posix() for each in bundle.rglob("*") if each.is_file()}
    assert set(named) == on_disk
    assert "sartor.json" in named


def test_json_of_a_finished_run_is_the_same(sartor: Sartor, tailored: Tailored) -> None:
    journal = tailored.folder / "run.jsonl"
    before = journal.read_bytes()
    said = sartor(*tailored.arguments(tailored.folder.parent))
    assert said.status == 0
    assert said.json == tailored.said.json
    assert "--resume" in said.err
    assert journal.read_bytes() == before


def test_figures_are_those_of_the_files(tailored: Tailored, digits: Case) -> None:
    figures = tailored.said.json["figures"]
    facts = json.loads((tailored.folder / "bundle" / "sartor.json").read_text())
    artifact = tailored.folder / "bundle" / facts["file"]
    assert figures["size"] == artifact.stat().st_size
    assert figures["original.size"] == digits.model.stat().st_size


def test_report_renders_the_journal_again(sartor: Sartor, tailored: Tailored) -> None:
    said = sartor("report", tailored.folder, "--json")
    assert said.status == 0
    assert said.json == tailored.said.json
    assert "certified" in said.err
    assert "Trials" in said.err
