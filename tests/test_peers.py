"""Where other optimizers were seen to be wrong: the same cases, and what is right.

Olive: limits that are all absolute are not enforced; a candidate without the metric meets the
limit and ranks first; a failed trial breaks the ranking or counts as success; a model is shipped
where none meets the limits. Neural Compressor: every metric is taken for positive and better when
higher. NNCF: a missed limit is a line in a log, and a model is returned anyway.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Case, Said, Tailored

from sartor.certify import Certification, Row
from sartor.contracts import Task
from sartor.evidence import together
from sartor.finalists import freeze
from sartor.limits import parse, parse_objective
from sartor.metrics import Truth
from sartor.outcome import outcome
from sartor.priors import observed
from sartor.records import Journal, Timing, Trial, Verdict
from sartor.verdicts import Evidence, better, judge, judge_all, objective_value

Sartor = Callable[..., Said]
TASK = Task("classification", "logits", "accuracy", True, 2, "logits")
VALUE = Task("regression", "value", "mse")


# -- limits that are all absolute -----------------------------------------------------------------


def absolute(sartor: Sartor, tailored: Tailored, place: Path, *limits: str) -> Said:
    flags = [flag for limit in limits for flag in ("--limit", limit)]
    return sartor(
        *("optimize", tailored.case.model, "--data", tailored.case.data(place), *flags),
        *("--trials", 3, "--out", place / "run", "--json"),
        *("--replay", tailored.folder / "run.jsonl"),
    )


def test_absolute_limits_are_enforced(sartor: Sartor, tailored: Tailored, tmp_path: Path) -> None:
    """Olive returns no goals at all where each has a threshold: a latency of 1 us "is met"."""
    said = absolute(sartor, tailored, tmp_path, "latency <= 1 us", "accuracy >= 0.5")
    assert said.status == 3
    assert said.json["binding"]["limit"] == "latency <= 1 us"
    assert not (tmp_path / "run" / "bundle").exists()
    tried = Journal(tmp_path / "run" / "run.jsonl").events("trial")
    assert {each["state"] for each in tried} == {"dropped"}


def test_absolute_limits_that_hold_are_certified(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    limits = ("latency <= 1 s", "size <= 1 MB", "accuracy >= 0.5")
    said = absolute(sartor, tailored, tmp_path, *limits)
    assert said.status == 0
    shown = {each["limit"]: each for each in said.json["limits"]}
    assert [shown[limit]["outcome"] for limit in limits] == ["met"] * 3
    assert [shown[limit]["bound"] for limit in limits] == [1.0, 1e6, 0.5]


def test_an_absolute_limit_that_the_original_misses_does_not_bring_the_original(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    """NNCF and Olive log that nothing qualifies, and return a model."""
    said = absolute(sartor, tailored, tmp_path, "accuracy >= 0.999")
    assert said.status == 3
    assert said.json["chosen"] is None
    assert said.json["artifact"] is None
    assert not (tmp_path / "run" / "bundle").exists()


# -- a candidate without the metric ---------------------------------------------------------------

UNMEASURED = Evidence((100, 50))
LIMITS = ("latency <= 5 ms", "latency.p95 <= 2 x baseline", "throughput >= 10", "memory <= 9 GB",
          "accuracy >= 0.1", "flips <= 99 %", "flops <= 2 x baseline")  # fmt: skip


@pytest.mark.parametrize("text", LIMITS)
def test_what_was_not_measured_meets_no_limit(text: str) -> None:
    verdict = judge(parse(text), UNMEASURED, TASK)
    assert verdict.outcome == "undecided"
    assert verdict.p_value == 1.0
    assert verdict.note
    sized = judge(parse("size <= 60 B"), UNMEASURED, TASK)
    assert sized.outcome == "met"
    assert together([sized, verdict]) == ("undecided", 1.0)


@pytest.mark.parametrize("name", ["latency", "throughput", "memory", "flops"])
def test_what_was_not_measured_is_not_better(name: str) -> None:
    objective = parse_objective(name)
    assert better(objective, UNMEASURED, TASK).outcome == "undecided"
    assert math.isnan(objective_value(objective, UNMEASURED, TASK))


def trial(number: int, objective: float | None, p: float = 0.01, state: Any = "done") -> Trial:
    figures = {} if objective is None else {"objective": objective}
    outcome: Any = "met" if p <= 0.05 else "undecided"
    verdict = Verdict("accuracy >= 0.5", outcome, 0.9, 0.8, 0.95, 0.5, p, "score", 100)
    recipe = ({"technique": f"t{number}"},)
    return Trial(number, recipe, state, "", figures, (verdict,), p, model=f"m{number}")


def test_a_trial_without_the_objective_ranks_nowhere() -> None:
    """Olive's sentinel for a missing latency is the largest number in "higher is better" space:
    the candidate without a latency comes first."""
    odd = [trial(1, None), trial(2, math.nan), trial(3, math.inf), trial(4, None, p=1e-9)]
    known = trial(5, 0.9, p=0.04)
    assert [each.trial.number for each in freeze([*odd, known])] == [5]
    assert freeze(odd) == ()
    assert all("objective" not in observed(each) for each in odd)


# -- failed trials --------------------------------------------------------------------------------


def test_failed_trials_break_nothing_and_meet_nothing() -> None:
    states = ("failed", "refused", "dropped")
    lost = [trial(i, None, p=1.0, state=state) for i, state in enumerate(states)]
    lost += [trial(i + 9, 0.1, p=1e-9, state=state) for i, state in enumerate(states)]
    bare = [Trial(90 + i, (), state) for i, state in enumerate(states)]  # type: ignore[arg-type]
    good = trial(50, 0.5)
    assert [each.trial.number for each in freeze([*lost, good, *bare])] == [50]
    assert freeze([*lost, *bare]) == ()
    limits = (parse("accuracy >= 0.5"),)
    assert outcome(Certification((), None, None, 0.05, False), limits, [*lost, *bare]).status == 3
    assert outcome(Certification((), None, None, 0.05, False), (), ()).status == 3


def test_no_certified_row_no_success() -> None:
    finalist = freeze([trial(1, 0.5)])[0]
    limits = (parse("accuracy >= 0.5"),)
    for status in ("not certified", "untested"):
        row = Row(finalist, status, finalist.trial.verdicts, 0.5)  # type: ignore[arg-type]
        assert outcome(Certification((row,), None, None, 0.05, True), limits).status in (3, 4)


# -- metrics that are losses, or negative ---------------------------------------------------------


def regression(rows: int, factor: float, seed: int = 0) -> Evidence:
    """A model whose squared errors are `factor` times the original's, which are 0.5 on average."""
    rng = np.random.default_rng(seed)
    label = rng.normal(size=rows)
    error = rng.normal(size=rows)
    error *= math.sqrt(0.5 / np.mean(error**2))
    before = (label + error)[:, None].astype(np.float32)
    after = (label + math.sqrt(factor) * error)[:, None].astype(np.float32)
    truth = Truth(label=label, reference=before, group=None, segments={})
    return Evidence((2, 1), answers=(before, after), truth=truth)


