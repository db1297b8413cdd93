"""A run continued: its request out of its journal, and what is left of its budget.

`sartor optimize --resume FOLDER --budget +10m` needs no other flag: the journal holds the request.
Flags that are given go before what it holds; where they would make it another request, the run's
folder refuses it as it refuses any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sartor.contracts import WrongRequest
from sartor.limits import parse
from sartor.records import plain
from sartor.references import is_reference
from sartor.run import RunFolder
from sartor.spec import More, MoreTrials, Spec, beside, from_flags, merge

_OWN = ("out", "resume", "trust")  # of each command, not of the request
_CODE = ("model", "data", "augment")  # may be references to code
_PATHS = ("model", "data", "replay", "augment")


def requested(model: Any = None, **flags: Any) -> Spec:
    """The checked request of a command, be it for a new run or for one to be continued."""
    folder = flags.get("resume")
    if isinstance(folder, (str, Path)):
        return _restored(Path(folder), {**flags, "model": model})
    return from_flags(model, **flags)


def remembered(spec: Spec) -> dict[str, Any]:
    """What the journal keeps of a request, besides what identifies it: paths from the root on;
    nothing of models and data that lived in memory."""
    kept = {name: value for name, value in vars(spec).items() if name not in _OWN}
    for name in _PATHS:
        path = isinstance(kept[name], (str, Path))
        kept[name] = beside(str(kept[name]), Path.cwd()) if path else None
    kept["learn_from"] = [beside(str(each), Path.cwd()) for each in spec.learn_from]
    return {**kept, "cwd": str(Path.cwd())}


def _restored(folder: Path, given: Mapping[str, Any]) -> Spec:
    """The request of the run in `folder`, with what is given now in place of what it had."""
    out = given.get("out")
    if out is not None and Path(out).resolve() != folder.resolve():
        raise WrongRequest(f"--resume {folder} and --out {out} are two folders: name one")
    run = RunFolder(folder)
    first = run.journal.last("request") if folder.is_dir() else None
    if first is None:
        raise WrongRequest(
            f"--resume {folder}: there is no run to continue; name the folder of one, or write "
            "MODEL before --resume"
        )
    if "spec" not in first:
        raise WrongRequest(
            f"{folder} is of an older version, which did not keep the request: repeat its flags "
            f"with --out {folder} --resume"
        )
    kept = dict(first["spec"])
    _check_place(folder, kept, kept.pop("cwd"), bool(given.get("trust")))
    now = {name: each for name, each in given.items() if not (each is None or each == [])}
    for name in ("model", "data"):
        if kept[name] is None and name not in now:
            raise WrongRequest(f"the {name} of {folder} lived in memory only: pass it again")
    had = run.journal.last("budget") or kept
    kept |= {"budget": had["budget"], "trials": had["trials"], "fixed": dict(kept["fixed"])}
    if "budget" in now and "trials" not in now:
        kept["trials"] = None
    spec = merge(
        merge(Spec(), {name: each for name, each in kept.items() if each not in ([], {})}), now
    )
    spec = dataclasses.replace(spec, out=str(folder))
    spec.check()
    return spec


def _check_place(folder: Path, kept: Mapping[str, Any], place: str, trust: bool) -> None:
    """Code that the request names is run only for who says that the folder is to be trusted, and
    from where its path leads to it."""
    metrics = [parse(each).metric for each in kept["limits"]]
    names = [each for each in (kept["metric"], *metrics) if each and is_reference(each)]
    code = names + [kept[n] for n in _CODE if kept.get(n) and is_reference(kept[n])]
    if code and not trust:
        raise WrongRequest(
            f"the request of {folder} runs the code {code[0]}: write --trust if the folder is yours"
        )
    if any(beside(each, Path.cwd()) != beside(each, Path(place)) for each in names):
        raise WrongRequest(f"{names[0]} was named from {place}: write cd {place} first")


def settled(spec: Spec, folder: RunFolder) -> Spec:
    """The spec with its budget in full: what is asked for on top of what the run has had, added to
    it. Raises WrongRequest where a finished run is to be continued with nothing."""
    spent, made = folder.spent(), len(folder.trials())
    budget = spent + spec.budget if isinstance(spec.budget, More) else spec.budget
    trials = spec.trials
    if isinstance(trials, MoreTrials):
        trials = made + trials
    left = budget > spent if trials is None else trials > made
    if folder.journal.last("answer") and spec.resume and not left:
        had = f"{spent:.0f} s" if trials is None else f"{made} trials"
        raise WrongRequest(
            f"{folder.root} has an answer after {had}, all that it was given: say how much more, "
            "such as --budget +10m or --trials +20"
        )
    return dataclasses.replace(spec, budget=float(budget), trials=trials)


def note_budget(spec: Spec, folder: RunFolder) -> None:
    """Writes into the journal what the run may take from now on, where that has changed."""
    first = folder.journal.last("request") or {}
    had = folder.journal.last("budget") or plain(first.get("spec", {}))
    now = {"budget": spec.budget, "trials": spec.trials}
    if now != {name: had.get(name) for name in now}:
        folder.journal.add("budget", **now)
