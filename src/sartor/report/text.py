"""The answer of a run as tables for a terminal or a plain file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sartor.records import Journal
from sartor.report.layout import Console, Group, RenderableType, Table, Text, box

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
        milliseconds = value * 1e3
        if abs(milliseconds) < 0.1:
            return f"{value * 1e6:.1f} µs"
        return f"{milliseconds:.{2 if abs(milliseconds) >= 1 else 3}f} ms"
    if name == "energy":
        return f"{value * 1e3:.3g} mJ"
    if name == "throughput":
        return f"{value:.1f} /s"
    return f"{value:.4f}"


def render(journal: Journal) -> RenderableType:
    """Everything that the journal says, the answer last."""
    answer = journal.last("answer")
    tried = journal.events("trial")
    shown: list[RenderableType] = [trials(e for e in tried if e["state"] != "refused")]
    shown += [Text(each, style="dim") for each in refusals(tried)]
    machine = (journal.last("request") or {}).get("machine")
    if machine:
        shown.append(Text(told_machine(machine)))
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
    shown += [Text(told) for told in told_conditions(answer.get("conditions") or {})]
    shown += [Text(told) for told in told_throughputs(answer.get("throughputs") or {})]
    shown += [Text(note) for note in answer.get("notes", ())]
    return Group(*shown)


def told_conditions(conditions: Mapping[str, Any]) -> list[str]:
    """Noise floor and load while the answer was timed."""
    told = [conditions["noise"]] if conditions.get("noise") else []
    loads = [f"{each:.2f}" for each in conditions.get("load_average", ()) if each is not None]
    if loads:
        told.append(f"load average over the run: {', '.join(loads)}")
    return told


def told_throughputs(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Rows a second by batch size, a line for each model."""
    return [
        f"throughput of the {name}: "
        + ", ".join(f"{rate:,.0f} /s at batch {key.split('.b')[1]}" for key, rate in rates.items())
        for name, rates in found.items()
        if rates
    ]


def told_machine(machine: Mapping[str, Any]) -> str:
    sets = " ".join(machine.get("instructions", ()))
    return (
        f"measured on {machine.get('cpu')}, {machine.get('cores')} cores, Python "
        f"{machine.get('python')}, {machine.get('system')} ({sets})"
    )


def gains(steps: Iterable[Mapping[str, Any]], metric: str) -> Table:
    """The original, then the model after each step of the chosen recipe."""
    table = Table(title="What was gained, step by step", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold", min_width=12)
    for name in ("size", "latency p50", metric, "flips"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in steps:
        figures = step["figures"]
        flips = figures.get("flips")
        table.add_row(
            step["title"],
            _gain("size", figures, figures.get("original.size"), figures.get("size")),
            _gain("latency", figures, 1.0, figures.get("latency.ratio")),
            f"{figure(metric, figures.get(metric))} {_change(figures, metric)}",
            "-" if flips is None else f"{flips:.2%}",
        )
    return table


def limits(verdicts: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="Limits, on data that chose nothing", box=box.SIMPLE_HEAD)
    table.add_column("limit and evidence", overflow="fold", min_width=24)
    table.add_column("verdict", no_wrap=True)
    for name in ("estimate [95 % interval]", "bound"):
        table.add_column(name, justify="right", no_wrap=True)
    for verdict in verdicts:
        _limit(table, verdict)
        for part in verdict.get("parts", ()):
            _limit(table, part, "  ")
    return table


def _limit(table: Table, verdict: Mapping[str, Any], indent: str = "") -> None:
    metric = verdict["limit"].split()[0]
    told = [verdict["method"], verdict.get("note") or ""]
    if verdict["examples"]:
        told.append(f"n = {verdict['examples']:,}")
    if verdict.get("needs"):
        told.append(f"about {verdict['needs']:,} more would decide")
    evidence = Text(f"\n{indent}  {', '.join(each for each in told if each)}", style="dim")
    table.add_row(
        Text(f"{indent}{verdict['limit']}") + evidence,
        Text(verdict["outcome"], style=STYLES[verdict["outcome"]]),
        interval(metric, verdict),
        figure(metric, verdict["bound"]),
    )


def interval(metric: str, verdict: Mapping[str, Any]) -> str:
    """The estimate with its interval; the figure alone where it was counted."""
    estimate, low, high = (figure(metric, verdict[name]) for name in ("estimate", "low", "high"))
    return estimate if low == high else f"{estimate} [{low}, {high}]"


def trials(entries: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="Trials", box=box.SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("recipe and what came of it", overflow="fold", min_width=30)
    table.add_column("state", no_wrap=True)
    for name in ("size", "latency", "objective"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        figures = entry["figures"]
        objective = figures.get("objective")
        reason = Text(f"\n  {entry['reason']}" if entry["reason"] else "", style="dim")
        table.add_row(
            str(entry["number"]),
            Text(entry.get("title", "")) + reason,
            entry["state"],
            figure("size", figures.get("size")),
            figure("latency", figures.get("latency")),
            "-" if objective is None else f"{objective:.3f} x",
        )
    return table


def refusals(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was refused, a line for each reason."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry["state"] == "refused":
            found.setdefault(entry["reason"], []).append(entry.get("title", ""))
    return [
        f"refused, {len(titles)}: {titles[0]}{' and more' * (len(titles) > 1)}: {reason}"
        for reason, titles in found.items()
    ]


def _gain(metric: str, figures: Mapping[str, float], before: Any, after: Any) -> str:
    """The figure, and how many times better than the original's it is."""
    times = f" ({before / after:.2f}x)" if before and after else ""
    return f"{figure(metric, figures.get(metric))}{times}"


def _change(figures: Mapping[str, float], metric: str) -> str:
    before, after = figures.get(f"original.{metric}"), figures.get(metric)
    return "" if before is None or after is None else f"({after - before:+.4f})"


def console(stderr: bool = False) -> Console:
    """A console for the answer: as wide as the terminal, and wide enough where there is none."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=120)