NEGATIVE = ("neg_mse >= baseline - 0.05", "neg_mse >= 95 % of baseline", "neg_mse >= -0.6")
LOSSES = ("mse <= baseline + 0.05", "mse <= 1.05 x baseline", "mse <= 105 % of baseline",
          "mse <= 0.6", "mae <= 1.05 x baseline")  # fmt: skip


@pytest.mark.parametrize("text", [*NEGATIVE, *LOSSES])
def test_losses_and_negative_metrics_behave(text: str) -> None:
    """Neural Compressor's `result >= baseline * (1 - tolerance)`: with a negated loss of -0.5 an
    identical model fails, with a loss a model five times worse passes."""
    limit = parse(text)
    assert judge(limit, regression(2000, 1.0), VALUE).outcome == "met"  # identical answers
    assert judge(limit, regression(2000, 0.8), VALUE).outcome == "met"  # a better model
    assert judge(limit, regression(2000, 5.0), VALUE).outcome == "broken"


@pytest.mark.parametrize("text", [*NEGATIVE[:2], *LOSSES[:3]])
def test_the_original_itself_holds_what_is_relative_to_it(text: str) -> None:
    one = regression(50, 1.0)
    same = Evidence((2, 2), answers=(one.answers or ())[:1] * 2, truth=one.truth, same=True)  # type: ignore[arg-type]
    assert judge(parse(text), same, VALUE).outcome == "met"


