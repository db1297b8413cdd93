"""When a candidate is given up before everything was measured: a test that is looked at often.

Quality is looked at after 32, 128, 512, 2048 and all examples. The errors of all looks together are
bounded by sharing one level among them (Bonferroni): a candidate that keeps its limits is dropped
with a probability of at most `DROP`, however often one looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sartor.certify import SURE
from sartor.contracts import Task
from sartor.limits import Limit, Objective, parse
from sartor.records import Trial, Verdict
from sartor.verdicts import EXACT, Evidence, judge, judge_all

SAMPLES = (32, 128, 512, 2048)  # examples after which a candidate's quality is looked at
DROP = 0.01  # the probability that a limit which holds is taken for broken, over all looks
FEW = 128  # below so many examples only tests that are exact there decide
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
