import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.contracts import WrongRequest
from sartor.limits import (
    PERFORMANCE,
    STATISTICS,
    UNITS,
    Bound,
    Limit,
    Objective,
    parse,
    parse_objective,
    quantity,
)


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "segment", "sense", "kind", "value"),
    [
        ("accuracy >= baseline - 0.01", "accuracy", None, None, ">=", "offset", -0.01),
        ("accuracy >= baseline - 1 %", "accuracy", None, None, ">=", "offset", -0.01),
        ("flips <= baseline + 1 %", "flips", None, None, "<=", "offset", 0.01),
        ("accuracy@sex >= baseline-0.02", "accuracy", None, "sex", ">=", "offset", -0.02),
        ("f1@sex, region >= 0.5", "f1", None, "sex,region", ">=", "absolute", 0.5),
        ("ndcg@10 >= baseline", "ndcg@10", None, None, ">=", "offset", 0.0),
        ("ndcg@10@user >= 0.3", "ndcg@10", None, "user", ">=", "absolute", 0.3),
        ("size <= 20 MB", "size", None, None, "<=", "absolute", 20e6),
        ("size<=20MiB", "size", None, None, "<=", "absolute", 20 * 2**20),
        ("size <= 1_500 kB", "size", None, None, "<=", "absolute", 1.5e6),
        ("memory <= 1.5 GB", "memory", None, None, "<=", "absolute", 1.5e9),
        ("latency <= 10 ms", "latency", None, None, "<=", "absolute", 0.01),
        ("latency.p95 <= 250 us", "latency", "p95", None, "<=", "absolute", 250e-6),
        ("latency.p95 <= 250 µs", "latency", "p95", None, "<=", "absolute", 250e-6),
        ("latency <= 0.5 x baseline", "latency", None, None, "<=", "ratio", 0.5),
        ("latency <= .5*baseline", "latency", None, None, "<=", "ratio", 0.5),
        ("latency <= 50 % of baseline", "latency", None, None, "<=", "ratio", 0.5),
        ("throughput >= 100 /s", "throughput", None, None, ">=", "absolute", 100.0),
        ("throughput >= 100", "throughput", None, None, ">=", "absolute", 100.0),
        ("flops <= 0.3 GFLOP", "flops", None, None, "<=", "absolute", 3e8),
        ("energy <= 5 mJ", "energy", None, None, "<=", "absolute", 5e-3),
        ("accuracy ≥ 90 %", "accuracy", None, None, ">=", "absolute", 0.9),
        ("neg_log_loss >= -0.4", "neg_log_loss", None, None, ">=", "absolute", -0.4),
        ("log_loss <= 101 % of baseline", "log_loss", None, None, "<=", "ratio", 1.01),
        ("top5_accuracy >= 0.9", "top5_accuracy", None, None, ">=", "absolute", 0.9),
        ("dir/metrics.py:mine >= 0.9", "dir/metrics.py:mine", None, None, ">=", "absolute", 0.9),
        ("pack.mod:mine@sex <= 3", "pack.mod:mine", None, "sex", "<=", "absolute", 3.0),
    ],
)
def test_reads(text, metric, statistic, segment, sense, kind, value):
    limit = parse(text)
    assert (limit.metric, limit.statistic, limit.segment) == (metric, statistic, segment)
    assert (limit.sense, limit.bound.kind) == (sense, kind)
    assert limit.bound.value == pytest.approx(value, rel=1e-12)
    assert parse(limit.text) == limit


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("acuracy >= 0.9", "did you mean 'accuracy'"),
        ("roc_auc >= 0.9", "did you mean 'auc'"),
        ("latnecy.p95 <= 1 ms", "did you mean 'latency'"),
        ("xyz >= 1", "known are: accuracy"),
        ("latency <= 10 MB", "latency takes s, ms, us, µs, ns; you wrote MB"),
        ("size <= 20 mb", "did you mean MB?"),
        ("latency <= 10", "needs a unit: write e.g. 10 ms"),
        ("size <= 20000000", "needs a unit: write e.g. 20 MB"),
        ("mse <= 3 ms", "mse takes a plain number; you wrote ms"),
        ("accuracy < 0.9", "a limit takes <= or >=; write <="),
        ("accuracy == 0.9", "a limit takes <= or >=; write >="),
        ("size = 3 MB", "a limit takes <= or >=; write <="),
        ("accuracy", "has no <= or >="),
        ("accuracy >=", "has no value after >="),
        (">= 0.9", "has no metric before >="),
        ("accuracy <= 0.9", "accuracy is better when higher; write accuracy >= 0.9"),
        ("latency.p95 >= 1 ms", "better when lower; write latency.p95 <= 1 ms"),
        ("throughput <= 1 /s", "better when higher"),
        ("neg_mse <= -1", "better when higher"),
        ("accuracy >= nan", "nan is no limit"),
        ("latency <= inf ms", "is no limit"),
        ("accuracy >= 1e999", "too large"),
        ("accuracy >= 90", "lies between 0 and 1; for percent write 90 %"),
        ("accuracy >= 150 %", "lies between 0 and 1"),
        ("cosine >= 2", "lies between -1 and 1"),
        ("accuracy >= baseline - 1", "for points write baseline - 1 %"),
        ("latency.p96 <= 1 ms", "latency.mean, latency.p50"),
        ("size.p95 <= 1 MB", "only latency has statistics; write size"),
        ("latency@sex <= 1 ms", "only quality metrics take a segment"),
        ("accuracy@sex,, >= 0.1", "name the columns"),
        ("accuracy@ >= 0.1", "write METRIC@SEGMENT"),
        ("size <= -1 MB", "size is above 0"),
        ("size <= 0 x baseline", "above 0"),
        ("mse <= baseline + 1 %", "mse is no share; write 101 % of baseline"),
        ("latency <= baseline - 10 %", "latency is no share; write 90 % of baseline"),
        ("accuracy >= banana", "'banana' is not a value"),
        ("size <= 20,5 MB", "is not a value"),
        ("hit@0 >= 0.1", "unknown metric 'hit@0'"),
    ],
)
def test_teaches(text, sentence):
    with pytest.raises(WrongRequest) as caught:
        parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bounds_resolve_against_the_baseline():
    assert Bound("absolute", 3.0).resolve(7.0) == 3.0
    assert Bound("offset", -0.01).resolve(0.9) == pytest.approx(0.89)
    assert Bound("ratio", 0.5).resolve(0.9) == pytest.approx(0.45)


