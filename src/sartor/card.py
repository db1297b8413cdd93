"""The model card of a bundle, and the files of the frontier: what was chosen, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sartor.report.text import figure, told_conditions


def card(
    title: str,
    chosen: str,
    message: str,
    limits: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> str:
    """Markdown: what it is, what was shown of it, how it was made, how to run it."""
    lines = [f"# {title}", "", message, "", f"Recipe: `{chosen}`", "", "## Limits", ""]
    lines += [
        "| limit | verdict | estimate | 95 % interval | must reach |",
        "|---|---|---|---|---|",
    ]
    for each in limits:
        names = ("estimate", "low", "high", "bound")
        metric = each["limit"].split()[0]
        estimate, low, high, bound = (figure(metric, each[name]) for name in names)
        lines.append(
            f"| {each['limit']} | {each['outcome']} | {estimate} | {low} to {high} | {bound} |"
        )
    lines += ["", "## What each step brought", "", "| | size | latency p50 |", "|---|---|---|"]
    for step in steps:
        figures = step["figures"]
        size, latency = figures.get("size"), figures.get("latency")
        lines.append(f"| {step['title']} | {figure('size', size)} | {figure('latency', latency)} |")
    machine = environment.get("machine", {})
    versions = environment.get("versions", {})
    conditions = environment.get("conditions", {})
    lines += [
        "",
        "## Measured on",
        "",
        ", ".join(f"{name} {value}" for name, value in versions.items()),
        "",
        f"{machine.get('cpu', 'unknown CPU')}, {machine.get('cores', '?')} cores, "
        f"{_threads(conditions)}",
        "",
        f"Instruction sets: {' '.join(machine.get('instructions', ())) or 'unknown'}",
        "",
        *(f"{each}\n" for each in told_conditions(conditions)),
        "## How to run it",
        "",
        "```python",
        "import sartor",
        "",
        'model = sartor.load("bundle")',
        "outputs = model.predict(inputs)  # named arrays in, named arrays out",
        "```",
        "",
        "`sartor verify bundle --data fresh.npz` measures the certificate again on your machine.",
        "",
    ]
    return "\n".join(lines)


def _threads(conditions: Mapping[str, Any]) -> str:
    count = conditions.get("threads", 1)
    settings = " ".join(f"{k}={v}" for k, v in conditions.get("settings", {}).items())
    told = f"{count} {'thread' if count == 1 else 'threads'} a session"
    return f"{told} ({settings})" if settings else told
