"""The folder of a run, and the run as a value that Python code can use afterwards.

OUT/run.jsonl    the journal: all that was asked, tried, measured and answered
OUT/bundle/      the chosen artifact
OUT/frontier/    the other artifacts worth having
OUT/work/        caches: the parts of the data, models on the way (may be deleted at the end)
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sartor.bundle import Loaded
from sartor.contracts import WrongRequest
from sartor.records import Journal, Trial, disk_full, plain, trial_from_json
from sartor.store import ASIDE, key_of
from sartor.workers import DiskFull

_LEFT = (("", f"{ASIDE}*"), ("work/data", ".reading-*"), ("work/remembered", ".making-*"))
_HEAD = b'{"event": "request"'  # what every journal of a run begins with


class RunFolder:
    """Where one run lives. Holds a lock while it is open: one run a folder at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Journal(root / "run.jsonl")
        self.work = root / "work"
        self.bundle = root / "bundle"
        self.frontier = root / "frontier"
        self._lock: IO[str] | None = None

    def check(self) -> None:
        """Raises WrongRequest where the folder holds something else, before anything is done."""
        if self.root.exists() and not self.root.is_dir():
            raise WrongRequest(f"--out {self.root} is a file: name a new folder")
        if self.root.is_dir() and any(self.root.iterdir()) and not self._ours():
            raise WrongRequest(
                f"--out {self.root} is not empty and holds no run: name a new or empty folder"
            )

    def _ours(self) -> bool:
        """Whether the folder holds a journal of ours, be it cut short in its first line."""
        if not self.journal.path.is_file():
            return False
        with self.journal.path.open("rb") as file:
            head = file.read(len(_HEAD))
        return _HEAD.startswith(head)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        new = not self.journal.path.exists()
        missing = [each for each in (self.root, *self.root.parents) if not each.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # The journal marks the folder as ours, however early the run is killed.
            self.journal.path.touch()
            self.work.mkdir(exist_ok=True)
            lock = (self.work / "lock").open("w")
        except OSError as error:
            raise WrongRequest(f"--out {self.root} cannot be written: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise WrongRequest(
                    f"--out {self.root} is in use by another run: wait for it or name another"
                ) from None
            for inside, each in _LEFT:  # by a run that was killed
                for left in (self.root / inside).glob(each):
                    shutil.rmtree(left, ignore_errors=True)
                    with contextlib.suppress(OSError):
                        left.unlink(missing_ok=True)
            try:
                yield
            except WrongRequest:
                if new and self.journal.last("request") is None:
                    # Nothing was begun: the corrected command finds the folder as this one did.
                    shutil.rmtree(self.work, ignore_errors=True)
                    self.journal.path.unlink()
                    with contextlib.suppress(OSError):
                        for place in missing:
                            place.rmdir()
                raise
            except (OSError, DiskFull) as error:
                if isinstance(error, OSError) and not disk_full(error):
                    raise
                raise DiskFull(
                    f"the disk of {self.root} is full: make room, and the same command goes on "
                    "where it was"
                ) from error

    def begin(self, request: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Writes the request into a new journal, or checks that an old one asked the same."""
        digest = key_of(**request)
        before = self.journal.last("request")
        if before is None:
            # A journal that was cut before its first line was whole starts anew.
            self.journal.add(
                "request", run=uuid.uuid4().hex[:12], digest=digest, request=request, **facts
            )
        elif before["digest"] != digest:
            changed = sorted(
                name
                for name in {*request, *before["request"]}
                if plain(request.get(name)) != before["request"].get(name)
            )
            raise WrongRequest(
                f"--out {self.root} holds a run of another request ({', '.join(changed)} "
                "differ): name another folder, or delete this one"
            )

    def trials(self) -> list[Trial]:
        """The finished trials, in order; each number once."""
        found: dict[int, Trial] = {}
        for entry in self.journal.events("trial"):
            found.setdefault(entry["number"], trial_from_json(entry))
        return [found[number] for number in sorted(found)]

    def run_name(self) -> str:
        """What the ledger calls this run: the same after a kill, another after each answer."""
        first = self.journal.last("request")
        if first is None:
            raise ValueError("the run has not begun")
        answers = len(self.journal.events("answer"))
        return f"{first['run']}-{answers}"

    def spent(self) -> float:
        """Seconds of budget that earlier sessions of this run used."""
        sessions: dict[str, float] = {}
        for entry in self.journal:
            if "session" in entry and "elapsed" in entry:
                sessions[entry["session"]] = max(
                    entry["elapsed"], sessions.get(entry["session"], 0.0)
                )
        return sum(sessions.values())


class Run:
    """A finished run. `status` is the exit status; `answer` what was found, as plain JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "run.jsonl")
        answer = self.journal.last("answer")
        if answer is None:
            raise WrongRequest(
                f"{folder} holds no finished run: the command that began it continues it"
            )
        self.answer: dict[str, Any] = answer
        self.status: int = answer["status"]

    @property
    def trials(self) -> list[Trial]:
        return RunFolder(self.folder).trials()

    @property
    def best(self) -> Loaded:
        """The chosen artifact, loaded. Raises WrongRequest where nothing was certified."""
        if self.status != 0:
            raise WrongRequest(f"nothing is certified: {self.answer['message']}")
        return Loaded(self.folder / "bundle")

    def save(self, folder: str | Path) -> None:
        """Copies bundle, frontier and journal into a new folder."""
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise WrongRequest(f"{target} is not empty: name a new folder")
        shutil.copytree(
            self.folder, target, ignore=shutil.ignore_patterns("work"), dirs_exist_ok=True
        )

    def report(self, path: str | Path) -> None:
        """Writes the report as plain text."""
        from sartor.report.layout import Console
        from sartor.report.text import render

        with Path(path).open("w", encoding="utf-8") as file:
            Console(file=file, width=160).print(render(self.journal))

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {self.answer['message']})"
