"""A bundle's certificate, measured again: on this machine, with data it never saw.

What was undecided goes on where it stood: sequences (`sequences`) that began in the run, or in an
earlier verification, take the new rows in addition. How far they came, and which rows they have
had, stands beside the bundle in BUNDLE.sartor-evidence.
"""

from __future__ import annotations

import math
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sartor import bundle, machine, standing
from sartor.certify import Certification, Certifier, Row, check_holdout
from sartor.comparing import measure_pair
from sartor.contracts import Failed, Model, Target, Task, WrongRequest
from sartor.data import Part, Sealed, fresh
from sartor.definitions import lookup
from sartor.evaluate import Race
from sartor.finalists import Finalist
from sartor.glimpse import looker, repeatable
from sartor.judge_timing import conditions_of
from sartor.ledger import Ledger, ledger_path
from sartor.limits import PERFORMANCE, Limit, Objective, parse, parse_objective
from sartor.metrics import find
from sartor.outcome import outcome
from sartor.records import Trial, plain
from sartor.registry import adopt, runtime
from sartor.standing import Standing
from sartor.terminal import Progress
from sartor.verdicts import Evidence, improvement
from sartor.workers import Pool

ROUNDS, SECONDS = 60, 15.0
TIMEOUT = 1800.0


@dataclass(frozen=True)
class _Claim:
    """What a bundle says of its artifact, and the two models that it says it of."""

    facts: dict[str, Any]
    artifact: Model
    original: Model
    target: Target
    task: Task
    limits: tuple[Limit, ...]
    objective: Objective

    @property
    def kept(self) -> bool:
        """Whether the artifact is the original itself: it need not be better than itself then."""
        return _kept(self.facts, self.artifact)

    @property
    def quality(self) -> list[str]:
        """The quality metrics that it is about."""
        asked = [*(each.metric for each in self.limits), self.objective.metric]
        return [name for name in asked if name not in PERFORMANCE]


