"""Certification: who is tested, at what level, when it stops; and how often it errs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sartor.certify import Certifier
from sartor.contracts import Failed, Task, WrongRequest
from sartor.finalists import Finalist, freeze
from sartor.ledger import Ledger
from sartor.limits import Limit, parse, parse_objective
from sartor.metrics import Truth
from sartor.outcome import outcome
from sartor.records import Timing, Trial
from sartor.verdicts import Evidence, judge_all

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "statistics"))
import chain
import power

TASK = Task("classification", "answer", "accuracy", classes=2)
QUALITY = parse("accuracy >= baseline - 0.01")
ROWS = 4000


# --- the error rate, with the selection in the loop


def test_what_certification_finds_beside_the_plain_way() -> None:
    """Alike with size and quality, 10,000 rows: it finds about as much as one test each."""
    found = power.compare("accuracy", "alike", 10_000, 5)
    assert set(found) == {"Sartor", "Bonferroni", "Bonferroni, all rows"}
    assert found["Sartor"].something == 1
    assert found["Sartor"].objective <= found["Bonferroni"].objective + 0.1


@pytest.mark.parametrize(
    "name",
    [
        "accuracy on its limit",
        "the smallest segment on its limit",
        "each candidate on another limit",
        "a third of the candidates good",
    ],
)
def test_wrongly_certified_in_at_most_5_percent_of_runs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """50 candidates, three limits, four segments, a search that goes after the best: in 100 runs a
    procedure with a true 5 % stays at most 10 % in 99 of 100. Testing every finalist, or every
    candidate, at 5 % exceeds it, so that this test can fail; `make test-all` makes 2,000 runs."""
    runs = 100
    found = chain.certification(chain.WORLDS[name], runs, seed=1)
    with capsys.disabled():
        print(
            f"\n{name}: wrongly certified {found.wrong / runs:.2%} (walking on "
            f"{found.walking_on / runs:.2%}, all tested {found.everything / runs:.2%}); "
            f"a good one {found.good / runs:.2%}"
        )
    assert found.wrong / runs <= 0.10
    assert found.everything / runs > 0.3
    if "good" in name:
        assert found.good / runs > 0.8
    else:
        assert found.walking_on > found.wrong


@pytest.mark.parametrize(
    "mode", ["killed", pytest.param("three runs, fishing", marks=pytest.mark.slow)]
)
def test_kills_and_further_runs_share_the_error_rate(mode: str) -> None:
    found = chain.certification(chain.WORLDS["accuracy on its limit"], 100, 2, mode)
    assert found.wrong / 100 <= 0.10  # a true 5 % stays below in 99 of 100
    assert found.walking_on > found.wrong


# --- a small stage for everything else


def trial(number: int, objective: float, p: float, **more: Any) -> Trial:
    return Trial(
        number, ({"technique": str(number)},), "done",
        figures={"objective": objective}, p_value=p, model=f"m{number}", **more,
    )  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Stands for the part that a holdout opens to, or for its beginning."""

    rows: int
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.rows

    def first(self, rows: int) -> Rows:
        return replace(self, rows=rows)


class Sealed:
    digest, rows = "h", ROWS

    def __init__(self) -> None:
        self.opened = 0
        self.segments: Mapping[str, np.ndarray] = {}

    def open(self) -> Rows:
        self.opened += 1
        return Rows(self.rows, self.segments)


class Stage:
    """Evidence by the digest of a finalist; notes what was measured on what."""

    def __init__(
        self, path: Path, evidence: Mapping[str, Evidence], limits: tuple[Limit, ...] = (QUALITY,),
        objective: str = "size", total: float = 0.05 / 0.8,
    ) -> None:  # fmt: skip
        self.evidence, self.limits = evidence, limits
        self.sealed, self.measured = Sealed(), list[tuple[str, Any]]()
        self.seen: list[int] = []
        self.path, self.objective, self.total = path, parse_objective(objective), total

    def certifier(self, run: str = "run", original: Finalist | None = None) -> Certifier:
        def measure(finalist: Finalist, part: Any) -> Evidence:
            self.seen.append(0 if part is None else len(part))
            if (finalist.digest, part and "part") not in self.measured:
                self.measured.append((finalist.digest, part and "part"))
            known = self.evidence[finalist.digest]
            return known if part is None else known.first(len(part))

        ledger = Ledger(self.path / "ledger.jsonl", "h", self.total)
        return Certifier(
            self.limits, self.objective, TASK, measure,
            self.sealed, ledger, run, original,  # type: ignore[arg-type]
        )  # fmt: skip


