"""One function per command of the command line: prints for people, returns for programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.contracts import WrongRequest
from sartor.libraries import OPTIMIZE, needing
from sartor.records import Journal, plain
from sartor.report.text import console
from sartor.terminal import Progress

if TYPE_CHECKING:
    from sartor.spec import Spec


@dataclass(frozen=True)
class Answer:
    status: int
    data: dict[str, Any] = field(default_factory=dict)


def optimize(json: bool, quiet: bool, model: str | None, **flags: Any) -> Answer:
    from sartor.report.text import render_answer

    with needing("sartor optimize", OPTIMIZE):
        from sartor.optimizing import optimize as run_it
        from sartor.resuming import requested
    spec = requested(model, **flags)
    if len(spec.formats) > 1:
        return _optimize_each(json, quiet, spec)
    try:
        run = run_it(spec, Progress(quiet))
    except KeyboardInterrupt:
        bundle = Path(spec.out) / "bundle"
        early = f"{bundle} is certified so far; " if (bundle / "sartor.json").exists() else ""
        begun = Journal(Path(spec.out) / "run.jsonl").last("request") is not None
        also = f", or: sartor optimize --resume {spec.out}" if begun else ""
        raise KeyboardInterrupt(f"{early}the same command goes on where it was{also}") from None
    console(stderr=json).print(render_answer(run.answer))
    return Answer(run.status, run.answer)


def _optimize_each(json: bool, quiet: bool, spec: Spec) -> Answer:
    from sartor.each_format import optimize_each, render, status

    try:
        runs = optimize_each(spec, quiet)
    except KeyboardInterrupt:
        again = "the same command goes on where it was; what is certified lies below"
        raise KeyboardInterrupt(f"{again} {spec.out}") from None
    console(stderr=json).print(render(runs))
    return Answer(status(runs), {"formats": {name: run.answer for name, run in runs.items()}})


def report(json: bool, folder: str) -> Answer:
    from sartor.report.text import render

    journal = Journal(Path(folder) / "run.jsonl")
    if not journal.path.exists():
        raise WrongRequest(f"{folder} holds no run: {_instead(Path(folder))}")
    console(stderr=json).print(render(journal))
    return Answer(0, journal.last("answer") or {})


def _instead(folder: Path) -> str:
    """What to write where somebody asks for the report of a folder that is no run's."""
    run = folder.absolute().parent
    if (run / "run.jsonl").exists():
        return f"write sartor report {run}"
    several = sorted(each.parent.name for each in folder.glob("*/run.jsonl"))
    if several:
        return f"a run for each format lies in it: {', '.join(several)}"
    if (folder / "sartor.json").exists():
        return "it is a bundle, which a run has left; card.md in it says what it is"
    return "there is no run.jsonl in it"


def profile(json: bool, top: int, model: str, **flags: Any) -> Answer:
    from sartor.profile import profile_model, render

    found = profile_model(model, **flags)
    console(stderr=json).print(render(found, top))
    return Answer(0, plain(found))


def compare(json: bool, models: list[str], **flags: Any) -> Answer:
    from sartor.comparing import compare as compare_them
    from sartor.comparing import render

    found = compare_them(models, Progress(), **flags)
    console(stderr=json).print(render(found))
    return Answer(0, plain(found))


def verify(json: bool, bundle: str, **flags: Any) -> Answer:
    from sartor.report.text import render_answer
    from sartor.verifying import verify as verify_it

    found = verify_it(Path(bundle), progress=Progress(), **flags)
    console(stderr=json).print(render_answer(found))
    return Answer(found["status"], found)


def doctor(json: bool) -> Answer:
    from sartor.doctor import diagnose, render

    found = diagnose()
    console(stderr=json).print(render(found))
    return Answer(0, found)


def demo(json: bool, out: str, budget: str) -> Answer:
    with needing("the demo", "pip install 'sartor[demo]'"):
        from sartor.demo import build
    print("Building the demo's model and data from installed packages", file=sys.stderr)
    folder = Path(out)
    model, data = build(folder / "input", lambda text: print(text, file=sys.stderr))
    answer = optimize(
        json,
        False,
        str(model),
        data=str(data),
        limits=["accuracy >= baseline - 0.01", "size <= 25 MB"],
        minimize="latency",
        budget=budget,
        out=str(folder / "run"),
    )
    print(
        f"journal and bundle: {folder / 'run'}; read it again with: sartor report {folder / 'run'}"
    )
    return answer
