"""Tables in plain text, for where rich is not installed."""

from __future__ import annotations

import pytest

from sartor.report.plain import Console, Group, Table, Text


def shown(capsys: pytest.CaptureFixture[str], table: Table, width: int = 80) -> list[str]:
    Console(width=width).print(table)
    return capsys.readouterr().out.splitlines()


def test_columns_stand_under_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="Sizes", box=None)
    table.add_column("model", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_row(Text("small", style="green") + Text("\n  exact"), "7.5 MB")
    table.add_row("larger than the other", "120.25 MB")
    table.add_row("none")
    assert shown(capsys, table) == [
        "",
        "  Sizes",
        "",
        "  model                       size",
        "  --------------------------------",
        "  small                     7.5 MB",
        "    exact",
        "  larger than the other  120.25 MB",
        "  none",
    ]


def test_what_is_too_wide_is_folded(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(show_header=False)
    table.add_column(overflow="fold")
    table.add_column()
    words = [f"word{at}" for at in range(30)]
    table.add_row("\n    ".join(("first", " ".join(words))), "x" * 20)
    lines = shown(capsys, table, 60)
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).replace("x" * 20, "").split() == ["first", *words]
    assert all(line.startswith("      word") for line in lines[1:])


def test_groups_and_silence(capsys: pytest.CaptureFixture[str]) -> None:
    Console(stderr=True, highlight=False).print(Group(Text("one"), Group(Text("two"), Table())))
    told = capsys.readouterr()
    assert (told.out, told.err.split()) == ("", ["one", "two"])
    Console(quiet=True).print("nothing", style="bold", markup=False)
    assert capsys.readouterr().out == ""