def evidence(size: int, losses: int, n: int = ROWS, wrong: int = 0, **more: Any) -> Evidence:
    before = np.zeros(n, dtype=np.int64)
    before[n - wrong :] = 1
    after = before.copy()
    after[:losses] = 1
    truth = Truth(np.zeros(n, dtype=np.int64), before)
    return Evidence((100, size), answers=(before, after), truth=truth, **more)


def finalists(*numbers: int, **more: Any) -> list[Finalist]:
    return [Finalist(f"m{n}", trial(n, 1 - n / 10, n / 100, **more)) for n in numbers]


ORIGINAL = Finalist("original", Trial(0, (), "done", model="original"))


def test_the_best_of_the_certified_is_returned(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 5), "m2": evidence(50, 10), "m3": evidence(40, 15)})
    found = stage.certifier().final(finalists(1, 2, 3))
    assert [row.status for row in found.rows] == ["certified"] * 3
    assert found.best
    assert found.best.finalist.digest == "m3"
    assert found.best.value == 0.4
    assert found.alpha == pytest.approx(0.05)
    assert outcome(found, stage.limits).status == 0


def test_a_failure_ends_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 5), "m2": evidence(50, 40), "m3": evidence(40, 0)})
    found = stage.certifier().final(finalists(1, 2, 3))
    assert [row.status for row in found.rows] == ["certified", "not certified", "certified"]
    assert found.best
    assert found.best.finalist.digest == "m3"


def test_what_cannot_be_the_answer_is_not_measured(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 0), "m2": evidence(40, 5)})
    found = stage.certifier().final([*finalists(2), *finalists(1)])
    assert [row.status for row in found.rows] == ["certified", "untested"]


def test_what_was_better_on_the_search_rows_alone_does_not_end_the_walk(tmp_path: Path) -> None:
    """The first, at 0.4 in the search, turns out at 0.6: the second, at 0.5 there, may be better,
    and is."""
    stage = Stage(tmp_path, {"m6": evidence(60, 0), "m5": evidence(50, 5)})
    found = stage.certifier().final([*finalists(6), *finalists(5)])
    assert [row.status for row in found.rows] == ["certified"] * 2
    assert found.best
    assert found.best.value == 0.5


def test_what_is_certified_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    """28 losses of 4,000 have a p-value between the second share and the whole level: they pass
    once the third, better and clear, has been certified."""
    doubtful, clear = evidence(50, 28), evidence(40, 0)
    alone = Stage(tmp_path / "alone", {"m1": evidence(60, 60), "m2": doubtful})
    alone.path.mkdir()
    found = alone.certifier().final(finalists(1, 2))
    assert [row.status for row in found.rows] == ["not certified"] * 2
    both = Stage(tmp_path / "both", {"m1": clear, "m2": doubtful})
    both.path.mkdir()
    row = both.certifier().final(finalists(1, 2)).rows[1]
    assert row.status == "certified"
    assert row.p_value <= row.alpha <= 0.05
    assert row.verdicts[0].outcome == "met"


def test_finalists_beyond_the_second_wait_for_time(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {f"m{n}": evidence(60, 60) for n in (1, 2, 3)})
    certifier = replace(stage.certifier(), in_time=lambda: False)
    found = certifier.final(finalists(1, 2, 3))
    assert [row.status for row in found.rows] == ["not certified", "not certified", "untested"]


def test_what_is_not_better_than_the_original_is_not_certified(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(100, 0), "original": evidence(100, 0, same=True)})
    found = stage.certifier(original=ORIGINAL).final(finalists(1))
    assert found.best is None
    assert found.rows[0].verdicts[-1].outcome == "broken"
    assert found.original
    assert found.original.status == "certified"
    answer = outcome(found, stage.limits)
    assert answer.status == 0
    assert "original is kept" in answer.message


def test_the_holdout_is_opened_after_the_ledger_has_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 5)})
    book = tmp_path / "ledger.jsonl"
    real = stage.sealed.open

    def checked() -> str:
        assert '"event": "open"' in book.read_text()
        return real()

    stage.sealed.open = checked  # type: ignore[method-assign]
    assert stage.certifier().final(finalists(1)).opened
    assert stage.sealed.opened == 1


