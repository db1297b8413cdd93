"""The answer of a run as tables for a terminal or a plain file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sartor.records import Journal

STYLES = {"met": "green", "broken": "red", "undecided": "yellow"}
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def figure(metric: str, value: float | None) -> str:
    """A figure in its metric's unit: bytes, seconds or a plain number."""
    if value is None:
        return "-"
    name = metric.split("@")[0].split(".")[0]
    if name in ("size", "memory"):
        for unit, word in UNITS:
            if abs(value) >= unit:
                return f"{value / unit:.2f} {word}"
        return f"{value:.0f} B"
    if name == "latency":
        return f"{value * 1e3:.3f} ms" if abs(value) >= 1e-4 else f"{value * 1e6:.1f} µs"
    if name == "throughput":
        return f"{value:.1f} /s"
    return f"{value:.4f}"


def render(journal: Journal) -> RenderableType:
    """Everything that the journal says, the answer last."""
    answer = journal.last("answer")
    shown: list[RenderableType] = [trials(journal.events("trial"))]
    if answer is None:
        shown.append(Text("The run is not finished: the same command continues it."))
    else:
        shown.append(render_answer(answer))
    return Group(*shown)


def render_answer(answer: Mapping[str, Any]) -> RenderableType:
    shown: list[RenderableType] = []
    if answer.get("steps"):
        shown.append(gains(answer["steps"], answer["metric"]))
    if answer.get("limits"):
        shown.append(limits(answer["limits"]))
    shown.append(Text(answer["message"], style="bold"))
    shown += [Text(note) for note in answer.get("notes", ())]
    return Group(*shown)


def gains(steps: Iterable[Mapping[str, Any]], metric: str) -> Table:
    """The original, then the model after each step of the chosen recipe."""
    table = Table(title="What was gained, step by step", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    columns = ("size", "smaller", "latency p50", "faster", metric, "change", "flips")
    for name in columns:
        table.add_column(name, justify="right")
    for step in steps:
        figures = step["figures"]
        table.add_row(
            step["title"],
            figure("size", figures.get("size")),
            _times(figures.get("original.size"), figures.get("size")),
            figure("latency", figures.get("latency")),
            _times(1.0, figures.get("latency.ratio")),
            figure(metric, figures.get(metric)),
            _change(figures, metric),
            "-" if figures.get("flips") is None else f"{figures['flips']:.2%}",
        )
    return table


def limits(verdicts: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="Limits, on data that chose nothing", box=box.SIMPLE_HEAD)
    for name in ("limit", "verdict"):
        table.add_column(name, overflow="fold")
    for name in ("estimate", "95 % interval", "must reach", "examples"):
        table.add_column(name, justify="right")
    table.add_column("evidence", overflow="fold")
    for verdict in verdicts:
        _limit(table, verdict, verdict["limit"])
        for part in verdict.get("parts", ()):
            _limit(table, part, f"  {part['limit']}")
    return table


def _limit(table: Table, verdict: Mapping[str, Any], title: str) -> None:
    metric = verdict["limit"].split()[0]
    # A ratio or a difference from the original is a plain number, whatever its metric's unit.
    relative = "baseline" in verdict["limit"] and verdict.get("scale", "") != "own"
    name = "ratio" if relative and metric.split(".")[0] in ("latency", "throughput") else metric
    note = verdict.get("note") or ""
    if verdict.get("needs"):
        note = f"{note}; about {verdict['needs']:,} would decide".lstrip("; ")
    table.add_row(
        title,
        Text(verdict["outcome"], style=STYLES[verdict["outcome"]]),
        figure(name, verdict["estimate"]),
        f"{figure(name, verdict['low'])} to {figure(name, verdict['high'])}",
        figure(name, verdict["bound"]),
        f"{verdict['examples']:,}" if verdict["examples"] else "",
        "; ".join(each for each in (verdict["method"], note) if each),
    )


def trials(entries: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="Trials", box=box.SIMPLE_HEAD)
    for name in ("", "recipe", "state"):
        table.add_column(name, overflow="fold")
    for name in ("size", "latency", "objective"):
        table.add_column(name, justify="right")
    table.add_column("reason", overflow="fold")
    for entry in entries:
        figures = entry["figures"]
        objective = figures.get("objective")
        table.add_row(
            str(entry["number"]),
            entry.get("title", ""),
            entry["state"],
            figure("size", figures.get("size")),
            figure("latency", figures.get("latency")),
            "-" if objective is None else f"{objective:.3f} x",
            entry["reason"],
        )
    return table


def _times(before: float | None, after: float | None) -> str:
    return "-" if not before or not after else f"{before / after:.2f} x"


def _change(figures: Mapping[str, float], metric: str) -> str:
    before, after = figures.get(f"original.{metric}"), figures.get(metric)
    return "-" if before is None or after is None else f"{after - before:+.4f}"


def show(renderable: RenderableType, console: Console | None = None) -> None:
    (console or Console(highlight=False)).print(renderable)
