"""The level of every test and the coverage of every interval, simulated where the truth is known.

The larger tables are in benchmarks/statistics/simulate.py, whose functions are used here."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, multinomial, wilcoxon

from sartor import means, paired, stats
from sartor.bootstrap import bootstrap


def _load(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "statistics" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


simulate, covering = _load("simulate"), _load("covering")


# --- paired outcomes


@pytest.mark.parametrize("border", [-0.002, -0.01, -0.05, 0.0])
@pytest.mark.parametrize("alpha", [0.05, 0.006])
def test_exact_paired_test_keeps_its_level_at_every_flip_rate(border: float, alpha: float) -> None:
    for n in (50, 120):
        exact, _ = simulate.paired_levels(n, border, alpha)
        assert exact <= alpha + 1e-6


def test_score_test_alone_would_not_keep_it() -> None:
    """Why the exact test is there: without it 50 rows err in more than 6 %."""
    _, score = simulate.paired_levels(50, -0.002)
    assert score > 0.06


@pytest.mark.parametrize("n", [200, 1000, 10_000])
def test_score_test_errs_in_at_most_6_percent_of_larger_samples(n: int) -> None:
    for border in (-0.002, -0.01, 0.0):
        fewest = paired._smallest_gains(n, border, 1.6448536)
        rates = np.geomspace(max(0.002, -border * (1 + 1e-9)), 0.2, 60)
        assert max(paired._tail(n, border, fewest, (r - border) / 2) for r in rates) <= 0.06


@pytest.mark.parametrize("border", [-0.2, -0.05, 0.0, 0.1])
def test_exact_paired_test_keeps_every_level_by_enumeration(border: float) -> None:
    """All outcomes of 14 pairs, all flip rates, nothing but the definition of a p-value."""
    n = 14
    outcomes = [(g, lost) for g in range(n + 1) for lost in range(n + 1 - g)]
    p = np.array([paired.p_value(*each, n, border) for each in outcomes])
    counts = np.array([(*each, n - sum(each)) for each in outcomes])
    for p_loss in np.linspace(max(0.0, -border), (1 - border) / 2, 200):
        chances = np.maximum([p_loss + border, p_loss, 1 - 2 * p_loss - border], 0)
        weight = multinomial.pmf(counts, n, chances / chances.sum())
        for alpha in (0.01, 0.05, 0.1, 0.3):
            assert weight[p <= alpha].sum() <= alpha + 1e-4


def test_no_flip_at_all_is_the_rule_of_three() -> None:
    assert paired.p_value(0, 0, 150, -0.002) == pytest.approx(0.998**150, rel=1e-3)
    assert paired.p_value(0, 0, 400, -0.01) <= 0.05 < paired.p_value(0, 0, 250, -0.01)


@pytest.mark.parametrize("n", [50, 200, 2000])
def test_paired_interval_covers(n: int) -> None:
    covered = [simulate.paired_coverage(n, -0.01, flips, 8000) for flips in (0.012, 0.05, 0.2)]
    assert min(covered) >= 0.93


@given(st.integers(1, 400), st.data())
@settings(max_examples=60, deadline=None)
def test_paired_comparison_is_symmetric_and_consistent(n: int, data: st.DataObject) -> None:
    gains = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - gains))
    border = data.draw(st.sampled_from([-0.05, -0.01, 0.0, 0.03]))
    one = paired.compare(gains, losses, n, border)
    other = paired.compare(losses, gains, n, -border).negated()
    assert one.above == pytest.approx(other.above)
    assert one.below == pytest.approx(other.below)
    assert one.interval.low <= one.interval.estimate <= one.interval.high
    assert one.interval.low == pytest.approx(other.interval.low, abs=1e-6)
    assert not (one.above <= 0.05 and one.below <= 0.05)


def test_paired_test_is_quick_on_many_rows() -> None:
    found = paired.compare(3000, 3300, 200_000, -0.01)
    assert found.above < 1e-6
    assert found.method == "score test"


@pytest.mark.parametrize(("n", "flips"), [(1000, 0.03), (1000, 0.2), (10_000, 0.012)])
def test_paired_interval_covers_neither_too_little_nor_too_much(n: int, flips: float) -> None:
    """Summed, not drawn. Where fewer than some 10 flips are to be expected it covers more: there
    are too few different outcomes for 95 %."""
    assert 0.93 <= covering.paired_exactly(n, 0.01, flips) <= 0.97


# --- one proportion and means


def test_clopper_and_pearson_cover_at_least_what_they_say() -> None:
    assert min(covering.share(n, p) for n in (50, 400) for p in (0.01, 0.1, 0.37, 0.5)) >= 0.95


def test_proportion_is_clopper_and_pearson() -> None:
    found = stats.proportion(5, 100, 0.1)
    assert found.below == pytest.approx(binom.cdf(5, 100, 0.1))
    assert found.above == pytest.approx(binom.sf(4, 100, 0.1))
    assert found.interval.low == pytest.approx(beta.ppf(0.025, 5, 96))
    assert stats.proportion(0, 10, 0.1).interval.low == 0


@pytest.mark.parametrize(("n", "lost", "border"), [(100, 0, 0.97), (100, 5, 0.9), (1000, 3, 0.99)])
def test_bounded_mean_of_zeros_and_ones_is_the_exact_one(n: int, lost: int, border: float) -> None:
    values = np.r_[np.zeros(lost), np.ones(n - lost)]
    exact = stats.proportion(n - lost, n, border)
    found = means.bounded_mean(values, 0, 1, border)
    assert exact.above <= found.above <= exact.above * 1.03
    assert found.interval.low == pytest.approx(exact.interval.low, abs=2e-3)


def test_saddlepoint_agrees_with_chance() -> None:
    rng = np.random.default_rng(0)
    weights = np.append(rng.normal(0.04, 0.4, 150), -1.0)
    drawn = (rng.exponential(size=(100_000, 151)) @ weights <= 0).mean()
    found = means.gamma_sum_below_zero(weights, np.ones(151))
    assert found == pytest.approx(drawn, abs=0.005)


@pytest.mark.parametrize("name", list(simulate.BOUNDED))
def test_rare_big_losses_do_not_break_the_bounded_mean(name: str) -> None:
    for n in (50, 300):
        assert simulate.mean_level(simulate.BOUNDED[name], n, "bounded", 800) <= 0.062


def test_rare_big_losses_break_the_t_test() -> None:
    assert simulate.mean_level(simulate.BOUNDED["a loss of 1 in 1 %"], 50, "t test", 800) > 0.5


@pytest.mark.parametrize("name", list(simulate.REAL))
def test_unbounded_means_keep_their_level(name: str) -> None:
    assert simulate.mean_level(simulate.REAL[name], 200, "self", 1000) <= 0.062


def test_intervals_of_unbounded_means_cover() -> None:
    assert simulate.mean_coverage(simulate.REAL["change of squared errors"], 200, 300) >= 0.93
    assert simulate.mean_coverage(simulate.REAL["skewed losses, lognormal"], 400, 300) >= 0.93


def test_no_difference_seen_is_no_proof_that_there_is_none() -> None:
    assert means.real_mean(np.zeros(20), -0.01, spread=1.0).above > 0.5
    assert means.real_mean(np.zeros(2000), -0.01, spread=1.0).above < 1e-6
    assert means.real_mean(np.zeros(2000), 0.0, spread=0.0).above == 1.0


def test_rows_of_one_group_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    wrong = naive = 0
    for _ in range(200):
        group = np.repeat(np.arange(60), 10)
        values = np.repeat(rng.normal(size=60), 10) + 0.1 * rng.normal(size=600)
        grouped = stats_of(means.by_group(values, group, 0.0))
        wrong += grouped <= 0.05
        naive += stats_of(values) <= 0.05
    assert wrong / 200 <= 0.09
    assert naive / 200 > 0.15
    values, group = np.arange(10.0), np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    assert means.by_group(values, group, 1.0).mean() == pytest.approx(values.mean())


def stats_of(values: np.ndarray) -> float:
    return means.real_mean(values, 0.0, 1.0).above


@pytest.mark.parametrize("uneven", [False, True])
def test_copies_of_rows_are_no_evidence(uneven: bool) -> None:
    """Counted as independent rows they would be certified in 39 % of the samples."""
    assert simulate.copies_level(200, 10, 200, uneven=uneven) <= 0.08
    assert simulate.copies_level(1000, 3, 100, uneven=uneven) <= 0.12


# --- rare classes


@pytest.mark.parametrize(
    "name", [name for name in simulate.RARE if "reca" in name or "bal" in name]
)
def test_means_over_a_rare_class_keep_their_level(name: str) -> None:
    """The bootstrap alone called 20 to 47 % of them met."""
    assert simulate.rare_level(simulate.RARE[name], 200) <= 0.08


@pytest.mark.parametrize(
    "name", [name for name in simulate.RARE if name[:2] in ("F1", "pr") and "3,000" not in name]
)
def test_figures_of_a_rare_class_keep_their_level(name: str) -> None:
    assert simulate.rare_level(simulate.RARE[name], 20) <= 0.2


# --- the bootstrap


def test_bootstrap_of_auc_keeps_level_and_covers() -> None:
    level, covered = simulate.bootstrap_auc(300, 150, 300)
    assert level <= 0.11  # a true 5.5 % stays below in 99 of 100 runs of 150
    assert covered >= 0.89


def test_bootstrap_over_groups_is_wider() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=40), 10)
    units = np.split(np.arange(400), 40)

    def mean(rows: np.ndarray) -> float:
        return float(x[rows].mean())

    grouped = bootstrap(mean, 400, 0.0, units=units).interval
    plain = bootstrap(mean, 400, 0.0).interval
    assert (grouped.high - grouped.low) > 2.5 * (plain.high - plain.low)
    assert bootstrap(lambda rows: math.nan, 400, 0.0).above == 1.0


# --- latency


@pytest.mark.parametrize(("q", "rounds", "calls"), [(0.5, 20, 20), (0.95, 20, 50), (0.99, 40, 50)])
@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_quantile_intervals_cover_where_rounds_drift(
    q: float, rounds: int, calls: int, drift: float
) -> None:
    assert simulate.quantile_coverage(q, rounds, calls, drift, 500) >= 0.93


def test_ignoring_the_rounds_would_not_cover() -> None:
    assert simulate.quantile_coverage(0.95, 20, 50, 0.1, 300, naive=True) < 0.6


def test_too_few_runs_bound_no_p99() -> None:
    assert stats.quantile_runs(0.99) == 299
    few = stats.quantile_interval(np.random.default_rng(0).random(100), 0.99)
    assert few.high == math.inf
    assert math.isfinite(few.low)
    many = stats.quantile_interval(np.random.default_rng(0).random(1000), 0.99)
    assert 0.98 < many.low < many.high < 1


@pytest.mark.parametrize("rounds", [6, 10, 30])
def test_ratios_over_rounds_cover(rounds: int) -> None:
    assert simulate.ratio_coverage(rounds, 800) >= 0.93


def test_signed_ranks_are_scipys() -> None:
    rng = np.random.default_rng(3)
    for n in (5, 12, 40, 80):
        x = rng.normal(0.1, 0.3, n)
        expected = wilcoxon(x, alternative="greater").pvalue
        assert stats.pseudomedian(x, 0.0).above == pytest.approx(expected, rel=0.02)
    assert stats.pseudomedian(rng.normal(size=4), 0.0).interval.high == math.inf
    assert stats.pseudomedian(rng.normal(1, 1, 5000), 0.9).above < 0.01


def test_noise_floor_is_what_twins_differ_by() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.gamma(50, 0.001, (30, 20))
    assert stats.noise_floor(baseline, baseline) == 0
    assert stats.noise_floor(baseline, baseline * 1.03) == pytest.approx(math.log(1.03))


# --- how many more, and multiplicity


def test_needed_decides_in_four_of_five() -> None:
    n, gain, loss = 300, 0.01, 0.012
    z = float(paired.score(n * gain, n * loss, n, -0.01))
    total = stats.needed(n, z, 0.2)
    assert total is not None
    rng = np.random.default_rng(0)
    counts = rng.multinomial(int(total), [gain, loss, 1 - gain - loss], 400)
    decided = np.mean(
        [paired.p_value(int(g), int(x), int(total), -0.01) <= 0.05 for g, x, _ in counts]
    )
    assert 0.7 <= decided <= 0.9


def test_needed_says_when_more_would_not_help() -> None:
    assert stats.needed(100, -1.0, 0.8) is None
    assert stats.needed(100, 0.0, 0.5) == math.inf
    assert stats.needed(150, 5.0, 0.74) == pytest.approx(
        150 * math.log(0.05) / math.log(0.74), abs=1
    )


def test_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.9]) == [1.0, 1.0]


def test_a_few_starts_keep_their_level() -> None:
    """Six starts of every process, each with an error of its own: at 3 % wrong 3 times in 100."""
    rng = np.random.default_rng(0)
    starts = rng.normal(0.0, 0.06, (2000, 6))
    wrong = np.mean([stats.centre(each, 0.0).below <= 0.03 for each in starts])
    assert 0.02 < wrong < 0.04
    covered = [
        found.low <= 0.0 <= found.high
        for found in (stats.centre(each, 0.0).interval for each in starts)
    ]
    assert 0.93 <= np.mean(covered) <= 0.97