@given(st.floats(-1e6, -1e-6), st.floats(0.5, 0.999))
def test_a_share_of_a_negative_baseline_allows_a_loss(baseline, share):
    """An identical model keeps 99 % of a negated loss; one that is much worse does not."""
    bound = Bound("ratio", share).resolve(baseline)
    assert bound < baseline
    assert bound > 2 * baseline


@given(
    st.sampled_from(sorted(PERFORMANCE)),
    st.floats(1e-6, 1e6, allow_nan=False),
    st.data(),
)
def test_every_unit_round_trips(metric, number, data):
    unit = data.draw(st.sampled_from(sorted(UNITS[metric])))
    if metric != "throughput" and metric != "flops" and not unit:
        return
    sense = ">=" if metric == "throughput" else "<="
    limit = parse(f"{metric} {sense} {number!r} {unit}")
    assert limit.bound.value == pytest.approx(number * UNITS[metric][unit])
    assert parse(str(limit)) == limit


@given(st.text(max_size=40))
def test_any_text_is_a_limit_or_a_sentence(text):
    try:
        limit = parse(text)
    except WrongRequest:
        return
    assert isinstance(limit, Limit)
    assert math.isfinite(limit.bound.value)
    assert parse(limit.text) == limit


def test_figure_names_are_those_of_trials():
    assert parse("latency <= 1 ms").figure == "latency"
    assert parse("latency.p50 <= 1 ms").figure == "latency"
    assert parse("latency.p95 <= 1 ms").figure == "latency.p95"
    assert parse("accuracy >= 0.5").figure == "accuracy"
    assert parse("accuracy >= 0.5").quality
    assert not parse("size <= 1 MB").quality
    assert parse("f1@a,b >= 0.5").segments == ("a", "b")


def test_objectives():
    assert parse_objective("latency") == Objective("latency", None, False)
    assert parse_objective("latency.p95").figure == "latency.p95"
    assert parse_objective("throughput").higher is True
    assert parse_objective("accuracy").higher is True
    assert parse_objective("mse").higher is False
    assert parse_objective("m.py:mine").higher is None
    with pytest.raises(WrongRequest, match="did you mean 'latency'"):
        parse_objective("latencies")


def test_quantities():
    assert quantity("2 GB", "memory") == 2e9
    assert quantity("3ms", "latency") == pytest.approx(0.003)
    with pytest.raises(WrongRequest, match="not a number with a unit"):
        quantity("a lot", "memory")
    assert set(STATISTICS) == {"mean", "p50", "p90", "p95", "p99"}
