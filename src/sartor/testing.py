"""The technique laws: what every technique keeps, for authors of plug-ins to run over their own.

    toys = [Toy("mlp", runtime("onnx").open(path), batch), ...]       models of milliseconds
    with Lab(toys, tmp_path) as lab:
        LAWS["deterministic"](lab, MyTechnique)        raises Broken with a sentence

A law that has nothing to look at (a technique that claims no saving) holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import (
    STAGES,
    Model,
    Recipe,
    Target,
    Technique,
    WrongRequest,
    describe,
    technique_name,
    to_json,
    trains,
)
from sartor.lab import Broken, Lab, Toy, ToyBench, alike, apply, keeps
from sartor.registry import from_json, runtime, techniques
from sartor.space import domains
from sartor.store import read_model, write_model
from sartor.workers import Worker

__all__ = ["LAWS", "Broken", "Lab", "Toy", "ToyBench", "alike", "apply", "digests"]

ALIKE = 0.9  # cosine of outputs before and after, at default settings
ALIKE_TWO = 0.8  # the same after two techniques


def _hold(true: bool, sentence: str) -> None:
    if not true:
        raise Broken(sentence)


# --- the laws -------------------------------------------------------------------------------------


def settings(lab: Lab, cls: type[Technique]) -> None:
    """Every setting has a domain and its default lies in it; what it declares of itself exists."""
    name, known = technique_name(cls), domains(cls)
    for each in dataclasses.fields(cls):
        _hold(each.name in known, f"{name}: the setting {each.name} has no domain")
        _hold(
            each.default in known[each.name],
            f"{name}: the default {each.name}={each.default!r} is not in {known[each.name]}",
        )
    _hold(bool(cls.kinds), f"{name}: it takes no kind of model")
    _hold(cls.stage in STAGES, f"{name}: its stage {cls.stage!r} is none of {STAGES}")
    _hold(
        cls.repair is None or cls.repair in known, f"{name}: no setting {cls.repair} to repair by"
    )
    for setting, value in (cls.neutral or {}).items():
        inside = setting in known and value in known[setting]
        _hold(inside, f"{name}: neutral {setting}={value!r} is not in a domain")


def round_trip(lab: Lab, cls: type[Technique]) -> None:
    """Equal, and equally hashed, after a round trip through JSON, at every value of a grid."""
    variants = [cls()]
    for setting, domain in domains(cls).items():
        variants += [cls(**{setting: value}) for value in domain.grid(5)]
    for technique in variants:
        entry = json.loads(json.dumps(to_json(technique), allow_nan=False))
        try:
            back = from_json(lab.kind, entry)
        except WrongRequest as error:
            raise Broken(f"{technique} is refused after a round trip: {error}") from error
        same = back == technique and hash(back) == hash(technique)
        _hold(same, f"{technique} comes back from JSON as {back}")


def input_untouched(lab: Lab, cls: type[Technique]) -> None:
    """The input's digest, and the files beside it, are as before."""
    for toy in lab.toys.values():
        before = lab.runtime.digest(toy.model), _files(toy.model)
        lab.make(toy, (cls(),))
        after = lab.runtime.digest(toy.model), _files(toy.model)
        _hold(before == after, f"{technique_name(cls)} changed its input {toy.name}")


def _files(model: Model) -> dict[str, str]:
    """Path -> digest of all that lies beside a model that is a file."""
    if not isinstance(model.payload, Path):
        return {}
    beside = sorted(path for path in model.payload.parent.iterdir() if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in beside}


def deterministic(lab: Lab, cls: type[Technique]) -> None:
    """The same seed, the same digest: in a fresh bench, and in another process."""
    toys = [toy for toy, _ in lab.made(cls())]
    first = {toy.name: runtime(model.kind).digest(model) for toy, model in lab.made(cls())}
    again = digests(cls(), toys, lab.folder / f"again-{technique_name(cls)}")
    _hold(
        first == again,
        f"{technique_name(cls)}: another digest at the second time: {_odd(first, again)}",
    )


