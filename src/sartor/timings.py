"""Timings in the journal: what was measured once is read again, to resume and to replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sartor.records import WATTS, Journal, Timing

IN_NANO = ("baseline", "candidate", "twin", "queued", "cpu", "joules")


def timing_to_json(timing: Timing) -> dict[str, Any]:
    """What the journal keeps of it: durations in whole nanoseconds, joules in nanojoules."""

    def whole(lane: np.ndarray | None) -> Any:
        return None if lane is None else np.rint(lane * 1e9).astype(np.int64).tolist()

    return {
        **{name: whole(getattr(timing, name)) for name in IN_NANO},
        "batch": timing.batch,
        "threads": timing.threads,
        "blocks": timing.blocks,
        "others": timing.others,
        "first": timing.first,
        "watts": timing.watts,
    }


def paces(journal: Journal) -> dict[str, float]:
    """What earlier sessions of the run saw, so that time is kept back for the certificate."""
    return {
        name: pace
        for entry in journal.events("trial")
        for name, pace in entry.get("pace", {}).items()
    }


def journaled(journal: Journal | None) -> dict[tuple[str, str], Timing]:
    """The timings that a journal holds, by model digest and purpose."""
    return {
        (entry["model"], entry["purpose"]): timing_from_json(entry)
        for entry in (journal.events("timing") if journal else ())
    }


def timing_from_json(entry: Mapping[str, Any]) -> Timing:
    """What `timing_to_json` wrote. Raises ValueError where it has no lanes."""
    lanes = {
        name: None if entry.get(name) is None else np.asarray(entry[name], dtype=float) * 1e-9
        for name in IN_NANO
    }
    baseline, candidate = lanes.pop("baseline"), lanes.pop("candidate")
    if baseline is None or candidate is None:
        raise ValueError("a timing without lanes")
    return Timing(
        baseline, candidate, **lanes, batch=entry["batch"], threads=entry["threads"],
        blocks=tuple(entry["blocks"]), others=tuple(entry.get("others", ())),
        first=entry.get("first", 0), watts=entry.get("watts", WATTS),
    )  # fmt: skip
