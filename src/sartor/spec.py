"""What the user wants, as one value: from flags, from Python or from a strict TOML file.

    model = "model.onnx"                     # a file, or file.py:factory
    data = "eval.npz"                        # .npz .parquet .csv, an image folder, file.py:factory
    limits = ["accuracy >= baseline - 0.01", "size <= 20 MB", "latency.p95 <= 10 ms"]
    minimize = "latency"                     # or: maximize = "throughput"
    budget = "10m"                           # 30s, 10m, 1h30m, or seconds
    out = "tailored"

Every key of `Spec` may stand so at the top, or grouped under one of these headings:

    [data]        source (= data), label, segments, group, mask, augment (file.py:function)
    [task]        kind (= task), metric, output
    [target]      threads, batch, device, watts, formats (such as ["tflite"]),
                  fixed (such as fixed = {image = [1, 3, 224, 224]})
    [train]       processes (= train_processes)
    [search]      trials, seed, memory, deadline, techniques, without, recipes, confidence,
                  learn_from

Paths are relative to the file. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sartor.contracts import WrongRequest
from sartor.limits import parse, parse_objective, quantity
from sartor.references import PATTERN, is_reference, reference_to


def duration(text: str | float) -> float:
    """Seconds of "30s", "10m", "1h30m", "1.5 h", "90" or a number."""
    sentence = f"{text!r} is not a time; write e.g. 30s, 10m or 1h30m"
    if isinstance(text, bool):
        raise WrongRequest(sentence)
    if isinstance(text, (int, float)):
        seconds = float(text)
    else:
        bare = re.sub(r"\s+", "", text).removeprefix("+").lower()
        if re.fullmatch(r"\d+\.?\d*|\.\d+", bare):
            bare += "s"
        parts = re.findall(r"(\d+\.?\d*|\.\d+)(d|h|min|m|sec|s)", bare)
        if not parts or "".join(n + u for n, u in parts) != bare:
            raise WrongRequest(sentence)
        scale = {"d": 86400, "h": 3600, "min": 60, "m": 60, "sec": 1, "s": 1}
        seconds = sum(float(number) * scale[unit] for number, unit in parts)
    if not math.isfinite(seconds):
        raise WrongRequest(sentence)
    return seconds


class More(float):
    """Seconds on top of what a run has had."""


class MoreTrials(int):
    """Trials on top of those that a run has made."""


def _budget(value: Any) -> float:
    if isinstance(value, str) and re.fullmatch(r"\+?\d+", value.strip()):
        plain = value.strip()  # a slip that would spend the holdout on seconds
        raise WrongRequest(
            f"budget {plain}: write its unit, {plain}m for minutes, {plain}s or 1h30m"
        )
    more = isinstance(value, str) and value.strip().startswith("+")
    return More(duration(value)) if more else duration(value)


def _trials(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return MoreTrials(value) if value.strip().startswith("+") else int(value)
    if isinstance(value, str):
        raise TypeError("a whole number, or +N for so many more than there are")
    return _whole(value)


def _folder(value: Any) -> str | bool:
    return value if isinstance(value, bool) else _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise TypeError("a text")
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError('a list of texts, such as ["..."]')
    return tuple(_text(each) for each in value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("a number")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _bytes(value: Any) -> int:
    return int(quantity(value, "memory")) if isinstance(value, str) else _whole(value)


def _recipes(value: Any) -> tuple[tuple[Mapping[str, Any], ...], ...]:
    """Lists of techniques; a technique is its name or a table with its settings."""
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(each, (list, tuple)) for each in value
    ):
        raise TypeError('a list of lists of techniques, such as [["static-int8"]]')
    return tuple(tuple(_entry(step) for step in recipe) for recipe in value)


def _entry(step: Any) -> Mapping[str, Any]:
    entry = {"technique": step} if isinstance(step, str) else step
    if not isinstance(entry, Mapping) or not isinstance(entry.get("technique"), str):
        raise TypeError('techniques: a name, or a table such as {technique = "static-int8"}')
    return dict(entry)


def _fixed(value: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """{"image": [1, 3, 224, 224]} or ["image=1,3,224,224"] -> (("image", (1, 3, 224, 224)),)."""
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        pairs = [each.partition("=")[::2] for each in value]
        value = {
            name.strip(): [int(n) if n.strip().isdigit() else n for n in sizes.split(",")]
            for name, sizes in pairs
        }
    shapes = value.items() if isinstance(value, Mapping) else ()
    if not shapes or not all(
        name and sizes and all(type(n) is int and n > 0 for n in sizes) for name, sizes in shapes
    ):
        raise TypeError("input names with all their sizes, such as image=1,3,224,224")
    return tuple((name, tuple(sizes)) for name, sizes in shapes)


def _code(value: Any) -> str:
    text = reference_to(value) if callable(value) else _text(value)
    if not is_reference(text):
        raise TypeError("file.py:function")
    return text


def _anything(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _key(default: Any, read: Callable[[Any], Any], *, group: str = "", alias: str = "") -> Any:
    """A field with its check, the heading it may stand under and its name there."""
    return dataclasses.field(
        default=default, metadata={"read": read, "group": group, "alias": alias}
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A request. `model` and `data` are paths, references to code, or live objects."""

    model: Any = _key(None, _anything)  # noqa: RUF009  (a field, made by dataclasses.field)
    data: Any = _key(None, _anything, group="data", alias="source")  # noqa: RUF009
    label: str | None = _key(None, _text, group="data")
    segments: tuple[str, ...] = _key((), _texts, group="data")
    group: str | None = _key(None, _text, group="data")
    mask: str | None = _key(None, _text, group="data")
    augment: str | None = _key(None, _code, group="data")
    task: str | None = _key(None, _text, group="task", alias="kind")
    metric: str | None = _key(None, _text, group="task")
    output: str | None = _key(None, _text, group="task")
    limits: tuple[str, ...] = _key((), _texts)
    minimize: str | None = _key(None, _text)
    maximize: str | None = _key(None, _text)
    budget: float = _key(600.0, _budget)
    out: str = _key("tailored", _text)
    trust: bool = _key(False, _flag)
    resume: str | bool = _key(False, _folder)
    replay: str | None = _key(None, _text)
    cluster: str | None = _key(None, _text, group="search")
    threads: int = _key(1, _whole, group="target")
    batch: int = _key(1, _whole, group="target")
    fixed: tuple[tuple[str, tuple[int, ...]], ...] = _key((), _fixed, group="target")
    device: str = _key("cpu", _text, group="target")
    formats: tuple[str, ...] = _key((), _texts, group="target")
    together: tuple[str, ...] = _key((), _texts)  # formats that share a request (each_format)
    watts: float | None = _key(None, _number, group="target")
    train_processes: int = _key(1, _whole, group="train", alias="processes")
    trials: int | None = _key(None, _trials, group="search")
    seed: int = _key(0, _whole, group="search")
    memory: int | None = _key(None, _bytes, group="search")
    deadline: float = _key(900.0, duration, group="search")
    techniques: tuple[str, ...] = _key((), _texts, group="search")
    without: tuple[str, ...] = _key((), _texts, group="search")
    recipes: tuple[tuple[Mapping[str, Any], ...], ...] = _key((), _recipes, group="search")
    confidence: float = _key(0.95, _number, group="search")
    learn_from: tuple[str, ...] = _key((), _texts, group="search")

    @property
    def objective(self) -> str:
        """The figure that is made as good as the limits allow."""
        return self.minimize or self.maximize or "latency"

    def check(self) -> tuple[str, ...]:
        """Raises WrongRequest with a sentence for what cannot be meant; returns remarks."""
        if self.minimize and self.maximize:
            raise WrongRequest(
                f"minimize {self.minimize} and maximize {self.maximize}: name one objective and "
                "write a limit for the other"
            )
        _check_objective(self)
        _check_cluster(self.cluster)
        _check_numbers(self)
        for name in self.techniques:
            if name in self.without:
                raise WrongRequest(f"technique {name} is both asked for and left out")
        limits = [parse(text) for text in self.limits]
        _check_twice(limits)
        if any(limit.quality for limit in limits):
            return ()
        return ("there is no limit on quality: one against the original is added",)


