"""Where a model's time, bytes and operations sit, measured on this machine with the user's rows."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sartor import lanes, machine
from sartor.contracts import Model, Target
from sartor.contracts import Part as Counted
from sartor.data import Part, read
from sartor.evaluate import (
    footprint,
    heaviest,
    throughputs,
    timed_rows,
    turn_size,
)
from sartor.fitting import natural_batch
from sartor.glimpse import looker, repeatable
from sartor.records import plain
from sartor.registry import adopt, runtime
from sartor.report.layout import Group, RenderableType, Table, Text, box
from sartor.spec import check_batch
from sartor.workers import Worker

TIMEOUT = 900.0
SECONDS = 2.0  # for measuring the latency


@dataclass(frozen=True)
class Row:
    """One part of the model: what it holds, the work of one example, the seconds of one call and
    their share of all parts' seconds. `macs` is None where the work is unknown."""

    name: str
    operator: str
    parameters: int
    bytes: int
    macs: int | None
    seconds: float
    share: float


@dataclass(frozen=True)
class Operator:
    """All parts of one operator together."""

    operator: str
    count: int
    parameters: int
    bytes: int
    macs: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """A model's totals and its parts, the slowest first.

    `size` and `memory` are bytes (on disk; peak of a fresh process), `macs` those of one example
    of median length, `latency` the median seconds of a call. `explained` is the share of it that
    the parts' own times add up to: the profiler costs some time, what lies between the parts is
    in none of them. `unknown` names operators whose work could not be counted. `throughputs` are
    rows a second by batch size ("throughput.b8")."""

    kind: str
    digest: str
    parameters: int
    size: int
    macs: int
    memory: int
    latency: float
    explained: float
    batch: int
    threads: int
    unknown: tuple[str, ...]
    rows: tuple[Row, ...]
    operators: tuple[Operator, ...]
    throughputs: Mapping[str, float]


def profile(model: Model, part: Part, target: Target, seed: int = 0) -> Profile:
    """Profiles the model in child processes on rows of `part`. Raises Failed where it does not
    run, WrongRequest where the rows do not fit."""
    rows = timed_rows(part, target.batch, seed)
    example = _median_row(part)
    with Worker("profile") as worker:
        _, call = worker.call(lanes.open_lane, model, target, part, rows, timeout=TIMEOUT)
        latency = _latency(worker, call, len(rows))
        counted, seconds = worker.call(
            lanes.look_inside, model, target, part, rows, example, timeout=TIMEOUT
        )
    engine = runtime(model.kind)
    listed = _rows(counted, seconds)
    return Profile(
        kind=model.kind,
        digest=engine.digest(model),
        parameters=sum(row.parameters for row in listed),
        size=engine.size(model),
        macs=sum(row.macs or 0 for row in listed),
        memory=footprint(model, target, heaviest(part, model.signature, target)),
        latency=latency,
        explained=sum(seconds.values()) / latency,
        batch=target.batch,
        threads=target.threads,
        unknown=tuple(sorted({row.operator for row in listed if row.macs is None})),
        rows=listed,
        operators=_operators(listed),
        throughputs=throughputs(model, part, target, seed=seed),
    )