def test_counts_alone_never_open_the_holdout(tmp_path: Path) -> None:
    limits = (parse("size <= 70 B"),)
    stage = Stage(tmp_path, {"m1": evidence(60, 0)}, limits)
    found = stage.certifier().final(finalists(1))
    assert found.best
    assert not found.opened
    assert stage.sealed.opened == 0
    assert stage.measured == [("m1", None)]
    assert not (tmp_path / "ledger.jsonl").exists()


def test_what_a_count_has_lost_is_neither_tested_nor_in_the_way(tmp_path: Path) -> None:
    limits = (QUALITY, parse("size <= 55 B"))
    big = evidence(60, 0)
    verdicts = judge_all(limits, big, TASK)
    first = Finalist("m1", trial(1, 0.6, 1.0, verdicts=verdicts))
    stage = Stage(tmp_path, {"m1": big, "m2": evidence(50, 5)}, limits)
    found = stage.certifier().final([first, *finalists(2)])
    assert {row.finalist.digest: row.status for row in found.rows} == {
        "m1": "not certified",
        "m2": "certified",
    }
    assert [digest for digest, _ in stage.measured] == ["m2"]
    only = stage.certifier("other").final([first])
    assert not only.opened
    answer = outcome(only, limits)
    assert answer.status == 3
    assert answer.nearest == "size <= 6e-05 MB"


def test_early_answer_then_final_chain(tmp_path: Path) -> None:
    evidences = {"m1": evidence(60, 5), "m2": evidence(50, 10)}
    stage = Stage(tmp_path, evidences)
    early = stage.certifier().early(finalists(1)[0])
    assert early.alpha == pytest.approx(0.0125)
    assert early.rows[0].status == "certified"
    found = stage.certifier().final(finalists(1, 2), early.rows[0])
    assert found.alpha == pytest.approx(0.05)
    assert [row.finalist.digest for row in found.rows] == ["m1", "m2"]
    # What needs no holdout first, then the holdout.
    assert stage.measured == [("m1", None), ("m1", "part"), ("m2", "part")]
    assert found.best
    assert found.best.finalist.digest == "m2"
    again = stage.certifier().early(finalists(2)[0])
    assert again.rows[0].status == "untested"
    assert not again.opened


def test_the_early_answer_stays_when_the_chain_fails(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 5), "m2": evidence(50, 400)})
    early = stage.certifier().early(finalists(1)[0])
    found = stage.certifier().final(finalists(2), early.rows[0])
    assert found.best
    assert found.best.finalist.digest == "m1"


def test_an_early_answer_that_is_not_faster_opens_no_holdout(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(100, 0)})
    early = stage.certifier().early(finalists(1)[0])
    assert early.rows[0].status == "not certified"
    assert not early.opened
    assert stage.measured == [("m1", None)]
    assert stage.certifier().final(finalists(1)).alpha == pytest.approx(0.05)


def test_a_failed_early_answer_leaves_the_rest_of_the_level(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 35), "m2": evidence(50, 5)})
    early = stage.certifier().early(finalists(1)[0])
    assert early.rows[0].status == "not certified"
    found = stage.certifier().final(finalists(2), early.rows[0])
    assert found.alpha == pytest.approx(0.0375)
    assert found.best


def test_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 5)})

    def killed(finalist: Finalist, part: Any) -> Evidence:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(stage.certifier(), measure=killed).final(finalists(1))
    before = Ledger(tmp_path / "ledger.jsonl", "h", stage.total).left()
    found = stage.certifier().final(finalists(1))
    assert found.best
    assert found.alpha == pytest.approx(0.05)
    assert Ledger(tmp_path / "ledger.jsonl", "h", stage.total).left() == before


def test_used_up_data_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(60, 5)}, total=0.05)
    for run in range(3):
        stage.certifier(str(run)).final(finalists(1))
    with pytest.raises(WrongRequest, match="fresh data are needed"):
        stage.certifier("fourth").final(finalists(1))
    assert stage.sealed.opened == 3