def verify(
    folder: Path,
    *,
    data: Any,
    original: Any = None,
    threads: int | None = None,
    label: str | None = None,
    segments: Sequence[str] = (),
    group: str | None = None,
    mask: str | None = None,
    trust: bool | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Checks hashes and parity, then tests every limit of the certificate on these data.

    Columns that are not named are those of the run. Returns plain JSON with `status` 0 (all met),
    4 (undecided) or 3 (broken). The data count as a holdout of their own: the ledger beside them
    spends their error rate, which is that of the run. Raises WrongRequest for a bundle that was
    changed, data that do not fit, and where the original is needed and not there."""
    progress = progress or Progress(quiet=True)
    data = repeatable(data)
    with tempfile.TemporaryDirectory(prefix="sartor-verify-") as work:
        segments, trust = segments or (), bool(trust)
        look = looker(data, label=label, segments=segments, group=group, trust=trust)
        place = Path(work) / "original"
        take = partial(adopt, folder=place, look=look, trust=trust)
        claim = _claim(folder, original, threads, take)
        columns = _columns(claim, label, segments, group, mask)
        return _verified(folder, claim, data, {**columns, "trust": trust}, work, progress)


def _verified(
    folder: Path, claim: _Claim, data: Any, asked: dict[str, Any], work: str, progress: Progress
) -> dict[str, Any]:
    before = standing.read(folder, claim.facts)
    with progress, Pool() as pool:
        progress.now("checking parity")
        try:
            gap = pool.call(bundle.parity, folder, claim.facts, claim.target, timeout=TIMEOUT)
        except Failed as failure:  # before the data spend anything
            return _unable(failure)
        sealed = fresh(
            data, Path(work), claim.artifact.signature, **asked,
            used=np.union1d(bundle.fingerprints(folder), before.rows),
        )  # fmt: skip
        _check(claim, sealed)
        sure = claim.facts["certificate"].get("confidence", 0.95)
        ledger = Ledger(ledger_path(data), sealed.digest, total=1.0 - sure)
        found = _tested(claim, sealed, ledger, pool, progress, before)
    row = found.original if claim.kept else found.rows[0]
    if row is not None and row.status == "certified":
        standing.remove(folder)
    elif row is not None and row.bets:
        standing.write(folder, claim.facts, before.after(row, sealed.fingerprints))
    return _told(claim, found, gap, sealed, ledger, before)


def _claim(folder: Path, original: Any, threads: int | None, take: Callable[..., Model]) -> _Claim:
    facts = bundle.read(folder)
    asked, task = facts["certificate"], Task(**facts["task"])
    limits = tuple(parse(text) for text in asked["limits_asked"])
    artifact = bundle.open_model(folder, facts)
    # With nothing to compare with, the artifact is timed beside itself.
    alone = _kept(facts, artifact) or not _compares(facts, limits)
    return _Claim(
        facts,
        artifact,
        artifact if alone and original is None else _original(facts, original, take),
        bundle.target_of(facts, threads),
        task,
        limits,
        parse_objective(asked["objective"]),
    )


def _kept(facts: dict[str, Any], artifact: Model) -> bool:
    return bool(runtime(artifact.kind).digest(artifact) == facts["original"]["digest"])


def _compares(facts: dict[str, Any], limits: Sequence[Limit]) -> bool:
    """Whether anything is held against the original: an objective means better than it where it is
    a rival; some metrics are about both models' answers, and a function of the user's may be."""
    return facts["certificate"].get("rival", True) or any(
        each.bound.kind != "absolute" or (each.quality and _of_both(each.metric)) for each in limits
    )


def _of_both(metric: str) -> bool:
    known = lookup(metric)
    return known is None or known.relative


def _original(facts: dict[str, Any], given: Any, take: Callable[..., Model]) -> Model:
    recorded = facts["original"]
    place = given if given is not None else recorded["path"]
    if given is None and not Path(place).exists():
        raise WrongRequest(
            f"the limits compare with the original, and {place} is not there: write --original FILE"
        )
    # Its digest is that of the file that was looked into when the bundle was made.
    model = take(place, known=bundle.signature_of(recorded) if "signature" in recorded else None)
    if runtime(model.kind).digest(model) != recorded["digest"]:
        raise WrongRequest(
            f"{place} is not the original that the bundle was made from (its digest differs): "
            "write --original FILE"
        )
    return model


def _columns(
    claim: _Claim, label: str | None, segments: Sequence[str], group: str | None, mask: str | None
) -> dict[str, Any]:
    """Which columns are what: those of the run but for what is named otherwise. Of its segments
    only those that a limit is about must be there again."""
    known = claim.facts.get("columns", {})
    needed = {column for each in claim.limits for column in each.segments}
    return {
        "label": label or known.get("label"),
        "segments": tuple(segments or [s for s in known.get("segments", ()) if s in needed]),
        "group": group or known.get("group"),
        "mask": mask or known.get("mask"),
    }


def _check(claim: _Claim, sealed: Sealed) -> None:
    """Raises WrongRequest where the data cannot say what the certificate is about: told before
    they spend anything."""
    part = sealed.open()
    labelled = [name for name in claim.quality if find(name, claim.task).labelled]
    if labelled and part.label is None:
        raise WrongRequest(
            f"the certificate is about {labelled[0]}, which needs labels, and the data have none: "
            "write --label with the name of their array or column"
        )
    check_holdout(sealed, claim.task)
    for each in claim.limits:
        for column in each.segments:
            if column not in part.segments:
                raise WrongRequest(
                    f"{each.text}: the data have no segment column {column!r}; write --segment "
                    f"with its name there ({', '.join(part.segments) or 'there is none'})"
                )


def _tested(
    claim: _Claim,
    sealed: Sealed,
    ledger: Ledger,
    pool: Pool,
    progress: Progress,
    before: Standing,
) -> Certification:
    wanted = {claim.objective.metric, *(each.metric for each in claim.limits)}

    known: list[Evidence] = []  # all rows at once: timing is then measured once

    def measure(_: Finalist, part: Part | None) -> Evidence:
        # Without a part nothing is asked of the answers: the rows serve for timing only.
        if not known:
            rows = sealed.open()
            progress.now(f"measuring original and artifact on {len(rows):,} examples")
            with Race(claim.original, claim.target, rows, 0) as race:
                race.meter(wanted, claim.facts["certificate"].get("watts"))
                found = measure_pair(
                    pool, race, claim.artifact, claim.task, (ROUNDS, SECONDS), TIMEOUT,
                    memory="memory" in wanted,
                    limits=[*claim.limits, improvement(claim.objective, claim.task)],
                )  # fmt: skip
            known.append(replace(found, same=claim.kept))  # beside itself it is no original
        return known[0] if part is None else known[0].first(len(part))

    engine = runtime(claim.artifact.kind)
    trial = Trial(
        number=0,
        recipe=tuple(claim.facts["recipe"]),
        state="done",
        model=engine.digest(claim.artifact),
    )
    only = Finalist(trial.model, trial)
    certifier = Certifier(
        claim.limits, claim.objective, claim.task, measure, sealed, ledger,
        f"verify-{uuid.uuid4().hex[:12]}", original=only if claim.kept else None,
        bets=before.bets, cap=before.level,
        rival=claim.facts["certificate"].get("rival", True),
    )  # fmt: skip
    return certifier.final([] if claim.kept else [only])


def _told(
    claim: _Claim,
    found: Certification,
    gap: float,
    sealed: Sealed,
    ledger: Ledger,
    before: Standing,
) -> dict[str, Any]:
    row = found.original if claim.kept else found.rows[0]
    status, message = _status(claim, found, row)
    broken = not math.isnan(gap) and gap > bundle.PARITY_TOLERANCE
    if broken:
        status, message = 3, (
            f"parity is broken: the artifact's answers here differ by {gap:.2g} of their spread "
            "from those in the bundle"
        )  # fmt: skip
    parity = f"parity within {gap:.2g} of the outputs' spread"
    notes = [
        f"hashes are right; {'it holds no answers for parity' if math.isnan(gap) else parity}",
        f"{ledger.left():.2%} of these data's error rate is left",
    ]
    if claim.original is claim.artifact and not claim.kept:
        notes.append("no limit compares with the original, which was not measured")
    if sealed.dropped:
        notes.append(
            f"{sealed.dropped:,} rows had judged it already (when it was certified, or in a "
            "verification before) and were left out: only rows that are new to it count"
        )
    if before.bets:
        notes.append(f"{before.seen:,} examples were seen before: the sequences go on from there")
    return {
        "status": status,
        "message": message,
        "limits": plain(row.verdicts if row else ()),
        "parity": gap if np.isfinite(gap) else None,
        "parity_holds": not broken,
        "machine": machine.describe(),
        "conditions": _conditions(row),
        "notes": notes,
    }


def _unable(failure: Failed) -> dict[str, Any]:
    """What is told of an artifact that does not run here at all."""
    return {
        "status": 3,
        "message": f"broken: the artifact does not run here: {failure}",
        "limits": [],
        "parity": None,
        "parity_holds": False,
        "machine": machine.describe(),
        "conditions": {},
        "notes": [],
    }


def _conditions(row: Row | None) -> dict[str, Any]:
    timing = row.evidence.timing if row is not None and row.evidence is not None else None
    return {} if timing is None else plain(conditions_of(timing))


def _status(claim: _Claim, found: Certification, row: Row | None) -> tuple[int, str]:
    if row is not None and row.reason:
        return 3, f"broken: original or artifact cannot be measured here: {row.reason}"
    answer = outcome(found, claim.limits)
    if answer.status == 0:
        return 0, "verified: every limit is met here"
    return answer.status, answer.message
