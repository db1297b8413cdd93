"""From what the user wants to what a run needs: the model opened, the data split, the task known,
the limits parsed, the original seen to work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sartor import machine
from sartor.certify import check_holdout
from sartor.contracts import Arrays, Failed, Model, Target, Task, WrongRequest, technique_name
from sartor.data import Data, Part, read
from sartor.evaluate import answering, digest
from sartor.figures import truth_of
from sartor.fitting import natural_batch
from sartor.glimpse import looker, repeatable
from sartor.lanes import sample_outputs
from sartor.limits import PERFORMANCE, Limit, Objective, parse, parse_objective
from sartor.metrics import Truth, check_labels, default_limit, find, infer_task
from sartor.registry import (
    adopt,
    conversion,
    format_of,
    kinds,
    no_technique,
    reachable,
    runtime,
)
from sartor.spec import Spec, beside
from sartor.user_functions import Augmentation, augmentation
from sartor.workers import Pool

SAMPLE = 128  # examples of the search split on which the original is looked at before the run


@dataclass(frozen=True)
class Prepared:
    original: Model
    data: Data
    task: Task
    target: Target
    limits: tuple[Limit, ...]
    objective: Objective
    notes: tuple[str, ...]
    request: Mapping[str, Any]
    augment: Augmentation | None = None


def prepare(spec: Spec, work: Path, pool: Pool) -> Prepared:
    """Opens and checks everything; `pool` runs the original. Raises WrongRequest, one sentence."""
    if spec.model is None:
        raise WrongRequest("there is no model: name its file")
    if spec.data is None:
        raise WrongRequest("there are no data: write --data FILE (labelled examples)")
    augment = None if spec.augment is None else augmentation(beside(spec.augment, Path.cwd()))
    source = repeatable(spec.data)
    columns: dict[str, Any] = {"label": spec.label, "segments": spec.segments, "group": spec.group}
    original = adopt(
        spec.model, work / "original", look=looker(source, **columns, trust=spec.trust),
        trust=spec.trust,
    )  # fmt: skip
    allowed(spec, original.kind)
    _check_formats(spec, original.kind)
    data = read(
        source,
        work / "data",
        original.signature,
        **columns,
        mask=spec.mask,
        trust=spec.trust,
    )  # split without the seed: another seed must not turn rows that chose into rows that certify
    # A model that insists on a batch is asked for that many unless the request says otherwise.
    batch = natural_batch(original.signature) if spec.batch == 1 else None
    target = Target("cpu", spec.threads, batch or spec.batch, machine.features(), spec.fixed)
    objective = parse_objective(spec.objective)
    limits = tuple(parse(text) for text in spec.limits)
    sample = _sampled(pool, original, target, data.search)
    task, told = _task(spec, original, data.search, sample)
    check_holdout(data.holdout, task)
    notes = [*remarks(original), *data.facts.get("warnings", ()), *told]
    notes += _look(task, data.search, sample)
    notes += _kernels(objective, target)
    if not any(each.quality for each in limits):
        limits += (parse(default_limit(task)),)
        notes.append(f"no limit on quality was given: {limits[-1].text} is taken")
    for each in limits:
        if each.quality:
            find(each.metric, task)
    given = sample[task.output]
    notes += _asks_little(task, limits, given, truth_of(data.search, given, np.arange(len(given))))
    if objective.metric not in PERFORMANCE:
        find(objective.metric, task)
    _segments(limits, data.search)
    request = _request(spec, original, data, task, limits, target)
    if spec.formats:
        request["formats"] = sorted(spec.formats)
    if spec.together:
        request["together"] = list(spec.together)
    if augment is not None:
        request["augment"] = augment.digest
    if spec.train_processes > 1:
        request["train_processes"] = spec.train_processes
    return Prepared(original, data, task, target, limits, objective, tuple(notes), request, augment)


def _kernels(objective: Objective, target: Target) -> list[str]:
    """What the processor has no fast kernels for, where time is what counts."""
    if objective.metric not in ("latency", "throughput", "energy") or machine.multiplies_integers(
        target.features
    ):
        return []
    return [
        "this processor has no instructions for products of eight bits (VNNI, AMX, dot products): "
        "int8 gains less here than elsewhere, or loses, and what keeps floats is tried in between"
    ]


def _task(spec: Spec, original: Model, part: Part, sample: Arrays) -> tuple[Task, tuple[str, ...]]:
    """What the model is for, and what is to be said of it: as the request says, else as its own
    training did where the data allow it, else as the numbers look."""
    asked = functools.partial(
        infer_task, answering(original.signature, sample), part, sample, output=spec.output
    )
    told = purpose(original) if spec.metric is None and spec.task is None else {}
    if not told:
        return asked(kind=spec.task, metric=spec.metric), ()
    for taken in (dict(told), {"kind": told["kind"]}):
        with contextlib.suppress(WrongRequest):  # no labels, or others than it was trained on
            task = asked(**taken)
            note = f"it was compiled for {task.kind}: quality is {task.metric}"
            left = told.keys() - taken.keys()
            return task, (note + (f", not {told['metric']}, which does not fit" if left else ""),)
    task = asked()
    return task, (
        f"it was compiled for {told['kind']}, which does not fit these rows: it is judged as "
        f"{task.kind} by {task.metric}",
    )


def _sampled(pool: Pool, original: Model, target: Target, part: Part) -> dict[str, np.ndarray]:
    try:
        return pool.call(sample_outputs, original, target, part, SAMPLE, timeout=600)
    except Failed as failure:
        raise WrongRequest(f"the original model does not run on its data: {failure}") from None


def _segments(limits: tuple[Limit, ...], part: Part) -> None:
    for each in limits:
        for column in each.segments:
            if column not in part.segments:
                known = ", ".join(part.segments) or "none"
                raise WrongRequest(
                    f"{each.text}: there is no segment column {column!r} in the data; there are: "
                    f"{known}"
                )


def _look(task: Task, part: Part, sample: Arrays) -> list[str]:
    """What is suspicious about the original before anything was done to it."""
    given = sample[task.output]
    rows = np.arange(len(given))
    truth = truth_of(part, given, rows)
    if not task.labelled:
        return [
            "there are no labels (an array or column `label`, or the one that --label names): "
            "quality is agreement with the original's own answers, and they alone teach where "
            "something is trained",
        ]
    check_labels(task, np.asarray(part.label))
    if task.kind != "classification" or truth.label is None:
        return []
    accuracy = find("accuracy", task).value(given, truth)
    labels = np.asarray(truth.label)
    guess = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    if accuracy <= guess + 0.02:
        return [
            f"the original is right on {accuracy:.1%} of {len(given)} examples, and always giving "
            f"the commonest answer on {guess:.1%}: check its preprocessing and the labels first"
        ]
    return []


def _asks_little(task: Task, limits: Sequence[Limit], given: np.ndarray, truth: Truth) -> list[str]:
    """Limits that one and the same answer to every row would meet: an autoencoder's outputs are
    much alike, and so are the classes of rare events."""
    if task.labelled:
        return []
    if task.metric == "agreement" and given.ndim == 2 and given.shape[1] > 1:
        top = given.argmax(1)
        same = given[[int((top == np.bincount(top).argmax()).argmax())]]
    elif task.metric == "cosine":
        same = given.mean(0, keepdims=True)
    else:
        return []
    found = find(task.metric, task).value(np.repeat(same, len(given), 0), truth)
    other = " (--metric rel_error asks more)" if task.metric == "cosine" else ""
    return [
        f"an answer that never changes would have {task.metric} {found:.4f} with the original's "
        f"and meet {each.text} too: it asks little here{other}"
        for each in limits
        if each.metric == task.metric and each.bound.kind == "absolute" and each.higher
        if not each.segment and found >= each.bound.value
    ]


def _request(
    spec: Spec,
    original: Model,
    data: Data,
    task: Task,
    limits: tuple[Limit, ...],
    target: Target,
) -> dict[str, Any]:
    """What decides the answer, budget apart: two runs with the same request are the same run."""
    return {
        "model": digest(original),
        "kind": original.kind,
        "data": {
            "train": data.train.digest if data.train is not None else None,
            "search": data.search.digest,
            "holdout": data.holdout.digest,
        },
        "task": dataclasses.asdict(task),
        "limits": [each.text for each in limits],
        "objective": spec.objective,
        "threads": spec.threads,
        "batch": target.batch,
        "fixed": spec.fixed,
        "watts": spec.watts,
        "seed": spec.seed,
        "confidence": spec.confidence,
        "recipes": spec.recipes,
        "machine": {name: machine.describe()[name] for name in ("cpu", "cores")},
        "techniques": sorted(allowed(spec, original.kind)),
    }


def allowed(spec: Spec, kind: str) -> dict[str, Any]:
    """The techniques that the search may use; what converts a model stays where others are named
    that need it, or a format; what is experimental is left out unless it is named."""
    known = reachable(kind)
    named = {each.get("technique") for entries in spec.recipes for each in entries}
    for name in (*spec.techniques, *spec.without):
        if name not in known:
            raise no_technique(name, kind, known)
    before = {technique_name(s) for each in spec.techniques for s in conversion(kind, each)}
    wanted = {format_of(each)[0] for each in spec.formats}
    before |= {
        name for name, cls in known.items() if cls.makes and not wanted.isdisjoint(kinds(cls.makes))
    }
    return {
        name: cls
        for name, cls in known.items()
        if (not spec.techniques or name in spec.techniques or name in before)
        and name not in spec.without
        and (not cls.experimental or name in {*spec.techniques, *named})
    }


def _check_formats(spec: Spec, kind: str) -> None:
    able = {kind} | {cls.makes for cls in allowed(spec, kind).values() if cls.makes}
    for each in spec.together or spec.formats:
        wanted, _ = format_of(each)
        if wanted not in able:
            extra = {"tflite": "tflite-convert"}.get(wanted, wanted)
            raise WrongRequest(
                f"--format {each}: nothing here converts {kind} to {wanted}; write pip install "
                f"'sartor[{extra}]', or one of {', '.join(sorted(able))}"
            )


def remarks(model: Model) -> tuple[str, ...]:
    """What was given up when the model was taken in, where its runtime can tell."""
    told = getattr(runtime(model.kind), "remarks", None)
    return tuple(told(model)) if told is not None else ()


def purpose(model: Model) -> Mapping[str, str]:
    """What the model's own training says that it is for, where its runtime can tell."""
    told = getattr(runtime(model.kind), "purpose", None)
    return told(model) if told is not None else {}


def environment(original: Model) -> dict[str, Any]:
    """The machine and the versions, for the journal and the certificate."""
    return {
        "machine": machine.describe(),
        "versions": {
            "sartor": version("sartor"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{k: v for kind in kinds(original.kind) for k, v in runtime(kind).versions().items()},
        },
    }