def _median_row(part: Part) -> int:
    if part.lengths is None:
        return 0
    return int(np.argsort(np.asarray(part.lengths), kind="stable")[len(part) // 2])


def _latency(worker: Worker, call: float, batches: int) -> float:
    """Median seconds over turns of a lane that has the machine for itself."""
    calls, warm = turn_size(call, batches)
    turns = int(np.clip(SECONDS / max(calls * call, 1e-6), 3, 50))
    took = [
        worker.call(lanes.take_turn, at * calls, calls, warm, timeout=TIMEOUT).took
        for at in range(turns)
    ]
    return float(np.median(np.concatenate(took))) * 1e-9


def _rows(counted: Iterable[Counted], seconds: Mapping[str, float]) -> tuple[Row, ...]:
    total = sum(seconds.values()) or 1.0
    rows = []
    for part in counted:
        took = seconds.get(part.name, 0.0)
        rows.append(
            Row(
                part.name, part.operator, part.parameters, part.bytes, part.macs, took, took / total
            )
        )
    known = {row.name for row in rows}
    for name, took in seconds.items():
        if name not in known:  # made by the runtime when it loaded the model
            operator = re.match(r"[A-Za-z]*", name)
            kind = f"{operator.group() if operator else name} (fused)"
            rows.append(Row(name, kind, 0, 0, 0, took, took / total))
    return tuple(sorted(rows, key=lambda row: (-row.seconds, -row.bytes, row.name)))


def _operators(rows: Iterable[Row]) -> tuple[Operator, ...]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.operator].append(row)
    found = [
        Operator(
            name,
            len(each),
            sum(row.parameters for row in each),
            sum(row.bytes for row in each),
            sum(row.macs or 0 for row in each),
            sum(row.seconds for row in each),
            sum(row.share for row in each),
        )
        for name, each in groups.items()
    ]
    return tuple(sorted(found, key=lambda each: (-each.seconds, -each.bytes, each.operator)))


def profile_model(
    model: Any,
    *,
    data: Any,
    label: str | None = None,
    segments: Sequence[str] | None = None,
    group: str | None = None,
    mask: str | None = None,
    trust: bool | None = None,
    output: str | None = None,
    task: str | None = None,
    metric: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
) -> Profile:
    """The profile of a file (or a live object) on the search part of the data. `output`, `task`
    and `metric` are taken as everywhere and change nothing: a profile has no quality."""
    with tempfile.TemporaryDirectory(prefix="sartor-profile-") as place:
        data = repeatable(data)
        look = looker(data, label=label, segments=segments or (), group=group, trust=bool(trust))
        opened = adopt(model, Path(place) / "model", look=look, trust=bool(trust))
        part = read(
            data, Path(place) / "data", opened.signature,
            label=label, segments=segments or (), group=group, mask=mask, trust=bool(trust),
        ).search  # fmt: skip
        check_batch(batch)
        batch = batch or natural_batch(opened.signature) or 1
        return profile(opened, part, Target("cpu", threads or 1, batch, machine.features()))


def to_json(found: Profile) -> dict[str, Any]:
    """Plain JSON of the profile."""
    entry: dict[str, Any] = plain(found)
    return entry


# -- text -----------------------------------------------------------------------------------------


def render(found: Profile, top: int = 20) -> RenderableType:
    """Totals, and the `top` slowest operators and parts."""
    return Group(_totals(found), Text(), _by_operator(found, top), Text(), _by_part(found, top))


def _totals(found: Profile) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    unknown = f" (without {', '.join(found.unknown)})" if found.unknown else ""
    rows = "row" if found.batch == 1 else "rows"
    threads = "thread" if found.threads == 1 else "threads"
    how = f"p50 of a call of {found.batch} {rows}, {found.threads} {threads}"
    for name, value in (
        ("parameters", _count(found.parameters)),
        ("size on disk", _count(found.size, "B")),
        ("multiply-adds", _count(found.macs) + unknown),
        ("peak memory", _count(found.memory, "B") + " of a fresh process"),
        ("latency", f"{_seconds(found.latency)} {how}"),
        ("throughput", _by_batch(found.throughputs)),
        ("explained", _explained(found.explained)),
    ):
        table.add_row(name, value)
    return table


def _by_batch(found: Mapping[str, float]) -> str:
    told = [f"{rate:,.0f} /s at batch {name.split('.b')[1]}" for name, rate in found.items()]
    return ", ".join(told) or "-"


def _explained(share: float) -> str:
    costs = " (more than all: profiling itself costs time)" if share > 1 else ""
    return f"{share:.0%} of the latency is in the parts below{costs}"


def _by_operator(found: Profile, top: int) -> Table:
    table = _table("operator", "count", "parameters", "bytes", "MACs", "time", "share")
    for each in found.operators[:top]:
        table.add_row(
            each.operator, str(each.count), _count(each.parameters), _count(each.bytes, "B"),
            _count(each.macs), _seconds(each.seconds), f"{each.share:.1%}",
        )  # fmt: skip
    left = found.operators[top:]
    if left:
        count = sum(each.count for each in left)
        table.add_row(f"and {len(left)} more", str(count), *_left(left))
    return table


def _left(rows: Sequence[Row | Operator]) -> tuple[str, ...]:
    """The sums of the rows that are not shown."""
    return (
        _count(sum(row.parameters for row in rows)),
        _count(sum(row.bytes for row in rows), "B"),
        _count(sum(row.macs or 0 for row in rows)),
        _seconds(sum(row.seconds for row in rows)),
        f"{sum(row.share for row in rows):.1%}",
    )


def _by_part(found: Profile, top: int) -> Table:
    table = _table("part", "operator", "parameters", "bytes", "MACs", "time", "share")
    for row in found.rows[:top]:
        macs = "?" if row.macs is None else _count(row.macs)
        table.add_row(
            row.name, row.operator, _count(row.parameters), _count(row.bytes, "B"), macs,
            _seconds(row.seconds), f"{row.share:.1%}",
        )  # fmt: skip
    left = found.rows[top:]
    if left:
        table.add_row(f"and {len(left)} more", "", *_left(left))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        words = column in ("part", "operator")
        # Names may be shortened in a narrow terminal; figures never.
        table.add_column(column, justify="left" if words else "right", no_wrap=True,
                         overflow="ellipsis" if words else "fold")  # fmt: skip
    return table


def _count(number: float, unit: str = "") -> str:
    """A number in thousands, millions ...: "22.7 M", "91.0 MB"; "-" for nothing."""
    if not number:
        return "-"
    for size, word in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {word}{unit}"
    return f"{number:.0f} {unit}".rstrip()


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"
