"""A training that is stopped on its way, as by Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sartor.techniques import _training_onnx as trainer


def stopped(train: Callable[[], object], at: int) -> None:
    """Runs a training that saves its state after every step until step `at`, which never is."""
    step = trainer._Training.step

    def dies(self: Any, number: int) -> None:
        if number == at:
            raise KeyboardInterrupt
        step(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_SAVE_SECONDS", 0.0)
        patch.setattr(trainer._Training, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train()
