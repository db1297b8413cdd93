"""The bundle: a folder with the artifact, `sartor.json` and a card, that proves itself.

`load` imports only the one runtime that the artifact needs. A changed byte, a path that climbs
out of the folder or a newer format is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sartor.contracts import (
    Arrays,
    Failed,
    Model,
    Port,
    Runtime,
    Session,
    Signature,
    Target,
    WrongRequest,
)
from sartor.nearness import gap, spread
from sartor.records import plain
from sartor.registry import plugins, runtime

FORMAT = 1
PARITY_ROWS = 8
PARITY_TOLERANCE = 1e-3  # of the outputs' spread; integer kernels round alike on one machine


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(entry: Mapping[str, Any]) -> str:
    """Of all that `sartor.json` says: it lists the hashes of the other files and this one of its
    own. It shows damage and slips of an editor, not who wrote it."""
    told = {name: value for name, value in entry.items() if name != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def write(
    model: Model,
    folder: Path,
    facts: Mapping[str, Any],
    sample: Arrays,
    fingerprints: np.ndarray,
    target: Target,
    card: str,
) -> None:
    """Writes the bundle into the new folder `folder`.

    `facts` goes into `sartor.json` as it is (task, recipe, certificate, data fingerprints ...);
    `sample` (some rows of real inputs) only gives the ranges of made-up reference inputs: no row
    of the data enters the bundle, only 32 bits of each one's hash (`fingerprints`)."""
    folder.mkdir(parents=True)
    engine = runtime(model.kind)
    file = engine.save(model, folder)
    inputs = reference_inputs(sample, model.signature)
    outputs = _answered(model, inputs, target)
    kept = {f"input.{k}": v for k, v in inputs.items()}
    kept |= {f"output.{k}": np.asarray(v) for k, v in outputs.items()}
    np.savez_compressed(folder / "parity.npz", allow_pickle=False, **kept)
    np.save(folder / "rows.npy", fingerprints, allow_pickle=False)
    elsewhere = getattr(engine, "elsewhere", None)
    line = elsewhere(model, inputs, target.batch) if elsewhere is not None else ""
    (folder / "card.md").write_text(f"{card}\n{line}\n" if line else card, encoding="utf-8")
    listed = {name: file_digest(folder / name) for name in files(folder)}
    entry = {
        "format": FORMAT,
        "kind": model.kind,
        "file": file.relative_to(folder).as_posix(),
        "settings": model.settings,
        "signature": model.signature,
        "target": target,
        "versions": engine.versions(),
        **facts,
        "files": listed,
    }
    entry = plain(entry)
    text = json.dumps({**entry, "digest": digest_of(entry)}, indent=1, allow_nan=False)
    (folder / "sartor.json").write_text(text + "\n", encoding="utf-8")


def files(folder: Path) -> list[str]:
    """The files below a folder, by their paths in it; none where there is no folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


def reference_inputs(sample: Arrays, signature: Signature, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs made up within the ranges of the sample: (rows, ...) arrays as the signature wants.
    Numbers lie where the sample's lie; text is random letters, as long as the sample's texts are:
    not one value of a text is the data's."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for port in signature.inputs:
        seen = np.asarray(sample[port.name])
        rows = port.shape[0] if port.shape and port.shape[0] is not None else PARITY_ROWS
        shape = (rows, *_sizes(port, seen))
        if seen.dtype.kind in "biu":
            low, high = int(seen.min()), int(seen.max())
            # A mask of ones stays one: a row without any real token has no defined answer.
            low = 1 if (low, high) == (0, 1) else low
            made[port.name] = rng.integers(low, high, shape, seen.dtype, endpoint=True)
        elif seen.dtype.kind == "f":
            made[port.name] = rng.normal(seen.mean(), seen.std() or 1.0, shape).astype(seen.dtype)
        else:
            made[port.name] = _letters(seen, shape, rng)
    return made


def _sizes(port: Port, seen: np.ndarray) -> tuple[int, ...]:
    """Of one row: those that the model insists on, else those of the data."""
    if len(port.shape) != seen.ndim:
        return seen.shape[1:]
    pairs = zip(port.shape[1:], seen.shape[1:], strict=True)
    return tuple(have if size is None else size for size, have in pairs)


def _letters(seen: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random lower-case letters, of a length between the shortest and the longest text seen."""
    lengths = [len(str(each)) for each in seen.flat]
    low, high = min(lengths, default=1), max(lengths, default=1)
    alphabet = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    texts = [
        "".join(rng.choice(alphabet, rng.integers(low, high + 1)))
        for _ in range(int(np.prod(shape)))
    ]
    return np.array(texts, dtype=np.str_).reshape(shape)


