"""A metric that the user wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartor.answers import Truth, label_of, reference_of
from sartor.contracts import WrongRequest


@dataclass(frozen=True)
class UserFunction:
    """Calls a function of the user's and checks what it returns."""

    name: str
    function: Callable[..., Any]
    labelled: bool

    def __call__(self, answers: np.ndarray, truth: Truth) -> np.ndarray:
        against = label_of(truth) if self.labelled else reference_of(truth)
        try:
            found = np.asarray(self.function(answers, against), dtype=np.float64)
        except Exception as error:  # any failure of the user's code is told by its name
            raise WrongRequest(f"{self.name} failed: {type(error).__name__}: {error}") from error
        if found.shape not in ((), (len(answers),)):
            raise WrongRequest(
                f"{self.name} returned an array of shape {found.shape}; it must return a number "
                f"or one per example, here {len(answers)}"
            )
        return found
