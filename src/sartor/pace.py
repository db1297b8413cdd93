"""How far a training is: told by the process that trains, read by the one that waits for it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

_FILE = "training.json"


@dataclass(frozen=True)
class Pace:
    """A training of so many `steps`, `done` of them, that takes `seconds` as a whole."""

    done: int
    steps: int
    seconds: float

    @property
    def left(self) -> float:
        """Seconds until its end."""
        return self.seconds * (self.steps - self.done) / self.steps

    def tell(self, folder: Path) -> None:
        making = folder / f".{_FILE}"
        making.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(making, folder / _FILE)

    @classmethod
    def read(cls, folder: Path) -> Pace | None:
        """What was told last in this folder; None where nothing was."""
        try:
            return cls(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
        except OSError:
            return None