_FIELDS = {field.name: field for field in dataclasses.fields(Spec)}
_GROUPS: dict[str, dict[str, str]] = {}
for _field in _FIELDS.values():
    if _field.metadata["group"]:
        _names = _GROUPS.setdefault(_field.metadata["group"], {})
        _names[_field.metadata["alias"] or _field.name] = _field.name


def _check_objective(spec: Spec) -> None:
    higher = parse_objective(spec.objective).higher
    if spec.minimize and higher:
        raise WrongRequest(
            f"minimize {spec.minimize}: {spec.minimize} is better when higher; "
            f"write maximize {spec.minimize}"
        )
    if spec.maximize and higher is False:
        raise WrongRequest(
            f"maximize {spec.maximize}: {spec.maximize} is better when lower; "
            f"write minimize {spec.maximize}"
        )


def _check_cluster(cluster: str | None) -> None:
    if cluster not in (None, "ray") and not re.fullmatch(r"(ray://)?[^\s:/]+:\d{1,5}", cluster):
        raise WrongRequest(
            f"cluster {cluster!r}: write ray for this machine, or the address of a Ray cluster, "
            "such as head:6379 or ray://head:10001"
        )


def _check_numbers(spec: Spec) -> None:
    cores = os.cpu_count() or 1
    if spec.budget <= 0:
        raise WrongRequest(f"budget {spec.budget:g} s: write a time above 0, e.g. 10m")
    if not 1 <= spec.threads <= cores:
        raise WrongRequest(f"threads {spec.threads}: this machine has {cores}; write 1 to {cores}")
    if not 1 <= spec.train_processes <= cores:
        raise WrongRequest(
            f"train_processes {spec.train_processes}: this machine has {cores} cores; write 1 to "
            f"{cores}"
        )
    check_batch(spec.batch)
    if spec.watts is not None and not 0 < spec.watts < math.inf:
        raise WrongRequest(f"watts {spec.watts:g}: write what a busy core needs, e.g. 8")
    if spec.trials is not None and spec.trials < 1:
        raise WrongRequest(f"trials {spec.trials}: write 1 or more, or leave it out")
    if spec.device != "cpu":
        raise WrongRequest(f"device {spec.device!r}: only cpu is known; leave it out")
    if not 0.5 <= spec.confidence < 1:
        raise WrongRequest(f"confidence {spec.confidence:g}: write a share below 1, e.g. 0.95")
    if spec.memory is not None and spec.memory < 100_000_000:
        raise WrongRequest(f"memory {spec.memory} bytes: a trial needs 100 MB at least")
    if spec.deadline <= 0:
        raise WrongRequest(f"deadline {spec.deadline:g} s: write a time above 0, e.g. 5m")
    if spec.seed < 0:
        raise WrongRequest(f"seed {spec.seed}: write 0 or more")