def test_the_original_under_absolute_limits_is_tested_at_its_own_part(tmp_path: Path) -> None:
    limits = (parse("accuracy >= 0.9"),)
    own = evidence(100, 0, wrong=200, same=True)
    stage = Stage(tmp_path, {"m1": evidence(60, 800), "original": own}, limits)
    found = stage.certifier(original=ORIGINAL).final(finalists(1))
    assert found.original
    assert found.original.status == "certified"
    doubtful = evidence(100, 0, wrong=395, same=True)
    stage = Stage(tmp_path, {"m1": evidence(60, 800), "original": doubtful}, limits)
    found = stage.certifier("other", ORIGINAL).final(finalists(1))
    assert found.original
    assert found.original.status == "not certified"
    assert outcome(found, limits).status == 4


def test_latency_counts_towards_the_one_hypothesis(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lanes = [scale * rng.gamma(100, 0.0001, (40, 10)) for scale in (1.0, 0.7, 1.0)]
    limits = (QUALITY, parse("latency <= 0.5 x baseline"))
    stage = Stage(tmp_path, {"m1": evidence(60, 5, timing=Timing(*lanes))}, limits, "latency")
    found = stage.certifier().final(finalists(1))
    assert [each.outcome for each in found.rows[0].verdicts] == ["met", "broken", "met"]
    answer = outcome(found, limits)
    assert answer.status == 3
    assert answer.binding
    assert answer.binding.limit == "latency <= 0.5 x baseline"
    assert answer.nearest
    assert answer.nearest.startswith("latency <= 0.7")


# --- exit status


def test_undecided_says_how_many_more(tmp_path: Path) -> None:
    """150 rows, a fifth of a point, half the size: the example of the issue."""
    limits = (parse("accuracy >= baseline - 0.002"), parse("size <= 0.5 x baseline"))
    evidences = {"m1": evidence(40, 0, n=150), "original": evidence(100, 0, n=150, same=True)}
    stage = Stage(tmp_path, evidences, limits)
    found = stage.certifier(original=ORIGINAL).final(finalists(1))
    answer = outcome(found, limits)
    assert answer.status == 4
    assert answer.needs
    assert answer.needs > 1000
    assert "more holdout examples would decide" in answer.message
    assert found.original
    assert found.original.status == "not certified"


def test_infeasible_names_the_limit_and_the_nearest(tmp_path: Path) -> None:
    limits = (QUALITY, parse("size <= 0.1 x baseline"))
    stage = Stage(tmp_path, {"original": evidence(100, 0, same=True)}, limits)
    dropped = [
        replace(
            trial(n, size / 100, 1.0, verdicts=judge_all(limits[1:], Evidence((100, size)), TASK)),
            state="dropped",
        )
        for n, size in ((1, 60), (2, 25), (3, 40))
    ]
    found = stage.certifier(original=ORIGINAL).final(freeze(dropped))
    answer = outcome(found, limits, dropped)
    assert answer.status == 3
    assert answer.binding
    assert answer.binding.limit == "size <= 0.1 x baseline"
    assert answer.nearest == "size <= 0.25 x baseline"
    assert not found.opened


def test_broken_beats_undecided_within_a_finalist(tmp_path: Path) -> None:
    limits = (parse("accuracy >= baseline - 0.002"), parse("size <= 0.5 x baseline"))
    stage = Stage(tmp_path, {"m1": evidence(60, 0, n=150)}, limits)
    assert outcome(stage.certifier().final(finalists(1)), limits).status == 3


def test_missing_metric_is_never_certified(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": Evidence((100, 50))})
    found = stage.certifier().final(finalists(1))
    assert found.rows[0].status == "not certified"
    assert outcome(found, stage.limits).status == 4


# --- freezing


def test_freeze_takes_the_front_the_surest_first() -> None:
    trials = [
        trial(1, 0.5, 0.03),
        trial(2, 0.6, 0.001),
        trial(3, 0.7, 0.002),  # dominated: beside the front
        trial(4, 0.3, 0.2),
        trial(5, 0.2, 0.9),  # hopeless
        trial(6, 1.1, 0.0),  # no gain
        replace(trial(7, 0.1, 0.0), state="dropped"),
        replace(trial(8, 0.9, 0.0), recipe=()),
    ]
    assert [each.trial.number for each in freeze(trials)] == [2, 3, 1, 4]


def test_freeze_treats_the_sure_as_equally_sure() -> None:
    trials = [trial(1, 0.6, 1e-12), trial(2, 0.5, 1e-6), trial(3, 0.4, 0.04)]
    assert [each.trial.number for each in freeze(trials)] == [2, 1, 3]


def test_freeze_keeps_a_hopeless_one_for_the_report_and_thins_long_fronts() -> None:
    assert [each.trial.number for each in freeze([trial(1, 0.5, 0.9)])] == [1]
    assert freeze([]) == ()
    many = [trial(n, 1 - n / 50, n / 100) for n in range(1, 40)]
    front = freeze(many)
    assert len(front) == 8
    assert front[0].trial.number == 1
    assert front[-1].trial.number == 39


def test_certify_in_one_call(tmp_path: Path) -> None:
    certifier = Certifier(
        (QUALITY,), parse_objective("size"), TASK,
        lambda finalist, part: evidence(60, 5), Sealed(),  # type: ignore[arg-type]
        Ledger(tmp_path / "ledger.jsonl", "h"), "run",
    )  # fmt: skip
    found = certifier.final(finalists(1))
    assert found.best
    assert found.alpha == pytest.approx(0.04)


# --- deciding before all examples were seen


def test_what_keeps_well_within_its_limits_is_certified_from_part_of_the_rows(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, {"m1": evidence(50, losses=0)})
    row = stage.certifier().final(finalists(1)).rows[0]
    assert row.status == "certified"
    assert max(stage.seen) < ROWS
    verdict = row.verdicts[0]
    assert verdict.method == f"betting on {max(stage.seen):,} examples"
    assert verdict.low <= verdict.estimate <= verdict.high


def test_what_is_close_is_decided_by_all_rows(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(50, losses=22)})
    row = stage.certifier().final(finalists(1)).rows[0]
    assert row.status == "certified"
    assert max(stage.seen) == ROWS
    assert "exact" in row.verdicts[0].method
    assert row.alpha == pytest.approx(0.05 * 0.95)  # the rest was bet


def test_a_crossing_that_no_look_has_seen_is_not_taken_for_shown(tmp_path: Path) -> None:
    limit = parse("accuracy@sex >= baseline - 0.01")
    column = np.array(["f"] * (ROWS - 30) + ["m"] * 30)
    given = evidence(50, losses=0)
    assert given.truth is not None
    given = replace(given, truth=replace(given.truth, segments={"sex": column}))
    stage = Stage(tmp_path, {"m1": given}, (limit,))
    stage.sealed.segments = {"sex": column}
    row = stage.certifier().final(finalists(1)).rows[0]
    assert max(stage.seen) == ROWS
    assert row.status == "not certified"  # 30 rows of m show nothing


def test_figures_of_a_whole_set_wait_for_all_rows(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"m1": evidence(50, losses=0, wrong=40)}, (parse("f1 >= 0.5"),))
    row = stage.certifier().final(finalists(1)).rows[0]
    assert row.alpha == pytest.approx(0.05)  # nothing was bet
    assert ROWS in stage.seen


