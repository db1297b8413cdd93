"""Verdicts: three outcomes, in the limit's own words, never rounded up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sartor import stats
from sartor.contracts import Task, WrongRequest
from sartor.judge_quality import mean_values
from sartor.limits import Limit, parse, parse_objective
from sartor.metrics import Truth
from sartor.records import Timing, Verdict
from sartor.verdicts import (
    Evidence,
    better,
    free_for_original,
    judge,
    judge_all,
    nearest,
    objective_value,
    together,
)

TASK = Task("classification", "answer", "accuracy", classes=2)
REGRESSION = Task("regression", "answer", "mse")


def answered(n: int, gains: int, losses: int, both_wrong: int = 0, **truth: np.ndarray) -> Evidence:
    """Classes 0 are right. The rows are: losses, gains, both wrong, both right."""
    before, after = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    after[:losses] = 1
    before[losses : losses + gains] = 1
    before[losses + gains : losses + gains + both_wrong] = 1
    after[losses + gains : losses + gains + both_wrong] = 1
    label = np.zeros(n, dtype=np.int64)
    return Evidence(
        (100_000_000, 25_000_000), answers=(before, after), truth=Truth(label, before, **truth)
    )


def timed(
    ratio: float = 0.5, rounds: int = 40, calls: int = 20, twin: float = 1.0, drift: float = 0.01
) -> Evidence:
    rng = np.random.default_rng(0)
    shared = np.exp(rng.normal(size=(rounds, 1)) * drift)

    def lane(scale: float) -> np.ndarray:
        return 0.010 * scale * shared * np.exp(rng.gamma(2, 0.02, (rounds, calls)))

    return Evidence((1, 1), timing=Timing(lane(1.0), lane(ratio), lane(twin)))


def verdict(text: str, evidence: Evidence, task: Task = TASK, alpha: float = 0.05) -> Verdict:
    return judge(parse(text), evidence, task, alpha)


# --- quality


def test_three_outcomes() -> None:
    assert verdict("accuracy >= baseline - 0.01", answered(4000, 30, 40)).outcome == "met"
    assert verdict("accuracy >= baseline - 0.01", answered(4000, 10, 120)).outcome == "broken"
    doubt = verdict("accuracy >= baseline - 0.01", answered(500, 5, 8))
    assert doubt.outcome == "undecided"
    assert doubt.needs is not None
    assert doubt.needs > 100


def test_estimate_and_bound_are_figures_of_the_metric() -> None:
    found = verdict("accuracy >= baseline - 0.01", answered(1000, 10, 30, both_wrong=100))
    assert found.estimate == pytest.approx(0.87)
    assert found.bound == pytest.approx(0.88)
    assert found.low < 0.87 < found.high
    assert found.examples == 1000


def test_150_rows_cannot_show_a_fifth_of_a_point_and_say_how_many_would() -> None:
    found = verdict("accuracy >= baseline - 0.002", answered(150, 0, 0))
    assert found.outcome == "undecided"
    assert found.needs is not None
    assert 1000 < found.needs < 10_000


def test_equal_answers_on_a_sample_are_no_proof_but_the_original_is_itself() -> None:
    """A candidate that is right on the same 150 rows may still err on others."""
    limit = parse("accuracy >= baseline")
    alike = answered(150, 0, 0)
    assert alike.answers is not None
    assert judge(limit, alike, TASK).outcome == "undecided"
    itself = replace(alike, same=True)
    assert judge(limit, itself, TASK).outcome == "met"
    assert judge(limit, itself, TASK).p_value == 0.0
    one = alike.answers[0]
    assert judge(limit, replace(alike, answers=(one, one[:])), TASK).p_value == 0.0
    assert judge(parse("accuracy >= baseline + 0.01"), itself, TASK).outcome == "broken"
    unseen = Evidence((1, 1), same=True)
    assert judge(limit, unseen, TASK).outcome == "met"
    assert judge(parse("accuracy >= 0.9"), unseen, TASK).outcome == "undecided"


def test_absolute_limits_are_about_the_candidate_alone() -> None:
    evidence = answered(1000, 0, 50)
    assert verdict("accuracy >= 0.93", evidence).outcome == "met"
    assert verdict("accuracy >= 0.97", evidence).outcome == "broken"
    assert verdict("accuracy >= 0.95", evidence).outcome == "undecided"
    assert judge(parse("accuracy >= 0.99"), replace(evidence, same=True), TASK).outcome == "broken"


def test_flips_and_agreement_count_changed_answers() -> None:
    evidence = answered(2000, 10, 10)
    assert verdict("flips <= 2 %", evidence).outcome == "met"
    assert verdict("flips <= 0.5 %", evidence).outcome == "broken"
    assert verdict("agreement >= 98 %", evidence).outcome == "met"


def test_ratios_for_higher_and_lower_is_better() -> None:
    evidence = answered(4000, 20, 30, both_wrong=400)
    assert verdict("accuracy >= 99 % of baseline", evidence).outcome == "met"
    assert verdict("accuracy >= 1.02 x baseline", evidence).outcome == "broken"


def regressed(scale: float, n: int = 2000, noise: float = 0.0, negative: bool = False) -> Evidence:
    rng = np.random.default_rng(1)
    label = rng.normal(size=n)
    error = rng.normal(size=n)
    before = label + error
    after = label + error * math.sqrt(scale) + noise * rng.normal(size=n)
    return Evidence(
        (2, 1),
        answers=(before.astype(np.float32), after.astype(np.float32)),
        truth=Truth(label, before),
    )


@pytest.mark.parametrize(
    ("text", "scale", "outcome"),
    [
        ("mse <= 105 % of baseline", 1.01, "met"),
        ("mse <= 105 % of baseline", 1.2, "broken"),
        ("mse <= baseline + 0.05", 1.01, "met"),
        ("mse <= baseline + 0.05", 0.8, "met"),
        ("mse <= baseline + 0.05", 1.2, "broken"),
        ("mse <= 2", 1.0, "met"),
        ("mse <= 0.5", 1.0, "broken"),
        ("neg_mse >= 105 % of baseline", 1.2, "broken"),
        ("neg_mse >= 95 % of baseline", 1.01, "met"),
        ("neg_mse >= 95 % of baseline", 1.2, "broken"),
        ("neg_mse >= baseline - 0.05", 1.01, "met"),
        ("r2 >= baseline - 0.05", 1.2, "broken"),
    ],
)
def test_lower_is_better_and_negative_metrics(text: str, scale: float, outcome: str) -> None:
    found = verdict(text, regressed(scale), REGRESSION)
    assert found.outcome == outcome
    good = found.estimate >= found.bound if ">=" in text else found.estimate <= found.bound
    assert good == (outcome == "met")
    assert found.low <= found.estimate <= found.high


@pytest.mark.parametrize(
    ("metric", "margin", "method"),
    [("auc", 0.01, "DeLong"), ("average_precision", 0.04, "bootstrap")],
)
def test_metrics_of_a_whole_set(metric: str, margin: float, method: str) -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(1500) < 0.3).astype(np.int64)
    score = rng.normal(size=1500) + 1.5 * label
    before = 1 / (1 + np.exp(-score))
    after = 1 / (1 + np.exp(-(score + 0.1 * rng.normal(size=1500))))
    evidence = Evidence((2, 1), answers=(before, after), truth=Truth(label, before))
    limit = f"{metric} >= baseline - {margin}"
    found = verdict(limit, evidence)
    assert found.outcome == "met"
    assert method in found.method
    assert found == verdict(limit, evidence)  # seeded
    worse = replace(evidence, answers=(before, 1 / (1 + np.exp(-(score + rng.normal(size=1500))))))
    assert verdict(limit, worse).outcome == "broken"


def test_whole_set_metric_with_no_change_seen_needs_rows_too() -> None:
    few, many = (answered(n, 0, 0, both_wrong=n // 10) for n in (50, 1000))
    assert verdict("balanced_accuracy >= baseline - 0.01", few).outcome == "undecided"
    assert verdict("balanced_accuracy >= baseline - 0.01", many).outcome == "met"


def rare(flips: int, positives: int = 40, n: int = 4000) -> Evidence:
    """Nothing seen to change in the rare class, `flips` in the other."""
    label = np.zeros(n, dtype=np.int64)
    label[:positives] = 1
    after = label.copy()
    after[positives : positives + flips] = 1
    return Evidence((2, 1), answers=(label.copy(), after), truth=Truth(label, label))


@pytest.mark.parametrize("metric", ["recall", "balanced_accuracy", "recall_macro", "f1", "auc"])
@pytest.mark.parametrize("bound", ["baseline - 0.01", "0.99"])
def test_40_rows_of_a_class_cannot_show_a_point_of_it(metric: str, bound: str) -> None:
    """Flips in the other class say nothing of it, and that no draw of a bootstrap differs is no
    proof either."""
    task = replace(TASK, form="probabilities")
    for flips in (0, 12):
        evidence = rare(flips)
        assert evidence.answers is not None
        if metric == "auc":
            before, after = (each.astype(np.float64) for each in evidence.answers)
            evidence = replace(evidence, answers=(before, after))
        found = verdict(f"{metric} >= {bound}", evidence, task)
        assert found.outcome != "met"
        assert found.p_value > 0.3


def test_means_within_classes_are_tested_as_such() -> None:
    evidence = rare(12, positives=2000)
    recall = verdict("recall >= baseline - 0.01", evidence)
    assert (recall.outcome, recall.examples) == ("met", 2000)
    assert recall.method == "exact unconditional test"
    assert verdict("recall >= 0.99", evidence).method == "exact binomial"
    precision = verdict("precision >= 0.98", evidence)
    assert (precision.outcome, precision.examples) == ("met", 2012)
    assert precision.method == "exact binomial"
    balanced = verdict("balanced_accuracy >= baseline - 0.01", evidence)
    assert balanced.outcome == "met"
    assert balanced.estimate == pytest.approx(1 - 12 / 2000 / 2)
    assert verdict("balanced_accuracy >= 0.99", evidence).outcome == "met"
    assert verdict("balanced_accuracy >= 0.999", evidence).outcome == "broken"
    weighted = verdict("recall_weighted >= baseline - 0.01", evidence)
    assert weighted.p_value == verdict("accuracy >= baseline - 0.01", evidence).p_value


def test_single_class_has_no_auc() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(100)
    label = np.zeros(100, dtype=np.int64)
    evidence = Evidence((2, 1), answers=(scores, scores * 0.9), truth=Truth(label, scores))
    found = verdict("auc >= baseline - 0.01", evidence)
    assert found.outcome == "undecided"
    assert "cannot be computed" in found.note


def test_nan_answers_break_a_limit() -> None:
    evidence = regressed(1.0)
    assert evidence.answers is not None
    after = evidence.answers[1].copy()
    after[7] = np.nan
    found = verdict(
        "mse <= 2 x baseline", replace(evidence, answers=(evidence.answers[0], after)), REGRESSION
    )
    assert found.outcome == "broken"
    assert found.p_value == 1.0
    assert "NaN in 1 of 2000" in found.note


def test_missing_evidence_is_undecided_never_met() -> None:
    nothing = Evidence((2, 1))
    for text in ("accuracy >= baseline - 1 %", "latency <= 1 s", "memory <= 1 GB", "energy <= 1 J"):
        found = verdict(text, nothing)
        assert found.outcome == "undecided"
        assert found.p_value == 1.0
        assert "not measured" in found.note
    assert together(judge_all((parse("latency <= 1 s"),), nothing, TASK))[0] == "undecided"


def test_labelled_metric_without_labels_is_a_wrong_request() -> None:
    with pytest.raises(WrongRequest, match="agreement"):
        verdict("accuracy >= baseline", answered(50, 0, 0), replace(TASK, labelled=False))


def test_groups_of_rows_count_as_one() -> None:
    """Ten rows of one patient are not ten patients."""
    plain = answered(2000, 20, 30)
    grouped = answered(2000, 20, 30, group=np.repeat(np.arange(200), 10))
    found, independent = (verdict("accuracy >= baseline - 0.01", e) for e in (grouped, plain))
    assert found.examples == 200
    assert found.high - found.low > 1.5 * (independent.high - independent.low)


def test_rows_that_repeat_count_once() -> None:
    unit = np.repeat(np.arange(200), 10)
    alone, repeated = answered(2000, 0, 0), answered(2000, 0, 0, unit=unit)
    assert verdict("accuracy >= baseline - 0.01", alone).outcome == "met"
    found = verdict("accuracy >= baseline - 0.01", repeated)
    assert (found.outcome, found.examples) == ("undecided", 200)
    assert verdict("balanced_accuracy >= baseline - 0.01", repeated).outcome == "undecided"
    assert repeated.truth is not None
    assert repeated.truth.take(np.arange(20)).units.tolist() == [0] * 10 + [1] * 10


# --- the original itself


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("agreement >= 99 %", "met"),
        ("agreement@sex >= 99 %", "met"),
        ("flips <= baseline - 0.5 %", "broken"),
        ("flips <= 0.1 %", "met"),
        ("cosine >= 0.999", "met"),
        ("kl <= 0.001", "met"),
        ("rel_error <= 1 %", "met"),
        ("neg_kl >= -0.001", "met"),
    ],
)
def test_the_original_agrees_with_itself(text: str, outcome: str) -> None:
    answers = np.random.default_rng(0).random((88, 2)).astype(np.float32)
    column = np.array(["f"] * 80 + ["m"] * 8)
    evidence = Evidence(
        (1, 1), answers=(answers, answers), truth=Truth(None, answers, None, {"sex": column})
    )
    task = Task("free", "answer", "agreement", labelled=False)
    for each in (evidence, replace(evidence, same=True)):
        found = verdict(text, each, task)
        assert (found.outcome, found.p_value) == (outcome, float(outcome == "broken"))
    assert free_for_original(parse(text), task)
    if "@" not in text:
        assert verdict(text, Evidence((1, 1), same=True), task).outcome == outcome


def test_what_is_free_for_the_original() -> None:
    free = ("accuracy >= baseline - 1 %", "size <= 1 MB", "latency <= baseline", "flops <= 1 G")
    assert all(free_for_original(parse(text), TASK) for text in free)
    tested = ("accuracy >= 0.9", "latency <= 1 ms", "metrics.py:mine >= 0.9")
    assert not any(free_for_original(parse(text), TASK) for text in tested)


# --- segments


def segmented(rows: dict[str, tuple[int, int, int]]) -> Evidence:
    """Value of the column -> (rows, gains, losses)."""
    parts = [answered(*counts) for counts in rows.values()]
    column = np.concatenate([[name] * counts[0] for name, counts in rows.items()])
    pairs = [each.answers for each in parts if each.answers]
    before, after = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    truth = Truth(np.zeros(len(before), dtype=np.int64), before, None, {"sex": column})
    return Evidence((2, 1), answers=(before, after), truth=truth)


LIMIT = "accuracy@sex >= baseline - 0.02"


def test_every_segment_must_pass() -> None:
    found = verdict(LIMIT, segmented({"f": (2000, 5, 8), "m": (2000, 6, 9)}))
    assert found.outcome == "met"
    assert [part.outcome for part in found.parts] == ["met", "met"]
    assert found.p_value == max(part.p_value for part in found.parts)


def test_the_original_under_segments_is_a_fact() -> None:
    evidence = replace(segmented({"f": (2000, 5, 8), "m": (12, 0, 0)}), same=True)
    assert verdict("accuracy@sex >= baseline + 0.01", evidence).outcome == "broken"
    assert verdict("accuracy@sex >= baseline - 0.01", evidence).outcome == "met"


def test_nan_in_one_segment_breaks_it() -> None:
    rng = np.random.default_rng(0)
    label = np.array([0, 1] * 200)
    before = rng.random((400, 2)).astype(np.float32)
    after = before.copy()
    after[:, 1] = np.where(np.arange(400) < 200, np.inf, after[:, 1])
    column = np.repeat(["f", "m"], 200)
    evidence = Evidence(
        (2, 1), answers=(before, after), truth=Truth(label, before, None, {"s": column})
    )
    found = verdict("auc@s >= baseline - 0.5", evidence, replace(TASK, form="logits"))
    assert found.outcome == "broken"


def test_the_worst_segment_is_named() -> None:
    found = verdict(LIMIT, segmented({"f": (2000, 0, 120), "m": (4000, 60, 0)}))
    assert found.outcome == "broken"
    assert "sex=f" in found.note
    assert (
        verdict(
            "accuracy >= baseline - 0.02", segmented({"f": (2000, 0, 120), "m": (4000, 60, 0)})
        ).outcome
        == "met"
    )


def test_small_segments_are_undecided() -> None:
    found = verdict(LIMIT, segmented({"f": (2000, 5, 5), "m": (19, 0, 0)}))
    assert found.outcome == "undecided"
    assert "too few examples" in found.note
    assert found.needs == 1


def test_broken_segments_are_named_after_holms_correction() -> None:
    """One of ten alike segments at p = 0.03 is chance, and not a finding."""
    rows = {"a": (300, 0, 12)} | {str(i): (3000, 10, 10) for i in range(9)}
    alone = verdict("accuracy >= baseline - 0.02", answered(300, 0, 12))
    assert alone.outcome == "broken"
    assert verdict(LIMIT, segmented(rows)).outcome == "undecided"


def test_crossings_of_columns() -> None:
    evidence = answered(2000, 0, 0)
    assert evidence.truth is not None
    sex, old = np.tile(["f", "m"], 1000), np.arange(2000) < 1000
    truth = replace(evidence.truth, segments={"sex": sex, "old": old})
    found = verdict("accuracy@sex,old >= baseline - 0.02", replace(evidence, truth=truth))
    assert len(found.parts) == 4
    assert "sex=f, old=False" in found.parts[0].limit
    missing = verdict("accuracy@race >= baseline - 0.02", replace(evidence, truth=truth))
    assert missing.outcome == "undecided"


# --- size, latency


def test_counts_are_facts() -> None:
    evidence = replace(answered(10, 0, 0), memories=(400, 300), flops=(2e9, 1e9))
    for text in ("size <= 25 MB", "size <= 0.25 x baseline", "memory <= baseline", "flops <= 1 G"):
        found = verdict(text, evidence)
        assert (found.outcome, found.p_value, found.method) == ("met", 0.0, "exact")
    found = verdict("size <= 20 MB", evidence)
    assert (found.outcome, found.p_value, found.estimate) == ("broken", 1.0, 25e6)
    assert verdict("size <= 20 MB", replace(evidence, same=True)).estimate == 100e6


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("latency <= 0.6 x baseline", "met"),
        ("latency <= 0.4 x baseline", "broken"),
        ("latency <= baseline - 3 ms", "met"),
        ("latency <= baseline - 7 ms", "broken"),
        ("latency <= baseline - 70 ms", "broken"),
        ("latency <= 7 ms", "met"),
        ("latency <= 4 ms", "broken"),
        ("latency.p95 <= 8 ms", "met"),
        ("latency.p95 <= 4 ms", "broken"),
        ("latency.p95 <= 0.7 x baseline", "met"),
        ("latency.p95 <= 0.3 x baseline", "broken"),
        ("latency.mean <= 7 ms", "met"),
        ("latency.mean <= 0.6 x baseline", "met"),
        ("latency.p99 <= 9 ms", "met"),
        ("throughput >= 150 /s", "met"),
        ("throughput >= 300 /s", "broken"),
        ("throughput >= 1.8 x baseline", "met"),
        ("throughput >= 3 x baseline", "broken"),
        ("throughput >= baseline + 50 /s", "met"),
    ],
)
def test_latency_limits(text: str, outcome: str) -> None:
    found = verdict(text, timed(0.5))
    assert found.outcome == outcome
    if math.isfinite(found.estimate):
        assert found.low < found.estimate < found.high
        good = found.estimate >= found.bound if ">=" in text else found.estimate <= found.bound
        assert good == (outcome == "met")


def test_p99_of_few_runs_is_undecided() -> None:
    for text in ("latency.p99 <= 9 ms", "latency.p99 <= 0.9 x baseline"):
        found = verdict(text, timed(0.5, rounds=10, calls=10))
        assert found.outcome == "undecided"


def test_calls_of_a_drifting_round_are_worth_less() -> None:
    """800 calls in 40 rounds that differ more than the calls of a round do are no 800 runs."""
    steady, drifting = (timed(0.5, drift=each) for each in (0.01, 0.2))
    assert verdict("latency.p99 <= 9 ms", steady).outcome == "met"
    found = verdict("latency.p99 <= 9 ms", drifting)
    assert found.outcome == "undecided"
    assert "worth" in found.method
    assert found.needs is not None


def test_a_noisy_machine_decides_nothing() -> None:
    quiet, noisy = timed(0.97, rounds=60), timed(0.97, rounds=60, twin=1.10)
    assert verdict("latency <= baseline", quiet).outcome == "met"
    found = verdict("latency <= baseline", noisy)
    assert found.outcome == "undecided"
    assert "too noisy here" in found.note
    assert verdict("latency <= baseline", timed(0.6, twin=1.10)).outcome == "met"


@pytest.mark.parametrize("text", ["latency <= 0.6 x baseline", "throughput >= 1.5 x baseline"])
def test_too_few_rounds_to_decide_anything_are_named(text: str) -> None:
    assert stats.least_rounds(0.05) == 6
    for ratio in (0.5, 1.5):
        found = verdict(text, timed(ratio, rounds=4))
        assert (found.outcome, found.needs) == ("undecided", 2 * 20)
        assert "too few rounds: 4; it takes 6 rounds" in found.note
        assert verdict(text, timed(ratio, rounds=6)).outcome != "undecided"
    strict = verdict(text, timed(0.5, rounds=6), alpha=0.001)
    assert strict.needs == (stats.least_rounds(0.001) - 6) * 20


def test_too_few_runs_for_a_quantile_are_named() -> None:
    found = verdict("latency.p99 <= 0.9 x baseline", timed(0.5, rounds=10, calls=10))
    assert (found.outcome, found.needs) == ("undecided", 200)
    assert "299 runs" in found.note
    assert verdict("latency.p99 <= 9 ms", timed(0.5, rounds=10, calls=10)).needs == 200


def test_few_rounds_are_undecided_and_say_so() -> None:
    found = verdict("latency <= 0.6 x baseline", timed(0.5, rounds=4))
    assert found.outcome == "undecided"
    assert found.needs or found.note


# --- what is counted


@pytest.mark.parametrize("pair", [(math.nan, 5.0), (9.0, math.nan), (math.nan, math.nan)])
def test_unknown_counts_are_undecided_never_facts(pair: tuple[float, float]) -> None:
    evidence = Evidence((2, 1), flops=pair)
    found = verdict("flops <= 0.9 x baseline", evidence)
    assert (found.outcome, found.p_value) == ("undecided", 1.0)
    assert "flops is not known" in found.note
    assert better(parse_objective("flops"), evidence, TASK).outcome == "undecided"
    assert math.isnan(objective_value(parse_objective("flops"), evidence, TASK))


# --- better, objective, nearest


def test_better_than_the_original() -> None:
    size, latency = parse_objective("size"), parse_objective("latency")
    throughput, accuracy = parse_objective("throughput"), parse_objective("accuracy")
    assert better(size, Evidence((10, 9)), TASK).outcome == "met"
    assert better(size, Evidence((10, 10)), TASK).outcome == "broken"
    assert better(latency, timed(0.5), TASK).outcome == "met"
    assert better(latency, timed(1.5), TASK).outcome == "broken"
    assert better(latency, timed(1.0), TASK).outcome == "undecided"
    assert better(latency, timed(0.97, twin=1.1), TASK).outcome == "undecided"
    assert better(throughput, timed(0.5), TASK).outcome == "met"
    assert better(throughput, timed(2.0), TASK).outcome == "broken"
    assert better(accuracy, answered(1000, 60, 20), TASK).outcome == "met"
    assert better(accuracy, answered(1000, 20, 60), TASK).outcome == "broken"
    for objective in (size, latency, accuracy):
        same = replace(timed(0.5), same=True, answers=answered(9, 0, 0).answers)
        assert better(objective, same, TASK).p_value == 1.0
    assert better(latency, Evidence((10, 9)), TASK).outcome == "undecided"


def test_objective_value_is_a_ratio_where_lower_is_better() -> None:
    size, latency = parse_objective("size"), parse_objective("latency")
    assert objective_value(size, Evidence((10, 5)), TASK) == 0.5
    assert objective_value(latency, timed(0.5), TASK) == pytest.approx(0.5, rel=0.02)
    assert objective_value(parse_objective("latency.p95"), timed(0.5), TASK) == pytest.approx(
        0.5, rel=0.05
    )
    assert objective_value(parse_objective("throughput"), timed(0.5), TASK) == pytest.approx(
        0.5, rel=0.02
    )
    assert objective_value(parse_objective("accuracy"), answered(100, 10, 0), TASK) < 1
    assert objective_value(parse_objective("mse"), regressed(1.2), REGRESSION) > 1
    assert objective_value(parse_objective("neg_mse"), regressed(1.2), REGRESSION) > 1
    for text in ("latency.p95", "latency.p99", "latency", "throughput"):
        few = timed(0.5, rounds=1, calls=10)
        assert objective_value(parse_objective(text), few, TASK) == pytest.approx(0.5, rel=0.1)
    assert math.isnan(objective_value(latency, Evidence((10, 5)), TASK))
    assert objective_value(latency, replace(timed(0.5), same=True), TASK) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "accuracy >= baseline - 0.001",
        "accuracy >= baseline + 0.1",
        "accuracy >= 0.999",
        "accuracy >= 99.9 % of baseline",
        "size <= 20 MB",
        "size <= 0.1 x baseline",
        "flips <= 0.1 %",
        "latency <= 4 ms",
        "latency <= 0.4 x baseline",
        "latency <= baseline - 7 ms",
        "throughput >= 400 /s",
    ],
)
def test_the_nearest_limit_is_one_that_this_evidence_meets(text: str) -> None:
    limit = parse(text)
    evidence = replace(answered(3000, 10, 60), timing=timed(0.5).timing)
    found = judge(limit, evidence, TASK)
    assert found.outcome == "broken"
    words = nearest(limit, found)
    assert words is not None
    other: Limit = parse(words)
    assert (other.metric, other.sense) == (limit.metric, limit.sense)
    assert judge(other, evidence, TASK).outcome == "met"


def test_nearest_of_nothing() -> None:
    limit = parse("latency <= 4 ms")
    assert nearest(limit, judge(limit, Evidence((2, 1)), TASK)) is None


# --- what a sequential test is given


def test_values_of_a_mean_are_oriented_and_bounded() -> None:
    evidence = answered(1000, 10, 30, both_wrong=100)
    found = mean_values(parse("accuracy >= baseline - 0.01"), evidence, TASK)
    assert found is not None
    assert (found.worst, found.best, found.border) == (-1.0, 1.0, -0.01)
    assert found.units is None
    assert found.values.sum() == -20
    flips = mean_values(parse("flips <= 2 %"), evidence, TASK)
    assert flips is not None
    assert (flips.worst, flips.best, flips.border) == (-1.0, 0.0, -0.02)
    assert flips.values.sum() == -40
    ratio = mean_values(parse("accuracy >= 99 % of baseline"), evidence, TASK)
    assert ratio is not None
    assert (ratio.worst, ratio.best, ratio.border) == (-0.99, 1.0, 0.0)


@pytest.mark.parametrize("name", ["balanced_accuracy >= 0.5", "log_loss <= 101 % of baseline"])
def test_no_values_where_the_limit_is_no_bounded_mean(name: str) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 100, 2))
    evidence = Evidence((1, 1), answers=(before, after), truth=Truth(np.arange(100) % 2, before))
    task = Task("classification", "answer", "accuracy", classes=2, form="logits")
    assert mean_values(parse(name), evidence, task) is None
    assert mean_values(parse("brier <= baseline + 0.1"), evidence, task) is not None
