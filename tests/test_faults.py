"""A handful of the runs of benchmarks/faults.py: whatever goes wrong, the answer is right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Case


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_handful_of_faults(faults: ModuleType, digits: Case, tmp_path: Path) -> None:
    """Every way of disturbing the driver; the seeds are those whose faults fill what there is."""
    bed = faults.make_bed(digits.model, digits.arrays, tmp_path)
    outcomes = [faults.one(bed, seed) for seed in (0, 4, 7, 9, 10)]
    assert not [each for each in outcomes if each.wrong]
    assert {each.disturbed for each in outcomes} >= {"nothing", "killed once", "killed twice"}


def test_a_table_counts_what_was_right(faults: ModuleType) -> None:
    good = faults.Outcome(0, ("segfault", "segfault"), "killed once")
    bad = faults.Outcome(1, ("segfault", "sleep"), "nothing", wrong=["1 orphans"])
    lines = faults.table([good, bad]).splitlines()
    assert "| segfault | 2 | 1 |" in lines
    assert "| sleep | 1 | 0 |" in lines
    assert "| driver: killed once | 1 | 1 |" in lines
    assert lines[-1] == "| **all** | **2** | **1** |"
