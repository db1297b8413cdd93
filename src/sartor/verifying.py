"""A bundle's certificate, measured again: on this machine, with data it never saw."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sartor import bundle, machine
from sartor.certify import Certifier, Finalist, outcome
from sartor.contracts import Model, Task, WrongRequest
from sartor.data import Part, fresh
from sartor.evaluate import Race, answers, footprint
from sartor.ledger import Ledger, ledger_path
from sartor.limits import parse, parse_objective
from sartor.metrics import check_labels
from sartor.records import Trial, plain
from sartor.registry import adopt, runtime
from sartor.terminal import Progress
from sartor.trials import truth_of
from sartor.verdicts import Evidence
from sartor.workers import Pool

ROUNDS, SECONDS = 60, 15.0
TIMEOUT = 1800.0


def verify(
    folder: Path,
    *,
    data: Any,
    original: Any = None,
    threads: int | None = None,
    label: str | None = None,
    segments: Sequence[str] = (),
    group: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Checks hashes and parity, then tests every limit of the certificate on these data.

    Returns plain JSON with `status` 0 (all met), 4 (undecided) or 3 (broken). The data count as a
    holdout of their own: the ledger beside them spends their 5 %. Raises WrongRequest for a bundle
    that was changed, data that do not fit, or where the original is needed and not there."""
    progress = progress or Progress(quiet=True)
    facts = bundle.read(folder)
    model = bundle.open_model(folder, facts)
    before = _original(facts, original)
    target = bundle.target_of(facts, threads)
    asked = facts["certificate"]
    limits = tuple(parse(text) for text in asked["limits_asked"])
    objective = parse_objective(asked["objective"])
    task = Task(**facts["task"])
    with tempfile.TemporaryDirectory(prefix="sartor-verify-") as work, progress, Pool() as pool:
        progress.now("checking parity")
        gap = pool.call(bundle.parity, folder, facts, target, timeout=TIMEOUT)
        sealed = fresh(
            data,
            Path(work),
            model.signature,
            label=label,
            segments=segments or (),
            group=group,
            used=bundle.fingerprints(folder),
        )

        def measure(finalist: Finalist, part: Part | None) -> Evidence:
            if part is None:
                part = sealed.open()  # nothing is asked of the answers: rows serve for timing only
            if task.labelled:
                check_labels(task, np.asarray(part.label), "the data")
            progress.now(f"answering {len(part):,} examples, original and artifact")
            rows = np.arange(len(part))
            first, second = (
                answers(pool, each, part, rows, task, target, timeout=TIMEOUT)
                for each in (before, model)
            )
            progress.now("timing original and artifact")
            with Race(before, target, part, 0) as race:
                timing = race.time(model, ROUNDS, SECONDS)
            return Evidence(
                (runtime(before.kind).size(before), runtime(model.kind).size(model)),
                memories=tuple(
                    footprint(each, target, part.example(0)) for each in (before, model)
                ),  # type: ignore[arg-type]
                timing=timing,
                answers=(first, second),
                truth=truth_of(part, first),
                same=runtime(model.kind).digest(model) == facts["original"]["digest"],
            )

        ledger = Ledger(ledger_path(data), sealed.digest)
        certifier = Certifier(
            limits, objective, task, measure, sealed, ledger, f"verify-{uuid.uuid4().hex[:12]}"
        )
        digest = runtime(model.kind).digest(model)
        trial = Trial(number=0, recipe=tuple(facts["recipe"]), state="done", model=digest)
        found = certifier.final([Finalist(digest, trial)])
    row = found.rows[0]
    answer = outcome(found, limits)
    status = answer.status
    verdicts = row.verdicts
    if digest == facts["original"]["digest"]:
        # The original was kept: it need not be better than itself.
        verdicts = verdicts[:-1]
        if all(each.outcome == "met" for each in verdicts):
            status = 0
    parity = gap <= bundle.PARITY_TOLERANCE
    message = "verified: every limit is met here" if status == 0 else answer.message
    if not parity:
        status, message = 3, (
            f"parity is broken: the artifact's answers here differ by {gap:.2g} of their spread "
            "from those in the bundle"
        )  # fmt: skip
    return {
        "status": status,
        "message": message,
        "limits": plain(verdicts),
        "parity": gap if np.isfinite(gap) else None,
        "parity_holds": parity,
        "machine": machine.describe(),
        "notes": [
            f"hashes are right; parity within {gap:.2g} of the outputs' spread",
            f"{ledger.left():.2%} of these data's error rate is left",
            *(
                [f"{sealed.dropped:,} rows of the run's own data were left out"]
                if sealed.dropped
                else []
            ),
        ],
    }


def _original(facts: dict[str, Any], given: Any) -> Model:
    recorded = facts["original"]
    place = given if given is not None else recorded["path"]
    if given is None and not Path(place).exists():
        raise WrongRequest(
            f"the limits compare with the original, and {place} is not there: write --original FILE"
        )
    model = adopt(place, Path(tempfile.gettempdir()))
    if runtime(model.kind).digest(model) != recorded["digest"]:
        raise WrongRequest(
            f"{place} is not the original that the bundle was made from (its digest differs): "
            "write --original FILE"
        )
    return model
