"""Measures every candidate of a finite space once, for one real model, and writes the landscape.

    python benchmarks/search/record.py adult|digits|fashion|tweets-lstm|tweets-bert|minilm

The model and its data lie in build/ (`--source` names another folder; see `SOURCES` for what makes
them). Candidates are measured in an order drawn at random; what was measured is kept in
build/landscapes, so that a recording that was stopped goes on. Those that come within a fifth of
the best are timed a second time with three times the rounds: replays ask for the best within 3 %.

A landscape is JSON, gzipped: `steps` (every step that occurs), `rows` (examples),
and for each candidate its recipe (indices of steps), state, culprit, digest of the
artifact, bytes, latency ratio with its standard error, seconds, and two sets of bits (base85):
which rows it answers right, and on which it agrees with the original. Latencies measured beside
other work are to be measured anew: `--retime`.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from spaces import SPACES, entries, recipes, restricted

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from laboratory import laboratory  # noqa: E402

from sartor.building import Stopped  # noqa: E402
from sartor.contracts import Failed, Model, WrongRequest, to_json  # noqa: E402
from sartor.evaluate import digest  # noqa: E402
from sartor.priors import features  # noqa: E402
from sartor.records import Journal, Timing  # noqa: E402
from sartor.registry import portfolio, recipe  # noqa: E402
from sartor.trials import Laboratory, size  # noqa: E402

HERE = Path(__file__).resolve().parent / "landscapes"
SOURCES = {
    "adult": "build/adult",  # benchmarks/models/adult_mlp.py
    "digits": "build/nets/digits",  # benchmarks/search/nets.py
    "fashion": "build/fashion",  # benchmarks/models/fashion_cnn.py
    "tweets-lstm": "build/nets/tweets-lstm",
    "tweets-bert": "build/nets/tweets-bert",
    "minilm": "build/demo/input",  # sartor demo
}
ROWS = {"adult": 2048, "fashion": 512, "minilm": 384, "tweets-bert": 1024, "tweets-lstm": 1024}
MOST_ROWS = 2048
FIRST, AGAIN = (4, 0.8), (12, 2.4)  # rounds and seconds of a timing
NEAR = 1.2
FAST = 0.2


def measured(
    lab: Laboratory, wanted: list[dict[str, Any]], rows: int, known: dict[str, Any]
) -> Any:
    """One candidate's entry. `known`: digest -> the entry of the same artifact."""
    began = time.monotonic()
    try:
        model = lab.build(recipe("onnx", wanted))
    except Stopped as end:
        return {"state": end.state, "culprit": end.culprit, "reason": end.reason[:120],
                "seconds": round(time.monotonic() - began, 2)}  # fmt: skip
    name = digest(model)[:12]
    if name in known:
        return {"digest": name}
    try:
        found = {"state": "done", "digest": name, "size": size(model), **timed(lab, model, *FIRST)}
        found |= bits(lab, model, rows)
    except (Failed, WrongRequest) as failure:
        found = {"state": "failed", "digest": name, "reason": str(failure)[:120]}
    known[name] = found
    return {**found, "seconds": round(time.monotonic() - began, 2)}


def timed(lab: Laboratory, model: Model, rounds: int, seconds: float) -> dict[str, float]:
    """The ratio of the fast calls' latencies (the lower quarter's bound), and its standard error
    on the log scale over rounds. Recordings share the machine: a call that was interrupted says
    nothing of the model."""
    timing: Timing = lab.race.time(model, rounds, seconds, least=3)
    lanes = (timing.candidate, timing.baseline)
    after, before = (float(np.quantile(lane, FAST)) for lane in lanes)
    rounds_after, rounds_before = (np.quantile(lane, FAST, axis=1) for lane in lanes)
    logs = np.log(rounds_after / rounds_before)
    spread = float(np.subtract(*np.quantile(logs, [0.75, 0.25]))) / 1.35
    noise = 1.25 * spread / math.sqrt(len(logs))
    return {"ratio": round(after / before, 4), "noise": round(noise, 4), "rounds": len(logs)}