@pytest.mark.parametrize("name", ["mse", "neg_mse", "mae", "r2"])
def test_better_is_better_whichever_way_a_metric_points(name: str) -> None:
    objective = parse_objective(name)
    improved, worse = regression(2000, 0.5), regression(2000, 2.0)
    assert (
        objective_value(objective, improved, VALUE) < 1 < objective_value(objective, worse, VALUE)
    )
    assert better(objective, improved, VALUE).outcome == "met"
    assert better(objective, worse, VALUE).outcome == "broken"


@pytest.mark.parametrize("metric", ["neg_mse", "mse"])
def test_a_regression_end_to_end(
    metric: str, sartor: Sartor, diabetes: Case, tmp_path: Path
) -> None:
    """The metric as a loss and as its negative: the same model, the same answer."""
    out = tmp_path / metric
    said = sartor(
        *("optimize", diabetes.model, "--data", diabetes.data(tmp_path), "--metric", metric),
        *("--technique", "float16-storage", "--minimize", "size", "--trials", 2),
        *("--limit", "latency <= 5 x baseline", "--out", out, "--json"),
    )
    assert said.status == 0, said.err
    answer = said.json
    assert answer["metric"] == metric
    assert answer["recipe"][0]["technique"] == "float16-storage"
    sign = -1 if metric == "neg_mse" else 1
    assert sign * answer["figures"][f"original.{metric}"] > 0
    assert answer["figures"][metric] == pytest.approx(
        answer["figures"][f"original.{metric}"], rel=0.01
    )
    wanted = "neg_mse >= " if metric == "neg_mse" else "mse <= "
    quality = next(each for each in answer["limits"] if each["limit"].startswith(wanted))
    # The default limit allows a loss, on the side where a loss lies.
    assert sign * quality["bound"] > sign * answer["figures"][f"original.{metric}"]


def worse_log_loss(rows: int, scale: float) -> Evidence:
    """Logits whose log loss is that of another temperature."""
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, rows)
    before = np.where(np.eye(2)[label] > 0, 1.0, -1.0) + rng.normal(0, 1.2, (rows, 2))
    truth = Truth(label=label, reference=before, group=None, segments={})
    pair = (before.astype(np.float32), (scale * before).astype(np.float32))
    return Evidence((2, 1), answers=pair, truth=truth)


@pytest.mark.parametrize("text", ["log_loss <= 1.1 x baseline", "neg_log_loss >= 90 % of baseline"])
def test_a_classifiers_loss(text: str) -> None:
    """Right as often as before, and far too sure of itself: accuracy alone would not see it."""
    calm, sure = worse_log_loss(2000, 1.0), worse_log_loss(2000, 20.0)
    accuracy = parse("accuracy >= baseline - 0.01")
    assert judge(accuracy, sure, TASK).outcome == "met"
    assert judge(parse(text), calm, TASK).outcome == "met"
    assert judge(parse(text), sure, TASK).outcome == "broken"


# -- figures that are estimates -------------------------------------------------------------------


def test_a_point_estimate_on_the_right_side_is_not_enough() -> None:
    """All peers compare two numbers. Two of 100 rows lost, 3 points allowed: not shown."""
    label = np.zeros(100, np.int64)
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    before = np.tile(right, (100, 1)).astype(np.float32)
    after = before.copy()
    after[:2] = wrong
    truth = Truth(label=label, reference=before, group=None, segments={})
    few = Evidence((2, 1), answers=(before, after), truth=truth)
    verdict = judge(parse("accuracy >= baseline - 0.03"), few, TASK)
    assert verdict.outcome == "undecided"
    assert verdict.needs
    many = Evidence(
        (2, 1),
        answers=(np.tile(before, (20, 1)), np.tile(after, (20, 1))),
        truth=Truth(np.tile(label, 20), np.tile(before, (20, 1)), None, {}),
    )
    assert judge(parse("accuracy >= baseline - 0.03"), many, TASK).outcome == "met"


