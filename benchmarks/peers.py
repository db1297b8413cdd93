"""What other tools make of a model, each used as its documentation tells a user to.

    python benchmarks/peers.py build/resnet18 --code benchmarks/models/resnet18.py:make
    python benchmarks/peers.py build/adult --out build/peers/adult [--only nncf-openvino]

The folder holds `model.onnx` and `eval.npz`, as the scripts in benchmarks/models write them;
`--code` names the same model as PyTorch code, from which some peers start. Each peer gets rows of
the train part alone, a process of its own and a time limit; it fails by itself. Written are an
artifact for each that came through and `peers.json`: versions, the documentation's address, what
was called, seconds, bytes, or the last thing that it said. Artifacts go to `sartor compare` as they
are told.

Environments that a peer needs for itself are made below build/peers/venv when it is first asked
for. None of these processes may download a model: what wants to fails.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TOOLS = HERE / "peers"
sys.path.append(str(TOOLS))

from peer import UNSUITED, Peer, complaint  # noqa: E402

BUILD = ROOT / "build" / "peers"
ROWS = 300  # the most that any of the documentations asks for
LAST_WORDS = 8000  # characters of stderr that are looked through
# Nothing is looked up in a hub, and nobody is told.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "PYTHONPATH": str(ROOT / "src"),
}


@dataclass
class Outcome:
    """What became of a peer. `state`: made, failed or skipped; `reason`: why, in its own words;
    `notes`: where it did not come through by its documentation alone."""

    name: str
    state: str
    page: str
    file: str
    snippet: str
    reason: str = ""
    seconds: float = 0.0
    size: int = 0
    artifact: str = ""
    files: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def known() -> dict[str, tuple[Path, Peer]]:
    """Peer's name -> the file that lists it, and the peer."""
    found = {}
    for file in sorted(TOOLS.glob("of_*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.update({peer.name: (file, peer) for peer in module.PEERS})
    return found


def environment(tool: str, needs: tuple[str, ...]) -> Path:
    """The Python that has these packages, installed where they are not yet. Raises RuntimeError
    with pip's complaint."""
    if not needs:
        return Path(sys.executable)
    place = BUILD / "venv" / tool
    python, mark = place / "bin" / "python", place / "needs.json"
    if mark.is_file() and json.loads(mark.read_text()) == list(needs):
        return python
    print(f"installing {' '.join(needs)} into {place}", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", *needs],
    ):
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"not installed: {complaint(done.stderr)}")
    mark.write_text(json.dumps(needs))
    return python


def prepare(source: Path, out: Path, code: str, threads: int) -> Path:
    """Writes the rows that peers may see, the model as torch.export writes it where there is code,
    and `job.json`, which names them."""
    graph = onnx.load(source / "model.onnx", load_external_data=False).graph
    constants = {each.name for each in graph.initializer}
    inputs = [each.name for each in graph.input if each.name not in constants]
    with np.load(source / "eval.npz", allow_pickle=False) as data:
        missing = {"split", *inputs} - set(data.files)
        if missing:
            raise SystemExit(f"{source / 'eval.npz'} has no {', '.join(sorted(missing))}")
        rows = np.flatnonzero(data["split"] == "train")[:ROWS]
        if not len(rows):
            raise SystemExit(f"{source / 'eval.npz'} has no rows whose split is train")
        given = {name: data[name][rows] for name in inputs}
    np.savez(out / "rows.npz", **given)
    facts = {
        "model": str((source / "model.onnx").resolve()),
        "rows": str((out / "rows.npz").resolve()),
        "outputs": [each.name for each in graph.output],
        "threads": threads,
    }
    if code:
        place, _, name = code.rpartition(":")
        facts["code"] = f"{Path(place).resolve()}:{name}"
        facts["program"] = export(facts["code"], given, out / "model.pt2")
    (out / "job.json").write_text(json.dumps(facts, indent=1) + "\n")
    return out / "job.json"


def export(code: str, rows: dict[str, np.ndarray], path: Path) -> str:
    """Other environments lack what the code imports, so that they are given this."""
    import torch

    from sartor.references import made_by

    example = tuple(torch.from_numpy(each[:1]) for each in rows.values())
    torch.export.save(torch.export.export(made_by(code).eval(), example), path)
    return str(path.resolve())


def attempt(file: Path, peer: Peer, job: Path, out: Path, limit: float) -> Outcome:
    """Lets the peer work; whatever happens to it is an outcome."""
    found = Outcome(
        peer.name, "failed", peer.page, str(file.relative_to(ROOT)), inspect.getsource(peer.make)
    )
    if peer.code and "code" not in json.loads(job.read_text()):
        found.state = "skipped"
        found.reason = "it starts from PyTorch code: write --code FILE.py:FACTORY"
        return found
    try:
        python = environment(file.stem.removeprefix("of_"), peer.needs)
    except RuntimeError as error:
        found.reason = str(error)
        return found
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [str(python), str(file), peer.name, str(job.resolve()), str(out.resolve())]
    began = time.monotonic()
    with (out / "stdout.txt").open("w") as said, (out / "stderr.txt").open("w") as complained:
        process = subprocess.Popen(
            command, cwd=out, stdout=said, stderr=complained, start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            found.reason = f"not done after {limit / 60:g} minutes"
        finally:
            end(process)
    found.seconds = round(time.monotonic() - began, 1)
    if (out / "made.json").is_file():
        vars(found).update(json.loads((out / "made.json").read_text()))
    if process.returncode == 0:
        found.state, found.size = "made", sum(Path(each).stat().st_size for each in found.files)
    elif not found.reason:
        found.reason = complaint((out / "stderr.txt").read_text(errors="replace")[-LAST_WORDS:])
        if process.returncode == UNSUITED:
            found.state = "skipped"
        if process.returncode < 0:
            signalled = signal.Signals(-process.returncode).name
            found.reason = f"ended by {signalled}; {found.reason}"
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def table(found: list[Outcome]) -> str:
    lines = [("peer", "state", "s", "MB", "artifact, or why not"), ("---",) * 5]
    for each in found:
        size = f"{each.size / 1e6:.2f}" if each.size else "-"
        last = "; ".join([each.artifact or each.reason, *each.notes])
        lines.append((each.name, each.state, f"{each.seconds:.0f}", size, last))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    peers = known()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder with model.onnx and eval.npz")
    parser.add_argument("--out", type=Path, help="build/peers/NAME of the folder, if not given")
    parser.add_argument("--code", default="", help="FILE.py:FACTORY of the model as PyTorch code")
    parser.add_argument("--only", action="append", choices=list(peers))
    parser.add_argument("--minutes", type=float, default=20.0, help="that each may take")
    parser.add_argument("--threads", type=int, default=1, help="of functions for sartor compare")
    given = parser.parse_args()
    out = (given.out or BUILD / given.model.resolve().name).resolve()
    out.mkdir(parents=True, exist_ok=True)
    job = prepare(given.model, out, given.code, given.threads)
    record = out / "peers.json"
    found = {}
    if given.only and record.is_file():  # what the other peers did stays
        earlier = (Outcome(**each) for each in json.loads(record.read_text())["peers"])
        found = {each.name: each for each in earlier if each.name in peers}
    for name in given.only or peers:
        print(name, file=sys.stderr, flush=True)
        found[name] = attempt(*peers[name], job, out / name, 60 * given.minutes)
        told = {
            "model": str(given.model.resolve()),
            "threads": given.threads,
            "peers": [asdict(found[name]) for name in peers if name in found],
        }
        record.write_text(json.dumps(told, indent=1) + "\n")
    outcomes = [found[name] for name in peers if name in found]
    print(table(outcomes))
    artifacts = [each.artifact for each in outcomes if each.state == "made"]
    command = ["sartor", "compare", str(given.model / "model.onnx"), *artifacts]
    print(shlex.join([*command, "--data", str(given.model / "eval.npz")]))


if __name__ == "__main__":
    main()
