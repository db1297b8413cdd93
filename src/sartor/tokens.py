"""Word error rate over token ids.

Labels [N, L] and answers [N, M] hold ids in rows of any width. Padding is what is below 0 (-1,
-100) and, where it is named as in `wer[0]`, that id too; it is taken out wherever it stands. A
label of 0 tokens costs what is answered to it.
"""

from __future__ import annotations

import numpy as np

from sartor.answers import Floats, Ints, Truth
from sartor.contracts import Task, WrongRequest


def error_rate(answers: np.ndarray, truth: Truth, task: Task, padding: int | None) -> float:
    """Edits over tokens, both summed over the whole set; NaN where the labels hold no token."""
    wrong, length = edits(answers, truth, task, padding)
    return float(wrong.sum() / length.sum()) if length.sum() else float("nan")


def edits(
    answers: np.ndarray, truth: Truth, task: Task, padding: int | None
) -> tuple[Floats, Floats]:
    """Per example: the fewest substitutions, insertions and deletions that make the answer out of
    the label (Levenshtein 1966), and the number of the label's tokens."""
    if truth.label is None:
        raise WrongRequest("wer needs labels: token ids [N, L], padded with -1")
    label, wanted = _compact(truth.label, padding, "labels")
    answer, given = _compact(answers, padding, "answers")
    rows, width = np.arange(len(label)), answer.shape[1]
    place = np.arange(width + 1)
    cost: Ints = np.broadcast_to(place, (len(label), width + 1)).astype(np.int64)
    for at in range(label.shape[1]):
        other = answer != label[:, at : at + 1]
        step = np.empty_like(cost)
        step[:, 0] = at + 1
        step[:, 1:] = np.minimum(cost[:, :-1] + other, cost[:, 1:] + 1)
        # An insertion costs 1 for each place: the running minimum of cost minus place.
        step = np.minimum.accumulate(step - place, axis=1) + place
        cost = np.where((at < wanted)[:, None], step, cost)
    return cost[rows, given].astype(np.float64), wanted.astype(np.float64)


def _compact(ids: np.ndarray, padding: int | None, what: str) -> tuple[Ints, Ints]:
    """Ids without padding, moved to the left [N, L], and how many there are in each row."""
    rows = ids.reshape(len(ids), -1)
    if rows.dtype.kind not in "iub" and not (rows == np.floor(rows)).all():
        raise WrongRequest(
            f"wer compares token ids and the {what} are {rows.dtype.name} numbers; write integers "
            "[N, L], padded with -1 (a model that gives scores must choose its tokens itself)"
        )
    whole = rows.astype(np.int64)
    kept = whole >= 0
    if padding is not None:
        kept &= whole != padding
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(whole, order, axis=1), kept.sum(1)