def _check_twice(limits: list[Any]) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for limit in limits:
        key = (limit.figure, limit.segment, limit.sense, limit.bound.kind)
        if key in seen and seen[key] != limit.text:
            raise WrongRequest(f"{seen[key]} and {limit.text} bound the same figure: keep one")
        seen[key] = limit.text


def merge(spec: Spec, overrides: Mapping[str, Any]) -> Spec:
    """The spec with these keys replaced; None means not given. Raises WrongRequest for an unknown
    key or a value of another type."""
    values: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in _FIELDS:
            raise _unknown(name, list(_FIELDS), "in the request")
        if value is not None:
            values[name] = _read(name, name, value)
    if values.get("maximize") and "minimize" not in values:
        values["minimize"] = None  # a flag replaces the file's objective, whichever it was
    if values.get("minimize") and "maximize" not in values:
        values["maximize"] = None
    return dataclasses.replace(spec, **values)


def _read(name: str, shown: str, value: Any) -> Any:
    try:
        return _FIELDS[name].metadata["read"](value)
    except TypeError as error:
        raise WrongRequest(f"{shown} must be {error}; it is {value!r}") from None
    except WrongRequest as error:
        raise WrongRequest(f"{shown}: {error}") from None


def _unknown(name: str, names: list[str], where: str) -> WrongRequest:
    near = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}"
    return WrongRequest(f"unknown key {name!r} {where}; {hint}")


