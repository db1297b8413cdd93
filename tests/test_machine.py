"""What the machine tells of itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sartor import machine
from sartor.contracts import Target
from sartor.limits import parse_objective
from sartor.prepare import _kernels


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


class Meter:
    """A counter of joules: `idle` watts, `busy` watts, and what it has counted."""

    def __init__(self, idle: float, busy: float, wraps: float = math.inf) -> None:
        self.watts, self.total, self.wraps = {"idle": idle, "busy": busy}, 0.0, wraps

    def spend(self, how: str) -> Callable[[float], None]:
        def pass_time(seconds: float) -> None:
            self.total = (self.total + self.watts[how] * seconds) % self.wraps

        return pass_time

    def __call__(self) -> float:
        return self.total


@pytest.mark.parametrize(
    ("meter", "follows"),
    [
        (Meter(20, 30), True),
        (Meter(0, 0), False),  # always nought, as in many virtual machines
        (Meter(20, 20), False),  # a clock
        (Meter(30, 20), False),
        (Meter(20, 30, wraps=7), False),
    ],
)
def test_an_energy_counter_counts_only_where_it_follows_the_load(
    meter: Meter, follows: bool
) -> None:
    assert machine.follows_load(meter, meter.spend("idle"), meter.spend("busy")) == follows


def test_counters_are_those_of_packages_that_follow_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "dtpm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("2000000\n")
    found = tuple(str(tmp_path / f"intel-rapl:{at}" / "energy_uj") for at in (0, 1))
    monkeypatch.setattr(machine, "follows_load", lambda read, *_: read() == 4.0)
    machine.energy_counters.cache_clear()
    assert machine.energy_counters(tmp_path) == found
    monkeypatch.setattr(machine, "follows_load", lambda *_: False)
    machine.energy_counters.cache_clear()
    assert machine.energy_counters(tmp_path) == ()
    assert machine.energy_counters(tmp_path / "none") == ()
    machine.energy_counters.cache_clear()
    assert math.isnan(machine.joules(()))


def test_a_watch_leaves_out_our_own_processes() -> None:
    """A busy process is others' load unless it is named as ours; both are watched at a time."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        theirs, ours = machine.Watch(()), machine.Watch((loop.pid,))
        spent = psutil.Process(loop.pid).cpu_times()
        while (now := psutil.Process(loop.pid).cpu_times()).user - spent.user < 0.5:
            time.sleep(0.05)
        told, without = theirs.others(), ours.others()
        loop.kill()
    assert now.user > spent.user
    assert told is not None
    assert without is not None
    assert told > without or told == (os.cpu_count() or 1)


def test_memory_and_cores_are_those_that_psutil_tells() -> None:
    told = psutil.virtual_memory()
    assert machine._memory() == told.total
    assert machine._memory(free=True) == pytest.approx(told.available, rel=0.2)
    assert machine.memory_ceiling() > 4e9
    theirs, ours = psutil.cpu_times(percpu=True), machine._cores_seconds()
    assert set(ours) == {"cpu", *(f"cpu{at}" for at in range(len(theirs)))}
    for at, core in enumerate(theirs):
        assert ours[f"cpu{at}"][1] == pytest.approx(core.idle + core.iowait, rel=0.01, abs=1)
        assert sum(ours[f"cpu{at}"]) == pytest.approx(sum(core[:8]), rel=0.01, abs=1)
    assert machine.idlest_core(0.01) in machine.allowed_cores()


def test_where_the_system_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    watch = machine.Watch((os.getpid(),))
    time.sleep(0.15)
    assert watch.others() is None
    assert machine.idlest_core(0.01) in machine.allowed_cores()
    assert machine._memory(free=True) == machine._memory()


def test_too_short_a_watch_says_nothing() -> None:
    assert machine.Watch(()).others() is None


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


def test_a_processor_without_products_of_eight_bits_is_told_of() -> None:
    def told(metric: str, *features: str) -> list[str]:
        target = Target("cpu", 1, 1, frozenset(features), ())
        return _kernels(parse_objective(metric), target)

    assert "int8 gains less here" in told("latency", "avx2", "avx512f")[0]
    assert told("latency", "avx2", "avx512_vnni") == []
    assert told("size", "avx2") == []
