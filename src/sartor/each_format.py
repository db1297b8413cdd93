"""One request for several formats: a run, an answer, a certificate and a bundle for each.

They share the budget, the model and the holdout in equal parts: the rate at which one of their
certificates errs is that of one run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sartor.contracts import WrongRequest
from sartor.optimizing import optimize
from sartor.report.layout import RenderableType, Table, box
from sartor.report.text import figure, interval
from sartor.run import Run
from sartor.spec import More, Spec
from sartor.terminal import Progress

STATES = {0: "certified", 3: "infeasible", 4: "undecided"}


def optimize_each(spec: Spec, quiet: bool = True) -> dict[str, Run]:
    """The run of each format by its name, in the folder of that name under `out`. What is wrong
    with any of them is said before the first begins (WrongRequest); one that has answered is not
    run again."""
    names = tuple(dict.fromkeys(each.lower().lstrip(".") for each in spec.formats))
    _check(spec, names)
    found = {}
    for name in names:
        one = dataclasses.replace(
            spec, formats=(name,), together=names, out=str(Path(spec.out) / name),
            budget=spec.budget / len(names),
        )  # fmt: skip
        progress = Progress(quiet)
        progress.say(f"--format {name} (of {', '.join(names)})", "bold")
        found[name] = optimize(one, progress)
    return found


def _check(spec: Spec, names: tuple[str, ...]) -> None:
    out = Path(spec.out)
    if spec.resume or isinstance(spec.budget, More):
        raise WrongRequest(
            f"each format has a run of its own: continue one, such as --resume {out / names[0]} "
            "--budget +10m"
        )
    if (out / "run.jsonl").exists():
        raise WrongRequest(
            f"--out {out} holds a run, and each format needs a folder in it: name a new one"
        )


def status(runs: Mapping[str, Run]) -> int:
    """That of all: certified where each is, else undecided where any is, else infeasible."""
    return max(run.status for run in runs.values())


def render(runs: Mapping[str, Run]) -> RenderableType:
    """A line for each format: what was delivered, and where it is."""
    first = next(iter(runs.values())).answer
    table = Table(title="A bundle for each format", box=box.SIMPLE_HEAD)
    for name in ("format", "", "size", "x latency", first["metric"], "chosen", "folder"):
        table.add_column(name, overflow="fold")
    for name, run in runs.items():
        told = run.answer
        ratio = told["figures"].get("latency.ratio")
        table.add_row(
            name, STATES[run.status], figure("size", told["figures"].get("size")),
            "" if ratio is None else f"{ratio:.3f}", _quality(told),
            told["chosen"] or ("as it came" if run.status == 0 else told["message"]),
            str(run.folder),
        )  # fmt: skip
    return table


def _quality(told: Mapping[str, Any]) -> str:
    """The limit on the metric with its interval, where it was judged."""
    judged = [each for each in told["limits"] if each["limit"].startswith(told["metric"])]
    return interval(told["metric"], judged[0]) if judged else ""
