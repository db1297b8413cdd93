"""The little language of limits: `METRIC[.STATISTIC][@SEGMENT[,SEGMENT]] (<=|>=) VALUE`.

    accuracy >= baseline - 0.01      at most one point below the original ("- 1 %" is the same)
    accuracy@sex >= baseline - 0.02  for every value of the column `sex`
    demographic_parity_difference@sex <= 0.1   between the values of the column
    f1[3] >= 0.8                     of class 3
    size <= 20 MB                    1 MB = 1,000,000 bytes, 1 MiB = 1,048,576
    latency.p95 <= 10 ms             statistics: mean, p50, p90, p95, p99; `latency` alone is p50
    latency <= 0.5 x baseline        also 50 % of baseline
    throughput >= 100 /s             rows a second, at the target's --batch
    energy <= 0.5 x baseline         joules of a call, by a counter or estimated from CPU time
    log_loss <= 101 % of baseline
    metrics.py:my_metric >= 0.9      a function of the user's

Values are kept in SI units (bytes, seconds, per second) and shares (1 % = 0.01).
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from sartor.contracts import WrongRequest
from sartor.definitions import lookup, needs_groups, unknown
from sartor.references import is_reference

Sense = Literal["<=", ">="]

STATISTICS = ("mean", "p50", "p90", "p95", "p99")

_BYTES = {"B": 1.0, "bytes": 1.0}
_BYTES |= {f"{p}B": 1000.0**i for i, p in enumerate(("k", "M", "G", "T"), 1)} | {"KB": 1000.0}
_BYTES |= {f"{p}iB": 1024.0**i for i, p in enumerate(("K", "M", "G", "T"), 1)}
_COUNT = {"": 1.0} | {p: 1000.0**i for i, p in enumerate(("k", "M", "G", "T"), 1)}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

UNITS: dict[str, dict[str, float]] = {
    "latency": _SECONDS,
    "throughput": {"": 1.0, "/s": 1.0},
    "size": _BYTES,
    "memory": _BYTES,
    "flops": _COUNT | {f"{p}{u}": v for p, v in _COUNT.items() for u in ("FLOP", "FLOPs")},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "kJ": 1e3},
}
"""Metric -> unit -> factor to SI."""

PERFORMANCE = frozenset(UNITS)
"""Metrics of the artifact rather than of its answers; all but throughput are better when lower."""

TIMED = frozenset({"latency", "throughput", "energy"})
"""Those that come out of a race."""

_NUMBER = r"(?P<number>[+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_UNIT = r"(?P<unit>[^\W\d_]+|/\s*s|%)?"
_FIXED = re.compile(rf"{_NUMBER}\s*{_UNIT}")
_OFFSET = re.compile(rf"baseline\s*(?P<sign>[+-])\s*{_NUMBER}\s*{_UNIT}")
_SHARE = re.compile(rf"{_NUMBER}\s*%\s*of\s+baseline")
_TIMES = re.compile(rf"{_NUMBER}\s*(?:x|×|\*)\s*baseline")
_SENSE = re.compile(r"<=|>=|≤|≥|=<|=>|==|!=|<|>|=")
_NAME = re.compile(r"(?P<metric>(?:ndcg|map|hit)@\d+|[^@]+)(?:@(?P<segment>.+))?")


@dataclass(frozen=True)
class Bound:
    """The right side of a limit. "absolute": `value`; "offset": baseline + `value`; "ratio":
    `value` times the baseline. Values in SI units (bytes, seconds, shares)."""

    kind: Literal["absolute", "offset", "ratio"]
    value: float

    def resolve(self, baseline: float) -> float:
        """The number to be reached, given the original's.

        A ratio moves away from the baseline by a share of its *size*: 99 % of a baseline of -0.5
        (a negated loss) is -0.505, so that it allows a loss there too."""
        if self.kind == "absolute":
            return self.value
        if self.kind == "offset":
            return baseline + self.value
        return baseline + (self.value - 1) * abs(baseline)


@dataclass(frozen=True)
class Limit:
    """One limit. `statistic` is None where none is written (for latency p50 is meant); `segment`
    is a column, or several joined by commas: then it holds for every combination of values."""

    metric: str
    statistic: str | None
    segment: str | None
    sense: Sense
    bound: Bound
    text: str

    @property
    def higher(self) -> bool:
        """Whether higher is better."""
        return self.sense == ">="

    @property
    def figure(self) -> str:
        """The name of the figure it bounds: "latency" (the median), "latency.p95", "accuracy"."""
        return _figure(self.metric, self.statistic)

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(self.segment.split(",")) if self.segment else ()

    @property
    def quality(self) -> bool:
        """Whether it is about the answers and not about size or speed."""
        return self.metric not in PERFORMANCE

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Objective:
    """What is made as low, or where `higher`, as high as the limits allow. `higher` is None for a
    function of the user's, which says so itself (`metrics.find`)."""

    metric: str
    statistic: str | None
    higher: bool | None

    @property
    def figure(self) -> str:
        return _figure(self.metric, self.statistic)


