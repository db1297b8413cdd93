"""The ledger of holdout openings: one error rate, shared by everything that ever looks.

A file of JSON lines beside the data, append-only, each line on disk before the holdout is opened.
A run takes 80 % of what is left of the error rate; where a request makes several runs they take as
much together, in equal parts. Within a run the early answer, one hypothesis,
is tested at 25 % of that share and the finalists at the rest; where the early answer is certified
its part is passed on to them (a graph of Bretz et al. 2009, which needs no assumption on how the
tests depend on each other, since no hypothesis is chosen by a verdict).
An opening with the same key (a run that was killed while it certified) costs nothing again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sartor.contracts import WrongRequest
from sartor.records import append

Stage = Literal["early", "final"]

SHARE = 0.8  # of what is left, for one run
EARLY = 0.25  # of a run's share, for its early answer
FLOOR = 0.001  # what must be left for another run to be worth its while


class EarlyUsed(WrongRequest):
    """The run has had its early answer."""


@dataclass(frozen=True)
class Opening:
    """Leave to open the holdout and to test at `alpha`. `again`: it had been granted before."""

    key: str
    run: str
    stage: Stage
    alpha: float
    again: bool


def part(number: int, runs: int) -> float:
    """What run `number` (from 0) of `runs` takes of SHARE, so that all take as much of what was
    left before the first of them."""
    return 1.0 / (runs - number * SHARE)


def ledger_path(data: Any) -> Path:
    """Beside the data where they are a file or folder of their own; else with the user's state."""
    if isinstance(data, (str, Path)) and Path(data).exists():
        place = Path(data).resolve()
        return place.with_name(f"{place.name}.sartor-ledger")
    return Path.home() / ".local" / "state" / "sartor" / "ledger"


