"""What the documentation says is so: its examples run, what it names exists.

A block of shell or Python in README.md and docs/*.md is executed, the blocks of one file in their
order and in one folder, with `model.onnx`, `eval.npz` and `fresh.npz` (digits of scikit-learn) in
it. An HTML comment on the line before a block says what else is meant:

    <!-- file: NAME -->       the block is the content of that file
    <!-- status: 3 -->        the exit status of the block's last command
    <!-- slow: WHY -->        it is executed by `make test-all` only
    <!-- transcript: WHY -->  the output of a real run; only its commands are looked at
    <!-- not run: WHY -->     only its commands are looked at

A page that begins with <!-- page needs: PACKAGE, PACKAGE --> is skipped where one is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import Case

from sartor.cli import parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

SHORTER = {  # what takes ten minutes of a reader's time must not take ten of the tests'
    "--budget 10m": "--trials 6",
    'budget="10m"': "trials=4",
    'budget = "10m"': "trials = 4",
    # Nothing is fetched by the tests: setuptools is there already.
    "pip install ./": "pip install -q --no-index --no-deps --no-build-isolation --target site ./",
}
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[a-z ]+)(?:: (?P<why>[^>]*?))? -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str
    mark: str = ""
    why: str = ""

    @property
    def runs(self) -> bool:
        told = self.mark not in ("transcript", "not run", "file")
        return told and self.language in ("sh", "python")


@cache
def blocks(name: str) -> tuple[Block, ...]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return tuple(
        Block(
            text.count("\n", 0, found.start("text")),
            found["language"],
            found["text"],
            found["mark"] or "",
            (found["why"] or "").strip(),
        )
        for found in _FENCE.finditer(text)
    )


@pytest.fixture(scope="session")
def stage(digits: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that every page's examples may use."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "model.onnx").write_bytes(digits.model.read_bytes())
    rows = len(digits.arrays["label"])
    for file, taken in (("eval.npz", slice(0, rows - 300)), ("fresh.npz", slice(rows - 300, rows))):
        np.savez(folder / file, **{name: each[taken] for name, each in digits.arrays.items()})
    return folder


def run_page(name: str, folder: Path, slow: bool) -> None:
    head = re.match(r"<!-- page needs: (.*?) -->", (ROOT / name).read_text(encoding="utf-8"))
    for package in head[1].split(", ") if head else ():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs {package}")
    for block in blocks(name):
        if block.mark == "file":
            path = folder / block.why
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_shorter(block.text), encoding="utf-8")
        elif block.runs and (slow or block.mark != "slow"):
            if block.mark == "slow":  # a reader runs one or two of them, not all on one holdout
                for ledger in folder.glob("*.sartor-ledger"):
                    ledger.unlink()
            run_block(name, block, folder)


def run_block(name: str, block: Block, folder: Path) -> None:
    text = _shorter(block.text)
    how = {"sh": ["bash", "-e", "-c", text], "python": [sys.executable, "-W", "error", "-c", text]}
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(places),
        "HOME": str(folder),  # where the ledger of data without a file lies
        "PYTHONPATH": str(folder / "site"),
        "PYTHONPYCACHEPREFIX": str(folder / "cache"),
    }
    done = subprocess.run(
        how[block.language], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    wanted = int(block.why) if block.mark == "status" else 0
    told = f"{name}, line {block.line}: status {done.returncode}, not {wanted}\n{text}\n"
    assert done.returncode == wanted, told + done.stdout[-3000:] + done.stderr[-3000:]


def _shorter(text: str) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def _copied(stage: Path, folder: Path) -> Path:
    for each in stage.iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    return folder


@pytest.mark.parametrize("name", [n for n in NAMES if any(b.runs for b in blocks(n))])
def test_examples_run(name: str, stage: Path, tmp_path: Path) -> None:
    run_page(name, _copied(stage, tmp_path), slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if any(b.mark == "slow" for b in blocks(n))])
def test_slow_examples_run(name: str, stage: Path, tmp_path: Path) -> None:
    run_page(name, _copied(stage, tmp_path), slow=True)


TWICE = """
import sartor
for call in ("optimize", "optimize", "compare", "compare", "verify", "verify"):
    try:
        first = ["nowhere.onnx"] if call == "compare" else "nowhere.onnx"
        getattr(sartor, call)(first, "nowhere.npz")
    except sartor.WrongRequest:
        pass