def _answered(model: Model, inputs: Arrays, target: Target) -> Arrays:
    """The outputs for the made-up inputs; none where the model gives up on them (a text that is in
    no table of its own, numbers that only go together): real rows may not stand in a bundle."""
    with runtime(model.kind).start(model, target) as session:
        try:
            return session(inputs)
        except (Failed, WrongRequest):
            return {}


def read(folder: Path) -> dict[str, Any]:
    """`sartor.json` of a bundle, after its paths, format and every file's hash were checked.

    Raises WrongRequest with one sentence where something is amiss."""
    folder = find(folder)
    try:
        entry = json.loads((folder / "sartor.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WrongRequest(f"{folder}/sartor.json cannot be read: {error}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("files"), dict):
        raise WrongRequest(f"{folder}/sartor.json is not a bundle's: it lists no files")
    version = entry.get("format")
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise WrongRequest(
            f"{folder} has bundle format {version!r}; this version reads up to {FORMAT}: "
            "write pip install -U sartor"
        )
    if entry.get("digest") != digest_of(entry):
        raise WrongRequest(
            f"{folder}: sartor.json was changed since the bundle was written (its hash differs)"
        )
    _check_fields(folder, entry)
    for name, expected in entry["files"].items():
        path = _inside(folder, name)
        if not path.is_file():
            raise WrongRequest(f"{folder}: {name} is missing; the bundle is not whole")
        if file_digest(path) != expected:
            raise WrongRequest(
                f"{folder}: {name} was changed since the bundle was written (its hash differs)"
            )
    listed = {*entry["files"], "sartor.json"}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name not in listed):
            raise WrongRequest(f"{folder}: {name} is not among the files of the bundle")
    return entry


_FIELDS = {"kind": str, "file": str, "settings": dict, "signature": dict, "target": dict}


