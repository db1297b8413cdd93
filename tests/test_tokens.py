"""Word error rate: the edits of jiwer, summed over the set, with padding of any kind."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest

from sartor.contracts import Task, WrongRequest
from sartor.limits import parse
from sartor.metrics import Truth, find
from sartor.verdicts import Evidence, judge

TASK = Task("free", "ids", "wer")


def sentences(n: int, seed: int, errors: float, words: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n, 12] and answers [n, 16] of 1 to 12 ids from 1 on, padded with -1."""
    rng = np.random.default_rng(seed)
    label, answer = np.full((n, 12), -1), np.full((n, 16), -1)
    for row in range(n):
        said = rng.integers(1, words, rng.integers(1, 13)).tolist()
        label[row, : len(said)] = said
        heard: list[int] = []
        for word in said:
            kind = rng.random()
            if kind > errors:
                heard.append(word)
            elif kind > errors * 0.6:
                heard.append(int(rng.integers(1, words)))
            elif kind > errors * 0.3:
                heard += [word, int(rng.integers(1, words))]
        answer[row, : len(heard[:16])] = heard[:16]
    return label, answer


def said(rows: np.ndarray) -> list[str]:
    return [" ".join(str(i) for i in row if i > 0) for row in rows]


def test_as_jiwer() -> None:
    label, answer = sentences(200, 0, 0.3)
    wanted = jiwer.wer(said(label), said(answer))
    assert find("wer", TASK).value(answer, Truth(label)) == pytest.approx(wanted)
    zeros = [np.where(each < 0, 0, each) for each in (label, answer)]
    assert find("wer[0]", TASK).value(zeros[1], Truth(zeros[0])) == pytest.approx(wanted)
    turned = [each[:, ::-1] for each in (label, answer)]  # padding in front
    backwards = [" ".join(each.split()[::-1]) for each in said(label)]
    heard = [" ".join(each.split()[::-1]) for each in said(answer)]
    found = find("wer", TASK).value(turned[1].astype(np.float32), Truth(turned[0]))
    assert found == pytest.approx(jiwer.wer(backwards, heard))


def test_nothing_to_hear() -> None:
    label = np.array([[-1, -1], [5, -1]])
    metric = find("wer", TASK)
    assert (
        metric.value(np.array([[3, 4], [-1, -1]]), Truth(label)) == 3.0
    )  # two insertions, one loss
    assert np.isnan(metric.value(label[:1], Truth(label[:1])))


def test_scores_of_tokens_are_a_wrong_request() -> None:
    with pytest.raises(WrongRequest, match="integers"):
        find("wer", TASK).value(np.random.default_rng(0).random((2, 3)), Truth(np.ones((2, 3))))


def test_a_verdict_is_that_of_a_ratio_of_sums() -> None:
    label, before = sentences(1500, 1, 0.1)
    spoilt = before.copy()
    rows = np.random.default_rng(2).random(1500) < 0.05
    spoilt[rows, 0] = 39
    for after, text, outcome in (
        (before.copy(), "wer <= baseline + 0.01", "met"),
        (spoilt, "wer <= baseline + 0.02", "met"),
        (spoilt, "wer <= baseline + 0.002", "broken"),
        (spoilt, "wer <= 110 % of baseline", "undecided"),
        (before.copy(), "wer <= 0.2", "met"),
    ):
        evidence = Evidence((1, 1), answers=(before, after), truth=Truth(label, before))
        found = judge(parse(text), evidence, TASK)
        if outcome != "undecided":
            assert found.outcome == outcome, (text, found)
        assert found.estimate == pytest.approx(jiwer.wer(said(label), said(after)))
        assert found.low <= found.estimate <= found.high
