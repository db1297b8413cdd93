"""How much training a run may spend: a share of its budget, in steps of the original.

The time of a step is measured once, when a recipe first wants to train, and stands in the journal:
what a training makes depends on its number of steps, never on the clock.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from typing import Any

from sartor import machine
from sartor.contracts import Failed, Model, Recipe, Training, WrongRequest, trains
from sartor.records import Journal
from sartor.registry import training_cost
from sartor.trials import Laboratory

SHARE = 0.3  # of the budget, for one training at full effort
FEWEST = 300  # steps of the original without which no training is worth its time
EPOCHS = 3  # where trials are counted and not time
BATCH = 64
MEASURE_SECONDS = 180.0


def before(recipe: Recipe) -> Recipe:
    """What comes before the first step that trains and makes another kind of model."""
    first = next(at for at, each in enumerate(recipe) if trains(each))
    kinds = [at + 1 for at, each in enumerate(recipe[:first]) if each.makes]
    return recipe[: max(kinds, default=0)]


def grant(lab: Laboratory, journal: Journal, budget: float, recipe: Recipe) -> None:
    """Sees to it that the bench says what may be spent, if the recipe wants to train."""
    if not any(trains(each) for each in recipe):
        return
    training = granted(journal)
    if training is None:
        told = _measured(lab, budget, recipe)
        journal.add("training", **told)
        training = granted(journal)
    if training is not None:
        lab.bench = dataclasses.replace(lab.bench, training=training)


def granted(journal: Journal) -> Training | None:
    """What the journal says was granted; None where that is to be found out, also anew: where it
    was nothing, and the run was given more since."""
    told: Mapping[str, Any] | None = None
    for entry in journal:
        if entry["event"] == "training":
            told = entry if "work" in entry else None  # once it was counted otherwise
        elif entry["event"] == "budget" and told and not told["steps"]:
            told = None
    if told is None:
        return None
    return Training(told["steps"], told["seconds"], told["work"], told.get("why", ""))


def _measured(lab: Laboratory, budget: float, recipe: Recipe) -> dict[str, Any]:
    if not lab.bench.count("train"):
        return {"steps": 0, "seconds": 0.0, "work": 0, "why": "there are no training rows"}
    try:
        model: Model = lab.build(before(recipe))
        bench = lab.bench.on(model, scratch := lab.store.scratch())
        patience = min(MEASURE_SECONDS, lab.patience())
        with lab.quiet():
            seconds, work = lab.pool.call(training_cost, model, bench, timeout=patience)
        shutil.rmtree(scratch, ignore_errors=True)
    except (Failed, WrongRequest) as failure:
        return {"steps": 0, "seconds": 0.0, "work": 0, "why": str(failure)}
    if math.isfinite(budget):
        steps = int(SHARE * budget / seconds)
    else:
        steps = max(EPOCHS * lab.bench.count("train") // BATCH, FEWEST)
    why = ""
    if steps < FEWEST:
        needed = math.ceil(FEWEST * seconds / SHARE / 60)
        why = (
            f"a step takes {seconds:.2g} s: {steps} steps would be too few to train anything; "
            f"with --budget {needed}m there would be {FEWEST}"
        )
        steps = 0
    return {"steps": steps, "seconds": seconds, "work": work, "why": why, "load": machine.load()}
