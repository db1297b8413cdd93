"""A peer: another tool, used as its own documentation tells a user to.

Each file `of_TOOL.py` beside this one lists its peers. `benchmarks/peers.py` makes each in a
process of its own, by the Python of an environment of its own where it names packages for one:

    PYTHON benchmarks/peers/of_TOOL.py NAME JOB.json OUT

The rows that it is given are of the data's train part; it never sees others.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

UNSUITED = 3  # the status of a process whose peer is for other models


class Unsuited(Exception):
    """The peer's documentation speaks of other models than this one."""


@dataclass
class Job:
    """What a peer is given. `out`: the folder for what it makes. `outputs`: names of the model's
    outputs. `threads`: how many a function may use that is written for `sartor compare`.
    `code`: `file.py:factory` of the model as PyTorch code; `program`: the same as torch.export
    wrote it, for one row. Kept for the record: `commands`, what was called; `notes`, where the
    documented way ended and what was done instead."""

    model: Path
    rows: Path
    out: Path
    outputs: list[str]
    threads: int
    code: str = ""
    program: str = ""
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def examples(self, most: int) -> list[dict[str, np.ndarray]]:
        """The first rows, one at a time: input name -> array [1, ...], in the model's order."""
        with np.load(self.rows, allow_pickle=False) as found:
            arrays = {name: found[name][:most] for name in found.files}
        count = min(map(len, arrays.values()))
        return [{name: each[at : at + 1] for name, each in arrays.items()} for at in range(count)]

    def call(self, program: str, *arguments: str | Path) -> str:
        """Runs a program of this environment and returns all that it said. Raises SystemExit with
        its complaint where it ends with another status than 0."""
        command = [program, *map(str, arguments)]
        self.commands.append(shlex.join(command))
        command[0] = str(Path(sys.executable).with_name(program))
        done = subprocess.run(
            command, cwd=self.out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(done.stdout, file=sys.stderr)
        if done.returncode:
            raise SystemExit(complaint(done.stdout) or f"{program}: status {done.returncode}")
        return done.stdout


Made = tuple[Path | str, Sequence[Path]]


@dataclass(frozen=True)
class Peer:
    """`make` returns what `sartor compare` takes (a path or `file.py:function`) and the files that
    it consists of. `page`: the documentation that was followed. `packages`: those whose versions
    are told. `needs`: what an environment of its own is made of; without any it is run by the
    benchmarks' own Python. `code`: it starts from PyTorch code."""

    name: str
    make: Callable[[Job], Made]
    page: str
    packages: tuple[str, ...]
    needs: tuple[str, ...] = ()
    code: bool = False


def complaint(text: str) -> str:
    """The last error that a program names, or else the last line that it wrote."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return " ".join((errors or lines or [""])[-1].split())[:400]


def function(job: Job, stem: str, call: str, files: Sequence[Path]) -> Made:
    """Writes a file whose function `factory` returns the value of `call`, an expression on the
    functions of the `of_TOOL.py` that is running."""
    module = Path(sys.argv[0])
    path = job.out / f"{stem}.py"
    path.write_text(
        f'"""What benchmarks/peers/{module.name} made, for sartor compare."""\n\n'
        f"import sys\n\nsys.path.append({str(module.resolve().parent)!r})\n"
        f"import {module.stem} as tool\n\n\n"
        f"def factory():\n    return tool.{call}\n\n\n"
        f"factory.files = {[str(each.resolve()) for each in files]!r}\n"
    )
    return f"{path}:factory", files


def run(peers: Sequence[Peer]) -> None:
    """Makes the peer that the command line names; what came of it stands in `OUT/made.json`."""
    name, told, out = sys.argv[1:]
    facts: dict[str, Any] = json.loads(Path(told).read_text())
    paths = {key: Path(facts.pop(key)) for key in ("model", "rows")}
    job = Job(**paths, out=Path(out), **facts)
    peer = next(each for each in peers if each.name == name)
    made: dict[str, Any] = {"versions": {each: version(each) for each in peer.packages}}
    try:
        artifact, files = peer.make(job)
        made.update(artifact=str(artifact), files=[str(each) for each in files])
    except Unsuited as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(UNSUITED) from None
    finally:
        made.update(commands=job.commands, notes=job.notes)
        (job.out / "made.json").write_text(json.dumps(made, indent=1) + "\n")