def _figure(metric: str, statistic: str | None) -> str:
    return f"{metric}.{statistic}" if statistic and statistic != "p50" else metric


def higher_is_better(metric: str) -> bool | None:
    """The direction of a metric; None for a function of the user's."""
    if metric in PERFORMANCE:
        return metric == "throughput"
    found = lookup(metric)
    return found.higher if found else None


def parse(text: str) -> Limit:
    """The limit that the text states; `parse(limit.text) == limit`.

    Raises WrongRequest with a sentence that says what to write instead."""
    text = " ".join(text.split())
    found = _SENSE.search(text)
    if not found:
        raise WrongRequest(
            f"limit {text!r} has no <= or >=: write e.g. accuracy >= baseline - 0.01"
        )
    left, sign, right = text[: found.start()].strip(), found[0], text[found.end() :].strip()
    if not left or not right:
        side = "metric before" if not left else "value after"
        raise WrongRequest(f"limit {text!r} has no {side} {sign}: write e.g. size <= 20 MB")
    name = _NAME.fullmatch(left)
    if not name:
        raise WrongRequest(f"limit {text!r}: write METRIC@SEGMENT, e.g. accuracy@sex")
    metric, statistic = _metric(name["metric"].strip())
    segment = _segment(metric, name["segment"])
    sense = _sense(sign, left, right, metric)
    bound = _bound(right, metric, text)
    return Limit(metric, statistic, segment, sense, bound, text)


def parse_objective(text: str) -> Objective:
    """`latency`, `latency.p95`, `size`, `memory`, `throughput`, `flops` or a quality metric."""
    metric, statistic = _metric(text.strip())
    if needs_groups(metric) or metric == "worst_class_drop":
        raise WrongRequest(
            f"{metric} can be a limit and no objective: write e.g. --minimize latency"
        )
    return Objective(metric, statistic, higher_is_better(metric))


def quantity(text: str, metric: str) -> float:
    """A number with one of the metric's units, in SI: `quantity("2 GB", "memory")` = 2e9."""
    found = _FIXED.fullmatch(text.strip())
    if not found:
        raise WrongRequest(f"{text!r} is not a number with a unit; write e.g. {_example(metric)}")
    return _number(found["number"]) * _factor(found["unit"] or "", metric)


def _metric(name: str) -> tuple[str, str | None]:
    if is_reference(name) or lookup(name) or name in PERFORMANCE:
        return name, None
    metric, dot, statistic = name.partition(".")
    if not dot or not (metric in PERFORMANCE or lookup(metric)):
        raise unknown(metric if dot else name, tuple(UNITS))
    if metric != "latency":
        raise WrongRequest(f"{name}: only latency has statistics; write {metric}")
    if statistic not in STATISTICS:
        raise WrongRequest(
            f"unknown statistic {statistic!r} of latency; write one of "
            f"{', '.join(f'latency.{each}' for each in STATISTICS)}"
        )
    return metric, statistic


def _segment(metric: str, text: str | None) -> str | None:
    if text is None:
        if needs_groups(metric):
            raise WrongRequest(f"{metric} compares the values of a column: write e.g. {metric}@sex")
        return None
    columns = [each.strip() for each in text.split(",")]
    if metric in PERFORMANCE:
        raise WrongRequest(
            f"{metric}@{text}: {metric} is measured for the whole; only quality metrics take a "
            f"segment, e.g. accuracy@{columns[0]}"
        )
    if not all(columns):
        raise WrongRequest(f"{metric}@{text}: name the columns, e.g. {metric}@sex,region")
    return ",".join(columns)


