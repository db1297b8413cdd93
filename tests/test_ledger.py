"""The error rate of a holdout is spent once, whatever happens to runs and files."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from sartor.contracts import WrongRequest
from sartor.ledger import FLOOR, SHARE, EarlyUsed, Ledger, Opening, part

FROZEN = ["abc", "def", "accuracy >= baseline - 0.01"]


def ledger(path: Path, holdout: str = "h") -> Ledger:
    return Ledger(path / "ledger.jsonl", holdout)


def lines(path: Path) -> list[str]:
    return (path / "ledger.jsonl").read_text().splitlines()


def test_a_run_takes_a_share_and_the_next_one_of_the_rest(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    assert book.left() == 0.05
    assert book.open("one", "final", FROZEN).alpha == pytest.approx(0.04)
    assert book.left() == pytest.approx(0.01)
    assert book.open("two", "final", FROZEN).alpha == pytest.approx(0.008)
    assert ledger(tmp_path, "other").open("one", "final", FROZEN).alpha == pytest.approx(0.04)


def test_runs_of_one_request_take_equal_parts_of_what_one_run_takes(tmp_path: Path) -> None:
    for among in (1, 2, 4):
        book = ledger(tmp_path, str(among))
        shared = (part(each, among) for each in range(among))
        books = [Ledger(book.path, str(among), share=SHARE * each) for each in shared]
        levels = [each.open(str(n), "final", FROZEN).alpha for n, each in enumerate(books)]
        assert levels == pytest.approx([0.04 / among] * among)
        assert book.left() == pytest.approx(0.01)


def test_all_levels_ever_granted_add_up_to_less_than_the_total(tmp_path: Path) -> None:
    book, granted = ledger(tmp_path), 0.0
    for run in range(3):
        early = book.open(str(run), "early", ["a"])
        book.close(early, certified=False)
        granted += early.alpha + book.open(str(run), "final", FROZEN).alpha
    assert 0.04 < granted <= 0.05
    assert book.left() < FLOOR
    with pytest.raises(WrongRequest, match="fresh data are needed"):
        book.open("5", "early", ["a"])


def test_early_answer_and_final_chain_share(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    early = book.open("one", "early", ["abc"])
    assert early.alpha == pytest.approx(0.01)
    assert book.left() == pytest.approx(0.01)  # the final chain's part is set aside at once
    book.close(early, certified=False)
    assert book.open("one", "final", FROZEN).alpha == pytest.approx(0.03)
    assert book.left() == pytest.approx(0.01)


def test_a_certified_early_answer_carries_its_level_on(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    early = book.open("one", "early", ["abc"])
    book.close(early, certified=True)
    assert book.open("one", "final", FROZEN).alpha == pytest.approx(0.04)


def test_the_first_record_of_an_early_answer_stands(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    early = book.open("one", "early", ["abc"])
    book.close(early, certified=False)
    book.close(early, certified=True)
    assert book.open("one", "final", FROZEN).alpha == pytest.approx(0.03)


def test_an_early_answer_that_was_never_recorded_carries_nothing(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.open("one", "early", ["abc"])
    assert book.open("one", "final", FROZEN).alpha == pytest.approx(0.03)


def test_one_early_answer_a_run(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.open("one", "early", ["abc"])
    with pytest.raises(EarlyUsed):
        book.open("one", "early", ["def"])


def test_the_same_opening_after_a_kill_costs_nothing(tmp_path: Path) -> None:
    first = ledger(tmp_path).open("one", "final", FROZEN)
    again = ledger(tmp_path).open("one", "final", FROZEN)
    assert again == Opening(first.key, "one", "final", first.alpha, again=True)
    assert ledger(tmp_path).left() == pytest.approx(0.01)
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("run", "frozen"), [("one", ["def", "abc", FROZEN[2]]), ("one", ["abc"]), ("two", FROZEN)]
)
def test_another_order_or_run_is_another_opening(
    tmp_path: Path, run: str, frozen: list[str]
) -> None:
    ledger(tmp_path).open("one", "final", FROZEN)
    assert not ledger(tmp_path).open(run, "final", frozen).again
    assert ledger(tmp_path).left() == pytest.approx(0.002)


def test_the_line_is_on_disk_when_open_returns(tmp_path: Path) -> None:
    opening = ledger(tmp_path).open("one", "final", FROZEN)
    entry = json.loads(lines(tmp_path)[0])
    assert (entry["key"], entry["alpha"], entry["run"]) == (opening.key, opening.alpha, "one")


def test_a_line_cut_short_counts_as_an_opening(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.open("one", "final", FROZEN)
    with book.path.open("a") as file:
        file.write('{"event": "open", "holdout": "h", "run": "tw')
    assert book.left() == pytest.approx(0.002)
    assert book.open("three", "final", FROZEN).alpha == pytest.approx(0.0016)
    assert book.left() == pytest.approx(0.0004)
    assert len(lines(tmp_path)) == 3
    assert book.open("three", "final", FROZEN).again


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"alpha": 0.04', '"alpha": 0.05'),
        lambda text: text.replace('"spent": 0.04', '"spent": 0.0'),
        lambda text: "\n".join(text.splitlines()[1:]) + "\n",
        lambda text: "\n".join([text.splitlines()[0], text.splitlines()[2]]) + "\n",
        lambda text: "nonsense\n" + "\n".join(text.splitlines()[1:]) + "\n",
        lambda text: text.replace('"run": "two"', '"run": "2"'),
    ],
)
def test_a_changed_ledger_is_refused(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    book = ledger(tmp_path)
    for run in ("one", "two", "three"):
        book.open(run, "final", FROZEN)
    book.path.write_text(change(book.path.read_text()))
    with pytest.raises(WrongRequest, match="not as Sartor wrote it"):
        book.open("four", "final", FROZEN)
    with pytest.raises(WrongRequest, match="not as Sartor wrote it"):
        book.left()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongRequest, match="put the data where you may write"):
        Ledger(tmp_path / "file" / "ledger.jsonl", "h").open("one", "final", FROZEN)


def _open_one(path: str, run: str) -> float:
    try:
        return Ledger(Path(path), "h").open(run, "final", FROZEN).alpha
    except WrongRequest:
        return 0.0


def test_runs_at_the_same_time_do_not_spend_twice(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.jsonl")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        alphas = pool.starmap(_open_one, [(path, str(run)) for run in range(12)])
    assert sum(alphas) <= 0.05
    assert sorted(alphas)[-4:] == pytest.approx([0.0, 0.0016, 0.008, 0.04])


def test_who_has_paid_goes_on(tmp_path: Path) -> None:
    """Killed between the ledger's line and the journal's: the run that paid is not refused, and its
    early answer is tested at what it paid for."""
    for number in range(2):
        ledger(tmp_path).open(f"run {number}", "final", ["a"])
    before = ledger(tmp_path).early_level("run 2")
    granted = ledger(tmp_path).open("run 2", "early", ["a"]).alpha
    assert granted == pytest.approx(before)
    assert ledger(tmp_path).left() < FLOOR
    ledger(tmp_path).check("run 2")
    with pytest.raises(WrongRequest, match="fresh data"):
        ledger(tmp_path).check("run 3")
    assert ledger(tmp_path).early_level("run 2") == granted