def test_candidates_cut_off_by_the_clock_say_nothing_of_what_can_be_reached(tmp_path: Path) -> None:
    limits = (parse("size <= 10 B"),)
    original = Finalist("m0", Trial(0, (), "dropped", model="m0"))
    stage = Stage(tmp_path, {"m0": evidence(100, losses=0)}, limits)
    found = stage.certifier(original=original).final([])
    late = Trial(1, ({"technique": "slow"},), "failed", reason="hung: no answer within 15 s")
    answer = outcome(found, limits, [original.trial, late])
    assert answer.status == 4
    assert "--budget" in answer.message
    broken = Trial(1, ({"technique": "bad"},), "failed", reason="crashed")
    assert outcome(found, limits, [original.trial, broken]).status == 3


def test_what_was_not_seen_on_the_holdout_is_undecided(tmp_path: Path) -> None:
    limits = (QUALITY, parse("size <= 0.5 x baseline"))
    stage = Stage(tmp_path, {"original": evidence(100, 0, same=True)}, limits)
    certifier = stage.certifier(original=ORIGINAL)

    def measure(finalist: Finalist, part: Any) -> Evidence:
        if finalist is ORIGINAL:
            return stage.evidence["original"]
        raise Failed("hung: no answer within 900 s")

    found = replace(certifier, measure=measure).final(finalists(1))
    answer = outcome(found, limits)
    assert answer.status == 4
    assert "900 s" in answer.message
