"""What the user wrote: a metric, a function that changes training rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sartor.answers import Truth, label_of, reference_of
from sartor.contracts import Arrays, Failed, WrongRequest
from sartor.references import digest, load_function
from sartor.table import to_array

_function = cache(load_function)


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


@dataclass(frozen=True)
class Augmentation:
    """A function of the user's, (inputs, rng) -> inputs, that changes the inputs of training
    batches: name -> [N, ...]. `digest` is that of its file, so that what was trained with another
    text of it is not taken for the same. Cheap to pickle: each process loads the file itself."""

    reference: str
    digest: str

    def __call__(self, batch: Arrays, *seed: int) -> Arrays:
        """The batch with its inputs changed; the same for the same seed. Raises Failed where the
        function does, and where names, shapes or types are no longer those of the batch."""
        given = {name: np.array(each) for name, each in batch.items() if name != "label"}
        try:
            made = _function(self.reference)(dict(given), np.random.default_rng(seed))
            found = {str(name): to_array(each) for name, each in made.items()}
        except Exception as error:  # any failure of the user's code is told by its name
            raise Failed(self._told(error)) from error
        if found.keys() != given.keys():
            raise Failed(
                f"{self.reference} returned {', '.join(found) or 'nothing'}; it must return "
                f"{', '.join(given)}"
            )
        for name, each in found.items():
            was = batch[name]
            if (each.shape, each.dtype) != (was.shape, was.dtype):
                raise Failed(
                    f"{self.reference} made {name} of {was.dtype} {list(was.shape)} into "
                    f"{each.dtype} {list(each.shape)}; it must keep types and shapes"
                )
        return {**batch, **found}

    def _told(self, error: Exception) -> str:
        if isinstance(error, WrongRequest):
            return str(error)
        lines = str(error).strip().splitlines() or [""]
        return f"{self.reference} failed: {type(error).__name__}: {lines[0]}"


def augmentation(reference: str) -> Augmentation:
    """The function that the reference names. Raises WrongRequest where there is none."""
    load_function(reference)
    return Augmentation(reference, digest(reference))