def _sense(sign: str, left: str, right: str, metric: str) -> Sense:
    higher = higher_is_better(metric)
    sense: Sense | None = {"≤": "<=", "≥": ">=", "=<": "<=", "=>": ">="}.get(sign, sign)  # type: ignore[assignment]
    if sense not in ("<=", ">="):
        meant = "<=" if "<" in sign else ">=" if ">" in sign else "<= or >="
        if higher is not None and "<" not in sign and ">" not in sign:
            meant = ">=" if higher else "<="
        raise WrongRequest(f"{left} {sign} {right}: a limit takes <= or >=; write {meant}")
    if higher is not None and sense != (right_sense := ">=" if higher else "<="):
        better = "higher" if higher else "lower"
        raise WrongRequest(
            f"{left} {sense} {right}: {metric} is better when {better}; "
            f"write {left} {right_sense} {right}"
        )
    return sense


def _bound(text: str, metric: str, whole: str) -> Bound:
    if re.search(r"\b(nan|inf(inity)?)\b", text, re.IGNORECASE):
        raise WrongRequest(f"{whole}: {text} is no limit; write a number, e.g. {_example(metric)}")
    if text == "baseline":
        return Bound("offset", 0.0)
    if found := _SHARE.fullmatch(text):
        return Bound("ratio", _ratio(_number(found["number"]) / 100, whole))
    if found := _TIMES.fullmatch(text):
        return Bound("ratio", _ratio(_number(found["number"]), whole))
    if found := _OFFSET.fullmatch(text):
        return Bound("offset", _offset(found, metric, whole))
    if found := _FIXED.fullmatch(text):
        value = _number(found["number"]) * _factor(found["unit"] or "", metric)
        return Bound("absolute", _sane(value, metric, whole))
    raise WrongRequest(
        f"{whole}: {text!r} is not a value; write a number with a unit ({_example(metric)}), "
        "baseline - 0.01, 99 % of baseline or 0.5 x baseline"
    )


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise WrongRequest(f"{text} is too large a number")
    return value


def _ratio(value: float, whole: str) -> float:
    if value <= 0:
        raise WrongRequest(f"{whole}: a share of the baseline must be above 0")
    return value


def _offset(found: re.Match[str], metric: str, whole: str) -> float:
    sign = -1 if found["sign"] == "-" else 1
    number, unit = _number(found["number"]), found["unit"] or ""
    known = lookup(metric)
    if unit == "%" and (metric in PERFORMANCE or (known and not known.share)):
        share = f"{100 + sign * number:g} % of baseline"
        raise WrongRequest(
            f"{whole}: percent there means share points, and {metric} is no share; write {share}"
        )
    value = sign * number * _factor(unit, metric)
    if known and known.bounds == (0.0, 1.0) and abs(value) >= 1:
        raise WrongRequest(
            f"{whole}: {metric} lies between 0 and 1, so this allows anything; for points write "
            f"baseline {found['sign']} {number:g} %"
        )
    return value


def _sane(value: float, metric: str, whole: str) -> float:
    known = lookup(metric)
    if metric in PERFORMANCE and value <= 0:
        raise WrongRequest(f"{whole}: {metric} is above 0; write e.g. {_example(metric)}")
    if known and known.bounds and not known.bounds[0] <= value <= known.bounds[1]:
        low, high = known.bounds
        hint = f"; for percent write {value:g} %" if known.share and 1 < value <= 100 else ""
        raise WrongRequest(f"{whole}: {metric} lies between {low:g} and {high:g}{hint}")
    return value


def _factor(unit: str, metric: str) -> float:
    """The factor to SI of a unit that fits the metric."""
    unit = unit.replace(" ", "").replace("μ", "µ")
    units = UNITS.get(metric)
    if units is None:
        known = lookup(metric)
        if unit == "" or (unit == "%" and (known is None or known.share)):
            return 0.01 if unit else 1.0
        takes = "a plain number or %" if known is None or known.share else "a plain number"
        raise WrongRequest(f"{metric} takes {takes}; you wrote {unit}")
    if unit in units:
        return units[unit]
    names = ", ".join(each for each in units if each)
    if unit == "":
        raise WrongRequest(f"{metric} needs a unit: write e.g. {_example(metric)} (known: {names})")
    near = [each for each in units if each.casefold() == unit.casefold()]
    near = near or difflib.get_close_matches(unit, [each for each in units if each], 1, 0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise WrongRequest(f"{metric} takes {names}; you wrote {unit}{hint}")


def _example(metric: str) -> str:
    return {
        "latency": "10 ms",
        "throughput": "100 /s",
        "size": "20 MB",
        "memory": "200 MB",
        "flops": "1 GFLOP",
        "energy": "5 mJ",
    }.get(metric, "0.9")
