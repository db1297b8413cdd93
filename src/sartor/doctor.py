"""What is installed here, and what each missing runtime or technique needs."""

from __future__ import annotations

from typing import Any

from sartor import kernels, machine
from sartor.registry import Plugin, plugins, runtime, techniques
from sartor.report.layout import Group, RenderableType, Table, Text, box


def diagnose() -> dict[str, Any]:
    """Plain JSON: the machine, every runtime and every technique, present or missing."""
    kinds = [plugin for plugin in plugins("runtimes") if not plugin.internal]
    shown = {plugin.kind for plugin in kinds}
    return {
        "machine": {**machine.describe(), "energy": machine.energy_source()},
        "kernels": [{"name": "forest", "missing": kernels.missing(), "uses": kernels.uses()}],
        "runtimes": [_runtime(plugin) for plugin in kinds],
        "techniques": [
            {
                "file": plugin.name,
                "kind": plugin.kind,
                "names": [] if plugin.missing else _names(plugin),
                "missing": list(plugin.missing),
                "extra": plugin.extra,
                "remedy": plugin.remedy if plugin.missing else "",
            }
            for plugin in plugins("techniques")
            if plugin.kind in shown
        ],
    }


def _runtime(plugin: Plugin) -> dict[str, Any]:
    return {
        "kind": plugin.kind,
        "suffixes": list(plugin.suffixes),
        "missing": list(plugin.missing),
        "extra": plugin.extra,
        "remedy": plugin.remedy if plugin.missing else "",
        "versions": {} if plugin.missing else dict(runtime(plugin.kind).versions()),
    }


def _names(plugin: Plugin) -> list[str]:
    return [
        name for name, cls in techniques(plugin.kind).items() if cls.__module__ == plugin.module
    ]


def render(found: dict[str, Any]) -> RenderableType:
    table = Table(title="Runtimes", box=box.SIMPLE_HEAD)
    for name in ("kind", "files", "state"):
        table.add_column(name, overflow="fold")
    for entry in found["runtimes"]:
        state = ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
        table.add_row(entry["kind"], " ".join(entry["suffixes"]), _state(entry, state))
    tools = Table(title="Techniques", box=box.SIMPLE_HEAD)
    for name in ("kind", "techniques", "state"):
        tools.add_column(name, overflow="fold")
    for entry in found["techniques"]:
        if entry["names"] or entry["missing"]:
            tools.add_row(
                entry["kind"], ", ".join(entry["names"]) or entry["file"], _state(entry, "ready")
            )
    lines = [f"{name}: {_flat(value)}" for name, value in found["machine"].items()]
    for each in found["kernels"]:
        state = f"missing: {each['missing']}" if each["missing"] else f"ready, {each['uses']}"
        lines.append(f"{each['name']} kernel: {state}")
    return Group(Text("\n".join(lines)), table, tools)


def _flat(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _state(entry: dict[str, Any], ready: str) -> Text:
    if not entry["missing"]:
        return Text(ready, style="green")
    needs = ", ".join(entry["missing"])
    return Text(f"missing {needs}: {entry['remedy']}", style="yellow")
