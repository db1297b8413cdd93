"""When a candidate is given up before everything was measured: a test that is looked at often.

Quality is looked at after 32, 128, 512, 1024, 2048 and all examples. The errors of all looks
together are bounded by sharing one level among them (Bonferroni): a candidate that keeps its limits
is dropped with a probability of at most `DROP`, however often one looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sartor.contracts import Task
from sartor.finalists import SURE
from sartor.limits import Limit, Objective, parse
from sartor.records import Trial, Verdict
from sartor.special import ndtri
from sartor.verdicts import EXACT, Evidence, judge, judge_all

SAMPLES = (32, 128, 512, 1024, 2048)  # examples after which a candidate's quality is looked at
DROP = 0.01  # the probability that a limit which holds is taken for broken, over all looks
FEW = 128  # below so many examples only tests that are exact there decide, and nothing is predicted
EARLY = 0.01  # what a figure other than quality must be shown at for an early answer
LIKELY = 0.8  # the chance that an early answer is certified from which on it is tried
EARLY_GAIN = 0.95  # and of the original's objective it has at most this
SLOWER = 1.2  # two processes of one model may differ by several percent; not by this


def looks(total: int) -> tuple[int, ...]:
    """Numbers of examples at which to look, up to all of them."""
    return (*(n for n in SAMPLES if n < total), total)


def lost(
    limits: Iterable[Limit],
    verdicts: Iterable[Verdict],
    evidence: Evidence,
    task: Task,
    seed: int,
    total: int,
) -> Verdict | None:
    """The first limit that the evidence speaks against so strongly that the candidate is given up;
    `verdicts` are those of the limits at 5 %, `total` the examples that there are."""
    level = DROP / len(looks(total))
    seen = total if evidence.answers is None else len(evidence.answers[0])
    for limit, verdict in zip(limits, verdicts, strict=True):
        if verdict.outcome != "broken" or (seen < min(FEW, total) and not _exact(verdict)):
            continue
        if verdict.method == EXACT or judge(limit, evidence, task, level, seed).outcome == "broken":
            return verdict
    return None


def _exact(verdict: Verdict) -> bool:
    return verdict.method.startswith("exact") or not verdict.method


def outdone(
    trial: Trial,
    evidence: Evidence,
    objective: Objective,
    others: Iterable[Trial],
    task: Task,
    seed: int,
) -> Trial | None:
    """A sure trial that this one cannot beat: surely clearly faster, and no bigger. What is close,
    or better in one of the two, stays in the race."""
    if objective.metric not in ("latency", "throughput", "size") or not trial.recipe:
        return None
    for other in others:
        ratio = other.figures.get("latency.ratio", math.nan)
        sure = other.state == "done" and other.recipe and other.p_value <= SURE
        if not sure or not ratio < 1 or other.figures["size"] > trial.figures["size"]:
            continue
        if trial.figures.get("latency.ratio", 0.0) <= SLOWER * ratio:
            continue
        slower = parse(f"latency <= {SLOWER * ratio:.6f} x baseline")
        if judge_all((slower,), evidence, task, DROP, seed)[0].outcome == "broken":
            return other
    return None


def promising(limits: Iterable[Limit], trial: Trial, rows: int, level: float) -> bool:
    """Whether the trial is worth the early answer on a holdout of `rows` examples: it clearly
    gains, and each of its limits is likely to be shown at `level`."""
    if not trial.recipe or not trial.figures["objective"] <= EARLY_GAIN:
        return False
    if trial.examples < FEW and trial.fidelity < 1:  # a lucky start is no prediction
        return False
    return all(
        likely(verdict.p_value, trial.examples, rows, level)
        if limit.quality
        else verdict.p_value <= EARLY
        for limit, verdict in zip(limits, trial.verdicts, strict=True)
    )


def likely(p_value: float, examples: int, rows: int, level: float) -> bool:
    """Whether what has this p-value on so many examples is likely to be shown at `level` on `rows`
    others: a standard score grows with the root of the number of examples, and that of the
    prediction itself is known no better than those examples tell."""
    more = rows / max(examples, 1)
    wanted = -ndtri(level) + ndtri(LIKELY) * math.sqrt(1 + more)
    return bool(-ndtri(p_value) * math.sqrt(more) >= wanted)