class Ledger:
    """The openings of one holdout, `holdout` being its digest; `total` is the error rate that all
    of them share, `share` what a run that asks here takes of what is left. The file may hold other
    holdouts too."""

    def __init__(self, path: Path, holdout: str, total: float = 0.05, share: float = SHARE) -> None:
        self.path, self.holdout, self.total, self.share = Path(path), holdout, total, share

    def left(self) -> float:
        """What is left of the error rate."""
        return self._left(self._read())

    def runs_left(self) -> int:
        """How many more runs may open this holdout."""
        left, runs = self.left(), 0
        while left >= FLOOR:
            left, runs = left * (1 - SHARE), runs + 1
        return runs

    def early_level(self, run: str) -> float:
        """What the early answer of this run is, or was, tested at."""
        entries = self._read()
        paid = [each["alpha"] for each in self._opened(entries, run) if each["stage"] == "early"]
        return float(paid[0]) if paid else EARLY * self.share * self._left(entries)

    def check(self, run: str = "") -> None:
        """Raises WrongRequest where too little is left for this run, which may have paid before,
        or where nothing can be recorded: to be told beforehand."""
        with self._locked() as file:
            entries = _entries(file, self.path)
        if not self._opened(entries, run):
            self._check_left(self._left(entries))

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            return _entries(file, self.path)

    def _opened(self, entries: list[dict[str, Any]], run: str) -> list[dict[str, Any]]:
        """The openings of this holdout by the run."""
        return [
            each
            for each in entries
            if each["event"] == "open"
            and each.get("holdout") == self.holdout
            and each["run"] == run
        ]

    def _check_left(self, left: float) -> None:
        if left < FLOOR:
            raise WrongRequest(
                f"fresh data are needed: this holdout was opened for so many answers that "
                f"{max(left, 0.0):.2%} of its error rate of {self.total:.0%} is left "
                f"(recorded in {self.path})"
            )

    def open(self, run: str, stage: Stage, frozen: Sequence[str]) -> Opening:
        """Grants an opening to the run for hypotheses frozen in this order (digests of the
        artifacts and the limits). The record is on disk when this returns.

        Raises WrongRequest where the error rate is used up and where the ledger cannot be read or
        written, EarlyUsed where the run has had its early answer."""
        content = json.dumps([self.holdout, run, stage, list(frozen)])
        key = hashlib.sha256(content.encode()).hexdigest()[:32]
        with self._locked() as file:
            entries = _entries(file, self.path)
            mine = [each for each in entries if each.get("holdout") == self.holdout]
            for each in mine:
                if each["event"] == "open" and each["key"] == key:
                    return Opening(key, run, stage, each["alpha"], again=True)
            alpha, spent = self._grant(run, stage, entries, mine)
            _append(
                file, entries, event="open", holdout=self.holdout, run=run, stage=stage, key=key,
                alpha=alpha, spent=spent,
            )  # fmt: skip
        return Opening(key, run, stage, alpha, again=False)

    def close(self, opening: Opening, certified: bool) -> None:
        """Records whether something was certified; the first record of an opening stands."""
        with self._locked() as file:
            entries = _entries(file, self.path)
            if not any(e["event"] == "close" and e["key"] == opening.key for e in entries):
                _append(
                    file, entries, event="close", holdout=self.holdout, run=opening.run,
                    key=opening.key, certified=certified,
                )  # fmt: skip

    def _grant(
        self, run: str, stage: Stage, entries: list[dict[str, Any]], mine: list[dict[str, Any]]
    ) -> tuple[float, float]:
        """(alpha of the opening, what it takes from the error rate). An early opening takes the
        share of its whole run at once, so that no other run can take what its end will need."""
        opened = self._opened(mine, run)
        early = [each for each in opened if each["stage"] == "early"]
        finals = [each for each in opened if each["stage"] == "final"]
        if stage == "early" and opened:
            raise EarlyUsed(
                "this run has opened its holdout already: its early answer is one hypothesis, "
                "tested once"
            )
        if stage == "final" and early and not finals:
            share = early[0]["spent"]
            closed = [e for e in mine if e["event"] == "close" and e["key"] == early[0]["key"]]
            carried = bool(closed) and closed[0]["certified"] is True
            return (share if carried else share - early[0]["alpha"]), 0.0
        left = self._left(entries)
        self._check_left(left)
        share = self.share * left
        return (EARLY * share if stage == "early" else share), share

    def _left(self, entries: list[dict[str, Any]]) -> float:
        left = self.total
        for each in entries:
            if each["event"] == "torn":  # it might have been an opening of this holdout
                left -= SHARE * left
            elif each["event"] == "open" and each["holdout"] == self.holdout:
                left -= each["spent"]
        return left

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The file, while no other run can write to it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise WrongRequest(
                f"{self.path} cannot be written ({error.strerror}): put the data where you may "
                "write, since every opening of the holdout is recorded beside them"
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _check(before: str, entry: Mapping[str, Any]) -> str:
    """Each line vouches for those before it."""
    text = before + json.dumps(entry, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _entries(file: BinaryIO, path: Path) -> list[dict[str, Any]]:
    """The lines, checked. A line cut short by a kill becomes a "torn" event, which is counted as
    an opening. Raises WrongRequest where the file was changed by another hand."""
    file.seek(0)
    found: list[dict[str, Any]] = []
    before = ""
    lines = file.read().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            check = entry.pop("check")
        except (ValueError, AttributeError, KeyError, TypeError):
            if number == len(lines) or _torn(lines[number], before):
                found.append({"event": "torn", "key": "", "run": "", "check": before})
                continue
            raise _changed(path, number) from None
        if check != _check(before, entry):
            raise _changed(path, number)
        before = check
        found.append({**entry, "check": check})
    return found


def _torn(following: bytes, before: str) -> bool:
    """Whether the line after an unreadable one goes on where the last readable one ended: then the
    unreadable one was never finished."""
    try:
        entry = json.loads(following)
        return bool(entry.pop("check") == _check(before, entry))
    except (ValueError, AttributeError, KeyError, TypeError):
        return False


def _changed(path: Path, number: int) -> WrongRequest:
    return WrongRequest(
        f"{path}, line {number}, is not as Sartor wrote it: restore the file, or take fresh data "
        "for the holdout, since what it has been used for is no longer known"
    )


def _append(file: BinaryIO, entries: list[dict[str, Any]], **entry: Any) -> None:
    before = entries[-1]["check"] if entries else ""
    line = json.dumps({**entry, "check": _check(before, entry)}, sort_keys=True) + "\n"
    file.seek(0, os.SEEK_END)
    if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            line = "\n" + line
    append(file, line.encode())
