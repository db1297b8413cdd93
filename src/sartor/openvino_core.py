"""OpenVINO itself, shared by the runtime and the techniques of that kind: imported so that it tells
nobody, and models compiled as their settings say."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sartor.contracts import Failed
from sartor.sessions import AT_LEAST_ONE, check_session

# OpenVINO and NNCF report every import and every quantization to their makers unless a file in the
# user's home says no. Both go without the package that does it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402

__all__ = ["SETTINGS", "compiled", "core", "named", "opened", "ov", "properties", "said", "written"]

SETTINGS: Mapping[str, tuple[Any, ...] | str] = {
    "threads": AT_LEAST_ONE,
    "hint": ("latency", "throughput"),
    "precision": ("f32", "bf16", "f16"),
    "dynamic_quantization": (0, 32, 64, 128),
}


@cache
def core() -> ov.Core:
    return ov.Core()


def properties(settings: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What a model of these settings is compiled with, for at most so many threads. Left to itself
    OpenVINO computes in bfloat16 where the processor can, and rounds what goes into a product with
    compressed weights to eight bits: here both are done only where a setting says so."""
    check_session(settings, SETTINGS, "OpenVINO")
    threads = min(settings.get("threads", threads), threads)
    hint = settings.get("hint", "latency")
    return {
        "PERFORMANCE_HINT": hint.upper(),
        "NUM_STREAMS": 1 if hint == "latency" else threads,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": settings.get("precision", "f32"),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": settings.get("dynamic_quantization", 0),
        "ENABLE_CPU_PINNING": False,  # who measures pins, and chooses the core
        "CACHE_DIR": "",
    }


def compiled(path: Path, wanted: Mapping[str, Any]) -> ov.CompiledModel:
    """Raises Failed where OpenVINO refuses the model."""
    try:
        return core().compile_model(str(path), "CPU", dict(wanted))
    except Exception as error:  # RuntimeError and what else its C++ side raises
        raise Failed(f"OpenVINO cannot start {Path(path).name}: {said(error)}") from None


def said(error: Exception) -> str:
    """OpenVINO's own words on one line, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not re.match(r"Exception from \S+:\d+:$", line)]
    words = " ".join(told) or type(error).__name__
    words = re.sub(r"Check '.*?' failed at \S+:\d+:\s*", "", words)
    return words[:400]


# -- files --------------------------------------------------------------------------------------


def opened(path: Path) -> ov.Model:
    """Raises Failed where OpenVINO does not read the file."""
    try:
        return core().read_model(str(path))
    except Exception as error:  # RuntimeError and what else its C++ side raises
        raise Failed(f"OpenVINO does not read {Path(path).name}: {said(error)}") from None


def named(model: ov.Model) -> set[str]:
    """The names of all layers, those in bodies included."""
    return {op.get_friendly_name() for op in _every(model)}


def written(
    model: ov.Model, folder: Path, stem: str, keep: set[str] | None = None, halves: bool = False
) -> Path:
    """The `.xml` in `folder`, named by its content, with its weights beside it. Names that OpenVINO
    counted up in this process are counted anew, but for those to `keep`: equal models are equal
    files. `halves`: weights of float32 are stored as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    _rename(model, keep or set())
    path = folder / f"{stem}.xml"
    ov.save_model(model, str(path), compress_to_fp16=halves)
    whole = hashlib.sha256()
    for each in (path, path.with_suffix(".bin")):
        whole.update(each.read_bytes())
    made = folder / f"{stem}-{whole.hexdigest()[:20]}.xml"
    path.with_suffix(".bin").replace(made.with_suffix(".bin"))
    return path.replace(made).absolute()


def _rename(model: ov.Model, keep: set[str]) -> None:
    counts: Counter[str] = Counter()
    for op in _every(model):
        name, sort = op.get_friendly_name(), op.get_type_name()
        if name in keep or not re.fullmatch(rf"{sort}_\d+", name):
            continue
        fresh = f"{sort}.{counts[sort]}"
        while fresh in keep:
            counts[sort] += 1
            fresh = f"{sort}.{counts[sort]}"
        counts[sort] += 1
        op.set_friendly_name(fresh)


def _every(model: ov.Model) -> Iterator[ov.Node]:
    waiting = [model]
    while waiting:
        for op in waiting.pop().get_ordered_ops():
            yield op
            sort = op.get_type_name()
            if sort in ("TensorIterator", "Loop"):
                waiting.append(op.get_function())
            elif sort == "If":
                waiting += [op.get_function(index) for index in (0, 1)]
