"""The machine at hand: what the figures of a report were measured on."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from sartor.keeper import descendants, status
from sartor.records import WATTS

_PROC = Path("/proc")
_CPUINFO = _PROC / "cpuinfo"
_POWERCAP = Path("/sys/class/powercap")


def cores() -> int:
    """The cores that this process may use (its affinity mask, not the machine's size)."""
    return len(allowed_cores()) or os.cpu_count() or 1


def allowed_cores() -> tuple[int, ...]:
    """Their numbers; empty where the system keeps no affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return ()


def idlest_core(seconds: float = 0.1) -> int | None:
    """The allowed core that was idle longest during so many seconds, from now; None where the
    system keeps no affinity mask."""
    allowed = allowed_cores()
    if len(allowed) < 2:
        return allowed[0] if allowed else None
    before = _cores_seconds()
    time.sleep(seconds)
    after = _cores_seconds()

    def idle(core: int) -> float:
        name = f"cpu{core}"
        return after[name][1] - before[name][1] if name in before and name in after else 0.0

    return max(allowed, key=lambda core: (idle(core), core))


class Watch:
    """What other processes do from now on, but for this one and those with the given ids with all
    that they have started (a worker is a keeper and the process that works)."""

    def __init__(self, own: Iterable[int]) -> None:
        given = set(own)
        self._own = {os.getpid(), *given, *(below for each in given for below in descendants(each))}
        self._busy, self._used, self._began = _busy(), self._spent(), time.monotonic()

    def _spent(self) -> dict[int, float]:
        """CPU-seconds of each process of ours that is alive."""
        spent = {}
        for process in self._own:
            with contextlib.suppress(OSError):
                spent[process] = sum(map(int, status(process)[11:13])) * _tick()
        return spent

    def others(self) -> float | None:
        """Cores that others kept busy on the average since the start; None where it was too short
        to be told (the system counts hundredths of seconds), or the system does not tell."""
        passed, now, busy = time.monotonic() - self._began, self._spent(), _busy()
        if passed < 0.1 or busy is None or self._busy is None:
            return None
        ours = sum(now[pid] - self._used[pid] for pid in now if pid in self._used)
        return float(min(max((busy - self._busy - ours) / passed, 0.0), os.cpu_count() or 1))


def _busy() -> float | None:
    """Seconds that all cores together have worked; None where the system does not tell."""
    together = _cores_seconds().get("cpu")
    return None if together is None else together[0]


def _cores_seconds() -> dict[str, tuple[float, float]]:
    """Seconds (at work, idle) since the start of the machine, of all cores ("cpu") and of each
    ("cpu0" ...); what the hypervisor took (steal) is work. Empty where the system does not tell."""
    place = _PROC / "stat"
    lines = place.read_text().splitlines() if place.is_file() else ()
    found = {}
    for line in lines:
        name, *told = line.split()
        if name.startswith("cpu"):
            # The times of guests, which come last, are counted in that of the user too.
            user, nice, system, idle, waiting, *rest = (int(each) * _tick() for each in told[:8])
            found[name] = (user + nice + system + sum(rest), idle + waiting)
    return found


@cache
def _tick() -> float:
    """Seconds of one of the system's ticks."""
    return 1 / os.sysconf("SC_CLK_TCK")


@cache
def features() -> frozenset[str]:
    """Instruction sets by Linux's names ("avx2", "avx512_vnni" ...); where there is no
    /proc/cpuinfo, those that numpy detects, by the same names. Empty where nothing tells."""
    for key in ("flags", "Features"):  # x86, ARM
        found = _cpuinfo().get(key)
        if found:
            return frozenset(found.lower().split())
    return _numpy_features()


BFLOAT = frozenset({"avx512_bf16", "amx_bf16"})
# Instructions that sum products of eight bits in 32, and so do four multiplications in one.
_DOT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def multiplies_integers(known: Collection[str]) -> bool:
    """Whether a processor of these instruction sets has kernels of eight bits that gain."""
    return not _DOT.isdisjoint(known)


def multiplies_bfloats(known: Collection[str]) -> bool:
    """Whether a processor of these instruction sets multiplies bfloat16: about twice as fast in
    training as float32, and slower than it where that is only emulated."""
    return not BFLOAT.isdisjoint(known)


def saturates(known: Collection[str]) -> bool:
    """Whether products of uint8 and int8 overflow their 16-bit sums: x86 without VNNI, where
    weights must stay within 7 bits."""
    vnni = {"avx512_vnni", "avx_vnni"}
    return not {"avx2", "avx512f"}.isdisjoint(known) and vnni.isdisjoint(known)


def _numpy_features() -> frozenset[str]:
    import numpy as np

    told = np.show_config(mode="dicts").get("SIMD Extensions", {})  # type: ignore[call-overload]
    names = {name.lower() for name in (*told.get("baseline", ()), *told.get("found", ()))}
    if names & _WITH_VNNI:
        names |= {"avx512f", "avx512_vnni"}
    if "x86_v3" in names:
        names |= {"avx2", "fma"}
    return frozenset(names)


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries."""
    if not _CPUINFO.is_file():
        return {}
    first = _CPUINFO.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def describe() -> dict[str, Any]:
    """Plain JSON: processor, instruction sets that matter for inference, cores, memory (bytes),
    Python, operating system and the load average at the moment (None where there is none)."""
    told = features()
    model = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "instructions": sorted(each for each in told if each.startswith(_TELLING)),
        "cores": cores(),
        "cores_of_machine": os.cpu_count() or 1,
        "memory": _memory(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "platform": sys.platform,
        "load": load(),
    }


_WITH_VNNI = {"avx512_clx", "avx512_icl", "avx512_spr"}  # numpy names generations of processors
_TELLING = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "i8mm", "bf16", "neon")


# -- energy ---------------------------------------------------------------------------------------


@cache
def energy_counters(folder: Path = _POWERCAP) -> tuple[str, ...]:
    """The files of the packages' energy counters (RAPL), in microjoules; none where there are
    none, where they may not be read, or where they do not follow what the machine does, as those
    of some virtual machines. Looks once, for about two seconds."""
    packages = re.compile(r"intel-rapl:\d+")
    found = tuple(
        str(place / "energy_uj")
        for place in sorted(folder.glob("*"))
        if packages.fullmatch(place.name) and os.access(place / "energy_uj", os.R_OK)
    )
    return found if found and follows_load(lambda: joules(found), time.sleep, _spin) else ()


def joules(counters: tuple[str, ...]) -> float:
    """What the counters stand at together; NaN without any."""
    if not counters:
        return math.nan
    return sum(int(Path(each).read_text()) for each in counters) * 1e-6


def follows_load(
    read: Callable[[], float],
    idle: Callable[[float], None],
    busy: Callable[[float], None],
    seconds: float = 0.3,
) -> bool:
    """Whether a counter of joules rises at all, and in each of three pairs of intervals faster
    while a core is busy than while it idles."""
    for _ in range(3):
        marks = [read()]
        for spend in (idle, busy):
            spend(seconds)
            marks.append(read())
        rest, work = marks[1] - marks[0], marks[2] - marks[1]
        if rest < 0 or work <= 1.02 * rest:
            return False
    return True


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def energy_source() -> str:
    """How joules are come by on this machine, in words."""
    counters = energy_counters()
    if counters:
        return f"measured by {', '.join(counters)}, which follow the load"
    return f"estimated from CPU time at {WATTS:g} W a core: no counter here follows the load"


# -- conditions -----------------------------------------------------------------------------------


def load() -> float | None:
    """The load average of the last minute; None where there is none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def memory_ceiling() -> int:
    """Bytes of address space for one trial: what is free now, and a margin for what is only
    reserved, so that a trial fails with a reason before the system kills something."""
    reserved = 4_000_000_000
    return int(_memory(free=True) * 0.9) + reserved


def _memory(free: bool = False) -> int:
    """Bytes of the machine's memory; with `free` those that a program can still have, where the
    system tells."""
    place = _PROC / "meminfo"
    for line in place.read_text().splitlines() if free and place.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