def bits(lab: Laboratory, model: Model, rows: int) -> dict[str, str]:
    before, after = (lab.answered(each, rows) for each in (lab.original, model))
    label = np.asarray(lab.search.label)[lab.order[:rows]]
    right, agrees = after.argmax(1) == label, after.argmax(1) == before.argmax(1)
    return {"right": packed(right), "agrees": packed(agrees)}


def packed(bits: np.ndarray) -> str:
    return base64.b85encode(np.packbits(bits).tobytes()).decode()


def record(name: str, source: Path, most: float, retime: bool = False) -> None:
    place = ROOT / "build" / "landscapes" / name
    ready, lab = laboratory(source, place, 300.0)
    rows = min(ROWS.get(name, MOST_ROWS), len(ready.data.search))
    wanted = [entries(each) for each in recipes(restricted(SPACES[name]))]
    order = np.random.default_rng(7).permutation(len(wanted))
    journal = Journal(place / "candidates.jsonl")
    done = {entry["at"]: entry for entry in journal.events("candidate")}
    for entry in done.values():
        del entry["event"]
    known = {e["digest"]: e for e in done.values() if "ratio" in e or (e.get("state") == "failed"
             and "digest" in e)}  # fmt: skip
    began = time.monotonic()
    with lab:
        for count, at in enumerate(order.tolist()):
            if at in done:
                continue
            if time.monotonic() - began > most:
                print(f"{name}: stopped after {count} of {len(wanted)}", file=sys.stderr)
                return
            entry = measured(lab, wanted[at], rows, known)
            done[at] = {"at": at, **entry}
            journal.add("candidate", at=at, **entry)
            if count % 20 == 0:
                print(
                    f"{name}: {count}/{len(wanted)}, {time.monotonic() - began:.0f} s", flush=True
                )
        if retime:
            for at in [at for at, e in done.items() if "ratio" in e and not e.get("retimed")]:
                model = lab.build(recipe("onnx", wanted[at]))
                done[at] = {**done[at], **timed(lab, model, 8, 1.6), "retimed": True}
                journal.add("candidate", **done[at])
        again(lab, wanted, done, journal)
        first = portfolio(ready.original, lab.bench)
        write(name, lab, wanted, done, rows, [[to_json(s) for s in r] for r in first])
    print(f"{name}: {len(wanted)} candidates, {time.monotonic() - began:.0f} s", flush=True)


def again(lab: Laboratory, wanted: Any, done: dict[int, Any], journal: Journal) -> None:
    """More rounds for the fastest: among them is the best."""
    fast = {e["digest"]: at for at, e in done.items() if "ratio" in e}
    best = min(done[at]["ratio"] for at in fast.values())
    for at in sorted(fast.values()):
        entry = done[at]
        if entry["ratio"] > NEAR * best or entry["rounds"] >= AGAIN[0]:
            continue
        model = lab.build(recipe("onnx", wanted[at]))
        done[at] = {**entry, **timed(lab, model, *AGAIN)}
        journal.add("candidate", **done[at])


def write(
    name: str, lab: Laboratory, wanted: Any, done: dict[int, Any], rows: int, first: Any
) -> None:
    steps: list[Any] = []
    for entry in (step for each in wanted for step in each):
        if entry not in steps:
            steps.append(entry)
    kept = ("state", "culprit", "digest", "size", "ratio", "noise", "right", "agrees", "seconds")
    candidates = [
        {"recipe": [steps.index(step) for step in wanted[at]],
         **{key: done[at][key] for key in kept if key in done[at]}}
        for at in sorted(done)
    ]  # fmt: skip
    facts = {
        "name": name,
        "rows": rows,
        "size": size(lab.original),
        "features": lab.pool.call(features, lab.original, lab.search),
        "portfolio": first,
        "steps": steps,
        "candidates": candidates,
    }
    HERE.mkdir(exist_ok=True)
    text = json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()
    (HERE / f"{name}.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=list(SPACES))
    parser.add_argument("--source", type=Path)
    parser.add_argument("--most", type=float, default=3600.0, help="seconds; then it stops")
    parser.add_argument("--retime", action="store_true", help="measure all latencies anew")
    given = parser.parse_args()
    source = given.source or ROOT / SOURCES[given.name]
    record(given.name, source, given.most, given.retime)


if __name__ == "__main__":
    main()
