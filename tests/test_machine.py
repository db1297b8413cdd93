"""What the machine tells of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sartor import machine


def test_describe_is_json_with_the_facts() -> None:
    told = machine.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["cpu"]
    assert told["memory"] > 100e6
    assert 1 <= told["cores"] <= told["cores_of_machine"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity mask")
def test_cores_are_those_of_the_affinity_mask() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from sartor import machine; print(machine.cores(), len(machine.allowed_cores()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.fixture
def fresh() -> None:
    machine.features.cache_clear()
    machine._cpuinfo.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("text", "feature"),
    [
        (
            "processor : 0\nmodel name : A\nflags : fpu avx2 avx512_vnni\n\nprocessor : 1\n",
            "avx512_vnni",
        ),
        ("processor : 0\nFeatures : fp asimd i8mm\n", "i8mm"),
    ],
)
def test_features_come_from_cpuinfo(
    text: str, feature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert feature in machine.features()
    machine.features.cache_clear()
    machine._cpuinfo.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_cpuinfo_numpy_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine.features()
    machine.features.cache_clear()
    machine._cpuinfo.cache_clear()
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "gone")
    told = machine.features()
    if "avx512_vnni" in known:
        assert "avx512_vnni" in told
    assert machine.describe()["cpu"]
    machine.features.cache_clear()
    machine._cpuinfo.cache_clear()