def same_elsewhere(lab: Lab, cls: type[Technique], worker: Worker | None = None) -> None:
    """The same digest in another process. A worker can be given for many techniques."""
    toys = [toy for toy, _ in lab.made(cls())]
    first = {toy.name: runtime(model.kind).digest(model) for toy, model in lab.made(cls())}
    folder = lab.folder / f"elsewhere-{technique_name(cls)}"
    other = worker or Worker("law")
    try:
        there = other.call(digests, cls(), toys, folder, timeout=300)
    finally:
        if worker is None:
            other.close()
    _hold(first == there, f"{technique_name(cls)}: another digest elsewhere: {_odd(first, there)}")


def digests(technique: Technique, toys: Sequence[Toy], folder: Path) -> dict[str, str]:
    """Toy -> digest of what the technique makes of it, in fresh benches below `folder`."""
    found = {}
    for toy in toys:
        made = apply(technique, toy.model, ToyBench(toy, folder / toy.name))
        found[toy.name] = made if isinstance(made, str) else runtime(made.kind).digest(made)
    return found


def _odd(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    return ", ".join(sorted(name for name in first if first[name] != second.get(name)))


def same_signature(lab: Lab, cls: type[Technique]) -> None:
    """Names, dtypes and shapes of inputs and outputs stay, in what it says and in the file; a
    conversion to a kind of fixed sizes may fix those that were free."""
    for toy, model in lab.made(cls()):
        here = lab.runtime if model.kind == lab.kind else runtime(model.kind)
        folder = lab.folder / f"saved-{technique_name(cls)}-{toy.name}"
        folder.mkdir(exist_ok=True)
        opened = here.open(here.save(model, folder))
        for which, found in (("says", model.signature), ("is", opened.signature)):
            _hold(
                keeps(toy.model.signature, found, model.kind),
                f"{technique_name(cls)} on {toy.name}: the signature {which} {found}, "
                f"not {toy.model.signature}",
            )


def refuses(lab: Lab, cls: type[Technique]) -> None:
    """A foreign kind and absent data are refused with a reason; nothing is raised but Failed."""
    name = technique_name(cls)
    for toy in lab.toys.values():
        foreign = dataclasses.replace(toy.model, kind="no such kind", payload=None)
        refused = isinstance(apply(cls(), foreign, lab.bench(toy)), str)
        _hold(refused, f"{name} does not refuse a model of a foreign kind")
        without = lab.bench(toy, parts=("search",))
        made = apply(cls(), toy.model, without)
        if cls.needs:
            refused = isinstance(made, str)
            _hold(refused, f"{name} needs {sorted(cls.needs)} and runs on {toy.name} without train")
    taken = any(True for _ in lab.made(cls())) or _preparations(lab, cls) or _fixed(lab, cls)
    _hold(bool(taken), f"{name} refuses every toy: give the lab one that it takes")


def narrows(lab: Lab, cls: type[Technique]) -> None:
    """Where the target asks for fixed shapes, sizes become those or stay free, nothing else."""
    for toy, model, fixed in _fixed(lab, cls):
        name = f"{technique_name(cls)} on {toy.name}"
        for before, after in zip(toy.model.signature.inputs, model.signature.inputs, strict=True):
            lawful = (before, dataclasses.replace(before, shape=fixed[before.name]))
            _hold(after in lawful, f"{name}: the input {after} is neither as it was nor as asked")
        for before, after in zip(toy.model.signature.outputs, model.signature.outputs, strict=True):
            same = (before.name, before.dtype) == (after.name, after.dtype)
            _hold(same, f"{name}: the output {before} became {after}")
        batch = toy.batch(2, 9)
        found = alike(lab.answers(toy.model, batch), lab.answers(model, batch))
        _hold(found >= ALIKE, f"{name} with fixed shapes: cosine {found:.3f}")


def _fixed(lab: Lab, cls: type[Technique]) -> list[tuple[Toy, Model, dict[str, tuple[int, ...]]]]:
    """The first toy that it takes where the target fixes the shapes of a batch of two."""
    for toy in lab.toys.values():
        shapes = {name: value.shape for name, value in toy.batch(2, 9).items()}
        target = Target(fixed=tuple(shapes.items()))
        made = apply(cls(), toy.model, lab.bench(toy, target=target))
        if isinstance(made, Model):
            return [(toy, made, shapes)]
    return []


def neutral(lab: Lab, cls: type[Technique]) -> None:
    """The neutral settings reproduce the outputs."""
    if cls.neutral is None:
        return
    for toy, model in lab.made(cls(**cls.neutral)):
        batch = toy.batch(5, 9)
        one, two = lab.answers(toy.model, batch), lab.answers(model, batch)
        for output, value in one.items():
            _hold(
                np.allclose(value, two[output], rtol=1e-5, atol=1e-6),
                f"{technique_name(cls)} with {cls.neutral} changes {output} of {toy.name}",
            )


def partition(lab: Lab, cls: type[Technique]) -> None:
    """One more Step; touched and skipped share nothing, every skipped part has its reason."""
    name = technique_name(cls)
    for toy, model in lab.made(cls()):
        _hold(
            model.lineage[:-1] == toy.model.lineage and model.lineage[-1].technique == cls(),
            f"{name} on {toy.name}: the lineage is not the input's with its own step",
        )
        step = model.lineage[-1]
        parts = [*step.touched, *(part for part, _ in step.skipped)]
        _hold(bool(step.touched), f"{name} on {toy.name}: nothing touched, and no refusal")
        _hold(len(parts) == len(set(parts)), f"{name} on {toy.name}: a part is told twice")
        _hold(all(parts), f"{name} on {toy.name}: a part without a name")
        for part, reason in step.skipped:
            _hold(len(reason) >= 5, f"{name} on {toy.name}: {part} skipped without a reason")


def claims(lab: Lab, cls: type[Technique]) -> None:
    """A claimed saving of size or multiply-accumulates is seen by the runtime's own measure on a
    toy, or on one that another technique prepared; it must not grow on any by more than a tenth."""
    for what in sorted(cls.claims & {"size", "macs"}):
        seen = [
            (toy, before, model)
            for recipe in [(), *_preparations(lab, cls)]
            for toy, model in lab.made(*recipe, cls())
            if isinstance(before := lab.make(toy, recipe), Model)
        ]
        ratios = {
            toy.name: _measure(lab, what, toy, m) / _measure(lab, what, toy, b)
            for toy, b, m in seen
        }
        _hold(
            min(ratios.values(), default=1.0) < 1.0,
            f"{technique_name(cls)} claims {what}: after / before is {ratios}",
        )
        worst = max(ratios, key=lambda toy: ratios[toy])
        _hold(
            ratios[worst] < 1.1,
            f"{technique_name(cls)}: {what} of {worst} grows: {ratios[worst]:.2f}",
        )


def _preparations(lab: Lab, cls: type[Technique]) -> list[Recipe]:
    """Recipes of one technique of an earlier stage, where it refuses every toy as it is (zeros
    must be there before they can be stored compactly)."""
    if any(True for _ in lab.made(cls())):
        return []
    earlier = [
        other
        for other in techniques(lab.kind).values()
        if STAGES.index(other.stage) < STAGES.index(cls.stage)
    ]
    return [(other(),) for other in earlier if any(True for _ in lab.made(other(), cls()))]


def _measure(lab: Lab, what: str, toy: Toy, model: Model) -> float:
    if what == "size":
        return float(runtime(model.kind).size(model))
    parts = runtime(model.kind).parts(model, toy.batch(1, 9))
    return float(sum(part.macs or 0 for part in parts)) or 1.0


def faithful(lab: Lab, cls: type[Technique]) -> None:
    """At default settings the outputs stay finite and close (cosine), at batch 1, 3 and 16."""
    for toy, model in lab.made(cls()):
        for rows in (1, 3, 16):
            batch = toy.batch(rows, 9)
            one, two = lab.answers(toy.model, batch), lab.answers(model, batch)
            for output, value in one.items():
                same = value.shape == two[output].shape and value.dtype == two[output].dtype
                _hold(same, f"{technique_name(cls)} on {toy.name}: another shape for {rows} rows")
            found = alike(one, two)
            _hold(
                found >= (ALIKE if rows > 1 else ALIKE - 0.1),
                f"{technique_name(cls)} on {toy.name}: cosine {found:.3f} for {rows} rows",
            )


def composes(lab: Lab, cls: type[Technique]) -> None:
    """After each technique of its own or an earlier stage it works or is refused, and the outputs
    stay close. Where one of them trains, on some of the toys each time, in turn."""
    for number, other in enumerate(techniques(lab.kind).values()):
        if STAGES.index(other.stage) > STAGES.index(cls.stage):
            continue
        turns = _turns(lab, 3, cls, other)
        for name, toy in list(lab.toys.items())[number % turns :: turns]:
            recipe = (other(), cls())
            model = lab.make(toy, recipe)
            if isinstance(model, str):
                continue
            words = f"{describe(recipe)} on {name}"
            _hold(len(model.lineage) == 2, f"{words}: the lineage has not both steps")
            same = keeps(toy.model.signature, model.signature, model.kind)
            _hold(same, f"{words}: another signature")
            batch = toy.batch(5, 9)
            found = alike(lab.answers(toy.model, batch), lab.answers(model, batch))
            _hold(found >= ALIKE_TWO, f"{words}: cosine {found:.3f}")


def survives(lab: Lab, cls: type[Technique]) -> None:
    """Written and read again: the same digest, signature, settings, lineage and answers."""
    for toy, model in lab.made(cls()):
        words = f"{technique_name(cls)} on {toy.name}, written and read again:"
        folder = lab.folder / f"kept-{technique_name(cls)}-{toy.name}"
        write_model(model, folder)
        try:
            back = read_model(folder)
        except WrongRequest as error:
            raise Broken(f"{words} {error}") from error
        for what in ("signature", "settings", "lineage"):
            same = getattr(back, what) == getattr(model, what)
            _hold(same, f"{words} another {what}, {getattr(back, what)}")
        here = runtime(model.kind)
        _hold(here.digest(back) == here.digest(model), f"{words} another digest")
        batch = toy.batch(3, 9)
        one, two = lab.answers(model, batch), lab.answers(back, batch)
        same = all(np.array_equal(one[output], two[output]) for output in one)
        _hold(same, f"{words} other answers")


def leaves_state(lab: Lab, cls: type[Technique]) -> None:
    """Random state, gradient mode, environment, working folder and log are left as found."""
    for toy in lab.toys.values():
        before = _state()
        apply(cls(), toy.model, lab.bench(toy, seed=0))
        for (what, one), two in zip(before.items(), _state().values(), strict=True):
            _hold(one == two, f"{technique_name(cls)} on {toy.name} changed {what}")


def _state() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    random = np.random.get_state(legacy=True)
    return {
        "numpy's random state": hashlib.sha256(str(random).encode()).hexdigest(),
        "the environment": dict(os.environ),
        "the working folder": os.getcwd(),
        "the log's level": (logging.root.manager.disable, logging.root.level),
        "numpy's error handling": np.geterr(),
        "torch's gradient mode": torch.is_grad_enabled() if torch else None,
        "torch's dtype": torch.get_default_dtype() if torch else None,
        "torch's threads": torch.get_num_threads() if torch else None,
        "torch's random state": torch.random.initial_seed() if torch else None,
    }


def extremes(lab: Lab, cls: type[Technique]) -> None:
    """At both ends of every setting's domain it works or is refused; the outputs stay finite. What
    trains is tried on some of the toys each time, in turn."""
    ends = [(name, end) for name, domain in domains(cls).items() for end in domain.grid(2)]
    toys, turns = list(lab.toys.items()), _turns(lab, 4, cls)
    for number, (setting, value) in enumerate(ends):
        technique = cls(**{setting: value})
        for name, toy in toys[number % turns :: turns]:
            model = lab.make(toy, (technique,))
            if isinstance(model, Model):
                answers = lab.answers(model, toy.batch(3, 9))
                finite = all(np.isfinite(each).all() for each in answers.values())
                _hold(finite, f"{describe((technique,))} on {name}: outputs are not finite")


def _turns(lab: Lab, most: int, *several: type[Technique]) -> int:
    """Each how many toys one is tried, where one of the techniques trains."""
    return min(most, len(lab.toys)) if any(map(trains, several)) else 1


Law = Callable[..., None]

LAWS: Mapping[str, Law] = {
    law.__name__: law
    for law in (
        settings,
        round_trip,
        input_untouched,
        deterministic,
        same_elsewhere,
        same_signature,
        refuses,
        narrows,
        neutral,
        partition,
        claims,
        faithful,
        composes,
        survives,
        leaves_state,
        extremes,
    )
}