def _check_fields(folder: Path, entry: Mapping[str, Any]) -> None:
    """Raises WrongRequest where what is needed to run the artifact is not there or is odd."""
    odd = [name for name, kind in _FIELDS.items() if not isinstance(entry.get(name), kind)]
    for name, understand in (("signature", signature_of), ("target", target_of)):
        try:
            understand(entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            odd.append(name)
    if odd:
        raise WrongRequest(
            f"{folder}/sartor.json is not as Sartor writes it ({', '.join(dict.fromkeys(odd))})"
        )
    if entry["file"] not in entry["files"]:
        raise WrongRequest(f"{folder}/sartor.json names an artifact that its files do not list")


def fingerprints(folder: Path) -> np.ndarray:
    """Of the rows that chose and certified the artifact: [N] of uint32, sorted."""
    return np.asarray(np.load(find(folder) / "rows.npy", allow_pickle=False))


def holds(folder: Path) -> bool:
    """Whether a folder is a bundle or a run's (one that holds no model of another form)."""
    found = any((place / "sartor.json").is_file() for place in (folder, folder / "bundle"))
    others = (name for plugin in plugins("runtimes") for name in plugin.folders)
    return found or (folder.is_dir() and not any((folder / name).is_file() for name in others))


def find(folder: Path) -> Path:
    """The bundle's folder: `folder` itself or the `bundle` below a run's."""
    for place in (folder, folder / "bundle"):
        if (place / "sartor.json").is_file():
            return place
    raise WrongRequest(f"{folder} is no bundle: there is no sartor.json in it")


def _inside(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise WrongRequest(f"{folder}/sartor.json: the path {name!r} leads out of the bundle")
    path = folder / pure
    try:
        inside = not path.is_symlink() and folder.resolve() in path.resolve().parents
    except (OSError, ValueError):  # too long, or a null byte
        inside = False
    if not inside:
        raise WrongRequest(f"{folder}/sartor.json: the path {name!r} leads out of the bundle")
    return path


def open_model(folder: Path, entry: Mapping[str, Any] | None = None) -> Model:
    """The artifact of a checked bundle as a model at rest."""
    entry = read(folder) if entry is None else entry
    path = find(folder) / entry["file"]
    engine = runtime(entry["kind"])
    if getattr(engine, "runs_code", False):
        raise WrongRequest(f"{folder}: an artifact of kind {entry['kind']} would run code: refused")
    model = engine.open(path, signature_of(entry))
    _check_reads(engine, model, entry)
    return dataclasses.replace(model, settings=entry["settings"])


def _check_reads(engine: Runtime, model: Model, entry: Mapping[str, Any]) -> None:
    """Raises WrongRequest where the artifact would read a file that the bundle does not list.

    A runtime whose files may name others says which by `reads(model)`."""
    reads = getattr(engine, "reads", None)
    for name in reads(model) if reads is not None else ():
        listed = (PurePosixPath(entry["file"]).parent / name).as_posix()
        if listed not in entry["files"]:
            raise WrongRequest(
                f"{entry['file']} reads its weights from {name!r}, which is not among the files of "
                "the bundle"
            )


def signature_of(facts: Mapping[str, Any]) -> Signature:
    """The signature that `sartor.json` holds: a runtime that knows it need not read the file."""
    inputs, outputs = (
        tuple(Port(str(p["name"]), str(p["dtype"]), _shape(p["shape"])) for p in ports)
        for ports in (facts["signature"]["inputs"], facts["signature"]["outputs"])
    )
    return Signature(inputs, outputs)


def _shape(sizes: Any) -> tuple[int | None, ...]:
    return tuple(None if each is None else int(each) for each in sizes)


class Loaded:
    """A bundle that runs. A context manager; `close` frees the model."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.facts = read(folder)
        self.model = open_model(folder, self.facts)
        self.target = target_of(self.facts, threads)
        self.session: Session = runtime(self.model.kind).start(self.model, self.target)

    def predict(self, inputs: Any) -> dict[str, np.ndarray]:
        """Named arrays in, named arrays out. Where the model has one input, a single array (or a
        data frame) also goes in."""
        return dict(self.session(named(inputs, self.model.signature)))

    def close(self) -> None:
        self.session.__exit__(None, None, None)

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def target_of(facts: Mapping[str, Any], threads: int | None = None) -> Target:
    """Where the artifact is to run, with another ceiling of threads where one is given."""
    entry = facts["target"]
    threads = int(entry["threads"]) if threads is None else threads
    if threads < 1:
        raise WrongRequest(f"threads {threads}: write 1 or more")
    return Target(str(entry["device"]), threads, int(entry["batch"]), frozenset(entry["features"]))


def named(inputs: Any, signature: Signature) -> dict[str, np.ndarray]:
    """Inputs by name, cast where no value can change (int32 to int64, float64 to float32)."""
    names = [port.name for port in signature.inputs]
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise WrongRequest(f"the model has the inputs {', '.join(names)}: pass a mapping")
        inputs = {names[0]: inputs}
    wrong = sorted(set(inputs) ^ set(names))
    if wrong:
        raise WrongRequest(
            f"the inputs are {', '.join(names)}; got {', '.join(map(str, inputs)) or 'none'}"
        )
    arrays = {}
    for port in signature.inputs:
        array = _array(port.name, inputs[port.name])
        if str(array.dtype) != port.dtype and array.dtype.kind in "iuf" and port.dtype != "str":
            array = _cast(port, array)
        arrays[port.name] = array
    return arrays


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise WrongRequest(f"{name} is no array: its rows differ in length") from None


def _cast(port: Port, array: np.ndarray) -> np.ndarray:
    """The array in the port's type. Floats may lose digits; whole numbers keep their value."""
    wanted = np.dtype(port.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(wanted)
    exact = array.dtype.kind == "f" or np.array_equal(made.astype(array.dtype), array)
    if not np.can_cast(array.dtype, wanted, "same_kind") or not exact:
        raise WrongRequest(f"{port.name} takes {port.dtype}, which cannot hold the {array.dtype}")
    return made


def parity(folder: Path, facts: Mapping[str, Any], target: Target) -> float:
    """The largest difference of the artifact's answers here from those in the bundle, as a share
    of the outputs' spread; above PARITY_TOLERANCE the artifact does not run here as it did. NaN
    where the bundle holds no answers to compare with."""
    model = open_model(folder, facts)
    with np.load(find(folder) / "parity.npz", allow_pickle=False) as kept:
        inputs = {k[6:]: kept[k] for k in kept.files if k.startswith("input.")}
        outputs = {k[7:]: kept[k] for k in kept.files if k.startswith("output.")}
    if not outputs:
        return float("nan")
    with runtime(model.kind).start(model, target) as session:
        answers = session(inputs)
    worst = 0.0
    for name, expected in outputs.items():
        got = np.asarray(answers[name])
        if got.shape != expected.shape:
            return float("inf")
        if expected.dtype.kind in "fiub":
            got, expected = got.astype(float), expected.astype(float)
            worst = max(worst, gap(got, expected) / spread([expected]))
        elif not np.array_equal(got, expected):
            return float("inf")
    return worst