def load(path: Path | str) -> Spec:
    """The request in a TOML file (see the module's docstring for what one looks like)."""
    path = Path(path)
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise WrongRequest(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongRequest(f"{path} is not TOML: {error}") from None
    values: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, dict):
            _section(path, key, value, values)
        elif key in _FIELDS:
            _once(path, key, key, value, values)
        else:
            raise _unknown(key, [*_FIELDS, *_GROUPS], f"in {path}")
    return dataclasses.replace(Spec(), **_relative(values, path.parent))


def _section(path: Path, key: str, entries: Mapping[str, Any], values: dict[str, Any]) -> None:
    if key not in _GROUPS:
        if key in _FIELDS:
            raise WrongRequest(f"{path}: {key} is a single value, not a section [{key}]")
        raise _unknown(key, [*_FIELDS, *_GROUPS], f"in {path}")
    for inner, value in entries.items():
        if inner not in _GROUPS[key]:
            raise _unknown(inner, list(_GROUPS[key]), f"under [{key}] in {path}")
        _once(path, f"{key}.{inner}", _GROUPS[key][inner], value, values)


def _once(path: Path, shown: str, name: str, value: Any, values: dict[str, Any]) -> None:
    if name in values:
        raise WrongRequest(f"{path}: {name} is given twice; keep one")
    if name in ("model", "data"):
        value = _read("out", f"{path}: {shown}", value)  # a text: a file holds no live object
    values[name] = _read(name, f"{path}: {shown}", value)


def _relative(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values with paths that stood relative to `folder`; what the file leaves out (`out`)
    stays relative to where the command runs."""
    found = dict(values)
    for name in ("model", "data", "out", "replay", "resume", "augment"):
        if name in values:
            found[name] = beside(values[name], folder)
    if "learn_from" in values:
        found["learn_from"] = tuple(beside(each, folder) for each in values["learn_from"])
    if is_reference(values.get("metric", "")):
        found["metric"] = beside(values["metric"], folder)
    found["limits"] = tuple(_limit_beside(text, folder) for text in values.get("limits", ()))
    return found


def beside(value: Any, folder: Path) -> Any:
    """The path or reference `value`, where it is relative, from `folder` on."""
    if not isinstance(value, str):
        return value
    reference = PATTERN.fullmatch(value)
    if reference and not reference["place"].endswith(".py"):
        return value  # a module
    return str(folder / value)


def _limit_beside(text: str, folder: Path) -> str:
    metric = parse(text).metric
    return text.replace(metric, beside(metric, folder), 1) if is_reference(metric) else text


def from_flags(model: str | None, **flags: Any) -> Spec:
    """The checked request of a command: `model` is a model or a .toml file; flags that are None
    or empty are not given, the others override the file."""
    if model is not None and model.endswith(".toml"):
        return request(load(model), **flags)
    return request(Spec(), model=model, **flags)


def request(spec: Spec | None = None, /, **settings: Any) -> Spec:
    """The checked request of `spec` with these settings; None and empty ones are not given."""
    given = {
        k: v for k, v in settings.items() if not (v is None or (isinstance(v, list) and not v))
    }
    spec = merge(spec or Spec(), given)
    spec.check()
    return spec


def check_batch(batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise WrongRequest(f"batch {batch}: write 1 or more")
