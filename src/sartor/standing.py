"""How far the sequences about a bundle have come, kept beside it from verification to verification.

A file of JSON: BUNDLE.sartor-evidence. A row counts once: its fingerprint is kept.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sartor.bundle import find
from sartor.certify import Row
from sartor.contracts import WrongRequest
from sartor.judge_sequence import Bets
from sartor.sequences import from_json


@dataclass(frozen=True)
class Standing:
    """`bets`: the sequences so far; `level`: what they are held against; `rows`: fingerprints
    [N] of uint32 of the rows that they, and tests beside them, have had."""

    bets: Bets = field(default_factory=dict)
    level: float = 1.0
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))

    @property
    def seen(self) -> int:
        """Examples that the sequences have had; those of a crossing count apart."""
        return max((each.seen for each in self.bets.values()), default=0)

    def after(self, row: Row, rows: np.ndarray) -> Standing:
        """The standing after a test on these rows too."""
        level = min(self.level, row.bets_level)
        return replace(self, bets=row.bets or {}, level=level, rows=np.union1d(self.rows, rows))


def place(folder: Path) -> Path:
    folder = find(Path(folder)).resolve()
    return folder.with_name(f"{folder.name}.sartor-evidence")


def read(folder: Path, facts: Mapping[str, Any]) -> Standing:
    """What stands beside the bundle, or else in its certificate where the run left it undecided.
    Raises WrongRequest for a file that is not as it was written."""
    path = place(folder)
    if not path.is_file():
        kept = facts["certificate"]
        return _standing(kept["bets"], kept["bets_level"], "") if "bets" in kept else Standing()
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["bundle"] != facts["digest"]:
            return Standing()  # of another bundle that stood here
        return _standing(entry["bets"], entry["level"], entry["rows"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongRequest(
            f"{path} is not as Sartor wrote it ({error}): restore it, or remove it to begin anew "
            "with data that were never used for this bundle"
        ) from None


def _standing(bets: Mapping[str, Any], level: float, rows: str) -> Standing:
    known = {str(key): from_json(each) for key, each in bets.items()}
    prints = np.frombuffer(base64.b64decode(rows, validate=True), np.uint32)
    return Standing(known, float(level), prints)


def write(folder: Path, facts: Mapping[str, Any], now: Standing) -> None:
    """Puts it beside the bundle in one step. Raises WrongRequest where nothing may be written."""
    path = place(folder)
    entry = {
        "bundle": facts["digest"],
        "level": now.level,
        "bets": {key: each.to_json() for key, each in now.bets.items()},
        "rows": base64.b64encode(now.rows.astype(np.uint32).tobytes()).decode(),
    }
    made = path.with_name(f".{path.name}.making")
    try:
        made.write_text(json.dumps(entry) + "\n", encoding="utf-8")
        os.replace(made, path)
    except OSError as error:
        raise WrongRequest(
            f"{path} cannot be written ({error.strerror}): put the bundle where you may write, "
            "since what was seen of it is kept beside it"
        ) from None


def remove(folder: Path) -> None:
    """Once all is shown nothing is left to go on with."""
    place(folder).unlink(missing_ok=True)