def lanes(ratio: float, rounds: int, noise: float, seed: int = 0) -> Timing:
    rng = np.random.default_rng(seed)

    def lane(seconds: float) -> np.ndarray:
        return seconds * np.exp(rng.normal(0, noise, (rounds, 8)))

    return Timing(lane(1e-3), lane(ratio * 1e-3), lane(1e-3))


def test_a_latency_of_few_noisy_calls_is_not_enough() -> None:
    limits = (parse("latency <= baseline"), parse("latency.p95 <= 0.8 x baseline"))
    noisy = Evidence((2, 1), timing=lanes(0.95, 5, 0.3))
    assert together(judge_all(limits, noisy, TASK))[0] != "met"
    clear = Evidence((2, 1), timing=lanes(0.5, 60, 0.05))
    assert together(judge_all(limits, clear, TASK))[0] == "met"


def outcomes(verdicts: Sequence[Verdict]) -> list[str]:
    return [each.outcome for each in verdicts]


def test_every_limit_counts_not_the_first_alone() -> None:
    """Sorting by the metric of the highest priority ships what breaks the others."""
    limits = tuple(map(parse, ("size <= 60 B", "mse <= 1.05 x baseline", "size <= 40 B")))
    verdicts = judge_all(limits, regression(2000, 5.0), VALUE)
    assert outcomes(verdicts) == ["met", "broken", "met"]
    assert together(verdicts)[0] == "broken"


# -- what they make of a model, each by its own documentation --------------------------------------

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers.py"
NETWORK = "import torch\n\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Linear(64, 10))\n"


def made_by_peers(case: Case, place: Path, *arguments: Any) -> dict[str, Any]:
    """Peer -> what became of it."""
    parts = np.array(["search", "holdout"])[np.arange(len(case.arrays["label"])) % 2]
    parts[:40] = "train"
    case.data(place, split=parts)
    (place / "model.onnx").write_bytes(case.model.read_bytes())
    command = [sys.executable, PEERS, place, "--out", place / "peers", *arguments]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    told = json.loads((place / "peers" / "peers.json").read_text())["peers"]
    return {each["name"]: each for each in told}


def test_a_peer_is_given_rows_of_the_train_part_alone(tiny: Case, tmp_path: Path) -> None:
    asked = ("--only", "onnxruntime-dynamic", "--only", "torchao")
    found = made_by_peers(tiny, tmp_path, *asked)
    with np.load(tmp_path / "peers" / "rows.npz") as rows:
        assert rows.files == ["pixels"]
        assert np.array_equal(rows["pixels"], tiny.arrays["pixels"][:40])
    made = found["onnxruntime-dynamic"]
    assert made["state"] == "made"
    assert made["size"] == Path(made["artifact"]).stat().st_size
    assert made["versions"]["onnxruntime"]
    assert "quantize_dynamic(job.model, quantized)" in made["snippet"]
    assert found["torchao"]["state"] == "skipped"
    assert "--code" in found["torchao"]["reason"]


def test_a_peer_that_takes_too_long_fails_by_itself(tiny: Case, tmp_path: Path) -> None:
    found = made_by_peers(tiny, tmp_path, "--only", "onnxruntime-dynamic", "--minutes", 0)
    assert found["onnxruntime-dynamic"]["state"] == "failed"
    assert found["onnxruntime-dynamic"]["reason"] == "not done after 0 minutes"


@pytest.mark.slow
def test_what_peers_make_stands_side_by_side(sartor: Sartor, tiny: Case, tmp_path: Path) -> None:
    """A module that only PyTorch runs, by a function, and a file."""
    pytest.importorskip("torchao", reason="the extra torchao is not installed")
    pytest.importorskip("nncf", reason="the extra openvino is not installed")
    (tmp_path / "net.py").write_text(NETWORK)
    names = ("torchao", "nncf-openvino")
    only = [word for name in names for word in ("--only", name)]
    found = made_by_peers(tiny, tmp_path, "--code", f"{tmp_path / 'net.py'}:make", *only)
    assert [found[name]["reason"] for name in names] == ["", ""]
    artifacts = [found[name]["artifact"] for name in names]
    data = tmp_path / "eval.npz"
    said = sartor("compare", tmp_path / "model.onnx", *artifacts, "--data", data, "--json")
    assert said.status == 0, said.err
    assert [row.get("failed") for row in said.json["rows"]] == [None] * 3
