"""What the table of runtimes counts, and for whom."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    module = importlib.import_module("runtimes")
    for name in set(sys.modules) - before:
        monkeypatch.delitem(sys.modules, name)
    return module


def row(ratio: float, low: float) -> dict[str, Any]:
    quality = {"limit": "accuracy >= baseline", "low": low, "high": 0.99, "bound": 0.9}
    return {"figures": {"latency.ratio": ratio}, "quality": quality}


def test_a_certificate_counts_and_a_rival_must_keep_the_limit(runtimes: ModuleType) -> None:
    rows = {"ours": row(0.2, 0.88), "fast": row(0.1, 0.88), "slow": row(0.3, 0.895)}
    rows["dead"] = {"failed": "it crashed"}
    assert runtimes.counted(rows, "ours", ("fast", "slow", "dead")) == (0.2, ("slow", 0.3))


def test_without_a_certificate_the_model_stays_as_it_came(runtimes: ModuleType) -> None:
    assert runtimes.counted({"slow": row(0.3, 0.895)}, "ours", ("slow",)) == (1.0, ("slow", 0.3))
    assert runtimes.counted({"fast": row(0.1, 0.7)}, "ours", ("fast",)) == (1.0, None)


def test_a_table_has_one_line_for_each_row(runtimes: ModuleType) -> None:
    said = "`op` <x> | y\nmore"
    found = runtimes.Contest([["1", "A", "", "", "", "3 s", said]], "certified", 1.0, None)
    lines = list(runtimes.tables(runtimes.SUBJECTS[0], {1: found}))
    assert "| 1 | A |  |  |  | 3 s | 'op' x> / y |" in lines
    assert lines[-1] == "- Sartor, 1 threads: certified"