"""


def test_functions_of_the_package_can_be_called_again(tmp_path: Path) -> None:
    """A module of the same name, once imported, must not take the function's place."""
    run_block("sartor", Block(0, "python", TWICE), tmp_path)


# -- what is named exists -------------------------------------------------------------------------


@cache
def flags() -> dict[str, frozenset[str]]:
    """Command -> its flags, of the command line as it is."""
    top = parser()
    of_all = frozenset(s for action in top._actions for s in action.option_strings)
    commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: of_all | {s for action in command._actions for s in action.option_strings}
        for name, command in commands.choices.items()
    }


def calls(name: str) -> Iterator[tuple[int, list[str]]]:
    """Every `sartor ...` in blocks and in `code`, as words with the line it stands on."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for block in blocks(name):
        if block.language in ("sh", "text"):
            joined = block.text.replace("\\\n", " ")
            for line in joined.splitlines():
                command = line.removeprefix("$ ").strip()
                if re.match(r"(\S*/)?sartor\s", command):
                    yield block.line, shlex.split(command, comments=True)
    for found in re.finditer(r"`(sartor [^`\n]+)`", _FENCE.sub("", text)):
        yield text.count("\n", 0, text.find(found[0])) + 1, found[1].split()


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_flags_exist(name: str) -> None:
    for line, words in calls(name):
        command = words[1]
        if command.startswith("-"):
            assert command in ("--help", "--version"), f"{name}, line {line}: sartor {command}"
            continue
        assert command in flags(), f"{name}, line {line}: there is no `sartor {command}`"
        given = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
        unknown = given - flags()[command]
        assert not unknown, f"{name}, line {line}: sartor {command} has no {sorted(unknown)}"


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)(?=`|$|\s)", text, re.MULTILINE))
    assert named <= targets, f"{name} names make {sorted(named - targets)}"


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    text = _FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / name).parent / place if place else ROOT / name
        assert path.exists(), f"{name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(path), f"{name} links to {target}: no such heading"


# Words of a path in the repository; what a run or the build makes is not there to be found.
_PATH = re.compile(r"`((?:src|tests|docs|benchmarks|techniques|runtimes|report)/[\w./-]+)`")
_MODULE = re.compile(r"`(_?[a-z][a-z0-9_]*\.py)`")


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    text = _FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    made = {Path(block.why).name for block in blocks(name) if block.mark == "file"}
    for path in _PATH.findall(text):
        if re.search("[A-Z]{2}", path):
            continue  # stands for many
        there = any((root / path).exists() for root in (ROOT, ROOT / "src/sartor"))
        assert there, f"{name} names {path}, which does not exist"
    known = {
        each.name for part in ("src", "tests", "benchmarks") for each in (ROOT / part).rglob("*.py")
    }
    for module in _MODULE.findall(text):
        assert module in known | made | {"file.py"}, f"{name} names {module}: no such file"


def test_every_module_is_on_the_map() -> None:
    """docs/architecture.md names every module of the package."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "sartor"
    modules = [path.relative_to(source) for path in source.rglob("*.py")]
    lacking = [
        str(path)
        for path in modules
        if path.name not in ("__init__.py",)
        and not re.search(rf"(?<![\w.]){re.escape(path.stem)}(?!\w)", text)
    ]
    assert not lacking, f"docs/architecture.md does not name {sorted(lacking)}"


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md names every package that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(each for extra in extras for each in extra)]
    names = {re.split(r"[\[<>=!~ ]", each)[0] for each in asked} - {"sartor"}
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    lacking = sorted(each for each in names if f"| {each} |" not in text)
    assert not lacking, f"docs/dependencies.md does not name {lacking}"
